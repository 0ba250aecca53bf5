# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of a config that are none of its fields: misspelt names and fields of other libraries' configs."""

import difflib
import inspect
from dataclasses import fields
from typing import Any, ClassVar

from transformers.utils import logging

from ...escaping import printable, short_repr

logger = logging.get_logger(__name__)

# Limits far beyond any model, so that a wrong or hostile file is refused before anything is made from its numbers.
MOST_LAYERS = 1000
LARGEST_WIDTH = 1 << 16  # channels
MOST_ITEMS = 1 << 16  # classes, queries, points, pixels of a side

# transformers sets or reads these on every config, although they are not dataclass fields
_COMMON = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "source_config",  # the published row of a converted checkpoint
        "torch_dtype",
        "use_cache",
    }
)
# transformers builds `backbone_config` from these
_COMMON_WITH_BACKBONE = frozenset({"backbone", "backbone_kwargs", "use_timm_backbone"})


class ChecksArguments:
    """Mixin in front of `PreTrainedConfig` that never ignores an argument silently.

    `PreTrainedConfig` keeps any unknown argument as an attribute that nothing reads. Here an unknown argument

    - sets the field that `attribute_map` names, as in all of transformers;
    - is refused where `fixed_fields` has another value for it, or where its name resembles that of a field;
    - is kept otherwise, and a warning says that the model does not use it.
    """

    attribute_map: ClassVar[dict[str, str]]

    def fixed_fields(self) -> dict[str, Any]:
        """Return fields of transformers' configs that are constants of our model, with the only value they can have."""
        return {}

    def __post_init__(self, **kwargs):
        self.set_aliases(kwargs)
        super().__post_init__(**self._checked(kwargs))  # type: ignore[misc]

    def set_aliases(self, arguments: dict[str, Any]) -> None:
        """Set the fields that `attribute_map` has other names for, and take these names out of `arguments`.

        transformers does so at the end of its own `__post_init__`. A subclass that computes fields from aliased ones
        calls this first.
        """
        for name in set(arguments) & set(self.attribute_map):
            setattr(self, name, arguments.pop(name))

    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that are left for transformers.

        Raises:
            ValueError: naming an argument that the model cannot follow.
        """
        name_of_class = type(self).__name__
        fixed = self.fixed_fields()
        common = _COMMON | (_COMMON_WITH_BACKBONE if getattr(self, "sub_configs_defaults", None) else frozenset())
        known = {*(field.name for field in fields(self)), *self.attribute_map}
        kept, unused = {}, []
        for name, value in arguments.items():
            if name in fixed:
                if value is not None and (list(value) if isinstance(value, tuple) else value) != fixed[name]:
                    raise ValueError(
                        f"{name_of_class} cannot take {name}={short_repr(value)}: the model always has "
                        f"{fixed[name]!r}; leave it out"
                    )
                continue
            if name in known or name in common or name in vars(self) or name.startswith("_"):
                pass
            elif isinstance(inspect.getattr_static(type(self), name, None), property):
                if value != getattr(self, name):
                    raise ValueError(
                        f"{name_of_class} cannot take {name}={short_repr(value)}: it follows from other fields, which "
                        f"make it {short_repr(getattr(self, name))}; leave it out"
                    )
                continue
            elif close := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                raise ValueError(f"{name_of_class} has no field {short_repr(name)}: did you mean {close[0]!r}?")
            elif value is not None:
                unused.append(name)
            kept[name] = value
        if unused:
            more = f" and {len(unused) - 8} more" if len(unused) > 8 else ""
            listed = ", ".join(map(printable, unused[:8])) + more
            logger.warning(f"{name_of_class} has no use for: {listed}. They are kept, but nothing reads them.")
        return kept


__all__ = ["LARGEST_WIDTH", "MOST_ITEMS", "MOST_LAYERS", "ChecksArguments"]
