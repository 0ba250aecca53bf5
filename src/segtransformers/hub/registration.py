# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Registration of our classes with transformers' auto classes, and of their names with [`remote_code`].

`import segtransformers` imports neither torch nor transformers. [`register_automatically`] therefore installs a finder
for imports, which does what transformers does for its own models:

- It adds our names to the tables of names of an auto module, directly after the module was executed. It imports nothing
  then, because transformers imports its auto modules in the middle of others, in any thread.
- transformers takes the classes of a model type from the module `transformers.models.<model type>`. For our model types
  that is `segtransformers`, whose classes are imported on first use.

- It gives the task "image-segmentation" a pipeline that reads images of 16 bits for our image processors.

Auto modules that were imported before `segtransformers` have already read the names. With them our classes are
registered at once.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..remote_code import PACKAGE, declare


@dataclass(frozen=True)
class ModelNames:
    """The names of a model, whose classes are public in the package.

    Attributes:
        model_type: `model_type` of the config class.
        config: name of the config class.
        model: name of the model class.
    """

    model_type: str
    config: str
    model: str


BACKBONES = (
    ModelNames("seg_convnext", "SegConvNextConfig", "SegConvNextBackbone"),
    ModelNames("seg_internimage", "InternImageConfig", "InternImageBackbone"),
    ModelNames("seg_plain_vit", "PlainViTConfig", "PlainViTBackbone"),
    ModelNames("seg_resnet", "SegResNetConfig", "SegResNetBackbone"),
    ModelNames("seg_segmenter_vit", "SegmenterViTConfig", "SegmenterViTBackbone"),
    ModelNames("seg_swin", "SegSwinConfig", "SegSwinBackbone"),
    ModelNames("seg_vit_adapter", "ViTAdapterConfig", "ViTAdapterBackbone"),
    ModelNames("seg_vit_comer", "ViTCoMerConfig", "ViTCoMerBackbone"),
    ModelNames("seg_vit_simple_pyramid", "ViTSimplePyramidConfig", "ViTSimplePyramidBackbone"),
)
SEGMENTATION_MODELS = (
    ModelNames("seg_linear", "SegLinearConfig", "SegLinearForSemanticSegmentation"),
    ModelNames("seg_mask2former", "SegMask2FormerConfig", "SegMask2FormerForSemanticSegmentation"),
    ModelNames("seg_segformer", "SegSegformerConfig", "SegSegformerForSemanticSegmentation"),
    ModelNames("seg_segmenter", "SegmenterConfig", "SegmenterForSemanticSegmentation"),
    ModelNames("seg_upernet", "SegUperNetConfig", "SegUperNetForSemanticSegmentation"),
)
MODELS = (*BACKBONES, *SEGMENTATION_MODELS)
IMAGE_PROCESSORS = {"pil": "SegmentationImageProcessorPil", "torchvision": "SegmentationImageProcessor"}
# Not "image-segmentation": a task that a repository declares needs trust_remote_code, and transformers' own pipeline
# must load our models without it.
STOCK_TASK = "image-segmentation"
PIPELINES = {"semantic-segmentation": ("SegmentationPipeline", "AutoModelForSemanticSegmentation")}

for _names in BACKBONES:
    declare(_names.config, {"AutoConfig": _names.config, "AutoBackbone": _names.model, "AutoModel": _names.model})
for _names in SEGMENTATION_MODELS:
    declare(_names.config, {"AutoConfig": _names.config, "AutoModelForSemanticSegmentation": _names.model}, PIPELINES)
for _processor in IMAGE_PROCESSORS.values():
    # The first is the one without torchvision. From a single name transformers would derive that of a video processor,
    # and ask whether its code is trusted.
    declare(_processor, {"AutoImageProcessor": list(IMAGE_PROCESSORS.values())})


def _add_configs(module: ModuleType) -> None:
    module.CONFIG_MAPPING_NAMES.update({names.model_type: names.config for names in MODELS})


def _add_models(module: ModuleType) -> None:
    backbones = {names.model_type: names.model for names in BACKBONES}
    module.MODEL_MAPPING_NAMES.update(backbones)
    module.MODEL_FOR_BACKBONE_MAPPING_NAMES.update(backbones)
    segmentation_models = {names.model_type: names.model for names in SEGMENTATION_MODELS}
    module.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.update(segmentation_models)


def _add_image_processors(module: ModuleType) -> None:
    module.IMAGE_PROCESSOR_MAPPING_NAMES.update({names.model_type: dict(IMAGE_PROCESSORS) for names in MODELS})


def _replace_stock_pipeline(module: ModuleType) -> None:
    from .stock_pipeline import ImageSegmentationPipeline

    module.PIPELINE_REGISTRY.supported_tasks[STOCK_TASK]["impl"] = ImageSegmentationPipeline


_AUTO = "transformers.models.auto"
_ADD_NAMES: dict[str, Callable[[ModuleType], None]] = {
    f"{_AUTO}.configuration_auto": _add_configs,
    f"{_AUTO}.modeling_auto": _add_models,
    f"{_AUTO}.image_processing_auto": _add_image_processors,
    "transformers.pipelines": _replace_stock_pipeline,
}


class _RegisteringLoader(importlib.abc.Loader):
    """Stands in for the loader of an auto module until the module is executed, and then adds our names."""

    def __init__(self, spec: importlib.machinery.ModuleSpec, loader: importlib.abc.Loader):
        self.spec, self.loader = spec, loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # inspect, runpy and others use more methods of a loader than these

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _ADD_NAMES[module.__name__](module)


class _AliasLoader(importlib.abc.Loader):
    """Makes a module another name of this package."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = sys.modules[PACKAGE]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds transformers' auto modules, and the modules in which transformers looks for our classes."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        package, _, name = fullname.rpartition(".")
        if package == "transformers.models" and any(name == names.model_type for names in MODELS):
            return importlib.machinery.ModuleSpec(fullname, _AliasLoader())
        if fullname not in _ADD_NAMES:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = None if finder is self or find_spec is None else find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec, spec.loader)
                return spec
        return None


def register_automatically() -> None:
    """Register our classes with the auto classes that are imported already, and with the others on their import."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    loaded = [name for name in _ADD_NAMES if name in sys.modules]
    for name in loaded:
        _ADD_NAMES[name](importlib.import_module(name))  # waits for another thread that is importing it
    if f"{_AUTO}.modeling_auto" in loaded:
        _register_models()
    if f"{_AUTO}.image_processing_auto" in loaded:
        _register_image_processors()


def _class(name: str) -> Any:
    return getattr(sys.modules[PACKAGE], name)


def _register_models() -> None:
    from transformers import AutoBackbone, AutoModel, AutoModelForSemanticSegmentation

    for names in BACKBONES:
        for auto_class in (AutoBackbone, AutoModel):
            auto_class.register(_class(names.config), _class(names.model), exist_ok=True)
    for names in SEGMENTATION_MODELS:
        AutoModelForSemanticSegmentation.register(_class(names.config), _class(names.model), exist_ok=True)


def _register_image_processors() -> None:
    from transformers import AutoImageProcessor

    for names in MODELS:
        classes = {backend: _class(name) for backend, name in IMAGE_PROCESSORS.items()}
        AutoImageProcessor.register(_class(names.config), image_processor_classes=classes, exist_ok=True)
