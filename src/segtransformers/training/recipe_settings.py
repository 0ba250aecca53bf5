# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The parts of a recipe, and checks of their values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OPTIMIZERS = ("adamw", "sgd")


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
        check_numbers(self, "optimizer", learning_rate=(0, None), weight_decay=(0, None), momentum=(0, 1))
        check_numbers(self, "optimizer", layer_decay=(0, 1), head_learning_rate_factor=(0, None))
        check_whole(self, "optimizer", stage_layers=0)
        check_tuple(self, "optimizer", "betas", 2)
        check_flags(self, "optimizer", "decay_vectors")
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
        check_whole(self, "schedule", steps=1, warmup_steps=0)
        check_numbers(self, "schedule", warmup_ratio=(0, 1), power=(0, None), min_lr=(0, None))


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
        check_whole(self, "augmentation", shortest_edge=1, longest_edge=1)
        check_numbers(self, "augmentation", cat_max_ratio=(0, 1), flip_probability=(0, 1))
        check_flags(self, "augmentation", "photometric_distortion", "reduce_labels")
        if type(self.crop_size) is int:
            object.__setattr__(self, "crop_size", (self.crop_size, self.crop_size))
        for name, count, low in (
            ("ratio_range", 2, 0.0),
            ("crop_size", 2, 1),
            ("image_mean", 3, 0),
            ("image_std", 3, 0),
        ):
            check_tuple(self, "augmentation", name, count, low)
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
        check_whole(self, "test_protocol", size_divisor=0)
        for name in ("window_size", "window_stride"):
            if getattr(self, name) is not None:
                check_tuple(self, "test_protocol", name, 2, 1)
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
        check_numbers(self, "weight_average", decay=(0, 1))
        check_whole(self, "weight_average", interval=1, warmup_steps=0)
        check_flags(self, "weight_average", "warmup")
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
        check_numbers(self, "sampling", temperature=(1e-4, None), threshold=(0, 1))
        check_whole(self, "sampling", min_pixels=0)


def label(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def check_numbers(settings: Any, where: str, **limits: tuple[float | None, float | None]) -> None:
    for name, (low, high) in limits.items():
        value = number(getattr(settings, name))
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            allowed = f"from {low} on" if high is None else f"from {low} to {high}"
            raise ValueError(f"{label(where, name)} must be a number {allowed}, got {getattr(settings, name)!r}")
        object.__setattr__(settings, name, value)


def number(value: Any) -> float | None:
    """Return the value as a finite number, or None. YAML 1.1 reads 1e-4, without a point, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_whole(settings: Any, where: str, **lowest: int) -> None:
    for name, low in lowest.items():
        value = getattr(settings, name)
        if type(value) is not int or value < low:
            raise ValueError(f"{label(where, name)} must be a whole number from {low} on, got {value!r}")


def check_flags(settings: Any, where: str, *names: str) -> None:
    for name in names:
        if type(getattr(settings, name)) is not bool:
            raise ValueError(f"{label(where, name)} must be true or false, got {getattr(settings, name)!r}")


def check_tuple(settings: Any, where: str, name: str, count: int, low: float = 0) -> None:
    values = getattr(settings, name)
    numbers = [number(value) for value in values] if isinstance(values, list | tuple) else []
    if len(numbers) != count or any(number is None or number < low for number in numbers):
        raise ValueError(f"{label(where, name)} must be {count} numbers from {low} on, got {values!r}")
    object.__setattr__(settings, name, tuple(value if type(value) is int else number(value) for value in values))


__all__ = [
    "AugmentationSettings",
    "OptimizerSettings",
    "SamplingSettings",
    "Schedule",
    "TestProtocol",
    "WeightAverageSettings",
]
