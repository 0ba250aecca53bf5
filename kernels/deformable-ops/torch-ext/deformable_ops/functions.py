# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The operators as functions, with their gradients for autograd and their output shapes for torch.compile.

Each tensor may be float32, float64, bfloat16 or float16, independently of the others. Coordinates, softmax and sums are
float32, or float64 if any tensor is. The output has the dtype of `value`, a gradient that of its tensor. Second
derivatives and forward-mode derivatives (`torch.func.jvp`) are not implemented and raise an error.

On a CPU, gradients are bitwise equal in every run. On a CUDA device, the gradient of `value` is a sum of atomic
additions in float32 or float64, in varying order, so it raises an error under
`torch.use_deterministic_algorithms(True)`.
"""

import warnings
from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from ._ops import add_op_namespace_prefix, ops


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Multi-scale deformable attention (Deformable DETR, https://arxiv.org/abs/2010.04159, equation 3).

    Sampling is bilinear with align_corners False and zeros outside a level. A location that is not finite gives NaN for
    its query and head; a finite one of any size is outside.

    Args:
        value: `(B, sum(h * w), heads, channels)`, the levels one after another, each row by row.
        spatial_shapes: `(h, w)` of each level, as integers.
        sampling_locations: `(B, queries, heads, levels, points, 2)`, (x, y) with 0 and 1 at the outer edges of a level.
        attention_weights: `(B, queries, heads, levels, points)`.

    Returns:
        `(B, queries, heads * channels)`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit together.
    """
    _refuse_forward_mode(value, sampling_locations, attention_weights)
    return ops.ms_deform_attn(value, _flat(spatial_shapes), sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
) -> torch.Tensor:
    """Compute [`ms_deform_attn`] from predicted offsets and logits.

    The locations are `reference_points + sampling_offsets / (w, h)`. The weights are the softmax of `attention_logits`
    over all levels and points.

    Args:
        reference_points: `(B or 1, queries, levels or 1, 2)`, (x, y) with 0 and 1 at the outer edges of a level.
        sampling_offsets: `(B, queries, heads, levels, points, 2)`, (x, y) in pixels of the level.
        attention_logits: `(B, queries, heads, levels, points)`.
    """
    _refuse_forward_mode(value, reference_points, sampling_offsets, attention_logits)
    return ops.ms_deform_attn_fused(value, _flat(spatial_shapes), reference_points, sampling_offsets, attention_logits)


def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Compute the sampling of DCNv3 (InternImage, https://arxiv.org/abs/2211.05778).

    The points of the kernel are in column order (y changes fastest). `offset_scale` scales the kernel's grid as well as
    the offsets.

    Args:
        value: `(B, H, W, groups * channels)`, not padded.
        offset: `(B, h, w, groups * points * 2)`, (x, y) in pixels.
        mask: `(B, h, w, groups * points)`, the weights, already normalised.
        kernel_size, stride, padding, dilation: (height, width).
        remove_center: leave out the middle point of a kernel with odd sides.

    Returns:
        `(B, h, w, groups * channels)`, with the h and w of a convolution.
    """
    _refuse_forward_mode(value, offset, mask)
    return ops.dcnv3(
        value,
        offset,
        mask,
        list(kernel_size),
        list(stride),
        list(padding),
        list(dilation),
        groups,
        offset_scale,
        remove_center,
    )


def dcnv4(
    value: torch.Tensor,
    offset_mask: torch.Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    """Compute the sampling of DCNv4 (https://arxiv.org/abs/2401.06197).

    This is [`dcnv3`] with offsets and weights in one tensor, which the kernel reads in place. Each image of a batch is
    computed by itself.

    Args:
        offset_mask: `(B, h, w, width)`, where `width` is `groups * points * 3` rounded up to a multiple of 8. Each
            group has its offsets, pairs (x, y) in pixels, and then its weights, which are used as they are. The numbers
            after the last group are not read.
    """
    _refuse_forward_mode(value, offset_mask)
    return ops.dcnv4(
        value,
        offset_mask,
        list(kernel_size),
        list(stride),
        list(padding),
        list(dilation),
        groups,
        offset_scale,
        remove_center,
    )


def _flat(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [side for shape in spatial_shapes for side in shape]


def _refuse_forward_mode(*tensors):
    """Raise an error, because torch treats such operators as constants and would return zero."""
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError("deformable_ops has no forward-mode derivatives: use the plain PyTorch reference for them")


def _refuse_second_derivative(ctx, *gradients):
    raise RuntimeError("deformable_ops has no second derivatives: use the plain PyTorch reference for them")


def _alert_not_deterministic(ctx, name, gradient):
    """Raise torch's error for nondeterministic operators if the gradient of `value` is needed on a CUDA device.

    The other gradients are sums in a fixed order.
    """
    is_refused = ctx.needs_input_grad[0] and torch.are_deterministic_algorithms_enabled()
    if not is_refused or gradient.device.type != "cuda":
        return
    message = (
        f"{name} does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'. "
        "You can turn off determinism just for this operation, or you can use the 'warn_only=True' option, if that's "
        "acceptable for your application."
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _register(name, fake, setup_context, backward, fake_backward):
    torch.library.register_fake(add_op_namespace_prefix(name), fake)
    torch.library.register_autograd(add_op_namespace_prefix(name), backward, setup_context=setup_context)
    torch.library.register_fake(add_op_namespace_prefix(f"{name}_backward"), fake_backward)
    torch.library.register_autograd(add_op_namespace_prefix(f"{name}_backward"), _refuse_second_derivative)


# ---- multi-scale deformable attention --------------------------------------------------------------------------------


def _check_devices(*tensors):
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise RuntimeError(f"all tensors must be on one device, got {' and '.join(sorted(devices))}")


def _check_rank(name, tensor, rank):
    if tensor.dim() != rank:
        raise RuntimeError(f"{name} must have {rank} dimensions, got the shape {tuple(tensor.shape)}")


def _attention_fake(value, spatial_shapes, locations, weights):
    _check_devices(value, locations, weights)
    _check_rank("value", value, 4)
    _check_rank("attention weights or logits", weights, 5)
    _check_rank("sampling locations or offsets", locations, 6)
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, weights.shape[1], heads * channels))


def _attention_context(ctx, inputs, output):
    value, spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)
    ctx.spatial_shapes = spatial_shapes


def _attention_backward(ctx, gradient):
    _alert_not_deterministic(ctx, "ms_deform_attn_backward", gradient)
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = ops.ms_deform_attn_backward(
        gradient, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


def _attention_backward_fake(gradient, value, spatial_shapes, locations, weights):
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


_register("ms_deform_attn", _attention_fake, _attention_context, _attention_backward, _attention_backward_fake)


def _fused_fake(value, spatial_shapes, references, offsets, logits):
    _check_devices(value, references)
    _check_rank("reference_points", references, 4)
    return _attention_fake(value, spatial_shapes, offsets, logits)


def _fused_context(ctx, inputs, output):
    value, spatial_shapes, references, offsets, logits = inputs
    ctx.save_for_backward(value, references, offsets, logits)
    ctx.spatial_shapes = spatial_shapes


def _fused_backward(ctx, gradient):
    _alert_not_deterministic(ctx, "ms_deform_attn_fused_backward", gradient)
    value, references, offsets, logits = ctx.saved_tensors
    shapes = ctx.spatial_shapes
    offsets_dtype = offsets.dtype
    if ctx.needs_input_grad[2]:
        # the gradient of a reference point is a sum of those of the offsets, before they are rounded
        offsets = offsets.to(torch.promote_types(torch.promote_types(references.dtype, torch.float32), offsets_dtype))
    grad_value, grad_offsets, grad_logits = ops.ms_deform_attn_fused_backward(
        gradient, value, shapes, references, offsets, logits
    )
    grad_references = None
    if ctx.needs_input_grad[2]:
        if offsets.shape[3] == 0:
            return grad_value, None, torch.zeros_like(references), grad_offsets.to(offsets_dtype), grad_logits
        levels = []
        for level in range(offsets.shape[3]):
            # a reference point's unit is a side of the level, that of an offset a pixel
            pixels = grad_offsets[:, :, :, level].sum((2, 3))
            levels.append(torch.stack([pixels[..., 0] * shapes[2 * level + 1], pixels[..., 1] * shapes[2 * level]], -1))
        grad_references = torch.stack(levels, dim=2).sum_to_size(references.shape).to(references.dtype)
    return grad_value, None, grad_references, grad_offsets.to(offsets_dtype), grad_logits


def _fused_backward_fake(gradient, value, spatial_shapes, references, offsets, logits):
    return _attention_backward_fake(gradient, value, spatial_shapes, offsets, logits)


_register("ms_deform_attn_fused", _fused_fake, _fused_context, _fused_backward, _fused_backward_fake)


# ---- DCNv3 and DCNv4 -------------------------------------------------------------------------------------------------


def _dcnv3_fake(value, offset, mask, *options):
    _check_devices(value, offset, mask)
    for name, tensor in (("value", value), ("offset", offset), ("mask", mask)):
        _check_rank(name, tensor, 4)
    batch, height, width, _ = offset.shape
    return value.new_empty((batch, height, width, value.shape[3]))


def _dcnv3_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _dcnv3_backward(ctx, gradient):
    _alert_not_deterministic(ctx, "dcnv3_backward", gradient)
    gradients = ops.dcnv3_backward(gradient, *ctx.saved_tensors, *ctx.options)
    return *gradients, *[None] * len(ctx.options)


def _dcnv3_backward_fake(gradient, value, offset, mask, *options):
    return value.new_empty(value.shape), offset.new_empty(offset.shape), mask.new_empty(mask.shape)


_register("dcnv3", _dcnv3_fake, _dcnv3_context, _dcnv3_backward, _dcnv3_backward_fake)


def _dcnv4_fake(value, offset_mask, *options):
    _check_devices(value, offset_mask)
    for name, tensor in (("value", value), ("offset_mask", offset_mask)):
        _check_rank(name, tensor, 4)
    batch, height, width, _ = offset_mask.shape
    return value.new_empty((batch, height, width, value.shape[3]))


def _dcnv4_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _dcnv4_backward(ctx, gradient):
    _alert_not_deterministic(ctx, "dcnv4_backward", gradient)
    gradients = ops.dcnv4_backward(gradient, *ctx.saved_tensors, *ctx.options)
    return *gradients, *[None] * len(ctx.options)


def _dcnv4_backward_fake(gradient, value, offset_mask, *options):
    return value.new_empty(value.shape), offset_mask.new_empty(offset_mask.shape)


_register("dcnv4", _dcnv4_fake, _dcnv4_context, _dcnv4_backward, _dcnv4_backward_fake)
