# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Resizing of images and label maps with the arithmetic of mmcv and OpenCV.

Source: `rescale_size` in `mmcv/image/geometric.py`, and `cv2.resize` (OpenCV, `modules/imgproc/src/resize.cpp`).
transformers' processors differ: they round sizes down where mmcv rounds to the nearest (another size for two images in
five), smooth an image before they shrink it, and round label maps to other neighbours.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

EVERYTHING = (slice(None), slice(None))


def keep_ratio_size(height: int, width: int, short_limit: float, long_limit: float) -> tuple[int, int]:
    """Return the largest (height, width) with the same aspect ratio within both limits, rounded as mmcv rounds.

    Args:
        height, width: of the image, in pixels.
        short_limit: the limit on the shorter side, in pixels.
        long_limit: the limit on the longer side, in pixels.
    """
    factor = min(long_limit / max(height, width), short_limit / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def shortest_edge_size(height: int, width: int, short: int, long_limit: float) -> tuple[int, int]:
    """Return the (height, width) with the shorter side `short`, rounded as DINOv3 rounds the longer one.

    Where the longer side would exceed `long_limit`, it is that of [`keep_ratio_size`].
    """
    longer = int(short * max(height, width) / min(height, width) + 0.5)
    if longer > long_limit:
        return keep_ratio_size(height, width, short, long_limit)
    return (short, longer) if height <= width else (longer, short)


def resize_smoothly(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an image `(channels, height, width)` bilinearly with antialiasing. For uint8 the result is Pillow's.

    Args:
        size: the new (height, width).
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if image.dtype != torch.uint8:
        return F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    channels = [
        np.asarray(Image.fromarray(channel.cpu().numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        for channel in image
    ]
    return torch.from_numpy(np.stack(channels)).to(image.device)


def resize_image(image: torch.Tensor, size: tuple[int, int], window: tuple[slice, slice] = EVERYTHING) -> torch.Tensor:
    """Resize an image bilinearly, without smoothing. The uint8 result equals that of `cv2.resize` bit by bit.

    OpenCV computes in fixed point: weights have 11 bits; 4 bits are dropped before the vertical pass and 18 after it.

    Args:
        image: `(channels, height, width)`.
        size: the new (height, width).
        window: the rows and columns of the result to return. For uint8 the others are not computed.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image[:, window[0], window[1]]
    if image.dtype != torch.uint8:
        resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        return resized[:, window[0], window[1]]
    columns = _neighbours(image.shape[2], size[1], image.device, whole_edges=True)
    left, right, left_weight, right_weight = (values[window[1]] for values in columns)
    rows = _neighbours(image.shape[1], size[0], image.device)
    above, below, above_weight, below_weight = (values[window[0]] for values in rows)
    first = int(above[0])
    image = image[:, first : int(below[-1]) + 1]
    wide = image.index_select(2, left).int().mul_(left_weight)
    wide.add_(image.index_select(2, right).int().mul_(right_weight)).bitwise_right_shift_(4)
    top = wide.index_select(1, above - first).mul_(above_weight[:, None]).bitwise_right_shift_(16)
    bottom = wide.index_select(1, below - first).mul_(below_weight[:, None]).bitwise_right_shift_(16)
    return top.add_(bottom).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def _neighbours(old: int, new: int, device: torch.device, whole_edges: bool = False) -> tuple[torch.Tensor, ...]:
    """Return the indices of both neighbours of every new pixel along one side, and their weights in 1/2048.

    Args:
        old, new: lengths of the side, in pixels.
        whole_edges: whether the edge pixel gets the whole weight beyond its centre. OpenCV does so for columns. For
            rows it takes the edge row twice, which rounds differently.
    """
    position = ((torch.arange(new, dtype=torch.float64, device=device) + 0.5) * (old / new) - 0.5).float()
    first = position.floor()
    fraction = position - first
    index = first.long()
    if whole_edges:
        fraction = torch.where((index < 0) | (index >= old - 1), 0.0, fraction)
    weights = ((1 - fraction) * 2048).round().int(), (fraction * 2048).round().int()
    return index.clamp(0, old - 1), (index + 1).clamp(0, old - 1), *weights


def resize_labels(
    labels: torch.Tensor, size: tuple[int, int], window: tuple[slice, slice] = EVERYTHING
) -> torch.Tensor:
    """Resize a label map `(1, height, width)` or masks to the nearest neighbours that `cv2.resize` takes.

    Args:
        labels: `(channels, height, width)`, any dtype.
        size: the new (height, width).
        window: the rows and columns of the result to return.
    """
    rows = torch.arange(size[0], device=labels.device)[window[0]] * labels.shape[1] // size[0]
    columns = torch.arange(size[1], device=labels.device)[window[1]] * labels.shape[2] // size[1]
    return labels.index_select(1, rows).index_select(2, columns)
