# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The precision of a network at inference."""

from typing import Any

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype for a name of a precision.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the device computes faster with it, else fp32.
        device: of the model.

    Raises:
        ValueError: if the name is unknown, or fp16 is asked for on a CPU, where it is slow.
    """
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be auto, {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU: a CPU takes fp32, bf16 or auto")
    return PRECISIONS[precision]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16: AMX or AVX512-BF16 of a CPU, tensor cores of a GPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # older versions of torch cannot say it
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


__all__ = ["PRECISIONS", "has_fast_bfloat16", "inference_dtype"]
