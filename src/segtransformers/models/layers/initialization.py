# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""How transformers is made to initialise our modules as it does its own."""

from torch import nn

from ..optimize.faster import with_faster_layers


class InitializesEveryModule:
    """Stands in front of `PreTrainedModel` in the bases of a model.

    For classes outside its own package, transformers does not call `_init_weights` with modules that own no tensor
    themselves, because other people's code might overwrite loaded weights there. Ours asks transformers'
    `initialization`, which leaves loaded weights alone, and initialises layers by the module around them.
    """

    _no_split_modules: set[str] | list[str] | None

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module)  # type: ignore[misc]

    def post_init(self) -> None:
        with_faster_layers(self)
        super().post_init()  # type: ignore[misc]
        there = {type(module).__name__ for module in self.modules()}
        # FSDP refuses names of modules that a model does not have, such as the block of another kind of trunk
        self._no_split_modules = {name for name in self._no_split_modules or () if name in there}
