# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read an original's settings and rename its tensors; the conversions of all families consist of these two steps."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..escaping import LONGEST, printable, short_repr
from .errors import ConversionError
from .report import ConversionReport

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_REQUIRED = object()
_ROOTS = (
    "backbone",
    "decode_head",
    "auxiliary_head",
    "encoder",
    "decoder",
    "segmentation_model",
)  # parts of models, not of wrappers
SHOWN = 6  # largest number of names in an error message
# limits of numbers in a config; each layer becomes modules, and each class a name
MOST_LAYERS, MOST_CLASSES, LARGEST_NUMBER = 1000, 2**16, 2**24


class Settings:
    """A part of an original's config whose settings are taken one by one. A setting that is left over is an error.

    Args:
        values: the settings, as in the original's config.
        where: name of the part in error messages, such as `backbone`.

    All methods raise [`ConversionError`] if a setting is missing or has a value that cannot be converted.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        if not isinstance(values, Mapping):
            raise ConversionError(f"{where} must be a dict of settings, got {type(values).__name__}")
        self._left = dict(values)
        self.where = where

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return the value of `name`, or the original's default."""
        if name not in self._left and default is _REQUIRED:
            raise ConversionError(f"{self.where} has no setting {name!r}")
        return self._left.pop(name, default)

    def expect(self, name: str, *allowed: Any, default: Any = _REQUIRED) -> Any:
        """Take `name` and refuse any value except `allowed`. The default is the first of them unless given."""
        value = self.take(name, allowed[0] if default is _REQUIRED else default)
        if not any(value == option for option in allowed):
            options = " or ".join(short_repr(option) for option in allowed)
            raise ConversionError(f"{self.where}.{name} is {short_repr(value)}; only {options} can be converted")
        return value

    def require(self, name: str, *allowed: Any) -> Any:
        """Take `name`, which has no default, and refuse any value except `allowed`."""
        return self.expect(name, *allowed, default=self.take(name))

    def count(self, name: str, default: Any = _REQUIRED, most: int = LARGEST_NUMBER) -> int:
        """Take a positive integer."""
        value = self.take(name, default)
        if type(value) is not int or value < 1:  # bool is a subclass of int
            raise ConversionError(f"{self.where}.{name} is {short_repr(value)}; expected a positive integer")
        if value > most:
            raise ConversionError(f"{self.where}.{name} is {short_repr(value)}; at most {most} can be converted")
        return value

    def counts(self, name: str, default: Any = _REQUIRED, most: int = MOST_LAYERS) -> Any:
        """Take a list of integers, none and not all together above `most`."""
        values = self.take(name, default)
        if not isinstance(values, list | tuple) or any(type(value) is not int for value in values):
            raise ConversionError(f"{self.where}.{name} is {short_repr(values)}; expected a list of integers")
        if len(values) > most or sum(max(value, 0) for value in values) > most:
            raise ConversionError(f"{self.where}.{name} is {short_repr(values)}, which is too large: at most {most}")
        return values

    def sides(self, name: str, default: Any = _REQUIRED) -> tuple[int, int]:
        """Take the height and width of an image, given as one side or both."""
        value = self.take(name, default)
        sides = tuple(value) if isinstance(value, list | tuple) else (value,)
        if len(sides) not in (1, 2) or any(type(side) is not int or side < 1 for side in sides):
            raise ConversionError(
                f"{self.where}.{name} is {short_repr(value)}; expected one side or (height, width) in pixels"
            )
        return sides[0], sides[-1]

    def put(self, name: str, value: Any) -> None:
        """Replace a setting, for a function that takes it later."""
        self._left[name] = value

    def peek(self, name: str) -> Any:
        """Return the value of `name`, which stays for a later `take`, or None."""
        return self._left.get(name)

    def has(self, *names: str) -> bool:
        """Return whether one of these settings is left."""
        return any(name in self._left for name in names)

    def part(self, name: str) -> "Settings":
        """Take a dict as settings of their own."""
        return Settings(self.take(name), f"{self.where}.{name}")

    def drop(self, *names: str) -> None:
        """Remove settings without a meaning for the converted model."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse settings that are left over."""
        if self._left:
            raise ConversionError(f"{self.where} has unknown settings: {listed(self._left)}")


@dataclass(frozen=True)
class Rule:
    """New name for the tensors whose whole name matches a pattern.

    Attributes:
        pattern: the regular expression.
        name: the template of the new name, as for `re.Match.expand`; None if no model needs these tensors.
        change: function of the original name and the tensor that returns the changed tensor. It does not modify its
            argument, and raises `ConversionError` for a tensor of another rank.
        parts: values of `{part}` in the new names, if the tensor is split into equal parts along its first dimension.
        piece: index and number of the pieces, if several tensors are joined along their first dimension to one.
        optional: True if only some models need these tensors.
        why: the reason why a model does not need these tensors, for rules without a name and optional ones.
    """

    pattern: str
    name: str | None
    change: Callable[[str, torch.Tensor], torch.Tensor] | None = None
    parts: Sequence[str] = ()
    piece: tuple[int, int] | None = None
    optional: bool = False
    why: str = "the original builds it but does not use it with this configuration"

    def apply(self, name: str, new_name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """Return the names and tensors in the model for the original tensor `name`."""
        if self.change is not None:
            tensor = self.change(name, tensor)
        if not self.parts:
            return [(new_name, tensor)]
        if tensor.dim() == 0 or tensor.shape[0] % len(self.parts):
            raise ConversionError(
                f"{printable(name)} is {shape_of(tensor)}: it cannot be split into {len(self.parts)} equal parts"
            )
        pieces = tensor.chunk(len(self.parts))
        return [
            (new_name.replace("{part}", part), piece.clone()) for part, piece in zip(self.parts, pieces, strict=True)
        ]


def prefixed(prefix: str, rules: Iterable[Rule], new_prefix: str | None = None) -> list[Rule]:
    """Return the rules for tensors with a prefix, which is kept or replaced by `new_prefix`."""
    new_prefix = prefix if new_prefix is None else new_prefix
    return [
        replace(rule, pattern=re.escape(prefix) + rule.pattern, name=rule.name and new_prefix + rule.name)
        for rule in rules
    ]


@dataclass(frozen=True)
class Backbone:
    """Conversion of one of mmseg's backbones.

    Attributes:
        rules: new names for its tensors, without the prefix `backbone.`, or a function of our config that returns them.
        read_config: function from its settings to our config.
        prepare: function applied to the state dict, with the prefix `backbone.`, before the rules.
    """

    rules: Sequence[Rule] | Callable[[Any], Sequence[Rule]]
    read_config: Callable[[Settings], Any]
    prepare: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = lambda state_dict: state_dict


@dataclass(frozen=True)
class Head:
    """Conversion of a model with one of mmseg's heads.

    Attributes:
        model_class: class of the whole model.
        rules: new names for the tensors of the decode head and the auxiliary head, with their prefixes.
        read_config: function that returns the model's config, from the settings of the decode head, those of the
            auxiliary head or None, the backbone's config, and the fields of the test protocol as keywords.
    """

    model_class: type[PreTrainedModel]
    rules: Sequence[Rule]
    read_config: Callable[..., Any]


def load_converted(
    model: PreTrainedModel,
    state_dict: Mapping[str, torch.Tensor],
    rules: Iterable[Rule],
    after_tensor: Callable[[], None] = lambda: None,
) -> ConversionReport:
    """Load an original checkpoint into a model on the meta device, under the new names of its tensors.

    Every tensor of the checkpoint must belong to a tensor of the model, or to a rule without a name, and every tensor
    of the model must be in the checkpoint. Only the counters of batch norms may be missing: some tools strip them, and
    only training without momentum reads them. If the checkpoint has several floating-point dtypes, all tensors get the
    widest.

    Args:
        after_tensor: function that is called whenever a tensor was read.

    Returns:
        the use of every tensor.

    Raises:
        ConversionError: naming the tensors that are left over, missing or of another shape.
    """
    rules = list(rules)
    report = ConversionReport(unused=_unused(state_dict, rules))
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in report.unused}
    expected = model.state_dict()
    dtype, storages = widest_dtype(state_dict), set()
    renamed: dict[str, torch.Tensor] = {}
    original_names: dict[str, str] = {}
    to_join: dict[str, dict[int, torch.Tensor]] = {}
    leftover: list[str] = []
    misshapen: dict[str, str] = {}
    for name, tensor in state_dict.items():
        rule, new_name = find_rule(name, rules)
        pieces = [] if rule is None or new_name is None else rule.apply(name, new_name, tensor)
        if any(new_name not in expected for new_name, _ in pieces) or not pieces:
            if rule is None or not rule.optional:
                leftover.append(name)
            else:
                report.unused[name] = rule.why
            continue
        report.used[name] = [new_name for new_name, _ in pieces]
        if rule is not None and (rule.change is not None or rule.parts or rule.piece):
            report.changed.add(name)
        if rule is not None and rule.piece is not None:
            pieces = join_pieces(name, rule.piece, pieces, to_join)
        for new_name, piece in pieces:
            if new_name in renamed:
                raise ConversionError(
                    f"{short_repr(original_names[new_name])} and {short_repr(name)} become the same tensor of the model"
                )
            if piece.shape != expected[new_name].shape:
                misshapen[new_name] = f"{printable(name)} is {shape_of(piece)}, expected {shape_of(expected[new_name])}"
                continue
            piece = piece.to(dtype) if piece.is_floating_point() else piece
            # safetensors refuses tensors that share memory
            if piece.untyped_storage().data_ptr() in storages:
                piece = piece.clone()
            storages.add(piece.untyped_storage().data_ptr())
            renamed[new_name] = piece
            original_names[new_name] = name
        if tensor.is_floating_point() and not tensor.isfinite().all():
            report.not_finite.append(name)
        after_tensor()
    missing = [name for name in expected if name not in renamed and name not in misshapen]
    for name in [name for name in missing if name.endswith("num_batches_tracked")]:
        renamed[name] = torch.zeros((), dtype=torch.long)
        report.made[name] = "a counter that the checkpoint lacks; it starts at 0"
        missing.remove(name)

    problems = []
    if misshapen:
        problems.append(f"wrong shapes: {listed(misshapen.values(), '; ')}")
    if leftover:
        problems.append(f"tensors that the model does not have: {listed(leftover)}")
    if missing:
        problems.append(f"tensors that the checkpoint lacks (by their new names): {listed(missing)}")
    if problems:
        raise ConversionError("the checkpoint does not fit its config: " + ". ".join(problems))
    if report.not_finite:
        report.notes.append(
            f"the checkpoint holds NaN or infinity in {len(report.not_finite)} of its tensors, so the model may output "
            f"NaN: {listed(report.not_finite)}"
        )
    model.load_state_dict(renamed, strict=True, assign=True)
    _make_unsaved_buffers(model)
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps it
    return report


def find_rule(name: str, rules: Iterable[Rule]) -> tuple[Rule | None, str | None]:
    """Return the first rule that matches a tensor's name, and the new name; None for each if it does not exist."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule, rule.name and match.expand(rule.name)
    return None, None


def join_pieces(
    name: str,
    piece: tuple[int, int],
    found: list[tuple[str, torch.Tensor]],
    to_join: dict[str, dict[int, torch.Tensor]],
) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors whose last missing piece is the original tensor `name`. Other pieces wait in `to_join`."""
    (index, count), complete = piece, []
    for new_name, tensor in found:
        waiting = to_join.setdefault(new_name, {})
        if index in waiting:
            raise ConversionError(f"{printable(name)} is piece {index} of {new_name}, which another tensor is already")
        waiting[index] = tensor
        if len(waiting) == count:
            tensors = [waiting[number] for number in range(count)]
            if len({tensor.shape[1:] for tensor in tensors}) > 1 or not all(tensor.dim() for tensor in tensors):
                shapes = ", ".join(map(shape_of, tensors))
                raise ConversionError(f"the pieces of {new_name} are {shapes}: they cannot be joined")
            complete.append((new_name, torch.cat(tensors)))
            waiting.clear()
    return complete


@torch.no_grad()
def _make_unsaved_buffers(model: PreTrainedModel) -> None:
    """Create the non-persistent buffers, which no state dict contains, by the model's own initialisation."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for module in model.modules():
        unsaved = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in unsaved.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
            setattr(module, "_is_hf_initialized", False)  # noqa: B010
    model.init_weights()


def _unused(names: Iterable[str], rules: list[Rule]) -> dict[str, str]:
    """Return the tensors whose rule has no name, with the reason."""
    found = ((name, find_rule(name, rules)[0]) for name in names)
    return {name: rule.why for name, rule in found if rule is not None and rule.name is None}


def checked_tensors(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Check the tensors of a checkpoint, and remove the prefix that all names share, such as `module.` or `model.`.

    Raises:
        ConversionError: naming an entry whose key is not a string or whose value is not a dense tensor in memory.
    """
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ConversionError(
                f"the state dict has a {type(tensor).__name__} under {short_repr(name)}, expected a tensor under a name"
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ConversionError(
                f"{printable(name)} is {tensor.dtype} ({tensor.layout}, {tensor.device}), expected a dense tensor"
            )
    prefix = _wrapper(state_dict)
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}


def _wrapper(names: Collection[str]) -> str:
    """Return the prefix, with its dot, that a wrapper of the model has added to all names; else an empty string."""
    prefix = ""
    if len(names) > 1:  # the first and the last name in order share what all share
        for part, other in zip(min(names).split(".")[:-1], max(names).split(".")[:-1], strict=False):
            if part != other or part in _ROOTS:
                break
            prefix += f"{part}."
    return prefix


def separate_averages(state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Separate the weights from the averages that mmcv's `EMAHook` keeps beside them.

    The hook registers a buffer `ema_backbone_norm_weight` for a parameter `backbone.norm.weight`. Buffers such as the
    statistics of batch norms have no average.

    Returns:
        the weights, and the name of each average by that of its weight.
    """
    names = {f"ema_{name.replace('.', '_')}": name for name in state_dict}
    averages = {names[name]: name for name in state_dict if name in names}
    kept = {name: tensor for name, tensor in state_dict.items() if name not in names}
    return kept, {name: average for name, average in averages.items() if name in kept}


def widest_dtype(state_dict: Mapping[str, torch.Tensor]) -> torch.dtype:
    """Return the dtype that represents all weights exactly.

    Raises:
        ConversionError: naming a tensor that is neither floating-point nor a counter of a batch norm.
    """
    widest: torch.dtype | None = None
    for name, tensor in state_dict.items():
        is_counter = name.endswith("num_batches_tracked")
        if tensor.is_floating_point() == is_counter:
            kind = "an integer counter" if is_counter else "floating-point numbers"
            raise ConversionError(f"{printable(name)} is {tensor.dtype}, expected {kind}")
        if not is_counter:
            if tensor.dtype not in FLOATS:  # such as float8, whose values need scales
                raise ConversionError(
                    f"{printable(name)} is {tensor.dtype}: save the checkpoint in float32, float16 or bfloat16"
                )
            widest = tensor.dtype if widest is None else torch.promote_types(widest, tensor.dtype)
    return widest or torch.float32


def shape_of(tensor: torch.Tensor) -> str:
    """Return a tensor's shape for an error message, such as `3x4`."""
    return printable("x".join(map(str, tensor.shape)) or "a scalar")


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Return the first names for a message, and the number of the others."""
    names = [printable(name, 2 * LONGEST) for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more
