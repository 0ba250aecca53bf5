# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The image processors: the test-time transform of MMSegmentation 0.x, exactly, and label maps from a model's outputs.

Source: `Resize`, `ResizeToMultiple` and `Normalize` in `mmseg/datasets/pipelines/transforms.py`.
"""

import math
import os
from typing import Any

import numpy as np
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

from ..rasters.band_image import BandImage, as_band_image, filled, read_band_image
from ..remote_code import RemoteCodeMixin
from .decision import Decision
from .inputs import as_8bit_image, integer_label_map, load_image
from .label_maps import resized_labels
from .options import check_enlargement, check_options
from .resizing import keep_ratio_size, resize_image, resize_labels, resize_smoothly, shortest_edge_size
from .stock_processors import from_stock_processor

MIN_SIDE = 32  # pixels; models pad smaller images
IGNORE_INDEX = 255  # the label of pixels without a class
# options of transformers' processors that the original code lacks, with their only allowed value
FIXED_OPTIONS = {
    "resample": PILImageResampling.BILINEAR,
    "data_format": ChannelDimension.FIRST,
    "do_center_crop": False,
    "do_pad": False,
}


class SegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*):
        Whether label 0 means "no class" and classes start at 1. Then 0 becomes 255, 255 stays, and every other label
        goes down by one. Label 256 is refused, because it would become 255 and be ignored.
    size_divisor (`int`, *optional*):
        After the resize, stretch both sides to the next multiple of this number. 0 and None skip this step.
    resize_method (`str`, *optional*):
        Arithmetic of the resize of images: `"opencv"` as in MMSegmentation, or `"pillow"` as for DINOv3, which smooths
        an image before it shrinks. Label maps get nearest neighbours with both.
    multi_scale (`dict`, *optional*):
        The multi-scale protocol that `inference.segment_image` applies. None skips a step. `scales`: factors on `size`.
        `flip`: whether to average mirror images, too. `size_divisor`: as above. `shortest_edge_at_least`: minimum of
        the short side in pixels, without a limit on the long side (`SETR_Resize`). `pad_shortest_edge`: side in pixels
        to which shorter sides are padded with black (`PadShortSide`). `shrunk_edge_divisor`, which may be missing: for
        scales below 1, the short side is rounded up to a multiple of it (DINOv3).
    """

    do_reduce_labels: bool
    size_divisor: int | None
    resize_method: str
    multi_scale: dict[str, Any] | None
    bands: list[int] | None
    band_dtype: str | None


class _SegmentationProcessing(RemoteCodeMixin):
    """The steps that both backends share: all but the conversion of images to arrays."""

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
    resize_method = "opencv"
    bands: list[int] | None = None
    band_dtype: str | None = None
    # the protocol of the original test.py --aug-test
    multi_scale = {
        "scales": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
        "flip": True,
        "size_divisor": 32,
        "shortest_edge_at_least": None,
        "pad_shortest_edge": None,
    }

    def __init__(self, **kwargs: Unpack[SegmentationImageProcessorKwargs]):
        check_options(kwargs)  # before transformers reads them
        super().__init__(**kwargs)  # type: ignore[misc]
        names = ("do_convert_rgb", "image_mean", "image_std", "bands", "band_dtype")
        check_options({**{name: getattr(self, name) for name in names}, "size": dict(self.size or {})})

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any):
        """Read saved settings, also those of transformers' own processors for Segformer and Mask2Former."""
        return super().from_dict(from_stock_processor(image_processor_dict), **kwargs)  # type: ignore[misc]

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SegmentationImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list of images: PIL images of any mode, arrays, tensors, paths or addresses. They are
                converted to RGB; 16 bits are scaled to 8. Arrays of floating-point numbers may hold 0..255 or 0..1;
                with `do_rescale`, the second are not divided again. A processor with `bands` takes rasters instead:
                paths, [`~rasters.BandImage`]s, and arrays with the bands in its order. Pixels without data, NaN and
                infinity become the mean of each band.
            segmentation_maps: label maps of the same sizes with one channel and integers of any width. Label 255 means
                "no class": a model never learns a class with the index 255. With `bands`, pixels without data get it.

        Returns:
            `pixel_values` `(B, 3, H, W)` float32, or with as many channels as `bands`, and, with label maps, `labels`
            `(B, H, W)` int64.

        Raises:
            ValueError: if there is no image, if images and label maps do not match, if an option has a value that is
                not allowed, if an image would be enlarged to more than 67 million pixels, if images of different sizes
                would have to become one tensor, or if an image holds NaN, infinity or, with `do_rescale`, values
                outside 0..255.
        """
        if isinstance(images, list | tuple) and not images:
            raise ValueError("images is empty: pass at least one image")
        for name, only in FIXED_OPTIONS.items():
            value = kwargs.get(name, only)
            if value is not None and value != only:
                raise ValueError(f"{name}={value!r} is not supported: leave it out")
        check_options(kwargs)
        return super().preprocess(images, segmentation_maps, **kwargs)  # type: ignore[misc]

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load images named by paths or addresses. transformers' method would clip images of 16 bits."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(item) for item in image_url_or_urls]
        if self.bands is not None:
            return image_url_or_urls  # read later, as rasters
        if isinstance(image_url_or_urls, str):
            return load_image(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)  # type: ignore[misc]

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
        valid: list[np.ndarray | None] | None = None
        if kwargs.get("bands") is not None:
            read = [self._band_image(image, kwargs["bands"], kwargs["band_dtype"]) for image in _listed(images)]
            prepared = [_band_tensor(image, device, **kwargs) for image in read]
            valid = [image.valid for image in read]
        else:
            if do_convert_rgb:
                images = as_8bit_image(images, channels_last=input_data_format == ChannelDimension.LAST)
            prepared = [torch.as_tensor(image) for image in prepare(images, do_convert_rgb=do_convert_rgb, **options)]
        data: dict[str, list[Any]] = {"pixel_values": [self._preprocess_one(image, **kwargs) for image in prepared]}
        if segmentation_maps is not None:
            label_maps = prepare(
                integer_label_map(segmentation_maps), expected_ndims=2, do_convert_rgb=False, input_data_format=None
            )
            data["labels"] = self._preprocess_labels(
                [torch.as_tensor(label_map) for label_map in label_maps], prepared, valid, **kwargs
            )
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

    @staticmethod
    def _band_image(image: Any, bands: list[int], dtype: str | None) -> BandImage:
        """Return an image with the bands that the model takes.

        Raises:
            ValueError: if the image has other bands, or values of another type than the model was trained with.
        """
        opened = read_band_image(image, bands) if isinstance(image, str | os.PathLike) else image
        opened = as_band_image(opened, len(bands))
        found = opened.values.dtype.name
        if dtype is not None and found != dtype and not (dtype == "float32" and found == "float64"):
            raise ValueError(
                f"the image holds values of type {found}, but the model was trained with {dtype}: pass the values as "
                "they are in files like those of the training data"
            )
        return opened

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
        resize_method: str,
        **kwargs: Any,
    ) -> torch.Tensor:
        if image.is_floating_point() and kwargs.get("bands") is None:
            image = _checked_range(image, rescale_factor if do_rescale else None)
        if do_resize:
            resize = resize_image if resize_method == "opencv" else resize_smoothly
            for target in self._target_sizes(image.shape[1], image.shape[2], size, size_divisor, resize_method):
                image = resize(image, target)
        if do_normalize:
            mean, std = torch.tensor(image_mean, dtype=torch.float64), torch.tensor(image_std, dtype=torch.float64)
            if do_rescale:  # in one step, as in the original code, whose mean and deviation are in grey levels
                mean, std = mean / rescale_factor, std / rescale_factor
            mean, std = (value.to(image.device, torch.float32).view(-1, 1, 1) for value in (mean, std))
            return (image.float() - mean) / std
        return image.float() * rescale_factor if do_rescale else image.float()

    def _preprocess_labels(
        self,
        label_maps: list[torch.Tensor],
        images: list[torch.Tensor],
        valid: list[np.ndarray | None] | None,
        do_resize: bool,
        size: SizeDict,
        size_divisor: int | None,
        do_reduce_labels: bool,
        resize_method: str,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        if len(label_maps) != len(images):
            raise ValueError(f"got {len(images)} images but {len(label_maps)} segmentation_maps")
        labels = []
        for label_map, image, mask in zip(label_maps, images, valid or [None] * len(images), strict=True):
            if label_map.shape != (1, *image.shape[1:]):
                raise ValueError(
                    f"a segmentation map must hold one class index for each pixel of its image, (1, {image.shape[1]}, "
                    f"{image.shape[2]}), got {tuple(label_map.shape)}"
                )
            label_map = label_map.long()
            if mask is not None:
                label_map = torch.where(torch.from_numpy(mask).to(label_map.device), label_map, IGNORE_INDEX)
            if do_resize:
                for target in self._target_sizes(image.shape[1], image.shape[2], size, size_divisor, resize_method):
                    label_map = resize_labels(label_map, target)
            if do_reduce_labels:
                if (label_map == IGNORE_INDEX + 1).any():
                    raise ValueError(
                        "do_reduce_labels would turn label 256 of a segmentation map into 255, which means no class: "
                        "change the labels so that no class has the index 255"
                    )
                no_class = (label_map == 0) | (label_map == IGNORE_INDEX)
                label_map = torch.where(no_class, IGNORE_INDEX, label_map - 1)
            labels.append(label_map[0])
        return labels

    def resized_size(self, height: int, width: int, **options: Any) -> tuple[int, int]:
        """Return the (height, width) in pixels that an image of `height` and `width` is resized to.

        Args:
            options: `do_resize`, `size`, `size_divisor` and `resize_method` of a call.

        Raises:
            ValueError: as [`preprocess`].
        """
        if not options.get("do_resize", self.do_resize):
            return height, width
        size = SizeDict(**dict(options.get("size", self.size)))
        divisor = options.get("size_divisor", self.size_divisor)
        method = options.get("resize_method", self.resize_method)
        return self._target_sizes(height, width, size, divisor, method)[-1]

    @staticmethod
    def _target_sizes(
        height: int, width: int, size: SizeDict, size_divisor: int | None, resize_method: str
    ) -> list[tuple[int, int]]:
        """Return the (height, width) after each resize.

        The original code resizes twice, so that it rounds to whole grey levels twice.
        """
        if size.height and size.width:
            check_enlargement(height, width, (size.height, size.width))
            return [(size.height, size.width)]
        if not size.shortest_edge:
            raise ValueError(
                "size must hold 'height' and 'width', or 'shortest_edge' and optionally 'longest_edge', got "
                f"{ {key: value for key, value in dict(size).items() if value} }"
            )
        long_limit = size.longest_edge or math.inf
        size_of = keep_ratio_size if resize_method == "opencv" else shortest_edge_size
        new_height, new_width = size_of(height, width, size.shortest_edge, long_limit)
        first = (max(new_height, 1), max(new_width, 1))
        divisor = size_divisor or 1
        second = (
            -(-max(first[0], MIN_SIDE) // divisor) * divisor,
            -(-max(first[1], MIN_SIDE) // divisor) * divisor,
        )
        check_enlargement(height, width, second)
        return [first] if first == second else [first, second]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Any = None,
        return_segmentation_scores: bool = False,
        threshold: float = 0.5,
        multi_label: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Compute label maps from a model's `logits`, resized bilinearly to the sizes asked for.

        The logits are resized in bands of rows: those of a large image would take gigabytes.

        Args:
            outputs: any object with `logits` `(B, num_labels, h, w)`.
            target_sizes: (height, width) for each image, for instance those of the original images. None keeps (h, w).
            return_segmentation_scores: also return the resized logits, all of them in full size.
            threshold: for the logits of a binary model (`num_labels` 1) or a multi-label model: the probability above
                which a pixel is 1.
            multi_label: whether the logits are those of a multi-label model (`model.config.is_multi_label`).

        Returns:
            for each image an int64 tensor (height, width) of class indices; for a multi-label model a bool tensor
            (num_labels, height, width), the mask of each class. With scores, an output that holds this
            tensor as `segmentation`, and `segmentation_scores` `(num_labels, height, width)`.

        Raises:
            ValueError: if the number of sizes is not the number of images, a size is not (height, width), or the
                threshold is no probability between 0 and 1.
        """
        logits = outputs.logits
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, got {threshold!r}")
        decision = Decision(threshold if multi_label or logits.shape[1] == 1 else None, multi_label=multi_label)
        sizes = _checked_sizes(target_sizes, len(logits), (logits.shape[2], logits.shape[3]))
        if return_segmentation_scores:
            scores = [
                F.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0]
                for one, size in zip(logits, sizes, strict=True)
            ]
            return [
                SemanticSegmentationPostProcessorOutput(
                    data={"segmentation": decision.labels(one), "segmentation_scores": one}
                )
                for one in scores
            ]
        return [resized_labels(one, size, decision) for one, size in zip(logits, sizes, strict=True)]


def _listed(images: Any) -> list[Any]:
    """Return one image, a list of images or a batch `(B, bands, h, w)` as a list of images."""
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return list(images) if isinstance(images, list | tuple) else [images]


def _band_tensor(
    image: BandImage,
    device: "str | torch.device | None",
    image_mean: tuple[float, ...],
    do_rescale: bool,
    rescale_factor: float,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the values `(bands, h, w)` of an image: uint8, which is resized in whole levels, or float32."""
    unit = rescale_factor if do_rescale else 1.0
    values = filled(image, [mean / unit for mean in image_mean])
    if values.dtype != np.uint8:
        values = values.astype(np.float32)
    return torch.from_numpy(np.array(values, copy=not values.flags.writeable)).to(device)


def _checked_range(image: torch.Tensor, rescale_factor: float | None) -> torch.Tensor:
    """Return a floating-point image in the range that `rescale_factor` expects. None means no rescaling."""
    if not image.isfinite().all():
        raise ValueError("an image holds NaN or infinity: replace these values before it is processed")
    if rescale_factor is None:
        return image
    low, high = (float(value) for value in image.detach().aminmax())
    if low < 0 or high > 255:
        raise ValueError(
            f"an image of floating-point numbers must hold 0..1 or 0..255, got {low:g} to {high:g}: pass 8-bit images, "
            "or do_rescale=False and do_normalize=False if it is normalized already"
        )
    return image / rescale_factor if high <= 1 else image


def _checked_sizes(target_sizes: Any, count: int, default: tuple[int, int]) -> list[tuple[int, int]]:
    if target_sizes is None:
        return [default] * count
    if isinstance(target_sizes, torch.Tensor):
        target_sizes = target_sizes.tolist()
    sizes = []
    for size in target_sizes:
        if isinstance(size, list | tuple) and len(size) == 1:
            (size,) = size  # transformers' pipeline nests sizes once more when it runs in batches
        if not isinstance(size, list | tuple) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"target_sizes must hold (height, width) in pixels for each image, got {size!r}")
        sizes.append((int(size[0]), int(size[1])))
    if len(sizes) != count:
        raise ValueError(f"got {len(sizes)} target_sizes for {count} images: pass one (height, width) for each image")
    return sizes


class SegmentationImageProcessor(_SegmentationProcessing, TorchvisionBackend):  # type: ignore[misc]
    r"""
    Image processor of all our models. The short side of an image becomes `size["shortest_edge"]`, or less where the
    long side would exceed `size["longest_edge"]`. Then both sides are stretched to multiples of `size_divisor`. With
    `size={"height": ..., "width": ...}` every image gets that size.

    Values are uint8 RGB until they are rescaled by `rescale_factor` and normalised by `image_mean` and `image_std`.
    """


class SegmentationImageProcessorPil(_SegmentationProcessing, PilBackend):  # type: ignore[misc]
    """[`SegmentationImageProcessor`] for numpy arrays, without torchvision; the numbers are the same."""


__all__ = ["SegmentationImageProcessor", "SegmentationImageProcessorPil"]
