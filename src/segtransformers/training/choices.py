# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Choose recipe, model, crop, steps and precision of a training run from its data and its machine.

[`choose`] is a pure function. The rules are this project's own. They prefer a frozen DINOv2 trunk (Apache-2.0), because
a small head on its features needs few images, little memory and little time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..published.names import find_published
from .machine import MachineSummary
from .recipes import recipe_names

PRESETS = ("fast", "balanced", "best")
SMALL_MODEL_RECIPE = "small-vit-adapter"
BATCH = 16  # images per step of the frozen recipes; the small model's recipe has half
FEW_IMAGES = 50  # a linear head has too few parameters to memorise so few images
CELL = 32  # crops are multiples of it: the largest stride of the feature maps
SMALLEST_CROP = 64


@dataclass(frozen=True, kw_only=True)
class TrunkFacts:
    """A plain ViT of timm: parameters in millions, layers, channels, side of a patch in pixels, and its licence."""

    parameters: float
    layers: int
    channels: int
    patch: int
    licence: str


APACHE, DINOV3 = "Apache-2.0", "DINOv3 License"
TRUNKS = {
    "vit_small_patch14_dinov2": TrunkFacts(parameters=22, layers=12, channels=384, patch=14, licence=APACHE),
    "vit_base_patch14_dinov2": TrunkFacts(parameters=87, layers=12, channels=768, patch=14, licence=APACHE),
    "vit_large_patch14_dinov2": TrunkFacts(parameters=304, layers=24, channels=1024, patch=14, licence=APACHE),
    "vit_small_patch16_dinov3": TrunkFacts(parameters=22, layers=12, channels=384, patch=16, licence=DINOV3),
    "vit_base_patch16_dinov3": TrunkFacts(parameters=86, layers=12, channels=768, patch=16, licence=DINOV3),
    "vit_large_patch16_dinov3": TrunkFacts(parameters=303, layers=24, channels=1024, patch=16, licence=DINOV3),
}
SIZES = ("small", "base", "large")


@dataclass(frozen=True, kw_only=True)
class PresetFacts:
    """How much a preset spends.

    Attributes:
        passes: passes over the training data.
        least_steps, most_steps: limits on the number of steps.
        minutes: limit on the estimated time.
        crop_cpu, crop_gpu: largest sides of crops in pixels.
        patience: evaluations without a better result that end the run.
    """

    passes: int
    least_steps: int
    most_steps: int
    minutes: int
    crop_cpu: int
    crop_gpu: int
    patience: int


PRESET_FACTS = {
    "fast": PresetFacts(
        passes=40, least_steps=200, most_steps=4000, minutes=15, crop_cpu=224, crop_gpu=384, patience=3
    ),
    "balanced": PresetFacts(
        passes=100, least_steps=400, most_steps=20000, minutes=90, crop_cpu=320, crop_gpu=512, patience=4
    ),
    "best": PresetFacts(
        passes=300, least_steps=1000, most_steps=80000, minutes=720, crop_cpu=512, crop_gpu=640, patience=6
    ),
}
MOST_IMAGES_IN_CACHE = 1000  # more images have enough variety to train without cached features, and fill the disk
CACHED_VIEWS = 8
LOW_RATE = 0.0005  # on drawn landscapes 86.1 mean IoU after 200 steps, and 85.1 with 0.002
# rough rates of matrix products in training, in floating-point operations per second
CORE_RATE, GPU_RATE = 2.5e10, 3e13
SMALL_MODEL_OPERATIONS = 1.1e5  # of training the packaged model, per pixel: measured


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What automatic choices depend on.

    Attributes:
        images, evaluation_images: number of samples of each part.
        classes: number of classes.
        height, width: median size of the images in pixels.
        multi_label: whether a pixel may belong to several classes or to none.
        are_packaged_classes: whether the classes are those of the packaged model, in its order.
    """

    images: int
    evaluation_images: int
    classes: int
    height: int
    width: int
    multi_label: bool = False
    are_packaged_classes: bool = False


@dataclass(frozen=True)
class Choice:
    """An option of the command, its value (None for a flag), and the reason for it in a few words."""

    option: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Choices:
    """The choices of a run in the order of the command, and notes for the user."""

    choices: tuple[Choice, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, option: str) -> Any:
        """Return the value of an option such as `--crop-size`, or None if it is not among the choices."""
        return next((choice.value for choice in self.choices if choice.option == option), None)

    def __contains__(self, option: str) -> bool:
        return any(choice.option == option for choice in self.choices)

    def words(self) -> list[str]:
        """Return the options as they are typed."""
        return [
            word
            for choice in self.choices
            for word in ((choice.option,) if choice.value is None else (choice.option, str(choice.value)))
        ]


def choose(
    data: DataSummary, machine: MachineSummary, preset: str = "balanced", fixed: Mapping[str, Any] | None = None
) -> Choices:
    """Choose the options of a training run.

    Args:
        preset: "fast" (minutes, for a first figure), "balanced" or "best" (a GPU for hours).
        fixed: options that the user gave, such as `{"--crop-size": 256}`. They are kept and not among the choices.
            Crops are numbers. None stands for an option that the others exclude.

    Raises:
        ValueError: for an unknown preset, data without images, or a model that no recipe is known for.
    """
    if preset not in PRESETS:
        raise ValueError(f"the preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if data.images < 1:
        raise ValueError("the training data has no images")
    fixed = dict(fixed or {})
    facts, on_gpu = PRESET_FACTS[preset], machine.gpus > 0
    choices: list[Choice] = []
    notes: list[str] = []
    recipe, recipe_reason, model, model_reason = _recipe_and_model(data, machine, preset, fixed.get("--model"), notes)
    choices += [Choice("--recipe", recipe, recipe_reason), Choice("--model", model, model_reason)]
    crop, crop_reason = _crop(data, facts, on_gpu)
    crop = fixed.get("--crop-size") or crop
    if recipe not in recipe_names():  # a published model keeps its own crops and protocol
        choices.append(Choice("--crop-size", crop, crop_reason))
    if recipe == SMALL_MODEL_RECIPE and model == "packaged" and data.are_packaged_classes:
        choices.append(Choice("--learning_rate", LOW_RATE, "low, because the packaged model knows these classes"))
    # features are cached only where training takes nothing else from the trunk
    caches = not on_gpu and recipe.endswith("-linear") and data.images <= MOST_IMAGES_IN_CACHE
    if "--cache-features" in fixed:
        caches = fixed["--cache-features"] is not None
    if caches:
        reason = f"the frozen trunk sees each of {CACHED_VIEWS} augmented versions of an image once"
        choices.append(Choice("--cache-features", CACHED_VIEWS, reason))
    batch = BATCH // 2 if recipe == SMALL_MODEL_RECIPE else BATCH
    steps, steps_reason = _steps(data, machine, facts, batch, seconds_per_image(model, crop, machine), caches)
    choices.append(Choice("--max_steps", steps, steps_reason))
    choices.append(Choice("--batch-size", "auto", f"as many of the step's {batch} images at once as the memory holds"))
    precision = machine.precision if on_gpu else "fp32"
    reason = {
        "bf16": "this GPU computes fastest in bfloat16",
        "fp16": "this GPU is fast in float16 and has no bfloat16",
        "fp32": "a CPU gains nothing from half precision in general",
    }[precision]
    choices.append(Choice("--precision", precision, reason))
    if data.evaluation_images:
        choices.append(Choice("--keep-best", None, "the checkpoint with the best mIoU becomes the model"))
        reason = f"the run ends after {facts.patience} evaluations without a better mIoU"
        choices.append(Choice("--early-stopping", facts.patience, reason))
    kept = tuple(choice for choice in choices if choice.option not in fixed and choice.value is not False)
    length = {"--max_steps", "--num_train_epochs"} & fixed.keys()
    if length:
        kept = tuple(choice for choice in kept if choice.option != "--max_steps")
    return Choices(tuple(choice for choice in kept if choice.option != "--model" or choice.value), tuple(notes))


def seconds_per_image(model: str | None, crop: int, machine: MachineSummary) -> float:
    """Estimate the time that one image of a step takes, from operations and rough rates of the processor.

    Args:
        model: the name of a trunk in `TRUNKS`, with or without a weight tag; anything else counts as the small model.
    """
    facts = TRUNKS.get((model or "").partition(".")[0])
    if facts is None:
        operations = SMALL_MODEL_OPERATIONS * crop**2
    else:
        tokens = (crop / 16 if facts.patch == 16 else crop / 14) ** 2
        products = 2e6 * facts.parameters * tokens
        operations = 1.3 * (products + 4 * facts.layers * facts.channels * tokens**2)
    return operations / (GPU_RATE * machine.gpus if machine.gpus else CORE_RATE * machine.cores)


def _recipe_and_model(
    data: DataSummary, machine: MachineSummary, preset: str, model: str | None, notes: list[str]
) -> tuple[str, str, str | None, str]:
    """Return recipe, reason, model and reason. Notes are added to `notes`.

    Args:
        model: the user's model, or None.
    """
    if model is not None and model.partition(".")[0] not in TRUNKS:
        if model == "packaged":
            return SMALL_MODEL_RECIPE, "the recipe of the packaged model", model, "as given"
        published = None if "/" in model or "\\" in model else find_published(model)
        if published not in recipe_names():
            raise ValueError(
                f"no recipe is known for --model {model}: choose one with --recipe (`segtransformers recipes` lists "
                "them), or leave out --model"
            )
        notes.append("the time of a step of this model is not known: the estimate is that of a small one")
        return str(published), "the recipe that this model was trained by", model, "as given"
    wanted, reason = _trunk_size(data, machine, preset)
    trunk = model or _trunk_at_hand(wanted, machine)
    if trunk is None:
        where = "the Hub cannot be reached, and no DINOv2 or DINOv3 is in the local cache"
        if machine.packaged:
            notes.append(
                f"{where}: training starts from the small packaged model, which has seen only drawn scenes. With a "
                "network, a pre-trained ViT is taken, which usually gives far better results"
            )
            return SMALL_MODEL_RECIPE, "a model of 1 million parameters", "packaged", "no other weights are at hand"
        notes.append(f"{where}, and the packaged model is not installed: training starts from random weights")
        return SMALL_MODEL_RECIPE, "a model of 1 million parameters", None, ""
    facts = TRUNKS[trunk.partition(".")[0]]
    if model is None:
        if f"_{wanted}_" not in trunk:
            notes.append(
                f"a ViT of size {wanted} would fit, but the Hub cannot be reached, and {trunk} is in the cache"
            )
        if facts.licence != APACHE:
            notes.append(f"the weights of {trunk} come under the {facts.licence}: read it before you publish the model")
    family = "dinov3" if "dinov3" in trunk else "dinov2"
    head, head_reason = _head(data, machine, preset)
    return f"{family}-{head}", head_reason, trunk, "as given" if model else reason


def _trunk_size(data: DataSummary, machine: MachineSummary, preset: str) -> tuple[str, str]:
    """Return the size of the trunk to prefer, and the reason."""
    if not machine.gpus:
        size = "base" if preset == "best" and machine.cores >= 16 else "small"
        return size, f"a frozen ViT that {machine.cores} CPU cores run in time"
    memory = machine.gpu_memory
    limits = {"fast": (0, 24, math.inf), "balanced": (0, 6, 40), "best": (0, 6, 16)}[preset]
    size = SIZES[max(index for index, limit in enumerate(limits) if memory >= limit)]
    return size, f"a frozen ViT for {memory:.0f} GiB of GPU memory"


def _trunk_at_hand(size: str, machine: MachineSummary) -> str | None:
    """Return the trunk to take: DINOv2 of this size, or what the cache has if the Hub cannot be reached."""
    order = sorted(SIZES, key=lambda other: (SIZES.index(other) > SIZES.index(size), -SIZES.index(other)))
    names = [f"vit_{other}_{family}" for other in order for family in ("patch14_dinov2", "patch16_dinov3")]
    return next((name for name in names if machine.hub or name in machine.cached), None)


def _head(data: DataSummary, machine: MachineSummary, preset: str) -> tuple[str, str]:
    """Return the second part of the name of a frozen recipe, and the reason."""
    if data.classes == 1 and not data.multi_label:
        return "adapter-mask2former", "of these recipes only Mask2Former learns a single class"
    if data.images < FEW_IMAGES:
        return "linear", f"a linear head learns from {data.images} images without memorising them"
    if preset == "best" and machine.gpu_memory >= 16 and not data.multi_label:
        return "adapter-mask2former", "the finest masks; needs 16 GiB of GPU memory"
    if preset == "fast" or not machine.gpus:
        return "linear", "one linear layer, the fastest to train"
    return "mask-transformer", "more accurate than a linear head for little memory"


def _crop(data: DataSummary, facts: PresetFacts, on_gpu: bool) -> tuple[int, str]:
    """Return the side of the crops, to which shorter sides of images are resized, and the reason."""
    side, limit = min(data.height, data.width), facts.crop_gpu if on_gpu else facts.crop_cpu
    crop = max(min(side // CELL * CELL, limit), SMALLEST_CROP)
    if crop == limit < side - CELL:
        return crop, f"images of {data.width}x{data.height} are reduced to this shorter side to save time"
    return crop, f"the shorter side of the images, {data.width}x{data.height}"


def _steps(
    data: DataSummary, machine: MachineSummary, facts: PresetFacts, batch: int, seconds: float, caches: bool
) -> tuple[int, str]:
    """Return the number of steps and the reason.

    Args:
        seconds: of an image in a step.
        caches: whether features are cached, so that the trunk runs once for each version of an image.
    """
    passes = math.ceil(facts.passes * data.images / batch)
    steps = min(max(passes, facts.least_steps), facts.most_steps)
    if caches:
        first = data.images * CACHED_VIEWS * seconds / 60
        return steps, _about(steps * batch / data.images, first + steps * batch * seconds / 60 / 20)
    affordable = int(60 * facts.minutes / (batch * seconds))
    if affordable < steps:
        steps = max(affordable, 50)
    return steps, _about(steps * batch / data.images, steps * batch * seconds / 60)


def _about(passes: float, minutes: float) -> str:
    time = f"{minutes / 60:.0f} hours" if minutes >= 100 else f"{math.ceil(minutes)} minutes"
    time = "a minute" if time == "1 minutes" else time
    return f"{passes:.0f} passes over the images, roughly {time}" if passes >= 2 else f"roughly {time}"


__all__ = ["PRESETS", "Choice", "Choices", "DataSummary", "choose"]
