# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mixin of all our models: weight initialization, and the refusals of an optimized model."""

from typing import Any

from torch import nn

from .separate_trunk import SeparateTrunkMixin

LOAD_AGAIN = "load the model again with from_pretrained, without optimize_for_inference"


class SegmentationModelMixin(SeparateTrunkMixin):
    """Behaviour that all our models add to `PreTrainedModel`, before which it stands in the bases.

    It has transformers call `_init_weights` for every module. For classes outside its own package, transformers skips
    modules that own no tensor themselves, because other people's `_init_weights` might overwrite loaded weights there.
    Ours uses `transformers.initialization`, which keeps loaded weights, and needs those calls: some modules initialize
    the layers inside them.
    """

    _no_split_modules: set[str] | list[str] | None
    min_image_side = 1  # pixels that a backbone needs; those of others are taken to need their largest stride
    is_optimized = False  # set by `optimize_for_inference`, which replaces layers for good

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module)  # type: ignore[misc]

    def post_init(self) -> None:
        super().post_init()  # type: ignore[misc]
        present = {type(module).__name__ for module in self.modules()}
        # FSDP refuses class names that the model does not contain, such as the block of another kind of trunk
        self._no_split_modules = {name for name in self._no_split_modules or () if name in present}

    def train(self, mode: bool = True):
        if mode:
            self._refuse_if_optimized("be trained")
        return super().train(mode)  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **kwargs: Any):
        self._refuse_if_optimized("be saved")
        return super().save_pretrained(*args, **kwargs)

    def _push_if_not_optimized(self, *args: Any, **kwargs: Any):
        self._refuse_if_optimized("be pushed")  # before transformers creates the repository
        return super().push_to_hub(*args, **kwargs)  # type: ignore[misc]

    push_to_hub: Any = _push_if_not_optimized  # transformers' is a wrapper, whose type a method does not match

    def add_adapter(self, *args: Any, **kwargs: Any):
        self._refuse_if_optimized("get an adapter")
        return super().add_adapter(*args, **kwargs)  # type: ignore[misc]

    def _refuse_if_optimized(self, action: str) -> None:
        """Refuse an action if this model, or a backbone inside it, was optimized for inference."""
        if any(isinstance(module, SegmentationModelMixin) and module.is_optimized for module in self.modules()):
            raise RuntimeError(f"an optimized model cannot {action}: {LOAD_AGAIN}")


__all__ = ["LOAD_AGAIN", "SegmentationModelMixin"]
