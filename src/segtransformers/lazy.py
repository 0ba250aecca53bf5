# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Lazy imports for packages, so that importing one costs nothing before a name of it is used (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package that imports its names on first use.

    Args:
        package: name of the package, its `__name__`.
        modules: module, relative to the package -> the names to take from it.
        submodules: submodules that are attributes of the package without an import of their own.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name in submodules:
            return importlib.import_module(f".{name}", package)
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{module_of[name]}", package), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    def list_attributes() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of, *submodules})

    return get_attribute, list_attributes
