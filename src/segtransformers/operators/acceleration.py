# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Let models of other packages compute their multi-scale deformable attention with the operators of this package.

Deformable DETR, RT-DETR, RF-DETR, Grounding DINO and others in transformers have a layer for it, whose `forward` is
replaced. Mask2Former, OneFormer, D-FINE, and code like that of Deformable DETR's repository or mmcv call a function:
their layer gets a `forward` of the same code that finds our function under its name. Only the given model changes.
"""

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging

from . import dispatcher
from .deformable_attention import MultiScaleDeformableAttention, ms_deform_attn

logger = logging.get_logger(__name__)


class Acceleration:
    """Undoes the changes of [`accelerate`]: by [`undo`], or at the end of a `with` block.

    Attributes:
        layers: the names of the layers that use the operators of this package.
    """

    def __init__(self) -> None:
        self.layers: list[str] = []
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Restore the model. A second call does nothing."""
        while self._undo:
            self._undo.pop()()
        self.layers.clear()

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(self, *exception) -> None:
        self.undo()

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of this one module, and remember how it was."""
        before = vars(module).get(name, inspect.Parameter.empty)
        object.__setattr__(module, name, value)

        def restore() -> None:
            if vars(module).get(name) is not value:
                return  # somebody replaced it since
            if before is inspect.Parameter.empty:
                object.__delattr__(module, name)
            else:
                object.__setattr__(module, name, before)

        self._undo.append(restore)


def accelerate(model: nn.Module) -> Acceleration:
    """Compute a model's multi-scale deformable attention with the compiled operators of this package.

    The model may be any with the layer of transformers (Deformable DETR, RT-DETR, RF-DETR, Grounding DINO, OmDet-Turbo,
    LW-DETR...), with transformers' functions (Mask2Former, OneFormer, RT-DETRv2, D-FINE, DEIMv2), or with the functions
    of Deformable DETR's repository or mmcv (Mask DINO, DINO). Without a compiled kernel, a faster function in plain
    PyTorch is used on a CPU. Gradients, `torch.compile` and half precision work. Models of this package need no call.

    The change takes effect at once, and ends with the block or with `undo`:

    ```python
    with accelerate(model):
        outputs = model(**inputs)
    ```

    Raises:
        ValueError: if the model has no such attention.
    """
    dispatcher.prepare()
    acceleration = Acceleration()
    has_own, replaced = False, []
    for name, module in model.named_modules():
        if isinstance(module, MultiScaleDeformableAttention):
            has_own = True  # the dispatcher selects its operator already
            continue
        changes = _changes(module)
        if not changes:
            continue
        if "forward" in changes and "forward" in vars(module):
            replaced.append(name)
            continue
        for attribute, value in changes.items():
            acceleration._set(module, attribute, value)
        acceleration.layers.append(name)
    if replaced:
        logger.warning(
            f"accelerate left {len(replaced)} layers as they are, because something else replaced their forward "
            f"(a hook of accelerate, kernelize): {', '.join(replaced[:3])}"
        )
    if not acceleration.layers and not has_own and not replaced:
        raise ValueError(
            f"{type(model).__name__} has no multi-scale deformable attention that is known here: expected the layer "
            f"MultiScaleDeformableAttention of transformers, or a layer that calls one of {', '.join(FUNCTIONS)}"
        )
    return acceleration


def _changes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that make a module use our operator; none if it has no such attention of its own."""
    forward = type(module).forward
    if type(module).__name__ == "MultiScaleDeformableAttention" and _has_parameters(forward):
        return {"forward": types.MethodType(_forward, module)}
    changes: dict[str, Any] = {}
    code = getattr(forward, "__code__", None)
    used = set(FUNCTIONS) & set(code.co_names if code is not None else ())
    found = {name: FUNCTIONS[name] for name in used if name in forward.__globals__}
    if found:
        own = types.FunctionType(
            forward.__code__,
            {**forward.__globals__, **found},
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        own.__kwdefaults__ = forward.__kwdefaults__
        changes["forward"] = types.MethodType(own, module)
    for name, value in vars(module).items():  # D-FINE keeps the function in an attribute
        if isinstance(value, types.FunctionType) and value.__name__ in FUNCTIONS:
            changes[name] = FUNCTIONS[value.__name__]
    return changes


LAYER_PARAMETERS = list(inspect.signature(MultiScaleDeformableAttention.forward).parameters)


def _has_parameters(forward: Callable) -> bool:
    return list(inspect.signature(forward).parameters) == LAYER_PARAMETERS


# ---- the operator under the names and arguments of others ------------------------------------------------------------


def _attention(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor | Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Compute the attention; shapes in a tensor on a GPU are copied to the CPU, for which the GPU is waited for."""
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, torch.Tensor) else spatial_shapes
    return ms_deform_attn(value, [tuple(shape) for shape in shapes], sampling_locations, attention_weights)


def _forward(
    self,
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_spatial_shapes_list: list[tuple[int, int]],
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    im2col_step: int,
) -> torch.Tensor:
    """Compute the layer of transformers."""
    return _attention(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _attention_with_points(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor | Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> torch.Tensor:
    """Compute the attention of RT-DETRv2, in which each level may have another number of points.

    Args:
        sampling_locations: `(B, queries, heads, sum(num_points_list), 2)`.
        attention_weights: `(B, queries, heads, sum(num_points_list))`.
        method: "default" for bilinear samples, or "discrete" for those at the nearest pixel.
    """
    points = max(num_points_list)
    if method == "discrete":
        # The centre of the pixel that transformers takes: its index is the location in pixels plus 0.5, cut off.
        shapes = value_spatial_shapes
        sides = (
            torch.as_tensor(shapes, device=value.device)
            .flip(-1)
            .repeat_interleave(torch.tensor(list(num_points_list), device=value.device), dim=0)
        )
        index = (sampling_locations * sides + 0.5).long()
        index = torch.minimum(index.clamp_min(0), sides - 1)
        sampling_locations = ((index + 0.5) / sides).to(sampling_locations.dtype)
    locations, weights = [], []
    for level_locations, level_weights in zip(
        sampling_locations.split(list(num_points_list), dim=3),
        attention_weights.split(list(num_points_list), dim=3),
        strict=True,
    ):
        missing = points - level_weights.shape[3]  # points with weight zero make the levels equal
        locations.append(F.pad(level_locations, (0, 0, 0, missing), value=0.5))
        weights.append(F.pad(level_weights, (0, missing)))
    return _attention(value, value_spatial_shapes, torch.stack(locations, 3), torch.stack(weights, 3))


class _Function:
    """Stands for an autograd function with `apply`."""

    @staticmethod
    def apply(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step):
        return _attention(value, spatial_shapes, sampling_locations, attention_weights)


FUNCTIONS: dict[str, Any] = {
    "multi_scale_deformable_attention": _attention,  # transformers: Mask2Former, OneFormer
    "multi_scale_deformable_attention_v2": _attention_with_points,  # transformers: RT-DETRv2, D-FINE, DEIMv2
    "ms_deform_attn_core_pytorch": _attention,  # Deformable DETR's repository
    "MSDeformAttnFunction": _Function,
    "multi_scale_deformable_attn_pytorch": _attention,  # mmcv
    "MultiScaleDeformableAttnFunction": _Function,
}

__all__ = ["Acceleration", "accelerate"]
