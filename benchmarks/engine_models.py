# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A small model of each family with random weights, for `engines.py`."""

import torch
from models import randomised
from transformers import PreTrainedModel

from segtransformers import PlainViTConfig, SegLinearConfig, SegLinearForSemanticSegmentation
from segtransformers.conversion.convert import empty_model
from segtransformers.published import published_rows

# names -> where `published_rows` has the smallest model of the family; EVA's first models and ONE-PEACE have more than
# 1,000 million parameters
PUBLISHED = {
    "vit-adapter-t-upernet": ("vit_adapter", "upernet_augreg_adapter_tiny_512_160k_ade20k"),
    "vit-comer-t-upernet": ("vit_comer", "upernet_vit_comer_tiny_512_160k_ade20k"),
    "internimage-t-upernet": ("internimage", "upernet_internimage_t_512_160k_ade20k"),
    "flash-internimage-t-upernet": ("flash_internimage", "upernet_flash_internimage_t_512_160k_ade20k"),
    "segmenter-t-mask": ("segmenter", "segmenter_vit-t_mask_8x1_512x512_160k_ade20k"),
    "eva02-b-upernet": ("eva02", "eva02_B_ade_seg_upernet_sz512"),
    "dinov2-s-linear": ("dinov2", "dinov2_vits14_ade20k_linear"),
    "swin-t-upernet": ("mmseg_zoo", "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K"),
    "convnext-t-upernet": ("mmseg_zoo", "upernet_convnext_tiny_fp16_512x512_160k_ade20k"),
    "vit-adapter-b-mask2former": ("vit_adapter", "mask2former_beit_adapter_base_512_40k_cocostuff10k_ss"),
}
# the only published segmentation model of DINOv3 has 7,000 million parameters, so this is one that `train` makes
DINOV3 = "dinov3-s-linear"
NAMES = (*PUBLISHED, DINOV3)
DEFORMABLE = [name for name in NAMES if "adapter" in name or "comer" in name or "internimage" in name]


def random_model(name: str) -> PreTrainedModel:
    """Build a model for whole images, with the same random weights in each process."""
    torch.manual_seed(0)
    if name == DINOV3:
        backbone = PlainViTConfig(trunk="vit_small_patch16_dinov3")
        model: PreTrainedModel = SegLinearForSemanticSegmentation(
            SegLinearConfig(backbone_config=backbone, num_labels=150)
        )
    else:
        family, row = PUBLISHED[name]
        model = empty_model(published_rows(family)[row]["model"])[0].to_empty(device="cpu")
        for module in model.modules():
            module._is_hf_initialized = False  # type: ignore[assignment]
        model.init_weights()
    randomised(model)
    model.config.inference_mode = "whole"
    return model.eval()


__all__ = ["DEFORMABLE", "NAMES", "random_model"]
