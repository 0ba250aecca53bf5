# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The base class of backbones around a trunk."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.utils import logging

from ..layers.initialization import SegmentationModelMixin
from .configuration_trunk import TrunkConfig
from .modeling_trunk import Trunk, init_trunk_weights
from .pretrained import FromTrunkMixin

logger = logging.get_logger(__name__)


class TrunkBackbone(FromTrunkMixin, BackboneMixin, SegmentationModelMixin, PreTrainedModel):
    """A backbone with a plain ViT as `self.trunk`. Subclasses add the rest and call `post_init`.

    Args:
        config: of the backbone, a subclass of [`TrunkConfig`].
    """

    config: TrunkConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    # device maps and FSDP must not split these, whose forward reads parameters of their own
    _no_split_modules = ["TrunkEmbeddings", "PlainTrunkBlock", "BeitTrunkBlock", "EvaTrunkBlock"]
    _supports_sdpa = True  # the blocks call it whatever the config says
    has_attentions = False

    def __init__(self, config: TrunkConfig):
        super().__init__(config)
        self.trunk = Trunk(config)
        if config._attn_implementation == "eager":
            logger.warning_once("attn_implementation='eager' has no effect: timm's blocks use their own attention.")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_trunk_weights(module, self.config)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.embeddings.patch_embed.proj


__all__ = ["TrunkBackbone"]
