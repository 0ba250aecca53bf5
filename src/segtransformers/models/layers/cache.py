# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Faster ways to the same numbers, but for rounding, that layers take in inference where they can.

Parameters, state dicts, training and what `torch.export` sees know nothing of them. A layer that something else has
its hand on (hooks, adapters, quantised weights) is called as it is.
"""

import contextlib
import functools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

FEWEST_ROWS = 64  # of a matrix product for which another library is worth the call

# plain attributes, because torch.compile can read and guard those
_state = SimpleNamespace(enabled=True)


@contextlib.contextmanager
def layers_as_written() -> Iterator[None]:
    """Within the block, in the whole process, layers run one by one, as in training: to compare with."""
    before = _state.enabled
    _state.enabled = False
    try:
        yield
    finally:
        _state.enabled = before


def remembered(maxsize: int) -> Callable[[Callable], Callable]:
    """A cache for functions from plain values and a device to tensors that nobody changes.

    Compilers, exporters and modes that watch operators or stand in for tensors see the function itself.
    """

    def decorate(function: Callable) -> Callable:
        cached = functools.lru_cache(maxsize=maxsize)(function)

        @functools.wraps(function)
        def wrapper(*arguments):
            if (
                torch.compiler.is_compiling()
                or torch.jit.is_tracing()
                or arguments[-1].type == "meta"
                or is_in_torch_dispatch_mode()
            ):
                return function(*arguments)
            with torch.inference_mode(False):  # tensors of that mode could not be used in training later
                return cached(*arguments)

        return wrapper

    return decorate


def in_inference(*tensors: torch.Tensor) -> bool:
    """Whether a faster way may be taken: no gradient is wanted, and these are ordinary tensors.

    Not with half precision, where every step rounds anew, and not where programs are compiled or exported: they stay
    simple, and compilers know such ways themselves.
    """
    return (
        _state.enabled
        and not torch.is_grad_enabled()
        and all(
            type(tensor) in (torch.Tensor, nn.Parameter)
            and tensor.dtype in (torch.float32, torch.float64)
            and tensor.device.type != "meta"
            for tensor in tensors
        )
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and forward_ad._current_level < 0  # nor forward derivatives or torch.func's transforms, which know no out=
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def in_inference_on_cpu(*tensors: torch.Tensor) -> bool:
    """[`in_inference`] on a CPU, the only place where these ways were measured to be faster."""
    return tensors[0].device.type == "cpu" and in_inference(*tensors)


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module would do what its class says and nothing else."""
    return type(module) is kind and not (
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    )


@functools.cache
def _products_are_slow() -> bool:
    """Whether matrix products are slower than convolutions on this CPU.

    PyTorch multiplies float32 matrices with MKL, which takes its fast paths on Intel's processors only, and convolves
    with oneDNN, which takes them everywhere: measured on an AMD EPYC with AVX-512, 99 against 225 GFLOP/s for a core.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text(errors="replace")[:2000] if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in vendor


def products_are_fast() -> bool:
    """Whether [`linear`] is about as fast as a convolution that does as much, by whatever library."""
    return torch.get_num_threads() > 1 or not _products_are_slow()


def _by_convolution(features: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product of `features` with a matrix is faster as a convolution, in inference on a CPU."""
    return (
        features.dtype == torch.float32
        and in_inference_on_cpu(features, weight)
        and _products_are_slow()
        and torch.get_num_threads() > 1  # else PyTorch takes MKL for 1x1 convolutions, too
        and features.numel() >= FEWEST_ROWS * features.shape[-1]
    )


def linear(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` of `(..., C)`, in inference on a CPU by the faster of two libraries."""
    if not _by_convolution(features, weight):
        return F.linear(features, weight, bias)
    # one row of pixels, channels last: the same memory
    rows = features.reshape(1, 1, -1, features.shape[-1]).permute(0, 3, 1, 2)
    output = F.conv2d(rows, weight[:, :, None, None], bias)
    return output.permute(0, 2, 3, 1).reshape(*features.shape[:-1], weight.shape[0])


def left_product(matrix: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """A matrix `(m, k)` times every one of `(N, k, n)`, by the faster of two libraries like [`linear`]."""
    if _by_convolution(batch, matrix):
        return F.conv2d(batch[:, :, None], matrix[:, :, None, None])[:, :, 0]
    return torch.bmm(matrix.expand(batch.shape[0], -1, -1), batch)


class FasterLinear(nn.Linear):
    """`nn.Linear` by [`linear`]."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return linear(features, self.weight, self.bias)


def with_faster_layers(model: nn.Module) -> None:
    """Make every linear layer a [`FasterLinear`], in place: also those in timm's and transformers' modules."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FasterLinear


__all__ = [
    "FasterLinear",
    "in_inference",
    "in_inference_on_cpu",
    "layers_as_written",
    "left_product",
    "is_untouched",
    "linear",
    "products_are_fast",
    "remembered",
]
