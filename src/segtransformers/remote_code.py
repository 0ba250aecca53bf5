# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Saved folders that load with `trust_remote_code=True` where nobody has imported this package.

`save_pretrained` writes a module beside the config that only imports this package, and an `auto_map` that names the
classes in that module. transformers runs the module if the user trusts it; without the package, transformers asks for
`pip install segtransformers`. All entries of a folder name one module, because transformers copies each module of a
local folder on its own.

`hub/registration.py` declares the classes by their names, so that this module imports none of them.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
MODULE = f"modeling_{PACKAGE}"

_auto_maps: dict[str, dict[str, str | list[str]]] = {}
_custom_pipelines: dict[str, dict[str, dict[str, Any]]] = {}


def declare(
    class_name: str,
    auto_map: Mapping[str, str | list[str]],
    pipelines: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Declare the classes that load a saved config or image processor as remote code.

    Args:
        class_name: of the config or image processor.
        auto_map: auto class -> class, by their names. All classes can be imported from the package itself.
        pipelines: task -> pipeline class and auto class of its model, by their names; for the config of a whole model.
    """
    _auto_maps[class_name] = {
        auto_class: _reference(names) if isinstance(names, str) else [_reference(name) for name in names]
        for auto_class, names in auto_map.items()
    }
    _custom_pipelines[class_name] = {
        task: {"impl": _reference(pipeline), "pt": [auto_class]}
        for task, (pipeline, auto_class) in (pipelines or {}).items()
    }


def _reference(class_name: str) -> str:
    return f"{MODULE}.{class_name}"


class RemoteCodeMixin:
    """Let `save_pretrained` write what `trust_remote_code=True` needs.

    It stands before `PreTrainedConfig` or the image processor among the bases of a class. Classes that are not
    [`declare`]d, such as a subclass in a user's own code, are saved as transformers saves them.
    """

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs: Any):
        """Save as transformers does, and write the module."""
        if not _is_declared(type(self)):
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]
        self._set_auto_map()
        repository = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
        saved = super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        write_module(Path(save_directory), _class_names(type(self).__name__))
        if push_to_hub:  # transformers' own push would leave the module out
            self.push_to_hub(repository, **kwargs)  # type: ignore[attr-defined]
        return saved

    def _set_auto_map(self) -> None:
        self.auto_map = deepcopy(_auto_maps[type(self).__name__])

    @classmethod
    def register_for_auto_class(cls, *arguments: Any, **keywords: Any) -> None:
        """Do nothing for classes of this package; transformers calls this after it loaded a class as remote code.

        transformers would then copy the file of the class at the next save, which is of no use without the package.
        """
        if not cls.__module__.startswith(f"{PACKAGE}."):
            super().register_for_auto_class(*arguments, **keywords)  # type: ignore[misc]


class RemoteCodeConfigMixin(RemoteCodeMixin):
    """A [`RemoteCodeMixin`] for configs, which also name the pipelines of the model."""

    def _set_auto_map(self) -> None:
        super()._set_auto_map()
        pipelines = _custom_pipelines[type(self).__name__]
        if pipelines:
            self.custom_pipelines = deepcopy(pipelines)
        backbone = getattr(self, "backbone_config", None)
        if isinstance(backbone, RemoteCodeMixin) and hasattr(backbone, "auto_map"):
            del backbone.auto_map  # it names the module of the folder that the backbone came from


def _is_declared(cls: type) -> bool:
    return cls.__module__.startswith(f"{PACKAGE}.") and cls.__name__ in _auto_maps


def _class_names(class_name: str) -> list[str]:
    """Return the names that the module of a saved config or image processor must hold."""
    references = [
        reference
        for entry in _auto_maps[class_name].values()
        for reference in (entry if isinstance(entry, list) else [entry])
    ]
    references += [task["impl"] for task in _custom_pipelines[class_name].values()]
    return [reference.partition(".")[2] for reference in references]


def write_module(folder: Path, names: list[str]) -> None:
    """Write the module that imports these classes from the package, or add them to the module in the folder."""
    path = folder / f"{MODULE}.py"
    if path.is_file():
        names = [*names, *(line.strip(" ,\n") for line in path.read_text().splitlines() if line.startswith("    "))]
    listed = "".join(f"    {name},\n" for name in sorted(set(names)))
    text = (
        f'"""The code of this model is in the package {PACKAGE}: pip install {PACKAGE}"""\n\n'
        f"from {PACKAGE} import (\n{listed})\n"
    )
    path.write_text(text, encoding="utf-8")
