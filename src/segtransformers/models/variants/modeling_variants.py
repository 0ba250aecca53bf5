# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' backbones with options that their own configs cannot express.

They follow `mmseg/models/backbones/{swin,resnet}.py` of MMSegmentation 0.30 and `mmcls/models/backbones/convnext.py` of
MMClassification 0.25. Without these options the recorded outputs of the originals are not reached: a ConvNeXt with
narrow stages differs by 3e-5 if the norms before its downsampling have transformers' epsilon.
"""

from torch import nn
from transformers import ConvNextBackbone, ResNetBackbone, SwinBackbone
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from .configuration_variants import SegConvNextConfig, SegResNetConfig, SegSwinConfig


class SegSwinBackbone(SwinBackbone):
    """Swin with optional patch norms and any scale of the attention.

    Args:
        config: a [`SegSwinConfig`].
    """

    config_class = SegSwinConfig
    config: SegSwinConfig

    def __init__(self, config: SegSwinConfig):
        super().__init__(config)
        for stage in self.swin.encoder.layers:
            if not config.patch_norm and stage.downsample is not None:
                stage.downsample.add_module("norm", nn.Identity())
            for block in stage.blocks:
                if config.qk_scale is not None:
                    block.attention.scaling = config.qk_scale
        if not config.patch_norm:
            self.swin.embeddings.add_module("norm", nn.Identity())

    def get_input_embeddings(self) -> nn.Module:
        return self.swin.embeddings.patch_embeddings.projection


class SegConvNextBackbone(ConvNextBackbone):
    """ConvNeXt whose norms before the downsampling have an epsilon of their own.

    Args:
        config: a [`SegConvNextConfig`].
    """

    config_class = SegConvNextConfig
    config: SegConvNextConfig

    def __init__(self, config: SegConvNextConfig):
        super().__init__(config)
        for stage in self.encoder.stages:
            for layer in stage.downsampling_layer[:1]:
                layer.eps = config.downsampling_norm_eps

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings


class SegResNetBackbone(ResNetBackbone):
    """ResNet with three 3x3 convolutions in its stem.

    Args:
        config: a [`SegResNetConfig`].
    """

    config_class = SegResNetConfig
    config: SegResNetConfig

    def __init__(self, config: SegResNetConfig):
        super().__init__(config)
        width = config.embedding_size
        stem = nn.Sequential(
            ResNetConvLayer(config.num_channels, width // 2, stride=2, activation=config.hidden_act),
            ResNetConvLayer(width // 2, width // 2, activation=config.hidden_act),
            ResNetConvLayer(width // 2, width, activation=config.hidden_act),
        )
        self.embedder.add_module("embedder", stem)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedder.embedder[0].convolution


__all__ = ["SegConvNextBackbone", "SegResNetBackbone", "SegSwinBackbone"]
