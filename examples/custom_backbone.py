# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Put a backbone of your own under UperNet: train a step, save the model, load it again.

    python custom_backbone.py my-model

A head takes any class that AutoBackbone knows: a config with `stage_names`, and a model that returns the feature maps
which `out_features` names, here at the strides 4, 8, 16 and 32.
"""

import argparse
import itertools

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from segtransformers import SegUperNetConfig, SegUperNetForSemanticSegmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]


class ConvPyramidConfig(BackboneConfigMixin, PreTrainedConfig):
    model_type = "example_conv_pyramid"  # a name that nobody else uses

    widths: tuple[int, ...] | list[int] = (16, 32, 64, 128)

    def __post_init__(self, out_features=None, out_indices=None, **kwargs):
        self.stage_names = ["stem", *STAGES]
        self.set_output_features_output_indices(out_features=out_features or STAGES, out_indices=out_indices)
        super().__post_init__(**kwargs)


class ConvPyramidBackbone(BackboneMixin, PreTrainedModel):
    config_class = ConvPyramidConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_features = [config.widths[0], *config.widths]  # channels of the stem and of the stages
        self.stem = nn.Conv2d(3, config.widths[0], kernel_size=4, stride=4)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=1 if index == 0 else 2, padding=1), nn.GELU())
            for index, (before, after) in enumerate(itertools.pairwise(self.num_features))
        )
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        feature_map, found = self.stem(pixel_values), []
        for name, stage in zip(STAGES, self.stages, strict=True):
            feature_map = stage(feature_map)
            if name in self.out_features:
                found.append(feature_map)
        return BackboneOutput(feature_maps=tuple(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder for the model")
    options = parser.parse_args()
    AutoConfig.register(ConvPyramidConfig.model_type, ConvPyramidConfig)
    AutoBackbone.register(ConvPyramidConfig, ConvPyramidBackbone)

    config = SegUperNetConfig(backbone_config=ConvPyramidConfig(), hidden_size=64, num_labels=5)
    model = SegUperNetForSemanticSegmentation(config)
    loss = model(torch.randn(2, 3, 64, 96), labels=torch.randint(5, (2, 64, 96))).loss
    loss.backward()  # from here on, Trainer or `segtransformers.training` does the work
    model.save_pretrained(options.output)

    loaded = AutoModelForSemanticSegmentation.from_pretrained(options.output)
    logits = loaded.eval()(torch.randn(1, 3, 64, 96)).logits
    print(f"loss {loss.item():.3f}, logits of the loaded model {tuple(logits.shape)}")


if __name__ == "__main__":
    main()
