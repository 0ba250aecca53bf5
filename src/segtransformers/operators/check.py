# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Check a new kernel build: compare outputs and gradients of its operators with plain PyTorch, on small inputs."""

from types import ModuleType

import torch

from .deformable_attention import ms_deform_attn_reference
from .deformable_convolution import dcnv3_reference, dcnv4_reference

# largest relative errors of outputs and gradients; the inputs are exact in each dtype
ERROR_BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SHAPES = [(9, 11), (5, 6)]
CONVOLUTION = ((3, 3), (1, 1), (1, 1), (1, 1), 4, 1.0, False)


def check_kernel(functions: ModuleType, device: str) -> float:
    """Return the largest relative error of a kernel's outputs and gradients, divided by the allowed error.

    Args:
        functions: the module of a loaded build, with the functions of `dispatcher.OPERATORS`.
        device: an available device type that the build has code for.

    Raises:
        RuntimeError: if an error exceeds its bound, naming the operator, device and dtype.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens = sum(height * width for height, width in SHAPES)
    logits = random(2, 50, 4, 2, 4)
    value, references, offsets = random(2, tokens, 4, 32), random(1, 50, 1, 2).sigmoid(), 2 * random(2, 50, 4, 2, 4, 2)
    locations, weights = _locations_and_weights(references, offsets, logits)
    mask = random(1, 10, 12, 4, 9).softmax(-1).flatten(3)
    # by operator: tensors, indices of those that may be in half precision, compiled function, plain PyTorch function
    cases = {
        "ms_deform_attn": (
            (value, locations, weights),
            (0, 2),
            lambda value, *rest: functions.ms_deform_attn(value, SHAPES, *rest),
            lambda value, *rest: ms_deform_attn_reference(value, SHAPES, *rest),
        ),
        "ms_deform_attn_fused": (
            (value, references, offsets, logits),
            (0, 3),
            lambda value, *rest: functions.ms_deform_attn_fused(value, SHAPES, *rest),
            lambda value, *rest: ms_deform_attn_reference(value, SHAPES, *_locations_and_weights(*rest)),
        ),
        "dcnv3": (
            (random(1, 10, 12, 64), random(1, 10, 12, 4 * 18), mask),
            (0, 2),
            lambda value, offset, mask: functions.dcnv3(value, offset, mask, *CONVOLUTION),
            lambda value, offset, mask: dcnv3_reference(value, offset, mask, *CONVOLUTION),
        ),
        "dcnv4": (
            (random(1, 10, 12, 64), random(1, 10, 12, 112)),
            (0,),
            lambda value, offset_mask: functions.dcnv4(value, offset_mask, *CONVOLUTION),
            lambda value, offset_mask: dcnv4_reference(value, offset_mask, *CONVOLUTION),
        ),
    }
    worst = 0.0
    for name, (tensors, halves, compiled, reference) in cases.items():
        for dtype, bound in ERROR_BOUNDS.items():
            rounded = [tensor.to(dtype) if i in halves else tensor for i, tensor in enumerate(tensors)]
            results = _output_and_gradients(compiled, [tensor.to(device) for tensor in rounded])
            expected = _output_and_gradients(reference, [tensor.double() for tensor in rounded])
            for result, right in zip(results, expected, strict=True):
                error = ((result.cpu().double() - right).norm() / right.norm()).item()
                if not error <= bound:  # written so that NaN fails too
                    raise RuntimeError(
                        f"the compiled {name} is wrong on {device} in {dtype}: its relative error is {error:.1e}, the "
                        f"bound is {bound:.1e}. Please report this; models also run without compiled operators"
                    )
                worst = max(worst, error / bound)
    return worst


def _locations_and_weights(
    references: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute in plain PyTorch the sampling locations and attention weights that the fused operator computes."""
    sides = torch.tensor(SHAPES).flip(-1)[:, None]
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
    return references[:, :, :, None, None] + offsets / sides, weights


def _output_and_gradients(function, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        output = function(*leaves)
        steps = torch.arange(output.numel(), device=output.device) % 17 - 8  # exact in every dtype
        gradient = (steps / 8).to(output.dtype).view_as(output)
        return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]
