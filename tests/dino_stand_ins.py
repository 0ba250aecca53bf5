# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Tiny trunks of the kinds of DINOv2 and DINOv3 in timm's registry, with random weights as pre-trained ones."""

import timm
import torch
from timm.models import register_model

from segtransformers.models.trunk import pretrained

SIZES = {"depth": 4, "embed_dim": 32, "num_heads": 2}
DINOV2, DINOV3 = "vit_stand_in_patch14_dinov2", "vit_stand_in_patch16_dinov3"
__all__: list[str] = []  # `register_model` adds the names


@register_model
def vit_stand_in_patch14_dinov2(pretrained: bool = False, **arguments):
    return timm.create_model("vit_small_patch14_dinov2", **{**SIZES, "img_size": 70, **arguments})


@register_model
def vit_stand_in_patch16_dinov3(pretrained: bool = False, **arguments):
    return timm.create_model("vit_small_patch16_dinov3", **{**SIZES, **arguments})


def release(monkeypatch) -> None:
    """Let the downloads of timm's weights return those of the stand-ins, which are the same at each call."""

    def download(name, cache_dir=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(name.partition(".")[0], num_classes=0)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            for module in model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    torch.nn.init.ones_(module.weight)
        return model.state_dict(), tuple(model.patch_embed.grid_size)

    monkeypatch.setattr(pretrained, "_check_weights", lambda name: None)
    monkeypatch.setattr(pretrained, "_download", download)
    monkeypatch.setattr("segtransformers.models.trunk.check_trunk_available", lambda *arguments: True)
    monkeypatch.setattr("segtransformers.training.starting_points.trunk_normalization", lambda name: {})
