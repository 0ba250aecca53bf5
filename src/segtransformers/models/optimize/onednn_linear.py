# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Choice of the fastest matrix products for this CPU, and products through oneDNN on AMD processors.

PyTorch multiplies float32 matrices with MKL, which has fast paths for Intel's processors only. It convolves with
oneDNN, which has them for all processors. One core of an AMD EPYC with AVX-512 reached 99 GFLOP/s with MKL and 225 with
oneDNN.
"""

import functools
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...operators import dispatcher
from .replacement import is_on_cpu, is_plain, replace_modules, runs_float32_on_cpu

MIN_ROWS = 64  # for fewer rows the conversion to a convolution costs more than it saves


@functools.cache
def mkl_is_slow() -> bool:
    """Return whether PyTorch's matrix products are slower than its convolutions on this CPU."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text(errors="replace")[:2000] if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in vendor


def packed_products(dtype: torch.dtype) -> ModuleType | None:
    """Return the kernel's products ([`dispatcher.matrix_operators`]) where they are faster than PyTorch's.

    AMX multiplies float32 matrices 1.2 to 2 times as fast as MKL. Products by vectors reach what oneDNN reaches, and
    save passes over memory for biases and activations; MKL reaches it on Intel's processors. bfloat16 matrices are
    multiplied by AMX in oneDNN, too. Those on Intel's processors without AMX were not measured.
    """
    matrix = dispatcher.matrix_operators(torch.empty(0, dtype=dtype, device="cpu"))
    if matrix is None:
        return None
    if dtype == torch.bfloat16:
        is_faster = not cpu_capabilities().get("amx_bf16")
    else:
        is_faster = matrix.PRODUCTS[torch.float32] == "matrix unit" or mkl_is_slow()
    return matrix if is_faster else None


def cpu_capabilities() -> dict[str, Any]:
    """Return the instructions of the CPU by name; empty if this version of torch cannot say them."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def _by_convolution(features: torch.Tensor) -> bool:
    return (
        mkl_is_slow()
        and runs_float32_on_cpu(features)
        and torch.get_num_threads() > 1  # with one thread PyTorch takes MKL for 1x1 convolutions, too
        and features.numel() >= MIN_ROWS * features.shape[-1]
    )


def linear(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `F.linear` of `(..., C)`, in oneDNN where that is faster."""
    if not _by_convolution(features):
        return F.linear(features, weight, bias)
    # as one row of pixels with channels last, which is the same memory
    rows = features.reshape(1, 1, -1, features.shape[-1]).permute(0, 3, 1, 2)
    output = F.conv2d(rows, weight[:, :, None, None], bias)
    return output.permute(0, 2, 3, 1).reshape(*features.shape[:-1], weight.shape[0])


def product_into(features: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> None:
    """Write `features` `(N, C)` times the transposed `weight` `(M, C)` into `output` `(N, M)`."""
    if _by_convolution(features):
        output.copy_(linear(features, weight, None))
    else:
        torch.mm(features, weight.t(), out=output)


def left_product(matrix: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Multiply a matrix `(m, k)` with each of `(N, k, n)`, in oneDNN where that is faster."""
    if _by_convolution(batch):
        return F.conv2d(batch[:, :, None], matrix[:, :, None, None])[:, :, 0]
    return torch.bmm(matrix.expand(batch.shape[0], -1, -1), batch)


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in oneDNN where that is faster."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        return linear(input, self.weight, self.bias)


def use_onednn_for_linear(model: nn.Module) -> int:
    """Replace linear layers on AMD processors."""
    if not (mkl_is_slow() and is_on_cpu(model)):
        return 0
    return replace_modules(model, _replacement)


def _replacement(module: nn.Module) -> nn.Module | None:
    if not is_plain(module, nn.Linear) or module.weight.dtype != torch.float32:
        return None
    with torch.device("meta"):  # the weights are taken over
        new = OneDnnLinear(module.in_features, module.out_features, module.bias is not None)
    new.weight, new.bias = module.weight, module.bias
    return new


__all__ = [
    "OneDnnLinear",
    "cpu_capabilities",
    "left_product",
    "linear",
    "mkl_is_slow",
    "packed_products",
    "product_into",
    "use_onednn_for_linear",
]
