# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The training pipeline of the originals: random scale, crop, mirror image, colours, normalisation, padding.

Source: `Resize`, `RandomCrop`, `RandomFlip`, `PhotoMetricDistortion`, `Normalize` and `Pad` in
`mmseg/datasets/pipelines/transforms.py` of MMSegmentation 0.x. All of them draw the same random numbers from the same
distributions here, and compute the same pixels; but only the crop is ever resized, and not the whole picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as TF

from ..image_processing import as_8bit_image, keep_ratio_size, resize_image, resize_labels
from .color import HUES, hsv_to_rgb, rgb_to_hsv
from .recipes import AugmentationSettings, Recipe

CROP_TRIALS = 10
IGNORED = 255


class PhotometricDistortion:
    """Brightness, contrast, saturation and hue of a picture, each changed or not with equal chance.

    Contrast comes before or after saturation and hue, also with equal chance. After each step values are cut to whole
    numbers from 0 to 255, as the original does on its pictures of bytes.

    Args:
        brightness_delta: largest change, in grey levels.
        contrast_range, saturation_range: of the factors.
        hue_delta: largest change, in steps of two degrees.
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: int = 18,
    ):
        self.brightness_delta = brightness_delta
        self.contrast_range, self.saturation_range, self.hue_delta = contrast_range, saturation_range, hue_delta

    def __call__(self, image: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """
        Args:
            image: uint8 `(3, H, W)`, red, green and blue.
        """
        if _coin(generator):
            image = _scaled(image, 1.0, _uniform(-self.brightness_delta, self.brightness_delta, generator))
        contrast_first = _coin(generator)
        if contrast_first and _coin(generator):
            image = _scaled(image, _uniform(*self.contrast_range, generator))
        if _coin(generator):
            hue, saturation, value = rgb_to_hsv(image)
            image = hsv_to_rgb(hue, _scaled(saturation, _uniform(*self.saturation_range, generator)), value)
        if _coin(generator):
            hue, saturation, value = rgb_to_hsv(image)
            shift = _whole_number(-self.hue_delta, self.hue_delta, generator)
            image = hsv_to_rgb((hue.short() + shift) % HUES, saturation, value)
        if not contrast_first and _coin(generator):
            image = _scaled(image, _uniform(*self.contrast_range, generator))
        return image


class TrainingAugmentation:
    """From a picture and its label map to what a model is trained on.

    Random numbers come from torch's global generator, which a `DataLoader` seeds for each worker and epoch; or from a
    seed given with each picture, such as (seed of the run, epoch, index), so that nothing depends on workers.

    Args:
        shortest_edge, longest_edge, ratio_range, crop_size, cat_max_ratio, flip_probability: see
            [`AugmentationSettings`].
        photometric_distortion: what changes the colours, or None.
        image_mean, image_std: of red, green and blue in 0..1, for the normalisation.
        reduce_labels: whether label 0 means "no class": it becomes 255, and the others go down by one.
    """

    def __init__(
        self,
        shortest_edge: int = 512,
        longest_edge: int = 2048,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        crop_size: tuple[int, int] = (512, 512),
        cat_max_ratio: float = 0.75,
        flip_probability: float = 0.5,
        photometric_distortion: PhotometricDistortion | None = None,
        image_mean: Sequence[float] = AugmentationSettings.image_mean,
        image_std: Sequence[float] = AugmentationSettings.image_std,
        reduce_labels: bool = False,
    ):
        self.shortest_edge, self.longest_edge, self.ratio_range = shortest_edge, longest_edge, ratio_range
        self.crop_size, self.cat_max_ratio = crop_size, cat_max_ratio
        self.flip_probability = flip_probability
        self.photometric_distortion = photometric_distortion
        self.mean = 255 * torch.tensor(image_mean, dtype=torch.float64)
        self.std = 255 * torch.tensor(image_std, dtype=torch.float64)
        self.reduce_labels = reduce_labels

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        processor: Any = None,
        *,
        crop_size: tuple[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> "TrainingAugmentation":
        """What a recipe says.

        Args:
            processor: the model's image processor, which knows mean and deviation better than the recipe.
            crop_size: another (height, width); the size of pictures before the crop changes with it.
            reduce_labels: for label maps as they are in the files of some data sets. [`SegmentationDataset`] gives
                class indices already.
        """
        settings = recipe.augmentation
        crop = settings.crop_size if crop_size is None else crop_size
        scale = min(crop) / min(settings.crop_size)
        known = settings if processor is None else processor
        return cls(
            shortest_edge=round(settings.shortest_edge * scale),
            longest_edge=round(settings.longest_edge * scale),
            ratio_range=settings.ratio_range,
            crop_size=crop,
            cat_max_ratio=settings.cat_max_ratio,
            flip_probability=settings.flip_probability,
            photometric_distortion=PhotometricDistortion() if settings.photometric_distortion else None,
            image_mean=known.image_mean,
            image_std=known.image_std,
            reduce_labels=reduce_labels,
        )

    def __call__(self, image: Any, labels: Any, seed: int | Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """
        Args:
            image: a picture (any mode of PIL), or bytes `(3, H, W)` or `(H, W, 3)`.
            labels: its label map `(H, W)`: a picture, an array or a tensor of class indices.
            seed: of the random numbers: one number or several, from 0 on. None draws from torch's global generator.

        Returns:
            `pixel_values`, float32 `(3, *crop_size)`, and `labels`, int64 `crop_size`.

        Raises:
            ValueError: if the two do not fit each other.
        """
        generator = None if seed is None else _generator(seed)
        pixels, classes = _as_pixels(image), _as_classes(labels)
        if classes.shape[1:] != pixels.shape[1:]:
            raise ValueError(
                f"a label map must hold one class for each pixel of its picture, {tuple(pixels.shape[1:])}, got "
                f"{tuple(classes.shape[1:])}"
            )
        size = self._scaled_size(pixels.shape[1], pixels.shape[2], generator)
        window, crop = self._crop(classes, size, generator)
        pixels = resize_image(pixels, size, window)
        if float(torch.rand((), generator=generator, dtype=torch.float64)) < self.flip_probability:
            pixels, crop = TF.horizontal_flip(pixels), TF.horizontal_flip(crop)
        if self.photometric_distortion is not None:
            pixels = self.photometric_distortion(pixels, generator)
        values = (pixels.float() - self.mean.float()[:, None, None]) / self.std.float()[:, None, None]
        below, right = self.crop_size[0] - crop.shape[1], self.crop_size[1] - crop.shape[2]
        if below or right:
            values = TF.pad(values, [0, 0, right, below], fill=0)
            crop = TF.pad(crop, [0, 0, right, below], fill=IGNORED)
        return {"pixel_values": values.contiguous(), "labels": crop[0].long().contiguous()}

    def _scaled_size(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int]:
        ratio = _uniform(*self.ratio_range, generator)
        new_height, new_width = keep_ratio_size(
            height, width, int(self.shortest_edge * ratio), int(self.longest_edge * ratio)
        )
        return max(new_height, 1), max(new_width, 1)

    def _crop(
        self, labels: torch.Tensor, size: tuple[int, int], generator: torch.Generator | None
    ) -> tuple[tuple[slice, slice], torch.Tensor]:
        """Rows and columns of the resized picture, and the labels there."""
        for trial in range(CROP_TRIALS + 1):
            top, left = (
                _whole_number(0, max(side - crop, 0) + 1, generator)
                for side, crop in zip(size, self.crop_size, strict=True)
            )
            window = slice(top, top + self.crop_size[0]), slice(left, left + self.crop_size[1])
            crop = self._reduced(resize_labels(labels, size, window))
            if self.cat_max_ratio >= 1 or trial == CROP_TRIALS or self._is_varied(crop):
                break
        return window, crop

    def _reduced(self, labels: torch.Tensor) -> torch.Tensor:
        if not self.reduce_labels:
            return labels
        return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)

    def _is_varied(self, labels: torch.Tensor) -> bool:
        counts = torch.bincount(labels.flatten())
        if len(counts) > IGNORED:
            counts[IGNORED] = 0
        return float(counts.max() / counts.sum()) < self.cat_max_ratio


def _generator(seed: int | Sequence[int]) -> torch.Generator:
    low, high = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(high) << 32 | int(low))


def _as_pixels(image: Any) -> torch.Tensor:
    image = as_8bit_image(image)
    if isinstance(image, PIL.Image.Image):
        return TF.pil_to_tensor(image)
    pixels = _as_tensor(image)
    if pixels.dim() == 3 and pixels.shape[0] != 3 and pixels.shape[2] == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.dim() == 3 and pixels.shape[0] == 1:
        pixels = pixels.expand(3, -1, -1)
    if pixels.dim() != 3 or pixels.shape[0] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"a picture must be bytes (3, height, width), got {pixels.dtype} {tuple(pixels.shape)}")
    return pixels


def _as_tensor(values: Any) -> torch.Tensor:
    if isinstance(values, PIL.Image.Image) or (isinstance(values, np.ndarray) and not values.flags.writeable):
        values = np.array(values)  # torch warns of memory that must not be written to
    return torch.as_tensor(values)


def _as_classes(labels: Any) -> torch.Tensor:
    classes = _as_tensor(labels)
    if classes.dim() == 3 and classes.shape[0] == 1:
        classes = classes[0]
    if classes.dim() != 2 or classes.is_floating_point():
        raise ValueError(
            f"a label map must be whole numbers (height, width), got {classes.dtype} {tuple(classes.shape)}"
        )
    return classes[None] if classes.dtype == torch.uint8 else classes[None].int()


def _coin(generator: torch.Generator | None) -> bool:
    return bool(torch.randint(2, (), generator=generator))


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _whole_number(low: int, high: int, generator: torch.Generator | None) -> int:
    """From `low` to `high - 1`, as numpy has it."""
    return int(torch.randint(low, high, (), generator=generator))


def _scaled(levels: torch.Tensor, factor: float, offset: float = 0.0) -> torch.Tensor:
    """Levels times a factor plus an offset, cut to whole numbers from 0 to 255."""
    return levels.float().mul_(factor).add_(offset).clamp_(0, 255).to(torch.uint8)


__all__ = ["PhotometricDistortion", "TrainingAugmentation"]
