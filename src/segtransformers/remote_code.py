# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What makes a saved folder load with `trust_remote_code=True` where nobody imported this package.

Beside its config a folder gets a module that only imports the package, and the config's `auto_map` names the classes in
it. transformers runs that module if it is trusted to; where the package is missing it says `pip install
segtransformers`. All entries name one module, because transformers copies each module of a local folder apart.
"""

from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
MODULE = f"modeling_{PACKAGE}"


def stub(names: list[str]) -> str:
    """The module's text, which imports these classes."""
    listed = "".join(f"    {name},\n" for name in sorted(names))
    return (
        f'"""The code of this model is in the package {PACKAGE}: pip install {PACKAGE}"""\n\n'
        f"from {PACKAGE} import (\n{listed})\n"
    )


class CarriesItsCode:
    """Stands in front of `PreTrainedConfig` or an image processor in the bases of a class: what it saves can be loaded
    as remote code.

    Classes that somebody derives elsewhere are saved as transformers does it.
    """

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs: Any):
        """As transformers' own, and the module beside it."""
        if not type(self).__module__.startswith(f"{PACKAGE}."):
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]
        self.declare_remote_code()
        repository = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
        saved = super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        write_stub(Path(save_directory), self._class_names())
        if push_to_hub:  # not by transformers' method, which would leave out files of its caller
            self.push_to_hub(repository, **kwargs)  # type: ignore[attr-defined]
        return saved

    def declare_remote_code(self) -> None:
        """Set `auto_map`, and for a whole model `custom_pipelines`."""
        self.auto_map = self._auto_map()

    def _auto_map(self) -> dict[str, str | list[str]]:
        raise NotImplementedError

    def _class_names(self) -> list[str]:
        entries = list(self.auto_map.values())
        references = [name for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
        references += [task["impl"] for task in (getattr(self, "custom_pipelines", None) or {}).values()]
        return [reference.partition(".")[2] for reference in references]

    @classmethod
    def register_for_auto_class(cls, *arguments: Any, **keywords: Any) -> None:
        """transformers calls this when it loaded a class as remote code, to copy the file of the class at the next
        save. Ours are in an installed package, and one file of it alone would be of no use."""
        if not cls.__module__.startswith(f"{PACKAGE}."):
            super().register_for_auto_class(*arguments, **keywords)  # type: ignore[misc]


class ConfigCarriesItsCode(CarriesItsCode):
    """[`CarriesItsCode`] of a model's config."""

    def declare_remote_code(self) -> None:
        super().declare_remote_code()
        backbone = getattr(self, "backbone_config", None)
        if isinstance(backbone, CarriesItsCode) and hasattr(backbone, "auto_map"):
            del backbone.auto_map  # of the backbone's own folder, which had a module of its own
        if "AutoModelForSemanticSegmentation" in self.auto_map:
            from .inference.pipeline import custom_pipelines

            self.custom_pipelines = custom_pipelines(MODULE)

    def _auto_map(self) -> dict[str, str | list[str]]:
        from transformers import AutoBackbone, AutoModelForSemanticSegmentation

        classes = {"AutoConfig": type(self).__name__}
        config_class: Any = type(self)
        for auto_class in (AutoBackbone, AutoModelForSemanticSegmentation):
            if config_class in auto_class._model_mapping:
                model_class: Any = auto_class._model_mapping[config_class]
                classes[auto_class.__name__] = model_class.__name__
        return {auto_class: f"{MODULE}.{name}" for auto_class, name in classes.items()}


class ProcessorCarriesItsCode(CarriesItsCode):
    """[`CarriesItsCode`] of an image processor."""

    def _auto_map(self) -> dict[str, str | list[str]]:
        # both backends, transformers' way: first the one without torchvision. Of a single name it would make that of a
        # video processor, and ask whether its code is trusted
        name = type(self).__name__.removesuffix("Pil")
        return {"AutoImageProcessor": [f"{MODULE}.{name}Pil", f"{MODULE}.{name}"]}


def write_stub(folder: Path, names: list[str]) -> None:
    """Write the module, or add classes to the one that is there."""
    path = folder / f"{MODULE}.py"
    if path.is_file():
        names = [*names, *(line.strip(" ,\n") for line in path.read_text().splitlines() if line.startswith("    "))]
    path.write_text(stub(sorted(set(names))), encoding="utf-8")
