# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Replacement of a model's layers by faster ones for inference."""

import copy
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..layers.initialization import LOAD_AGAIN, SegmentationModelMixin
from .channels_last import use_channels_last
from .dense_layers import use_dense_operators
from .layer_scale import fold_layer_scales
from .matrix_attention import use_matrix_attention
from .norm_folding import fold_norms
from .onednn_linear import use_onednn_for_linear
from .packed_layers import use_packed_layers
from .position_bias import share_position_bias_memory
from .upernet_head import use_fast_upernet_head
from .winograd import use_winograd

Model = TypeVar("Model", bound=PreTrainedModel)

# In the order of application. Each replaces layers of a model in place and returns how many.
OPTIMIZATIONS: dict[str, Callable[[nn.Module], int]] = {
    "norm_folding": fold_norms,
    "layer_scale": fold_layer_scales,
    "channels_last": use_channels_last,
    "dense_operators": use_dense_operators,
    "upernet_head": use_fast_upernet_head,
    "position_bias": share_position_bias_memory,
    "winograd": use_winograd,
    "matrix_attention": use_matrix_attention,
    "packed_layers": use_packed_layers,
    "onednn_linear": use_onednn_for_linear,
}
# These keep weights in an order for one dtype, so they follow the conversion to the dtype of the result.
AFTER_CONVERSION = ("winograd", "matrix_attention", "packed_layers", "onednn_linear")


def optimize_for_inference(
    model: Model, *, inplace: bool = False, without: Collection[str] = (), dtype: torch.dtype | None = None
) -> Model:
    """Make a model faster for inference by replacing layers. Results are the same up to rounding.

    Batch norms and layer scales are folded into the layers before them, and on a CPU layers are replaced by faster
    ones. Their weights are laid out once. Layers with hooks, adapters, quantized or offloaded weights stay. So do all
    layers of a model that is in half precision already, because folded weights would round differently; `dtype` rounds
    them after folding.

    The result cannot be trained, saved or given an adapter, and it gives no gradients. Keep the original for these.

    Args:
        model: a model or backbone of this package. It is set to evaluation mode.
        inplace: whether to change `model` itself instead of a copy. This saves the memory of the copy.
        without: names from [`OPTIMIZATIONS`] to leave out, to measure what each is worth.
        dtype: of the result, for example `torch.bfloat16` on a CPU with AMX or AVX512-BF16. None keeps that of the
            model.

    Returns:
        the optimized model. A model that is optimized already is returned as it is.

    Raises:
        TypeError: if `model` is not a model of this package.
        ValueError: if `without` has an unknown name, or if `dtype` is another one than that of an optimized model.
    """
    if not isinstance(model, SegmentationModelMixin):
        raise TypeError(
            f"optimize_for_inference takes a model or backbone of segtransformers, got {type(model).__name__}"
        )
    unknown = set(without) - set(OPTIMIZATIONS)
    if unknown:
        raise ValueError(f"without has unknown names {sorted(unknown)}: choose from {list(OPTIMIZATIONS)}")
    if model.is_optimized:
        if dtype not in (None, model.dtype):
            raise ValueError(f"the model is optimized for {model.dtype} already: {LOAD_AGAIN}")
        return model
    optimized: Any = model if inplace else copy.deepcopy(model)
    optimized.eval().requires_grad_(False)
    chosen = {name: replace_layers for name, replace_layers in OPTIMIZATIONS.items() if name not in without}
    if not all(tensor.dtype in (torch.float32, torch.float64) for tensor in optimized.parameters()):
        chosen = {}
    for name, replace_layers in chosen.items():
        if name not in AFTER_CONVERSION:
            replace_layers(optimized)
    if dtype is not None:
        optimized.to(dtype)
    for name, replace_layers in chosen.items():
        if name in AFTER_CONVERSION:
            replace_layers(optimized)
    for module in optimized.modules():  # the backbone can be used without the rest
        if isinstance(module, SegmentationModelMixin):
            module.is_optimized = True
            module.peft_config = _NoAdapters()
    return optimized


def optimize_if_ours(model: Model, *, inplace: bool = False, dtype: torch.dtype | None = None) -> Model:
    """Optimize a model of this package, and return any other model as it is, in the dtype if one is given."""
    if isinstance(model, SegmentationModelMixin):
        return optimize_for_inference(model, inplace=inplace, dtype=dtype)
    return model if dtype is None else (model if inplace else copy.deepcopy(model)).to(dtype)


class _NoAdapters(dict):
    """Refuse the adapters that PEFT adds to a model's `peft_config` before it changes a layer."""

    def __setitem__(self, *_: Any) -> None:
        raise RuntimeError(f"an optimized model cannot get an adapter: {LOAD_AGAIN}")

    def update(self, *_: Any, **__: Any) -> None:
        self["adapter"] = None


__all__ = ["OPTIMIZATIONS", "optimize_for_inference", "optimize_if_ours"]
