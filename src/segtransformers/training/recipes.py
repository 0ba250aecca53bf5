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
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..conversion.config_text import LARGEST_TEXT, parse_yaml
from ..escaping import one_line
from .published_recipes import frozen_trunk_settings, merged_settings, published_settings, small_model_settings
from .recipe_settings import (
    AugmentationSettings,
    OptimizerSettings,
    SamplingSettings,
    Schedule,
    TestProtocol,
    WeightAverageSettings,
    check_flags,
    check_numbers,
    check_tuple,
    check_whole,
)

if TYPE_CHECKING:
    from ..image_processing import SegmentationImageProcessor

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
        sets_protocol: whether a whole model to start from is tested by this recipe's protocol, for the size of the
            training crops, in place of its own.
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
    sets_protocol: bool = False
    known_issues: tuple[str, ...] = ()
    initial_weights: str | None = None
    source: str | None = None
    note: str | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a recipe needs a name, got {self.name!r}")
        check_whole(self, "", batch_size=1)
        check_numbers(self, "", drop_path_rate=(0, 1))
        if self.gradient_clipping is not None:
            check_numbers(self, "", gradient_clipping=(0, None))
        check_flags(self, "", "half_precision", "gradient_checkpointing", "freeze_trunk", "sets_protocol")
        for name in ("losses", "auxiliary_losses"):
            losses = getattr(self, name)
            if losses is not None:
                if not isinstance(losses, list | tuple) or not all(isinstance(loss, str | Mapping) for loss in losses):
                    raise ValueError(f"{name} must be a list of losses, such as [{{name: dice}}], got {losses!r}")
                object.__setattr__(self, name, tuple(losses))
        if isinstance(self.class_weights, list | tuple):
            check_tuple(self, "", "class_weights", len(self.class_weights))
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
            text = Path(path).read_text(encoding="utf-8")
            return cls.from_dict(parse_yaml(text, LARGEST_TEXT, "its text"))  # JSON is YAML
        except ValueError as error:
            raise ValueError(f"{path} is not a recipe: {one_line(error)}") from error

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


def small_model_recipe_names() -> list[str]:
    """Return the names of the recipes for a small model and any data."""
    return list(small_model_settings())


@functools.lru_cache
def get_recipe(name: str) -> Recipe:
    """Return a published recipe, or one for a frozen trunk or a small model and any data.

    Raises:
        ValueError: if no recipe has this name.
    """
    known = {**frozen_trunk_settings(), **small_model_settings(), **published_settings()}
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
    trunk = parts["backbone"].get("trunk")
    if not isinstance(trunk, str):
        raise ValueError(f"model.backbone.trunk must be the name of a plain ViT in timm, got {trunk!r}")


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
    "small_model_recipe_names",
]
