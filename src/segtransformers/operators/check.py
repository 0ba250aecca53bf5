# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A fresh kernel against plain PyTorch, on the device it is for: small, and before anybody relies on it."""

from types import ModuleType

import torch

from .deformable_attention import ms_deform_attn_reference
from .deformable_convolution import dcnv3_reference

# relative errors of outputs and gradients, from inputs that are exact in the dtype
BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SHAPES = [(9, 11), (5, 6)]
CONVOLUTION = ((3, 3), (1, 1), (1, 1), (1, 1), 4, 1.0, False)


def check_kernel(functions: ModuleType, device: str) -> float:
    """The largest relative error of a kernel's operators and their gradients, as a share of what is allowed.

    Args:
        functions: the module of a loaded build, with the functions of `dispatcher.OPERATORS`.
        device: a device type that it has code for and that is at hand.

    Raises:
        RuntimeError: if a result is off by more than rounding, naming the operator, device and dtype.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens = sum(height * width for height, width in SHAPES)
    logits = random(2, 50, 4, 2, 4)
    # (operator, its tensors, which of them may be in half precision, the same in plain PyTorch)
    value, references, offsets = random(2, tokens, 4, 32), random(1, 50, 1, 2).sigmoid(), 2 * random(2, 50, 4, 2, 4, 2)
    locations, weights = _plain(references, offsets, logits)
    mask = random(1, 10, 12, 4, 9).softmax(-1).flatten(3)
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
            lambda value, *rest: ms_deform_attn_reference(value, SHAPES, *_plain(*rest)),
        ),
        "dcnv3": (
            (random(1, 10, 12, 64), random(1, 10, 12, 4 * 18), mask),
            (0, 2),
            lambda value, offset, mask: functions.dcnv3(value, offset, mask, *CONVOLUTION),
            lambda value, offset, mask: dcnv3_reference(value, offset, mask, *CONVOLUTION),
        ),
    }
    worst = 0.0
    for name, (tensors, halves, compiled, reference) in cases.items():
        for dtype, bound in BOUNDS.items():
            rounded = [tensor.to(dtype) if i in halves else tensor for i, tensor in enumerate(tensors)]
            results = _with_gradients(compiled, [tensor.to(device) for tensor in rounded])
            expected = _with_gradients(reference, [tensor.double() for tensor in rounded])
            for result, right in zip(results, expected, strict=True):
                error = ((result.cpu().double() - right).norm() / right.norm()).item()
                if not error <= bound:  # also where it is no number
                    raise RuntimeError(
                        f"the compiled {name} is wrong on {device} in {dtype}: its relative error is {error:.1e}. "
                        "Please report this; models do without compiled operators"
                    )
                worst = max(worst, error / bound)
    return worst


def _plain(references: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The locations and weights that a fused operator makes of these."""
    sides = torch.tensor(SHAPES).flip(-1)[:, None]
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
    return references[:, :, :, None, None] + offsets / sides, weights


def _with_gradients(function, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        output = function(*leaves)
        steps = torch.arange(output.numel(), device=output.device) % 17 - 8  # exact in every dtype
        gradient = (steps / 8).to(output.dtype).view_as(output)
        return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]
