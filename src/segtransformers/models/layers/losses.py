# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Losses, normalised as the originals do it."""

import torch
from torch.nn import functional as F


def semantic_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, count_ignored: bool = True
) -> torch.Tensor:
    """Cross entropy per pixel, averaged over all pixels: ignored ones add nothing but count in the divisor.

    Source: `mmseg/models/losses/cross_entropy_loss.py` of MMSegmentation 0.20 (`avg_non_ignore` did not exist yet).

    Args:
        logits: `(B, num_labels, h, w)`, resized bilinearly to the labels where the sizes differ.
        labels: `(B, H, W)` integers in `[0, num_labels)`, or `ignore_index`.
        count_ignored: False averages over the other pixels only, and gives 0 where there are none.

    Returns:
        a scalar, float32 or wider.
    """
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / (labels.numel() if count_ignored else (labels != ignore_index).sum().clamp(min=1))


def check_pixel_values(pixel_values: torch.Tensor) -> None:
    """Refuse what is no batch of normalised images.

    Raises:
        ValueError: naming the dtype and shape found.
    """
    if pixel_values.dim() != 4 or pixel_values.numel() == 0 or not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be normalised floats (batch, 3, height, width), got {pixel_values.dtype} "
            f"{tuple(pixel_values.shape)}"
        )


def check_labels(labels: torch.Tensor, pixel_values: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Refuse label maps that do not fit the images or the classes.

    Values are looked at on the CPU only: elsewhere that would wait for the device.

    Raises:
        ValueError: naming the shape, dtype or values found and those expected.
    """
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"labels must be a tensor (batch, height, width), got a {type(labels).__name__}")
    expected = (pixel_values.shape[0], *pixel_values.shape[2:])
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must be (batch, height, width) = {expected} like pixel_values, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must hold integer class indices, got {labels.dtype}")
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    labels = labels.long()
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_labels))]
    if wrong.numel():
        raise ValueError(
            f"labels hold the values {wrong.unique()[:8].tolist()}, but the model has num_labels={num_labels} and "
            f"ignores {ignore_index}: are these masks in another format (reduce_labels, 0 and 255)?"
        )
