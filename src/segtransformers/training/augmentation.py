# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The original training augmentation: random scale, crop, flip, colours, normalisation and padding.

Source: `Resize`, `RandomCrop`, `RandomFlip`, `PhotoMetricDistortion`, `Normalize` and `Pad` in
`mmseg/datasets/pipelines/transforms.py` of MMSegmentation 0.x, and `RandomChoiceResize` of mmcv 2. Random numbers have
the same distributions and the pixels are the same. For speed, only the crop is resized instead of the whole image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as TF

from ..image_processing import as_8bit_image, keep_ratio_size, processor_bands, resize_image, resize_labels
from ..image_processing.options import LARGEST_ENLARGEMENT
from ..rasters.band_image import BandImage, as_band_image, filled
from ..whole_numbers import LARGEST_SIDE
from .color import HUES, hsv_to_rgb, rgb_to_hsv
from .recipe_settings import AugmentationSettings
from .recipes import Recipe

CROP_TRIALS = 10
IGNORE_INDEX = 255


class PhotometricDistortion:
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast changes before saturation and hue with probability 1/2, and after them otherwise. Each step truncates to
    integers from 0 to 255, as the original does with 8-bit images.

    Args:
        brightness_delta: largest change in grey levels.
        contrast_range, saturation_range: (lowest, highest) factor.
        hue_delta: largest change in steps of two degrees.
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
            shift = _integer(-self.hue_delta, self.hue_delta, generator)
            image = hsv_to_rgb((hue.short() + shift) % HUES, saturation, value)
        if not contrast_first and _coin(generator):
            image = _scaled(image, _uniform(*self.contrast_range, generator))
        return image


class TrainingAugmentation:
    """Turn an image and its label map into a training sample of fixed size.

    Random numbers come from a seed per image, such as (seed of the run, epoch, index), which makes samples independent
    of the number of workers. Without a seed they come from torch's global generator, which a `DataLoader` seeds for
    each worker and epoch.

    Args:
        shortest_edge, longest_edge, ratio_range, shortest_edges, crop_size, cat_max_ratio, flip_probability: see
            [`AugmentationSettings`].
        photometric_distortion: a function that changes the colours, or None.
        image_mean, image_std: of red, green and blue, or of each band, divided by `unit`, for the normalisation.
        unit: largest value of the images, which stands for 1.0.
        colour_channels: positions of red, green and blue in a [`~rasters.BandImage`], whose colours alone are changed.
            None changes no band.
        reduce_labels: whether label 0 means "no class". Then 0 becomes 255, and every other label goes down by one.
        multi_label: whether labels are masks of the classes instead of a label map.

    Raises:
        ValueError: if crops or images would have more pixels than memory usually holds.
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
        shortest_edges: Sequence[int] = (),
        multi_label: bool = False,
        unit: float = 255,
        colour_channels: Sequence[int] | None = None,
    ):
        if crop_size[0] * crop_size[1] > LARGEST_ENLARGEMENT:
            raise ValueError(
                f"crop_size must be at most {LARGEST_ENLARGEMENT // 10**6} million pixels, got {crop_size[0]} x "
                f"{crop_size[1]}"
            )
        largest = max(shortest_edge, *shortest_edges) if shortest_edges else shortest_edge
        if largest * ratio_range[1] > LARGEST_SIDE:
            raise ValueError(
                f"shortest_edge times ratio_range must be at most {LARGEST_SIDE} pixels, got {largest} times "
                f"{ratio_range[1]:g}"
            )
        self.shortest_edges = tuple(shortest_edges)
        self.shortest_edge, self.longest_edge, self.ratio_range = shortest_edge, longest_edge, ratio_range
        self.crop_size, self.cat_max_ratio = crop_size, cat_max_ratio
        self.flip_probability = flip_probability
        self.photometric_distortion = photometric_distortion
        self.mean = unit * torch.tensor(image_mean, dtype=torch.float64)
        self.std = unit * torch.tensor(image_std, dtype=torch.float64)
        self.colour_channels = None if colour_channels is None else list(colour_channels)
        self.reduce_labels, self.multi_label = reduce_labels, multi_label

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        processor: Any = None,
        *,
        crop_size: tuple[int, int] | None = None,
        reduce_labels: bool = False,
        multi_label: bool = False,
        colour_channels: Sequence[int] | None = None,
    ) -> "TrainingAugmentation":
        """Create the augmentation of a recipe.

        Args:
            recipe: its `augmentation` is read.
            processor: the model's image processor. Its mean and standard deviation replace those of the recipe, and
                with `bands`, its `rescale_factor` is the unit of the values.
            crop_size: (height, width) in place of the recipe's. The image size before the crop is scaled along.
            reduce_labels: True for label maps that number classes from 1, as the files of some data sets do.
                [`SegmentationDataset`] returns class indices from 0.
            multi_label: whether labels are masks of the classes (`SegmentationDataset.multi_label`).
            colour_channels: see above.
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
            multi_label=multi_label,
            shortest_edges=[round(edge * scale) for edge in settings.shortest_edges],
            unit=255 if processor_bands(processor) is None else 1 / processor.rescale_factor,
            colour_channels=colour_channels,
        )

    def __call__(self, image: Any, labels: Any, seed: int | Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """
        Args:
            image: a PIL image of any mode, uint8 `(3, H, W)` or `(H, W, 3)`, or a [`~rasters.BandImage`]. Pixels of the
                last without data become the mean and have no class.
            labels: its label map `(H, W)` of class indices: a PIL image, an array or a tensor. With `multi_label` masks
                `(num_labels, H, W)` of 0, 1, and 255 for pixels of a class that do not count.
            seed: one or several non-negative integers. None uses torch's global generator.

        Returns:
            `pixel_values`, float32 `(channels, *crop_size)`, and `labels`, int64 `crop_size`, or uint8 `(num_labels,
            *crop_size)` with `multi_label`.


        Raises:
            ValueError: if the image or the label map has another type, or their sizes differ.
        """
        generator = None if seed is None else _generator(seed)
        valid = None
        if isinstance(image, BandImage):
            pixels, valid = self._band_pixels(image)
        else:
            pixels = _as_pixels(image)
        classes = _as_masks(labels) if self.multi_label else _as_classes(labels)
        if classes.shape[1:] != pixels.shape[1:]:
            raise ValueError(
                f"the label map must have the size of its image, {tuple(pixels.shape[1:])}, got "
                f"{tuple(classes.shape[1:])}"
            )
        size = self._scaled_size(pixels.shape[1], pixels.shape[2], generator)
        window, crop = self._crop(classes, size, generator)
        pixels = resize_image(pixels, size, window)
        if valid is not None:
            valid = resize_labels(valid, size, window)
        if float(torch.rand((), generator=generator, dtype=torch.float64)) < self.flip_probability:
            pixels, crop = TF.horizontal_flip(pixels), TF.horizontal_flip(crop)
            valid = None if valid is None else TF.horizontal_flip(valid)
        if self.photometric_distortion is not None:
            if not isinstance(image, BandImage):
                pixels = self.photometric_distortion(pixels, generator)
            elif self.colour_channels is not None:
                pixels = self._with_other_colours(pixels, self.photometric_distortion, generator)
        values = (pixels.float() - self.mean.float()[:, None, None]) / self.std.float()[:, None, None]
        if valid is not None:
            values = torch.where(valid, values, 0.0)
            crop = torch.where(valid, crop, IGNORE_INDEX)
        below, right = self.crop_size[0] - crop.shape[1], self.crop_size[1] - crop.shape[2]
        if below or right:
            values = TF.pad(values, [0, 0, right, below], fill=0)
            crop = TF.pad(crop, [0, 0, right, below], fill=IGNORE_INDEX)
        labels = crop if self.multi_label else crop[0].long()
        return {"pixel_values": values.contiguous(), "labels": labels.contiguous()}

    def _band_pixels(self, image: BandImage) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the values `(bands, H, W)`, uint8 or float32, and which pixels `(1, H, W)` hold data, if not all."""
        image = as_band_image(image, len(self.mean))
        values = filled(image, self.mean.tolist())
        if values.dtype != np.uint8:
            values = values.astype(np.float32)
        return _as_tensor(values), None if image.valid is None else torch.from_numpy(image.valid)[None]

    def _with_other_colours(
        self, pixels: torch.Tensor, distort: PhotometricDistortion, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Change the colours of a `(bands, H, W)` image by what the distortion changes in 8 bits.

        Values of other types are brought to 0..255 by the range of two deviations around the means of the colours, and
        only the changes are brought back, so that no digits are lost.
        """
        colours = pixels[self.colour_channels]
        if pixels.dtype == torch.uint8:
            changed = distort(colours, generator)
        else:
            mean, std = self.mean[self.colour_channels], self.std[self.colour_channels]
            low, high = float((mean - 2 * std).min()), float((mean + 2 * std).max())
            levels = _scaled(colours, 255 / (high - low), -low * 255 / (high - low))
            difference = distort(levels, generator).float() - levels.float()
            changed = colours + difference * ((high - low) / 255)
        pixels = pixels.clone()
        pixels[self.colour_channels] = changed
        return pixels

    def _scaled_size(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int]:
        if self.shortest_edges:
            shortest, longest = self.shortest_edges[_integer(0, len(self.shortest_edges), generator)], self.longest_edge
        else:
            ratio = _uniform(*self.ratio_range, generator)
            shortest, longest = int(self.shortest_edge * ratio), int(self.longest_edge * ratio)
        new_height, new_width = keep_ratio_size(height, width, shortest, longest)
        return max(new_height, 1), max(new_width, 1)

    def _crop(
        self, labels: torch.Tensor, size: tuple[int, int], generator: torch.Generator | None
    ) -> tuple[tuple[slice, slice], torch.Tensor]:
        """Return the rows and columns of the crop in the resized image, and the label map of the crop."""
        for trial in range(CROP_TRIALS + 1):
            top, left = (
                _integer(0, max(side - crop, 0) + 1, generator) for side, crop in zip(size, self.crop_size, strict=True)
            )
            window = slice(top, top + self.crop_size[0]), slice(left, left + self.crop_size[1])
            crop = self._reduced(resize_labels(labels, size, window))
            if self.cat_max_ratio >= 1 or trial == CROP_TRIALS or self._is_varied(crop):
                break
        return window, crop

    def _reduced(self, labels: torch.Tensor) -> torch.Tensor:
        if not self.reduce_labels:
            return labels
        return torch.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)

    def _is_varied(self, labels: torch.Tensor) -> bool:
        if self.multi_label:
            is_class, is_known = labels == 1, (labels != IGNORE_INDEX).any(0)
            without = (is_known & ~is_class.any(0)).sum()
            most = torch.maximum(is_class.sum((1, 2)).max(), without)
            return float(most / is_known.sum()) < self.cat_max_ratio
        counts = torch.bincount(labels.flatten())
        if len(counts) > IGNORE_INDEX:
            counts[IGNORE_INDEX] = 0
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
        raise ValueError(f"the image must be uint8 (3, height, width), got {pixels.dtype} {tuple(pixels.shape)}")
    return pixels


def _as_tensor(values: Any) -> torch.Tensor:
    if isinstance(values, PIL.Image.Image) or (isinstance(values, np.ndarray) and not values.flags.writeable):
        values = np.array(values)  # a copy, because torch warns about read-only memory
    return torch.as_tensor(values)


def _as_classes(labels: Any) -> torch.Tensor:
    classes = _as_tensor(labels)
    if classes.dim() == 3 and classes.shape[0] == 1:
        classes = classes[0]
    if classes.dim() != 2 or classes.is_floating_point():
        raise ValueError(f"the label map must be integers (height, width), got {classes.dtype} {tuple(classes.shape)}")
    return classes[None] if classes.dtype == torch.uint8 else classes[None].int()


def _as_masks(labels: Any) -> torch.Tensor:
    masks = _as_tensor(labels)
    if masks.dim() != 3 or masks.dtype not in (torch.uint8, torch.bool):
        raise ValueError(
            f"multi-label masks must be uint8 (num_labels, height, width), got {masks.dtype} {tuple(masks.shape)}"
        )
    return masks.to(torch.uint8)


def _coin(generator: torch.Generator | None) -> bool:
    return bool(torch.randint(2, (), generator=generator))


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(low: int, high: int, generator: torch.Generator | None) -> int:
    """Draw an integer from `low` to `high - 1`."""
    return int(torch.randint(low, high, (), generator=generator))


def _scaled(levels: torch.Tensor, factor: float, offset: float = 0.0) -> torch.Tensor:
    """Return levels times a factor plus an offset, truncated to integers from 0 to 255."""
    return levels.float().mul_(factor).add_(offset).clamp_(0, 255).to(torch.uint8)


__all__ = ["PhotometricDistortion", "TrainingAugmentation"]
