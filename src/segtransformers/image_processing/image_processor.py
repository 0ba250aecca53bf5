# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The test-time transform of MMSegmentation 0.x, exactly, and label maps from logits.

Source: `Resize`, `ResizeToMultiple` and `Normalize` in `mmseg/datasets/pipelines/transforms.py`, and `rescale_size` in
`mmcv/image/geometric.py`; the arithmetic of `cv2.resize` (OpenCV, `modules/imgproc/src/resize.cpp`). transformers' own
processors differ: they floor where mmcv rounds (another size for two images in five), smooth before they shrink, and
resize label maps with another kind of nearest neighbour.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from ..remote_code import ProcessorCarriesItsCode

SMALLEST_SIDE = 32  # of an image that every model takes
# options of transformers' processors that make no sense here, and the one value that they may have
FIXED = {
    "resample": PILImageResampling.BILINEAR,
    "data_format": ChannelDimension.FIRST,
    "do_center_crop": False,
    "do_pad": False,
}
BAND_BYTES = 1 << 23  # of resized logits at once in the post-processing: what stays in a cache is fastest


class SegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*):
        Whether label 0 means "no class": it becomes 255 and all others go down by one (255 stays).
    size_divisor (`int`, *optional*):
        After the resize, stretch both sides to the next multiple of this. 0 and None leave them.
    multi_scale (`dict`, *optional*):
        The multi-scale protocol, of which `inference.segment_image` makes use: `scales`, factors on `size`; `flip`,
        whether mirror images are averaged, too; `size_divisor`, as above; `shortest_edge_at_least`, in pixels, which
        the short side never falls below, while the long side has no limit (`SETR_Resize`); `pad_shortest_edge`, in
        pixels, up to which shorter sides are padded with black (`PadShortSide`). None where a step is left out.
    """

    do_reduce_labels: bool
    size_divisor: int | None
    multi_scale: dict[str, Any] | None


def keep_ratio_size(height: int, width: int, short_limit: float, long_limit: float) -> tuple[int, int]:
    """The largest (height, width) of the same aspect ratio within limits on the short and the long side, rounded as
    mmcv does it."""
    factor = min(long_limit / max(height, width), short_limit / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize_image(
    image: torch.Tensor, size: tuple[int, int], window: tuple[slice, slice] = (slice(None), slice(None))
) -> torch.Tensor:
    """Bilinear without smoothing. For uint8 the result is that of `cv2.resize`, bit by bit.

    OpenCV weighs in fixed point: weights have 11 bits, rows drop 4 bits before the vertical pass and 18 after it.

    Args:
        image: `(channels, height, width)`.
        size: the new (height, width).
        window: rows and columns of the result that are wanted; for uint8 the others are not computed.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image[:, window[0], window[1]]
    if image.dtype != torch.uint8:
        resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        return resized[:, window[0], window[1]]
    columns = _fixed_point_taps(image.shape[2], size[1], image.device, whole_edges=True)
    left, right, left_weight, right_weight = (taps[window[1]] for taps in columns)
    above, below, above_weight, below_weight = (
        taps[window[0]] for taps in _fixed_point_taps(image.shape[1], size[0], image.device)
    )
    first = int(above[0])  # rows above are not needed, nor are those below the last
    image = image[:, first : int(below[-1]) + 1]
    rows = image.index_select(2, left).int().mul_(left_weight)
    rows.add_(image.index_select(2, right).int().mul_(right_weight)).bitwise_right_shift_(4)
    top = rows.index_select(1, above - first).mul_(above_weight[:, None]).bitwise_right_shift_(16)
    bottom = rows.index_select(1, below - first).mul_(below_weight[:, None]).bitwise_right_shift_(16)
    return top.add_(bottom).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def _fixed_point_taps(old: int, new: int, device: torch.device, whole_edges: bool = False) -> tuple[torch.Tensor, ...]:
    """Both neighbours of every new pixel along one side, and their weights in 1/2048.

    Args:
        whole_edges: whether a pixel beyond the first or last centre takes the whole weight of it; OpenCV does so for
            columns, while rows beyond the edge are the edge row twice.
    """
    place = ((torch.arange(new, dtype=torch.float64, device=device) + 0.5) * (old / new) - 0.5).float()
    first = place.floor()
    share = place - first
    index = first.long()
    if whole_edges:
        share = torch.where((index < 0) | (index >= old - 1), 0.0, share)
    weights = ((1 - share) * 2048).round().int(), (share * 2048).round().int()
    return index.clamp(0, old - 1), (index + 1).clamp(0, old - 1), *weights


def usual_image(image: Any, channels_last: bool = False) -> Any:
    """An image in a form that transformers takes and with the colours that the originals see.

    16 bits become 8, transparency is dropped as OpenCV drops it, and arrays `(h, w)` get a channel. Lists are gone
    through; whatever else comes is returned as it is.

    Args:
        channels_last: where arrays `(h, w)` get their channel.

    Raises:
        ValueError: for PIL images of floating-point numbers, whose range nobody knows, and for empty ones.
    """
    if isinstance(image, list | tuple):
        return [usual_image(item, channels_last) for item in image]
    if isinstance(image, PIL.Image.Image):
        if image.mode == "F":
            raise ValueError("a picture of floating-point numbers (mode F) has no known range: convert it to 8 bits")
        if not image.mode.startswith("I"):
            return image.convert("RGB")
        values = np.asarray(image).clip(0, 65535)
        image = values.astype(np.uint16 if "16" in image.mode or values.max(initial=0) > 255 else np.uint8)
    elif isinstance(image, torch.Tensor) and image.dtype == torch.uint16:
        image = image.numpy()
    if not isinstance(image, np.ndarray | torch.Tensor):
        return image
    if 0 in image.shape:
        raise ValueError(f"an image has no pixels: its shape is {tuple(image.shape)}")
    if isinstance(image, np.ndarray) and image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.ndim == 2:
        return image[..., None] if channels_last else image[None]
    if image.ndim == 3 and 4 in (image.shape[0], image.shape[-1]) and 3 not in (image.shape[0], image.shape[-1]):
        return image[..., :3] if image.shape[-1] == 4 else image[:3]
    return image


def resize_labels(
    labels: torch.Tensor, size: tuple[int, int], window: tuple[slice, slice] = (slice(None), slice(None))
) -> torch.Tensor:
    """Nearest neighbour as `cv2.resize` has it, for label maps `(1, height, width)`; `window` as for `resize_image`."""
    rows = torch.arange(size[0], device=labels.device)[window[0]] * labels.shape[1] // size[0]
    columns = torch.arange(size[1], device=labels.device)[window[1]] * labels.shape[2] // size[1]
    return labels.index_select(1, rows).index_select(2, columns)


class _SegmentationProcessing(ProcessorCarriesItsCode):
    """What the two backends share: everything but how an image becomes an array."""

    valid_kwargs = SegmentationImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 512, "longest_edge": 2048}
    size_divisor = 32
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_reduce_labels = False
    # what the originals' test.py --aug-test does
    multi_scale = {
        "scales": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
        "flip": True,
        "size_divisor": 32,
        "shortest_edge_at_least": None,
        "pad_shortest_edge": None,
    }

    def __init__(self, **kwargs: Unpack[SegmentationImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SegmentationImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list: PIL, numpy or torch, any mode; it is converted to RGB.
            segmentation_maps: label maps of the same sizes, single-channel.

        Returns:
            `pixel_values` `(B, 3, H, W)` float32 and, with label maps, `labels` `(B, H, W)` int64.

        Raises:
            ValueError: if there is no image, images and label maps do not fit each other, or images of different sizes
                shall become one tensor.
        """
        if isinstance(images, list | tuple) and not images:
            raise ValueError("images is empty: pass at least one image")
        for name, only in FIXED.items():
            value = kwargs.get(name, only)
            if value is not None and value != only:
                raise ValueError(f"{name}={value!r} is not supported: the originals have nothing of the kind")
        divisor = kwargs.get("size_divisor", self.size_divisor)
        if divisor is not None and divisor < 0:
            raise ValueError(f"size_divisor must not be negative, got {divisor}")
        return super().preprocess(images, segmentation_maps, **kwargs)  # type: ignore[misc]

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        do_convert_rgb: bool,
        input_data_format: ChannelDimension | None,
        return_tensors: str | None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        options = {"input_data_format": input_data_format, "device": device}
        prepare = self._prepare_image_like_inputs  # type: ignore[attr-defined]
        if do_convert_rgb:
            images = usual_image(images, channels_last=input_data_format == ChannelDimension.LAST)
        prepared = [torch.as_tensor(image) for image in prepare(images, do_convert_rgb=do_convert_rgb, **options)]
        data: dict[str, list[Any]] = {"pixel_values": [self._preprocess_one(image, **kwargs) for image in prepared]}
        if segmentation_maps is not None:
            maps = prepare(segmentation_maps, expected_ndims=2, do_convert_rgb=False, input_data_format=None)
            data["labels"] = self._preprocess_labels([torch.as_tensor(map_) for map_ in maps], prepared, **kwargs)
        if return_tensors is not None:
            sizes = sorted({tuple(image.shape[1:]) for image in data["pixel_values"]})
            if len(sizes) > 1:
                raise ValueError(
                    f"these images have {len(sizes)} different sizes after resizing, among them {sizes[:3]}, and "
                    "cannot become one tensor: pass them one by one, or a fixed size={'height': ..., 'width': ...}"
                )
        if self.backend == "pil" and return_tensors is None:  # type: ignore[attr-defined]
            data = {key: [tensor.numpy() for tensor in tensors] for key, tensors in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess_one(
        self,
        image: torch.Tensor,
        do_resize: bool,
        size: SizeDict,
        size_divisor: int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        **kwargs: Any,
    ) -> torch.Tensor:
        if do_resize:
            for target in self._target_sizes(image.shape[1], image.shape[2], size, size_divisor):
                image = resize_image(image, target)
        if do_normalize:
            mean, std = torch.tensor(image_mean, dtype=torch.float64), torch.tensor(image_std, dtype=torch.float64)
            if do_rescale:  # both steps at once: the originals' mean and deviation are in grey levels
                mean, std = mean / rescale_factor, std / rescale_factor
            mean, std = (value.to(image.device, torch.float32).view(-1, 1, 1) for value in (mean, std))
            return (image.float() - mean) / std
        return image.float() * rescale_factor if do_rescale else image.float()

    def _preprocess_labels(
        self,
        maps: list[torch.Tensor],
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        size_divisor: int | None,
        do_reduce_labels: bool,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        if len(maps) != len(images):
            raise ValueError(f"got {len(images)} images but {len(maps)} segmentation_maps")
        labels = []
        for map_, image in zip(maps, images, strict=True):
            if map_.shape != (1, *image.shape[1:]):
                raise ValueError(
                    f"a segmentation map must hold one class index for each pixel of its image, (1, {image.shape[1]}, "
                    f"{image.shape[2]}), got {tuple(map_.shape)}"
                )
            if map_.is_floating_point() or (map_ < 0).any():
                raise ValueError("a segmentation map must hold class indices: whole numbers from 0 on")
            map_ = map_.long()
            if do_resize:
                for target in self._target_sizes(image.shape[1], image.shape[2], size, size_divisor):
                    map_ = resize_labels(map_, target)
            if do_reduce_labels:
                map_ = torch.where((map_ == 0) | (map_ == 255), 255, map_ - 1)
            labels.append(map_[0])
        return labels

    @staticmethod
    def _target_sizes(height: int, width: int, size: SizeDict, size_divisor: int | None) -> list[tuple[int, int]]:
        """The (height, width) after each resize: the original resizes twice, and rounds to whole grey levels twice."""
        if size.height and size.width:
            return [(size.height, size.width)]
        if not size.shortest_edge:
            raise ValueError(
                "size must hold 'shortest_edge' and perhaps 'longest_edge', or 'height' and 'width', got "
                f"{ {key: value for key, value in dict(size).items() if value} }"
            )
        long_limit = size.longest_edge or math.inf
        new_height, new_width = keep_ratio_size(height, width, size.shortest_edge, long_limit)
        first = (max(new_height, 1), max(new_width, 1))
        divisor = size_divisor or 1
        second = (
            -(-max(first[0], SMALLEST_SIDE) // divisor) * divisor,
            -(-max(first[1], SMALLEST_SIDE) // divisor) * divisor,
        )
        return [first] if first == second else [first, second]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Any = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Label maps from a model's `logits`, resized bilinearly to the sizes asked for.

        The resized logits of a large photo would take gigabytes, so they are made and looked at in bands of rows.

        Args:
            outputs: anything with `logits` `(B, num_labels, h, w)`.
            target_sizes: (height, width) for each image, for instance those of the original photos. None keeps (h, w).
            return_segmentation_scores: also return the resized logits (all of them, in full size).

        Returns:
            for each image an int64 tensor (height, width) of class indices, or with scores an output that holds it
            as `segmentation` beside `segmentation_scores` `(num_labels, height, width)`.

        Raises:
            ValueError: if the number of sizes is not the number of images, or one is no (height, width).
        """
        logits = outputs.logits
        sizes = _sizes(target_sizes, len(logits), (logits.shape[2], logits.shape[3]))
        if return_segmentation_scores:
            scores = [
                F.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0]
                for one, size in zip(logits, sizes, strict=True)
            ]
            return [
                SemanticSegmentationPostProcessorOutput(
                    data={"segmentation": one.argmax(dim=0), "segmentation_scores": one}
                )
                for one in scores
            ]
        return [argmax_resized(one, size) for one, size in zip(logits, sizes, strict=True)]


def _sizes(target_sizes: Any, count: int, default: tuple[int, int]) -> list[tuple[int, int]]:
    if target_sizes is None:
        return [default] * count
    if isinstance(target_sizes, torch.Tensor):
        target_sizes = target_sizes.tolist()
    sizes = []
    for size in target_sizes:
        if isinstance(size, list | tuple) and len(size) == 1:
            (size,) = size  # transformers' pipeline nests them once more when it runs in batches
        if not isinstance(size, list | tuple) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"target_sizes must hold (height, width) in pixels for each image, got {size!r}")
        sizes.append((int(size[0]), int(size[1])))
    if len(sizes) != count:
        raise ValueError(f"got {len(sizes)} target_sizes for {count} images: one (height, width) is needed for each")
    return sizes


def argmax_resized(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The argmax over classes of bilinearly resized logits (align_corners False), without ever holding them all.

    Args:
        logits: `(num_labels, h, w)`.
        size: (height, width) of the result.

    Returns:
        int64 `(height, width)`.
    """
    result = torch.empty(size, dtype=torch.long, device=logits.device)
    resized = ResizedRows(iter([logits]), logits.shape[1], size)
    for rows in resized.slices():
        result[rows] = resized.take(rows).argmax(dim=0)
    return result


class ResizedRows:
    """Maps of which bands of rows come one after the other, resized bilinearly (align_corners False) band by band.

    Args:
        bands: `(channels, rows, w)`, from top to bottom.
        height: how many rows they have together.
        size: (height, width) to resize to.
    """

    def __init__(self, bands: Iterator[torch.Tensor], height: int, size: tuple[int, int]):
        self.bands, self.height, self.size = bands, height, size
        self.pending = next(bands)  # rows from self.first on
        self.first = 0
        dtype = torch.promote_types(self.pending.dtype, torch.float32)
        # source row of each target row, as F.interpolate computes it
        target = torch.arange(size[0], dtype=dtype, device=self.pending.device)
        source = ((target + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
        self.above = source.long().clamp(max=height - 1)
        self.below = (self.above + 1).clamp(max=height - 1)
        self.weight = (source - self.above).view(-1, 1)

    def slices(self) -> Iterator[slice]:
        """Rows of the result that are made at once."""
        row_bytes = len(self.pending) * self.size[1] * max(self.pending.element_size(), 4)
        step = max(BAND_BYTES // row_bytes, 1)
        for start in range(0, self.size[0], step):
            yield slice(start, min(start + step, self.size[0]))

    def take(self, rows: slice) -> torch.Tensor:
        """`(channels, rows, width)`, float32 or wider. Rows have to be asked for from top to bottom."""
        first, last = int(self.above[rows.start]), int(self.below[rows.stop - 1])
        while self.first + self.pending.shape[1] <= last:
            kept = self.pending[:, max(first - self.first, 0) :]
            self.first += self.pending.shape[1] - kept.shape[1]
            self.pending = torch.cat([kept, next(self.bands)], dim=1)
        needed = self.pending[:, first - self.first : last + 1 - self.first].to(self.weight.dtype)
        if (self.height, needed.shape[2]) == self.size:
            return needed[:, : rows.stop - rows.start]
        size = (needed.shape[1], self.size[1])
        wide = F.interpolate(needed[None], size=size, mode="bilinear", align_corners=False)[0]
        return torch.lerp(wide[:, self.above[rows] - first], wide[:, self.below[rows] - first], self.weight[rows])


class SegmentationImageProcessor(_SegmentationProcessing, TorchvisionBackend):  # type: ignore[misc]
    r"""
    The image processor of all our models. One image gives one image: the short side becomes `size["shortest_edge"]`
    unless the long side would exceed `size["longest_edge"]`; then both sides are stretched to multiples of
    `size_divisor`. With `size={"height": ..., "width": ...}` images get that size.

    Values are uint8 RGB until they are rescaled by `rescale_factor` and normalised by `image_mean` and `image_std`.
    """


class SegmentationImageProcessorPil(_SegmentationProcessing, PilBackend):  # type: ignore[misc]
    """[`SegmentationImageProcessor`] for numpy arrays, without torchvision; the numbers are the same."""


__all__ = ["SegmentationImageProcessor", "SegmentationImageProcessorPil"]
