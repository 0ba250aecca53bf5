# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Cross entropy of logits that are smaller than the label map.

A model's logits have a quarter of the image's resolution. Resizing 150 of them to 512 x 512 pixels takes 157 MB for
each image, and softmax and the two gradients take as much again. Here a few rows at a time are resized, compared with
the labels and turned into their share of the gradient, while they are in a CPU's cache. Only sums at the resolution of
the logits are kept. The result is that of resizing and `F.cross_entropy`, up to rounding.
"""

import torch
from torch.nn import functional as F

from ..layers.resize import resize

BAND_BYTES = 5 << 20  # of the resized rows of a band; measured: from 2 to 10 MiB all are within 5 %


def cross_entropy_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Sum the cross entropy over all valid pixels.

    Args:
        logits: `(B, C, h, w)`, resized bilinearly where they are smaller than the label map. float32 or float64.
        labels: `(B, H, W)` class indices or `ignore_index`.
        weights: `(C,)` factors of the classes.
        label_smoothing: as of `F.cross_entropy`.

    Returns:
        a scalar.
    """
    is_resized = logits.shape[2:] != labels.shape[1:]
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad
    # not measured on other devices; a compiler fuses the plain form itself
    if is_resized and needs_gradient and logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ByBands.apply(logits, labels, ignore_index, weights, label_smoothing)[0]
    return _plain(logits, labels, ignore_index, weights, label_smoothing)


def _plain(logits, labels, ignore_index, weights, label_smoothing) -> torch.Tensor:
    return F.cross_entropy(
        resize(logits, labels.shape[1:]),
        labels.long(),
        weight=weights,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


class _ByBands(torch.autograd.Function):
    """Compute the sum and its gradient in one pass over bands of rows."""

    @staticmethod
    def forward(logits, labels, ignore_index, weights, label_smoothing):
        return _sum_and_gradient(logits, labels, ignore_index, weights, label_smoothing)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, labels, ctx.ignore_index, weights, ctx.label_smoothing = inputs
        _, gradient = output
        ctx.mark_non_differentiable(gradient)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels, weights, gradient)

    @staticmethod
    def backward(ctx, factor, _):
        logits, labels, weights, gradient = ctx.saved_tensors
        if factor is None:
            return (None,) * 5
        if torch.is_grad_enabled():  # for second derivatives
            total = _plain(logits, labels, ctx.ignore_index, weights, ctx.label_smoothing)
            (gradient,) = torch.autograd.grad(total, logits, factor, create_graph=True)
            return gradient, None, None, None, None
        return gradient * factor, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        rows = [
            [x if dim is None else x.select(dim, index) for x, dim in zip(inputs, in_dims, strict=True)]
            for index in range(info.batch_size)
        ]
        totals, gradients = zip(*(_ByBands.apply(*row) for row in rows), strict=True)
        return (torch.stack(totals), torch.stack(gradients)), (0, 0)


@torch.no_grad()
def _sum_and_gradient(logits, labels, ignore_index, weights, label_smoothing) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum over all valid pixels, and its gradient with respect to `logits`."""
    batch, classes, height, width = logits.shape
    out_height, out_width = labels.shape[1:]
    features = logits.permute(0, 2, 3, 1).contiguous()  # a pixel's classes are neighbours, for softmax and products
    upper, lower, fractions = _neighbours(height, out_height, logits)
    columns = _interpolation_matrix(width, out_width, logits)
    gradient, total = torch.zeros_like(features), logits.new_zeros(())
    band = max(1, BAND_BYTES // (out_width * classes * logits.element_size()))
    smooth = label_smoothing / classes
    for image in range(batch):
        for first in range(0, out_height, band):
            rows = slice(first, min(first + band, out_height))
            fraction = fractions[rows, None, None]
            narrow = torch.lerp(features[image, upper[rows]], features[image, lower[rows]], fraction)
            log_probabilities = (columns @ narrow).view(-1, classes).log_softmax(dim=1)
            indices = labels[image, rows].reshape(-1).long()
            valid = indices != ignore_index
            indices = indices.where(valid, 0)[:, None]
            factors = valid.to(logits)[:, None]
            own = factors if weights is None else factors * weights[indices]
            own = own * (1 - label_smoothing)
            total -= (log_probabilities.gather(1, indices) * own).sum()
            if smooth:
                shares = smooth * (torch.ones_like(features[0, 0, 0]) if weights is None else weights)
                total -= (log_probabilities @ shares * factors[:, 0]).sum()
            # the derivative is softmax times the sum of the targets, minus the targets
            derivative = log_probabilities.exp_()
            derivative *= own + factors * shares.sum() if smooth else own
            derivative.scatter_add_(1, indices, -own)
            if smooth:
                derivative -= factors * shares
            change = columns.mT @ derivative.view(-1, out_width, classes)
            lower_change = change * fraction
            gradient[image].index_add_(0, upper[rows], change.sub_(lower_change))
            gradient[image].index_add_(0, lower[rows], lower_change)
    return total, gradient.permute(0, 3, 1, 2)


def _neighbours(size: int, out_size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each output position the two input positions that it lies between, and the weight of the second.

    Pixel centres are at half-integers, as in `F.interpolate` with `align_corners=False`.
    """
    positions = (torch.arange(out_size, dtype=torch.float64) + 0.5) * (size / out_size) - 0.5
    positions = positions.clamp(min=0)
    first = positions.long().clamp(max=size - 1)
    return first, (first + 1).clamp(max=size - 1), (positions - first).clamp(max=1).to(like)


def _interpolation_matrix(size: int, out_size: int, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix `(out_size, size)` that resizes a line."""
    first, second, fractions = _neighbours(size, out_size, like)
    matrix, rows = like.new_zeros((out_size, size)), torch.arange(out_size)
    matrix[rows, first] = 1 - fractions
    matrix[rows, second] += fractions
    return matrix


__all__ = ["cross_entropy_sum"]
