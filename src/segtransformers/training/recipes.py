# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Training recipes as data: those of the published models, and readers for JSON and YAML files.

Sources: the configs in `segmentation/configs` of czczup/ViT-Adapter, Traffic-X/ViT-CoMer and OpenGVLab/InternImage, and
in `configs` of open-mmlab/mmsegmentation; their READMEs for the number of GPUs; the configs of the heads of
facebookresearch/dinov2.
"""

import dataclasses
import difflib
import functools
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from .published_recipes import frozen_trunk_settings, merged_settings, published_settings

if TYPE_CHECKING:
    from ..image_processing import SegmentationImageProcessor

OPTIMIZERS = ("adamw", "sgd")
# Unintended behaviour of the original training code by name. `parameter_groups` reproduces or corrects it.
KNOWN_ISSUES = {
    "weight_decay_exclusions_never_match": "positions and class tokens are decayed, because the list of exclusions "
    "lacks the prefix of the real names",
    "mask_predictor_at_lowest_rate": "the classifier, mask embedding, queries and level embedding of Mask2Former learn "
    "as slowly as the patch embedding, although they are new",
    "first_keyword_alone": "of several keywords in a name only the first counts, which is the longest: biases of the "
    "heads learn at the rate of the backbone, and norms of the heads are decayed",
    "last_stage_norm_with_first_block": "the norm after the last stage learns at the rate of that stage's first block",
    "post_norms_with_wrong_blocks": "the k-th norm between the blocks of stage 3 learns at the rate of block k instead "
    "of the block before it",
}
_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer and the parameters that it treats differently.

    Attributes:
        name: `adamw` or `sgd`.
        learning_rate: of the heads, and of all parameters without layer decay.
        weight_decay: decoupled for `adamw`.
        betas: used by `adamw`.
        momentum: used by `sgd`.
        layer_decay: factor on the learning rate per layer between a parameter and the heads; 1 for none.
        stage_layers: number of layers of a ConvNeXt for `layer_decay`, whose stages are one layer each: stage 1 is
            layer 1 and stage 4 layer 4, whatever their depths. 0 takes the layers of other backbones.
        head_learning_rate_factor: factor on the learning rate of all parameters outside the backbone.
        decay_vectors: whether biases and other parameters of one dimension are decayed.
        no_weight_decay: parameters whose name contains one of these texts are not decayed.
    """

    name: str = "adamw"
    learning_rate: float = 6e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    layer_decay: float = 1.0
    stage_layers: int = 0
    head_learning_rate_factor: float = 1.0
    decay_vectors: bool = False
    no_weight_decay: tuple[str, ...] = ()

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        _check_numbers(self, "optimizer", learning_rate=(0, None), weight_decay=(0, None), momentum=(0, 1))
        _check_numbers(self, "optimizer", layer_decay=(0, 1), head_learning_rate_factor=(0, None))
        _check_whole(self, "optimizer", stage_layers=0)
        _check_tuple(self, "optimizer", "betas", 2)
        _check_flags(self, "optimizer", "decay_vectors")
        names = self.no_weight_decay
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"optimizer.no_weight_decay must be a list of parts of names, got {names!r}")
        object.__setattr__(self, "no_weight_decay", tuple(names))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Polynomial decay of the learning rate, multiplied by a linear warm-up: see [`poly_schedule`].

    Attributes:
        steps: number of optimizer steps.
        warmup_steps: number of warm-up steps.
        warmup_ratio: factor on the learning rate at the first warm-up step.
        power: exponent of the polynomial.
        min_lr: learning rate at the end.
    """

    steps: int = 160000
    warmup_steps: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 1.0
    min_lr: float = 0.0

    def __post_init__(self):
        _check_whole(self, "schedule", steps=1, warmup_steps=0)
        _check_numbers(self, "schedule", warmup_ratio=(0, 1), power=(0, None), min_lr=(0, None))


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """The augmentation of an image and its label map: see [`TrainingAugmentation`].

    Attributes:
        shortest_edge, longest_edge: limits in pixels on the sides of an image. The image is resized to the largest size
            of its aspect ratio within them, times the random factor.
        ratio_range: (lowest, highest) random factor.
        shortest_edges: limits from which one is drawn, in place of `shortest_edge` and the random factor, or none.
        crop_size: (height, width) in pixels.
        cat_max_ratio: a crop in which one class covers at least this share is drawn again, up to ten times; 1 accepts
            every crop.
        flip_probability: probability of a horizontal flip.
        photometric_distortion: whether brightness, contrast, saturation and hue change.
        image_mean, image_std: of red, green and blue in 0..1, for models without an image processor.
        reduce_labels: whether label 0 of the data set means "no class".
    """

    shortest_edge: int = 512
    longest_edge: int = 2048
    ratio_range: tuple[float, float] = (0.5, 2.0)
    shortest_edges: tuple[int, ...] = ()
    crop_size: tuple[int, int] = (512, 512)
    cat_max_ratio: float = 0.75
    flip_probability: float = 0.5
    photometric_distortion: bool = True
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    reduce_labels: bool = False

    def __post_init__(self):
        _check_whole(self, "augmentation", shortest_edge=1, longest_edge=1)
        _check_numbers(self, "augmentation", cat_max_ratio=(0, 1), flip_probability=(0, 1))
        _check_flags(self, "augmentation", "photometric_distortion", "reduce_labels")
        if type(self.crop_size) is int:
            object.__setattr__(self, "crop_size", (self.crop_size, self.crop_size))
        for name, count, low in (
            ("ratio_range", 2, 0.0),
            ("crop_size", 2, 1),
            ("image_mean", 3, 0),
            ("image_std", 3, 0),
        ):
            _check_tuple(self, "augmentation", name, count, low)
        if self.ratio_range[0] > self.ratio_range[1] or self.ratio_range[0] <= 0:
            raise ValueError(f"augmentation.ratio_range must be (low, high) above 0, got {self.ratio_range}")
        if any(type(side) is not int for side in self.crop_size):
            raise ValueError(f"augmentation.crop_size must be whole pixels, got {self.crop_size}")
        edges = self.shortest_edges
        if not isinstance(edges, list | tuple) or any(type(edge) is not int or edge < 1 for edge in edges):
            raise ValueError(f"augmentation.shortest_edges must be a list of whole pixels from 1 on, got {edges!r}")
        object.__setattr__(self, "shortest_edges", tuple(edges))


@dataclass(frozen=True, kw_only=True)
class TestProtocol:
    """The protocol that measured the published mean IoU.

    Attributes:
        inference_mode, window_size, window_stride: as of [`SegmentationConfig`].
        size, size_divisor, multi_scale: as of [`SegmentationImageProcessor`].
    """

    __test__ = False  # keeps pytest from collecting this class

    inference_mode: str = "whole"
    window_size: tuple[int, int] | None = None
    window_stride: tuple[int, int] | None = None
    size: Mapping[str, int] = field(default_factory=lambda: {"shortest_edge": 512, "longest_edge": 2048})
    size_divisor: int = 32
    multi_scale: Mapping[str, Any] | None = None

    def __post_init__(self):
        if self.inference_mode not in ("whole", "slide"):
            raise ValueError(f"test_protocol.inference_mode must be whole or slide, got {self.inference_mode!r}")
        _check_whole(self, "test_protocol", size_divisor=0)
        for name in ("window_size", "window_stride"):
            if getattr(self, name) is not None:
                _check_tuple(self, "test_protocol", name, 2, 1)
            elif self.inference_mode == "slide":
                raise ValueError(f"test_protocol.{name} is needed where inference_mode is slide")
        for name in ("size", "multi_scale"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and not (name == "multi_scale" and value is None):
                raise ValueError(f"test_protocol.{name} must be a mapping, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class WeightAverageSettings:
    """A moving average of the weights (EMA): see [`WeightAverage`].

    After an update the average is `decay * average + (1 - decay) * weights`.

    Attributes:
        decay: share of the old average.
        warmup: whether the average is the plain mean of the weights until that gives new weights a share as small as
            1 - decay. Without it, the first update copies the weights.
        interval: number of optimizer steps from one update to the next.
        definition: "standard", or "mmcv" for `EMAHook` (`mmcv/runner/hooks/ema.py`), which starts from the initial
            weights and raises `1 - decay` to the power of the interval.
        warmup_steps: `warm_up` of "mmcv".
    """

    decay: float = 0.999
    warmup: bool = True
    interval: int = 1
    definition: str = "standard"
    warmup_steps: int = 100

    def __post_init__(self):
        _check_numbers(self, "weight_average", decay=(0, 1))
        _check_whole(self, "weight_average", interval=1, warmup_steps=0)
        _check_flags(self, "weight_average", "warmup")
        if self.definition not in ("standard", "mmcv"):
            raise ValueError(f"weight_average.definition must be standard or mmcv, got {self.definition!r}")


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """The choice of training samples by their classes: see [`training.sampling`].

    Attributes:
        method: "rare_class" ([`RareClassSampling`]) or "repeat_factor" ([`RepeatFactorSampling`]).
        temperature, min_pixels: of the first.
        threshold: of the second.
    """

    method: str = "rare_class"
    temperature: float = 0.01
    min_pixels: int = 3000
    threshold: float = 0.1

    def __post_init__(self):
        if self.method not in ("rare_class", "repeat_factor"):
            raise ValueError(f"sampling.method must be rare_class or repeat_factor, got {self.method!r}")
        _check_numbers(self, "sampling", temperature=(1e-4, None), threshold=(0, 1))
        _check_whole(self, "sampling", min_pixels=0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run.

    Attributes:
        name: that of the original config, for a published recipe.
        family: the model family, such as `vit_adapter`.
        dataset: the data set, by its name in [`segtransformers.datasets`].
        optimizer, schedule, augmentation, test_protocol: see [`OptimizerSettings`], [`Schedule`],
            [`AugmentationSettings`] and [`TestProtocol`].
        batch_size: number of images per optimizer step, over all GPUs.
        gradient_clipping: largest L2 norm of all gradients together, or None.
        half_precision: whether the authors trained in float16 with a scaled loss.
        gradient_checkpointing: whether the authors recomputed activations in the backward pass to save memory.
        drop_path_rate: stochastic depth of the backbone.
        losses, auxiliary_losses: losses of the heads that classify pixels, as of [`BackboneSegmentationConfig`]. None
            keeps those of the model.
        class_weights: a number for each class, or the name of a formula of `training.class_weights` ("auto"), for all
            losses that take class weights and have none. None keeps those of the model.
        freeze_trunk: whether the trunk stays fixed, see [`parameter_efficient.freeze_trunk`].
        sampling: a [`SamplingSettings`]; None takes every sample once in an epoch.
        weight_average: a [`WeightAverageSettings`]; None trains without an average of the weights.
        model: for a recipe of no published model, the fields of the configs of its `head` and its `backbone`, each with
            a `model_type`. Another trunk can take the place of the backbone's `trunk`.
        known_issues: names from [`KNOWN_ISSUES`] of the original's unintended behaviour.
        initial_weights: the file that the authors started from.
        source: the original config.
        note: facts that the sources leave open.
    """

    name: str
    family: str = ""
    dataset: str = ""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    test_protocol: TestProtocol = field(default_factory=TestProtocol)
    batch_size: int = 16
    gradient_clipping: float | None = None
    half_precision: bool = False
    gradient_checkpointing: bool = False
    drop_path_rate: float = 0.0
    losses: tuple[Any, ...] | None = None
    auxiliary_losses: tuple[Any, ...] | None = None
    class_weights: str | tuple[float, ...] | None = None
    freeze_trunk: bool = False
    sampling: SamplingSettings | None = None
    weight_average: WeightAverageSettings | None = None
    model: Mapping[str, Any] | None = None
    known_issues: tuple[str, ...] = ()
    initial_weights: str | None = None
    source: str | None = None
    note: str | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a recipe needs a name, got {self.name!r}")
        _check_whole(self, "", batch_size=1)
        _check_numbers(self, "", drop_path_rate=(0, 1))
        if self.gradient_clipping is not None:
            _check_numbers(self, "", gradient_clipping=(0, None))
        _check_flags(self, "", "half_precision", "gradient_checkpointing", "freeze_trunk")
        for name in ("losses", "auxiliary_losses"):
            losses = getattr(self, name)
            if losses is not None:
                if not isinstance(losses, list | tuple) or not all(isinstance(loss, str | Mapping) for loss in losses):
                    raise ValueError(f"{name} must be a list of losses, such as [{{name: dice}}], got {losses!r}")
                object.__setattr__(self, name, tuple(losses))
        if isinstance(self.class_weights, list | tuple):
            _check_tuple(self, "", "class_weights", len(self.class_weights))
        elif not isinstance(self.class_weights, str | None):
            raise ValueError(f"class_weights must be a list of numbers or a formula, got {self.class_weights!r}")
        for name in ("family", "dataset", "initial_weights", "source", "note"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")
        if self.model is not None:
            _check_model(self.model)
        if not isinstance(self.known_issues, list | tuple):
            raise ValueError(f"known_issues must be a list of names, got {self.known_issues!r}")
        object.__setattr__(self, "known_issues", tuple(self.known_issues))
        check_known_issues(self.known_issues)

    @property
    def layer_decay(self) -> float:
        return self.optimizer.layer_decay

    @property
    def crop_size(self) -> tuple[int, int]:
        return self.augmentation.crop_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from a mapping as [`to_dict`] gives it.

        Args:
            values: the settings. `base` names a published recipe; the other settings are then changes to it.

        Raises:
            ValueError: naming the unknown, missing or invalid setting.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a recipe must be a mapping of names to values, got {type(values).__name__}")
        values = dict(values)
        if "known_faults" in values:  # the former name, which older files contain
            values["known_issues"] = values.pop("known_faults")
        base = values.pop("base", None)
        if base is not None:
            if not isinstance(base, str):
                raise ValueError(f"base must be the name of a published recipe, got {base!r}")
            values = merged_settings(
                get_recipe(base).to_dict(), {"source": None, "note": None, "name": f"{base} (changed)"} | values
            )
        parts: tuple[tuple[str, Any], ...] = (
            ("optimizer", OptimizerSettings),
            ("schedule", Schedule),
            ("augmentation", AugmentationSettings),
            ("test_protocol", TestProtocol),
            ("sampling", SamplingSettings),
            ("weight_average", WeightAverageSettings),
        )
        for part, kind in parts:
            if part in values and not (part in ("sampling", "weight_average") and values[part] is None):
                values[part] = _built(kind, values[part], part)
        return _built(cls, values, "the recipe")

    @classmethod
    def from_file(cls, path: str | Path) -> "Recipe":
        """Read a recipe from a JSON or YAML file; see [`from_dict`].

        Raises:
            ValueError: naming the file and its error.
            OSError: if the file cannot be read.
        """
        try:
            return cls.from_dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")))  # JSON is YAML
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is not a recipe: {' '.join(str(error).split())}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as dicts, lists, texts and numbers, for JSON and YAML."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def with_steps(self, steps: int) -> "Recipe":
        """Return the recipe for another number of steps. The warm-up keeps its length, up to a tenth of the steps."""
        warmup = min(self.schedule.warmup_steps, steps // 10)
        return dataclasses.replace(self, schedule=dataclasses.replace(self.schedule, steps=steps, warmup_steps=warmup))

    def image_processor(self) -> "SegmentationImageProcessor":
        """Return an image processor that follows the test protocol, for a model without its own."""
        from ..image_processing import SegmentationImageProcessor  # loads torch and transformers, recipes do not

        options: dict[str, Any] = {"size": dict(self.test_protocol.size)}
        if self.test_protocol.multi_scale is not None:
            options["multi_scale"] = dict(self.test_protocol.multi_scale)
        return SegmentationImageProcessor(
            **options,
            size_divisor=self.test_protocol.size_divisor,
            image_mean=list(self.augmentation.image_mean),
            image_std=list(self.augmentation.image_std),
            do_reduce_labels=self.augmentation.reduce_labels,
        )


def recipe_names() -> list[str]:
    """Return the names of the published recipes, family by family. They are those of the original configs."""
    return list(published_settings())


def frozen_trunk_recipe_names() -> list[str]:
    """Return the names of the recipes for a frozen trunk and any data."""
    return list(frozen_trunk_settings())


@functools.lru_cache
def get_recipe(name: str) -> Recipe:
    """Return a published recipe, or one for a frozen trunk.

    Raises:
        ValueError: if no recipe has this name.
    """
    known = {**frozen_trunk_settings(), **published_settings()}
    if name not in known:
        words = {word.lower() for word in re.split(r"[\W_]+", str(name)) if word}
        shared = {other: len(words & set(re.split("[_-]", other))) for other in known}
        likeness = {other: difflib.SequenceMatcher(None, str(name).lower(), other).ratio() for other in known}
        ranked = sorted(known, key=lambda other: (-shared[other], -likeness[other]))
        similar = [other for other in ranked if shared[other] or likeness[other] > 0.6][:3]
        raise ValueError(
            f"{name!r} is not a published recipe; `segtransformers recipes` lists all {len(known)}"
            + (f", such as {', '.join(similar)}" if similar else "")
        )
    return Recipe.from_dict(known[name])


def _check_model(model: Any) -> None:
    parts = model if isinstance(model, Mapping) else {}
    if set(parts) != {"head", "backbone"} or not all(
        isinstance(part, Mapping) and isinstance(part.get("model_type"), str) for part in parts.values()
    ):
        raise ValueError(f"model must have a head and a backbone, each with a model_type and its fields, got {model!r}")


def check_known_issues(names: Collection[str]) -> None:
    """Raise ValueError if one of `names` is not in `KNOWN_ISSUES`."""
    for name in names:
        if name not in KNOWN_ISSUES:
            raise ValueError(f"{name!r} is not a known issue; known are {', '.join(KNOWN_ISSUES)}")


def _built(kind: type[_Part], values: Any, where: str) -> _Part:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping of names to values, got {values!r}")
    known = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        raise ValueError(f"{where} has unknown settings: {', '.join(unknown)}; known are {', '.join(known)}")
    if "name" in known and known["name"].default is dataclasses.MISSING and "name" not in values:
        raise ValueError(f"{where} has no name")
    return kind(**values)


def _label(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _check_numbers(settings: Any, where: str, **limits: tuple[float | None, float | None]) -> None:
    for name, (low, high) in limits.items():
        value = _number(getattr(settings, name))
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            allowed = f"from {low} on" if high is None else f"from {low} to {high}"
            raise ValueError(f"{_label(where, name)} must be a number {allowed}, got {getattr(settings, name)!r}")
        object.__setattr__(settings, name, value)


def _number(value: Any) -> float | None:
    """Return the value as a finite number, or None. YAML 1.1 reads 1e-4, without a point, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_whole(settings: Any, where: str, **lowest: int) -> None:
    for name, low in lowest.items():
        value = getattr(settings, name)
        if type(value) is not int or value < low:
            raise ValueError(f"{_label(where, name)} must be a whole number from {low} on, got {value!r}")


def _check_flags(settings: Any, where: str, *names: str) -> None:
    for name in names:
        if type(getattr(settings, name)) is not bool:
            raise ValueError(f"{_label(where, name)} must be true or false, got {getattr(settings, name)!r}")


def _check_tuple(settings: Any, where: str, name: str, count: int, low: float = 0) -> None:
    values = getattr(settings, name)
    numbers = [_number(value) for value in values] if isinstance(values, list | tuple) else []
    if len(numbers) != count or any(number is None or number < low for number in numbers):
        raise ValueError(f"{_label(where, name)} must be {count} numbers from {low} on, got {values!r}")
    object.__setattr__(settings, name, tuple(value if type(value) is int else _number(value) for value in values))


__all__ = [
    "KNOWN_ISSUES",
    "AugmentationSettings",
    "OptimizerSettings",
    "Recipe",
    "Schedule",
    "TestProtocol",
    "frozen_trunk_recipe_names",
    "get_recipe",
    "recipe_names",
]
