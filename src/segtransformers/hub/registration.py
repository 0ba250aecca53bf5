# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Registration of our classes with transformers' auto classes, and of their names with [`remote_code`].

`import segtransformers` imports neither torch nor transformers. [`register_automatically`] therefore registers a class
as soon as the module that holds its auto class has been imported: at once if it is already there, else right after the
import. transformers imports those modules in the middle of others (`configuration_auto` in the middle of
`modeling_utils`, `modeling_auto` in the middle of nearly every config), where our models cannot be imported yet. So
[`_ImportWatch`] waits for the end of the outermost import of transformers or of this package.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..remote_code import PACKAGE, declare


@dataclass(frozen=True)
class ModelNames:
    """The names of a model's classes, which are imported when they are registered.

    Attributes:
        package: in `segtransformers.models`, which has both classes.
        config: name of the config class.
        model: name of the model class.
    """

    package: str
    config: str
    model: str

    def load(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{PACKAGE}.models.{self.package}"), name)


BACKBONES = (
    ModelNames("internimage", "InternImageConfig", "InternImageBackbone"),
    ModelNames("segmenter", "SegmenterViTConfig", "SegmenterViTBackbone"),
    ModelNames("vit_adapter", "ViTAdapterConfig", "ViTAdapterBackbone"),
    ModelNames("vit_comer", "ViTCoMerConfig", "ViTCoMerBackbone"),
)
SEGMENTATION_MODELS = (
    ModelNames("mask2former", "SegMask2FormerConfig", "SegMask2FormerForSemanticSegmentation"),
    ModelNames("segformer", "SegSegformerConfig", "SegSegformerForSemanticSegmentation"),
    ModelNames("segmenter", "SegmenterConfig", "SegmenterForSemanticSegmentation"),
    ModelNames("upernet", "SegUperNetConfig", "SegUperNetForSemanticSegmentation"),
)
IMAGE_PROCESSORS = {"pil": "SegmentationImageProcessorPil", "torchvision": "SegmentationImageProcessor"}
# Not "image-segmentation": a task that a repository declares needs trust_remote_code, and transformers' own pipeline
# must load our models without it.
PIPELINES = {"semantic-segmentation": ("SegmentationPipeline", "AutoModelForSemanticSegmentation")}

for _names in BACKBONES:
    declare(_names.config, {"AutoConfig": _names.config, "AutoBackbone": _names.model, "AutoModel": _names.model})
for _names in SEGMENTATION_MODELS:
    declare(_names.config, {"AutoConfig": _names.config, "AutoModelForSemanticSegmentation": _names.model}, PIPELINES)
for _processor in IMAGE_PROCESSORS.values():
    # The first is the one without torchvision. From a single name transformers would derive that of a video processor,
    # and ask whether its code is trusted.
    declare(_processor, {"AutoImageProcessor": list(IMAGE_PROCESSORS.values())})


# The functions below import transformers and our models, which takes seconds, only when they are called.


def _register_configs() -> None:
    from transformers import AutoConfig

    for names in (*BACKBONES, *SEGMENTATION_MODELS):
        config_class = names.load(names.config)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoBackbone, AutoModel, AutoModelForSemanticSegmentation
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

    for names in BACKBONES:
        for auto_class in (AutoBackbone, AutoModel):
            auto_class.register(names.load(names.config), names.load(names.model), exist_ok=True)
    for names in SEGMENTATION_MODELS:
        config_class = names.load(names.config)
        AutoModelForSemanticSegmentation.register(config_class, names.load(names.model), exist_ok=True)
        # the image-segmentation pipeline accepts the class names listed here
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config_class.model_type] = names.model


def _register_image_processors() -> None:
    from transformers import AutoImageProcessor

    module = importlib.import_module(f"{PACKAGE}.image_processing")
    for names in (*BACKBONES, *SEGMENTATION_MODELS):
        classes = {backend: getattr(module, name) for backend, name in IMAGE_PROCESSORS.items()}
        AutoImageProcessor.register(names.load(names.config), image_processor_classes=classes, exist_ok=True)


@dataclass(eq=False)
class _Registration:
    """A part of the registration, done once for each registry of transformers.

    Attributes:
        module: name of transformers' module.
        registry: name of the registry in it.
        register: registers our classes.
        done_for: the registry that holds our classes. A reload of the module makes a new one.
    """

    module: str
    registry: str
    register: Callable[[], None]
    done_for: Any = None

    def is_due(self) -> bool:
        registry = getattr(sys.modules.get(self.module), self.registry, None)
        return registry is not None and registry is not self.done_for

    def run(self) -> None:
        registry = getattr(sys.modules[self.module], self.registry)
        self.register()
        self.done_for = registry


_AUTO = "transformers.models.auto"
_REGISTRATIONS = (
    _Registration(f"{_AUTO}.configuration_auto", "CONFIG_MAPPING", _register_configs),
    _Registration(f"{_AUTO}.modeling_auto", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING", _register_models),
    _Registration(f"{_AUTO}.image_processing_auto", "IMAGE_PROCESSOR_MAPPING", _register_image_processors),
)


class _Imports(threading.local):
    """State of the imports in one thread."""

    is_outermost = True  # whether the next import of transformers or of this package is not inside another


_imports = _Imports()


@contextlib.contextmanager
def _inner_imports() -> Iterator[None]:
    """Treat the imports in the block as parts of another import."""
    is_outermost, _imports.is_outermost = _imports.is_outermost, False
    try:
        yield
    finally:
        _imports.is_outermost = is_outermost


def _register_due() -> None:
    while due := [registration for registration in _REGISTRATIONS if registration.is_due()]:
        for registration in due:  # which may import the module of another
            registration.run()


class _ImportWatch(importlib.abc.MetaPathFinder):
    """Runs the registrations that are due at the end of each outermost import of transformers or of this package."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if not _imports.is_outermost or fullname.partition(".")[0] not in ("transformers", PACKAGE):
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = None if finder is self or find_spec is None else find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec)
                return spec
        return None


class _RegisteringLoader(importlib.abc.Loader):
    """Stands in for the loader of a module until the module is executed."""

    def __init__(self, spec: importlib.machinery.ModuleSpec):
        self.spec, self.loader = spec, spec.loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # runpy and importlib.resources ask loaders for more than the methods here

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        assert self.loader is not None
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self.loader is not None
        self.spec.loader = module.__loader__ = self.loader
        with _inner_imports():
            self.loader.exec_module(module)
            try:
                _register_due()
            except Exception as error:  # raised, it would leave a module of transformers half imported
                warnings.warn(f"{PACKAGE} could not register its models with transformers: {error}", stacklevel=2)


def register_automatically() -> None:
    """Register our classes with the auto classes that are imported, and with the others when they are imported."""
    if not any(isinstance(finder, _ImportWatch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ImportWatch())
    with _inner_imports():
        _register_due()
