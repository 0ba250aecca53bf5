# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""How the published models were trained, as data: a file in `published/` for each, and readers of your own.

Sources: the configs in `segmentation/configs` of czczup/ViT-Adapter, Traffic-X/ViT-CoMer and OpenGVLab/InternImage, and
in `configs/segmenter` of open-mmlab/mmsegmentation; their READMEs for the number of GPUs.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..image_processing import SegmentationImageProcessor

OPTIMIZERS = ("adamw", "sgd")
# What the originals do though they cannot have meant it, by name. See `parameter_groups`, which reproduces or mends it.
FAULTS = {
    "weight_decay_exclusions_never_match": "positions and class tokens are decayed, because the list of what should "
    "not be holds names without the prefix that the real names have",
    "mask_predictor_at_lowest_rate": "the classifier, mask embedding, queries and level embedding of Mask2Former, all "
    "new, learn as slowly as the patch embedding",
    "first_keyword_alone": "of several keywords in a name only the longest counts: biases of the heads learn at the "
    "rate of the backbone, and norms of the heads are decayed",
    "last_stage_norm_with_first_block": "the norm behind the last stage learns at the rate of the first block in it",
    "post_norms_with_wrong_blocks": "the k-th norm between the blocks of stage 3 learns at the rate of block k, not of "
    "the block that it follows",
}
SHORT_RUN = 10  # warm-up takes at most one step in this many, where a recipe is run for fewer steps
_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer, and which parameters it treats in another way.

    Attributes:
        name: `adamw` or `sgd`.
        learning_rate: of the heads, and of everything without layer decay.
        weight_decay: decoupled for `adamw`.
        betas: of `adamw`.
        momentum: of `sgd`.
        layer_decay: factor on the learning rate for each layer that lies deeper; 1 for none.
        head_learning_rate_factor: on everything that is no backbone.
        decay_vectors: whether parameters of one dimension, and biases, are decayed.
        no_weight_decay: parts of names of parameters that are not decayed.
    """

    name: str = "adamw"
    learning_rate: float = 6e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    layer_decay: float = 1.0
    head_learning_rate_factor: float = 1.0
    decay_vectors: bool = False
    no_weight_decay: tuple[str, ...] = ()

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        _check_numbers(self, "optimizer", learning_rate=(0, None), weight_decay=(0, None), momentum=(0, 1))
        _check_numbers(self, "optimizer", layer_decay=(0, 1), head_learning_rate_factor=(0, None))
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
        steps: of the optimizer, in all.
        warmup_steps: at the beginning, from `warmup_ratio` of the learning rate on.
        power: of the polynomial.
        min_lr: the learning rate at the end.
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
    """What happens to a picture and its label map before the model sees them: see [`TrainingAugmentation`].

    Attributes:
        shortest_edge, longest_edge: limits in pixels that a picture is resized to, with its aspect ratio kept, before
            the random factor.
        ratio_range: of that factor.
        crop_size: (height, width) in pixels.
        cat_max_ratio: a crop in which one class covers at least this share is drawn again, up to ten times; 1 for any.
        flip_probability: of a mirror image.
        photometric_distortion: whether brightness, contrast, saturation and hue change.
        image_mean, image_std: of red, green and blue in 0..1, where the model has no image processor that says so.
        reduce_labels: whether label 0 of the data set means "no class".
    """

    shortest_edge: int = 512
    longest_edge: int = 2048
    ratio_range: tuple[float, float] = (0.5, 2.0)
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


@dataclass(frozen=True, kw_only=True)
class TestProtocol:
    """How the published mean IoU was measured: fields of [`SegmentationConfig`] and [`SegmentationImageProcessor`].

    Attributes:
        inference_mode, window_size, window_stride: whole images, or windows.
        size, size_divisor, multi_scale: of the image processor.
    """

    __test__ = False  # pytest: no test

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
class Recipe:
    """How a model was, or shall be, trained.

    Attributes:
        name: of the original's config, for a published one.
        family: of the models that it was made for, such as `vit_adapter`.
        dataset: that it was made for, by the name that [`segtransformers.datasets`] knows.
        optimizer, schedule, augmentation, test_protocol: see there.
        batch_size: images for one step of the optimizer, on all GPUs together.
        gradient_clipping: largest L2 norm of all gradients together, or None.
        half_precision: whether the authors trained in float16 with a scaled loss.
        gradient_checkpointing: whether the authors needed it.
        drop_path_rate: of the backbone.
        known_faults: names from [`FAULTS`] of what the original does though it cannot have meant it.
        initial_weights: the file that the authors started from.
        source: the original's config.
        note: what the sources leave open.
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
    known_faults: tuple[str, ...] = ()
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
        _check_flags(self, "", "half_precision", "gradient_checkpointing")
        for name in ("family", "dataset", "initial_weights", "source", "note"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")
        if not isinstance(self.known_faults, list | tuple):
            raise ValueError(f"known_faults must be a list of names, got {self.known_faults!r}")
        object.__setattr__(self, "known_faults", tuple(self.known_faults))
        check_faults(self.known_faults)

    @property
    def layer_decay(self) -> float:
        return self.optimizer.layer_decay

    @property
    def crop_size(self) -> tuple[int, int]:
        return self.augmentation.crop_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """A recipe from what [`to_dict`] gives. `base` may name a published one: then only changes need to be said.

        Raises:
            ValueError: naming what is unknown, missing or no good.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a recipe must be a mapping of names to values, got {type(values).__name__}")
        values = dict(values)
        base = values.pop("base", None)
        if base is not None:
            if not isinstance(base, str):
                raise ValueError(f"base must be the name of a published recipe, got {base!r}")
            values = _merged(
                get_recipe(base).to_dict(), {"source": None, "note": None, "name": f"{base} (changed)"} | values
            )
        parts: tuple[tuple[str, Any], ...] = (
            ("optimizer", OptimizerSettings),
            ("schedule", Schedule),
            ("augmentation", AugmentationSettings),
            ("test_protocol", TestProtocol),
        )
        for part, kind in parts:
            if part in values:
                values[part] = _built(kind, values[part], part)
        return _built(cls, values, "the recipe")

    @classmethod
    def from_file(cls, path: str | Path) -> "Recipe":
        """Read a recipe from JSON or YAML; see [`from_dict`].

        Raises:
            ValueError: naming the file and what is wrong with it.
            OSError: if it cannot be read.
        """
        try:
            return cls.from_dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")))  # JSON is YAML
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is no recipe: {' '.join(str(error).split())}") from error

    def to_dict(self) -> dict[str, Any]:
        """As plain data, which JSON and YAML can hold."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def with_steps(self, steps: int) -> "Recipe":
        """The same for another number of steps; warm-up stays as long as it was, up to a tenth of them."""
        warmup = min(self.schedule.warmup_steps, steps // SHORT_RUN)
        return dataclasses.replace(self, schedule=dataclasses.replace(self.schedule, steps=steps, warmup_steps=warmup))

    def image_processor(self) -> SegmentationImageProcessor:
        """The processor of the test protocol, for a model that has none yet."""
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
    """Names of the published recipes: those of the originals' configs, family by family."""
    return list(_published_files())


@functools.lru_cache
def get_recipe(name: str) -> Recipe:
    """A published recipe.

    Raises:
        ValueError: if there is none of that name.
    """
    files = _published_files()
    if name not in files:
        like = [known for known in files if any(part in known for part in str(name).split("_") if len(part) > 3)]
        raise ValueError(
            f"there is no recipe {name!r}; `segtransformers recipes` lists the {len(files)} that there are"
            + (f", such as {', '.join(like[:3])}" if like else "")
        )
    return Recipe.from_dict(json.loads(files[name].read_text(encoding="utf-8")))


def check_faults(names: Collection[str]) -> None:
    """Raise ValueError where one of `names` is no fault that is known."""
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"there is no known fault {name!r}; known are {', '.join(FAULTS)}")


@functools.lru_cache
def _published_files() -> dict[str, Any]:
    folder = resources.files(__package__).joinpath("published")
    families = sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    return {
        file.name.removesuffix(".json"): file
        for family in families
        for file in sorted(family.iterdir(), key=lambda file: file.name)
    }


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


def _merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes; parts of a recipe are changed setting by setting."""
    return old | {
        name: _merged(old[name], value)
        if isinstance(value, Mapping) and isinstance(old.get(name), dict) and name not in ("size", "multi_scale")
        else value
        for name, value in new.items()
    }


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
    """YAML 1.1 takes 1e-4, without a point, for text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number - number == 0 else None  # neither infinite nor NaN


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
    "FAULTS",
    "AugmentationSettings",
    "OptimizerSettings",
    "Recipe",
    "Schedule",
    "TestProtocol",
    "get_recipe",
    "recipe_names",
]
