# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Images and label maps of every kind, converted to the kinds that transformers' processors take without loss."""

import base64
import io
import os
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub.utils import httpx

INTEGERS = (torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)  # wider than 8 bits


def processor_bands(processor: Any) -> list[int] | None:
    """Return the numbers of the bands that an image processor takes, from 1 on, or None for RGB images.

    Args:
        processor: any image processor. Those of transformers take RGB images.
    """
    bands = getattr(processor, "bands", None)
    return None if bands is None else list(bands)


def as_8bit_image(image: Any, channels_last: bool = False) -> Any:
    """Convert an image to 8 bits and to the colours that the original code reads with OpenCV.

    PIL images become RGB, or a grey array `(1, h, w)` where they have more than 8 bits. 16 bits are scaled to 8,
    transparency is dropped without blending, and arrays `(h, w)` get a channel. Arrays of wider integers are read as 16
    bits if they are uint16 or exceed 255. Other arrays and tensors stay as they are, and so does everything that is no
    image.

    Args:
        image: a PIL image, a numpy array, a tensor, or a list of them, nested or not.
        channels_last: whether arrays `(h, w)` become `(h, w, 1)`, not `(1, h, w)`.

    Raises:
        ValueError: if an image is empty, holds integers outside 0 to 65535, or is a PIL image of floating-point
            numbers, whose range is unknown.
    """
    if isinstance(image, list | tuple):
        return [as_8bit_image(item, channels_last) for item in image]
    if isinstance(image, PIL.Image.Image):
        if image.mode == "F":
            raise ValueError("an image of floating-point numbers (PIL mode F) has no known range: convert it to 8 bits")
        if not image.mode.startswith("I"):
            return image.convert("RGB")
        image = np.asarray(_with_16_bits(image, _declared_bits(image)))
        if image.dtype.newbyteorder("=") == np.int32:
            image = image.clip(0, 65535)
    elif isinstance(image, torch.Tensor) and image.dtype in INTEGERS:
        image = image.cpu().numpy()
    if not isinstance(image, np.ndarray | torch.Tensor):
        return image
    if 0 in image.shape:
        raise ValueError(f"an image has no pixels: its shape is {tuple(image.shape)}")
    if isinstance(image, np.ndarray) and image.dtype.kind in "iu" and image.dtype != np.uint8:
        image = _integers_as_8_bits(image)
    if image.ndim == 2:
        return image[..., None] if channels_last else image[None]
    if image.ndim == 3 and 4 in (image.shape[0], image.shape[-1]) and 3 not in (image.shape[0], image.shape[-1]):
        return image[..., :3] if image.shape[-1] == 4 else image[:3]
    if image.ndim == 3 and image.shape[0] in (1, 4) and image.shape[-1] == 3 and not channels_last:
        # one or four rows of RGB, which transformers would read as one or four channels
        return (
            image.permute(2, 0, 1)
            if isinstance(image, torch.Tensor)
            else np.ascontiguousarray(image.transpose(2, 0, 1))
        )
    return image


def _integers_as_8_bits(values: np.ndarray) -> np.ndarray:
    """Return an array of wider integers as uint8. uint16 is scaled by its range, other types where they exceed 255."""
    low, high = int(values.min()), int(values.max())
    is_16_bits = values.dtype.newbyteorder("=") == np.uint16
    if low < 0 or high > 65535:
        raise ValueError(f"an image of integers must hold 8 or 16 bits, 0 to 65535, got {low} to {high}")
    if is_16_bits or high > 255:
        values = (values.astype(np.uint32) + 128) // 257
    return values.astype(np.uint8)


def _declared_bits(image: PIL.Image.Image) -> int | None:
    """Return the bits per sample of an opened TIFF file, or None for other images."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else max(tags.get(PIL.ExifTags.Base.BitsPerSample, (8,)))


def _with_16_bits(image: PIL.Image.Image, bits: int | None) -> PIL.Image.Image:
    """Scale an image of a file that declares 9 to 15 bits, such as 12, to the range of 16 bits. Others stay."""
    if bits is None or not 8 < bits < 16 or not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.uint32)
    return PIL.Image.fromarray((values * 65535 // ((1 << bits) - 1)).astype(np.uint16))


def upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn a PIL image as its EXIF data say, and convert it to RGB as [`as_8bit_image`] does.

    Raises:
        ValueError: as [`as_8bit_image`].
    """
    bits = _declared_bits(image)  # the turned copy has no header
    converted = as_8bit_image(_with_16_bits(PIL.ImageOps.exif_transpose(image), bits))
    return PIL.Image.fromarray(converted[0]).convert("RGB") if isinstance(converted, np.ndarray) else converted


def load_image(image: str | os.PathLike | PIL.Image.Image, timeout: float | None = None) -> PIL.Image.Image:
    """Load an upright RGB image from what `transformers.image_utils.load_image` takes.

    The function of transformers clips images of 16 bits to white. This one scales them to 8 bits.

    Args:
        image: a path, an address that starts with http:// or https://, base64 text, or a PIL image.
        timeout: limit for a download, in seconds. None means no limit.

    Raises:
        TypeError: if `image` is of another type.
        ValueError: if a text is none of these, or as [`as_8bit_image`].
        OSError: if the file is no image, or is damaged.
    """
    if isinstance(image, PIL.Image.Image):
        return upright_rgb(image)
    if not isinstance(image, str | os.PathLike):
        raise TypeError(f"image must be a path, an address, base64 text or a PIL image, got {type(image).__name__}")
    text = os.fspath(image)
    if text.startswith(("http://", "https://")):
        response = httpx.get(text, timeout=timeout, follow_redirects=True)
        file: Any = io.BytesIO(response.raise_for_status().content)
    elif os.path.isfile(text):
        file = text
    else:
        encoded = text.partition(",")[2] if text.startswith("data:image/") else text
        try:
            file = io.BytesIO(base64.b64decode("".join(encoded.split()), validate=True))
        except ValueError:
            raise ValueError(f"{text[:200]!r} is neither a file, nor an address, nor an image in base64") from None
    with PIL.Image.open(file) as opened:
        return upright_rgb(opened)


def integer_label_map(label_map: Any) -> Any:
    """Convert a label map of any integer type to uint8 or int64, the types in which torch can compare and index.

    Args:
        label_map: a PIL image with one channel (8 to 32 bits, either byte order; a palette is read as its indices), a
            numpy array or tensor of integers, or a list of them, nested or not. Anything else is returned unchanged.

    Raises:
        ValueError: if the values are not whole numbers from 0 on.
    """
    if isinstance(label_map, list | tuple):
        return [integer_label_map(item) for item in label_map]
    if isinstance(label_map, PIL.Image.Image) and len(label_map.getbands()) == 1:
        label_map = np.array(label_map)  # torch cannot share PIL's memory, which is read-only
    if isinstance(label_map, torch.Tensor):
        integer = not (label_map.is_floating_point() or label_map.is_complex())
    elif isinstance(label_map, np.ndarray):
        integer = label_map.dtype.kind in "bui"
    else:
        return label_map
    if not integer:
        raise ValueError(
            f"a segmentation map must hold class indices, whole numbers from 0 on, got {label_map.dtype}: "
            "convert it to integers"
        )
    if str(label_map.dtype) in ("uint8", "torch.uint8"):
        return label_map
    label_map = label_map.long() if isinstance(label_map, torch.Tensor) else label_map.astype(np.int64)
    if (label_map < 0).any():
        raise ValueError(f"a segmentation map must hold class indices, whole numbers from 0 on, got {label_map.min()}")
    return label_map
