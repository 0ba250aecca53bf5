# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Cross entropy with the normalization of the original code."""

import torch
from torch.nn import functional as F


def semantic_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, count_ignored: bool = True
) -> torch.Tensor:
    """Average the cross entropy over all pixels; ignored pixels add nothing but count in the divisor.

    Source: `mmseg/models/losses/cross_entropy_loss.py` of MMSegmentation 0.20 (`avg_non_ignore` did not exist yet).

    Args:
        logits: `(B, num_labels, h, w)`, resized bilinearly to the label map's size where they differ.
        labels: `(B, H, W)` integers in `[0, num_labels)`, or `ignore_index`.
        count_ignored: False averages over the pixels that are not ignored, and gives 0 if all are ignored.

    Returns:
        a scalar, float32 or wider.
    """
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / (labels.numel() if count_ignored else (labels != ignore_index).sum().clamp(min=1))


__all__ = ["semantic_cross_entropy"]
