# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The two tools every family's conversion is made of: reading an original's settings, and renaming its tensors."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from .errors import ConversionError
from .report import ConversionReport

_REQUIRED = object()
SHOWN = 6  # names in an error message


class Settings:
    """An original's keyword arguments, taken one by one. What nobody took is an error that names it.

    Args:
        values: the arguments, as in the original's config.
        where: how messages call them, such as `backbone`.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        if not isinstance(values, Mapping):
            raise ConversionError(f"{where} must be a dict of settings, got {type(values).__name__}")
        self._left = dict(values)
        self._where = where

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of `name`, or the original's default."""
        if name not in self._left and default is _REQUIRED:
            raise ConversionError(f"{self._where} does not say {name!r}")
        return self._left.pop(name, default)

    def expect(self, name: str, *allowed: Any, default: Any = _REQUIRED) -> Any:
        """As `take`, but refuse anything except `allowed`. The default is the first of them unless given."""
        value = self.take(name, allowed[0] if default is _REQUIRED else default)
        if not any(value == option for option in allowed):
            options = " or ".join(map(repr, allowed))
            raise ConversionError(f"{self._where}.{name} is {value!r}; only {options} can be converted")
        return value

    def require(self, name: str, *allowed: Any) -> Any:
        """As `expect`, where the original has no default."""
        return self.expect(name, *allowed, default=self.take(name))

    def count(self, name: str, default: Any = _REQUIRED) -> int:
        """As `take`, for a number of things."""
        value = self.take(name, default)
        if type(value) is not int or value < 1:  # True is one of Python's numbers
            raise ConversionError(f"{self._where}.{name} is {value!r}; a whole number from 1 is needed")
        return value

    def sides(self, name: str, default: Any = _REQUIRED) -> tuple[int, int]:
        """As `take`, for the height and width of an image, given as one side or both."""
        value = self.take(name, default)
        sides = tuple(value) if isinstance(value, list | tuple) else (value,)
        if len(sides) not in (1, 2) or any(type(side) is not int or side < 1 for side in sides):
            raise ConversionError(f"{self._where}.{name} is {value!r}; one side or (height, width) in pixels is needed")
        return sides[0], sides[-1]

    def part(self, name: str) -> "Settings":
        """The settings that are the value of `name`."""
        return Settings(self.take(name), f"{self._where}.{name}")

    def drop(self, *names: str) -> None:
        """Forget settings that mean nothing for the converted model."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse what is left."""
        if self._left:
            raise ConversionError(f"{self._where} has settings that are not understood: {_listed(self._left)}")


@dataclass(frozen=True)
class Rule:
    """Renames the tensors whose whole name matches `pattern`.

    Attributes:
        pattern, name: a regular expression and the template of the new name, as for `re.Match.expand`. A name of None
            says that the model does not need these tensors.
        change: what happens to the tensor on the way, from its name and value. It raises `ConversionError` where the
            tensor has another rank, and leaves its argument alone.
        parts: what stands for `{part}` in the new names of the equal parts that the tensor is then cut into, along its
            first dimension. Empty: it stays whole.
        optional: whether the model does not need these tensors where it has no place for them.
        why: the reason why the model does not need these tensors; of rules without a name, and of optional ones.
    """

    pattern: str
    name: str | None
    change: Callable[[str, torch.Tensor], torch.Tensor] | None = None
    parts: Sequence[str] = ()
    optional: bool = False
    why: str = "the original builds it but does not use it with this configuration"

    def apply(self, name: str, new_name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """The model's tensors, under their names, that the tensor `name` becomes; `new_name` is from the template."""
        if self.change is not None:
            tensor = self.change(name, tensor)
        if not self.parts:
            return [(new_name, tensor)]
        if tensor.dim() == 0 or tensor.shape[0] % len(self.parts):
            raise ConversionError(f"{name} is {_shape(tensor)}, which cannot be cut into {len(self.parts)} equal parts")
        pieces = tensor.chunk(len(self.parts))
        return [
            (new_name.replace("{part}", part), piece.clone()) for part, piece in zip(self.parts, pieces, strict=True)
        ]


def prefixed(prefix: str, rules: Iterable[Rule], new_prefix: str | None = None) -> list[Rule]:
    """The same rules for tensors below `prefix`, which stays or becomes `new_prefix`."""
    new_prefix = prefix if new_prefix is None else new_prefix
    return [
        replace(rule, pattern=re.escape(prefix) + rule.pattern, name=rule.name and new_prefix + rule.name)
        for rule in rules
    ]


@dataclass(frozen=True)
class Backbone:
    """How one of mmseg's backbones becomes ours.

    Attributes:
        rules: new names for its tensors, both without the `backbone.` in front.
        read_config: from its settings to our config.
        prepare: what to do to its state dict before the rules, `backbone.` included.
    """

    rules: Sequence[Rule]
    read_config: Callable[[Settings], Any]
    prepare: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = lambda state_dict: state_dict


@dataclass(frozen=True)
class Head:
    """How one of mmseg's heads becomes a model of ours.

    Attributes:
        model_class: of the whole model.
        rules: new names for the tensors of the decode head and the auxiliary head, in both cases whole.
        read_config: from the settings of the decode head, those of the auxiliary head or None, the backbone's config,
            and fields of the test protocol as keywords, to the model's config.
    """

    model_class: type[PreTrainedModel]
    rules: Sequence[Rule]
    read_config: Callable[..., Any]


def load_converted(
    model: PreTrainedModel, state_dict: Mapping[str, torch.Tensor], rules: Iterable[Rule]
) -> ConversionReport:
    """Give a model that was built on the meta device the tensors of an original checkpoint, under their new names.

    Every tensor must find its place, or a rule that says it has none, and every place its tensor. Counters of batch
    norms, which some tools strip, may be missing: only training without momentum would read them. Where a checkpoint
    mixes floating dtypes, all become the widest.

    Returns:
        what became of every tensor.

    Raises:
        ConversionError: naming the tensors that are left over, missing or of another shape, by their original names
            where they have one.
    """
    rules = list(rules)
    report = ConversionReport(unused=_unused(state_dict, rules))
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in report.unused}
    expected = model.state_dict()
    dtype, storages = widest_dtype(state_dict), set()
    renamed: dict[str, torch.Tensor] = {}
    original_names: dict[str, str] = {}
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
        if rule is not None and (rule.change is not None or rule.parts):
            report.changed.add(name)
        for new_name, piece in pieces:
            if new_name in renamed:
                raise ConversionError(f"{original_names[new_name]!r} and {name!r} are the same tensor of the model")
            if piece.shape != expected[new_name].shape:
                misshapen[new_name] = f"{name} is {_shape(piece)}, expected {_shape(expected[new_name])}"
                continue
            piece = piece.to(dtype) if piece.is_floating_point() else piece
            # safetensors does not save two names for one memory
            if piece.untyped_storage().data_ptr() in storages:
                piece = piece.clone()
            storages.add(piece.untyped_storage().data_ptr())
            renamed[new_name] = piece
            original_names[new_name] = name
    missing = [name for name in expected if name not in renamed and name not in misshapen]
    for name in [name for name in missing if name.endswith("num_batches_tracked")]:
        renamed[name] = torch.zeros((), dtype=torch.long)
        report.made[name] = "a counter that was stripped from the checkpoint; it starts at 0"
        missing.remove(name)

    problems = []
    if misshapen:
        problems.append(f"wrong shapes: {_listed(misshapen.values(), '; ')}")
    if leftover:
        problems.append(f"tensors that the config has no place for: {_listed(leftover)}")
    if missing:
        problems.append(f"tensors that the checkpoint lacks (by their new names): {_listed(missing)}")
    if problems:
        raise ConversionError("the checkpoint does not fit its config: " + ". ".join(problems))
    model.load_state_dict(renamed, strict=True, assign=True)
    _make_unsaved_buffers(model)
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps it
    return report


def find_rule(name: str, rules: Iterable[Rule]) -> tuple[Rule | None, str | None]:
    """The first rule that matches a tensor's name, and the new name that it gives; None where none does."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule, rule.name and match.expand(rule.name)
    return None, None


@torch.no_grad()
def _make_unsaved_buffers(model: PreTrainedModel) -> None:
    """What no state dict holds is still on the meta device: the model's own initialisation makes it."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for module in model.modules():
        unsaved = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in unsaved.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
            setattr(module, "_is_hf_initialized", False)  # noqa: B010
    model.init_weights()


def _unused(names: Iterable[str], rules: list[Rule]) -> dict[str, str]:
    """The tensors that a rule says have no place, and why."""
    found = ((name, find_rule(name, rules)[0]) for name in names)
    return {name: rule.why for name, rule in found if rule is not None and rule.name is None}


def checked_tensors(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint without the `module.` that data parallelism puts in front of all names.

    Raises:
        ConversionError: naming what is no name or no dense tensor in memory.
    """
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ConversionError(f"the state dict maps {name!r} to a {type(tensor).__name__}, not a name to a tensor")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ConversionError(
                f"{name} is {tensor.dtype} ({tensor.layout}, {tensor.device}), expected a dense tensor"
            )
    wrapped = bool(state_dict) and all(name.startswith("module.") for name in state_dict)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state_dict.items()}


def widest_dtype(state_dict: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The dtype that holds all weights without loss; also refuses what is no weight."""
    widest: torch.dtype | None = None
    for name, tensor in state_dict.items():
        counter = name.endswith("num_batches_tracked")
        if tensor.is_floating_point() == counter:
            kind = "an integer counter" if counter else "floating-point numbers"
            raise ConversionError(f"{name} is {tensor.dtype}, expected {kind}")
        if not counter:
            widest = tensor.dtype if widest is None else torch.promote_types(widest, tensor.dtype)
    return widest or torch.float32


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more
