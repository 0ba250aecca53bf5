# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""ONE-PEACE's adapter, whose trunk is not one of timm's architectures."""

import pytest
import torch
from model_tests import BackboneTests
from reference_cases import FOLDER, ReferenceCase, relative_error
from test_vit_adapter import small_config

from segtransformers import ViTAdapterBackbone, optimize_for_inference
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.models.trunk import describe_trunk
from segtransformers.published import published_rows

CASES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("eva/tiny-onepeace-*"))


@pytest.mark.slow  # 25 s; rotated blocks of the same kind are tested by default
class TestOnePeace(BackboneTests):
    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(trunk="one_peace_giant_patch16", layer_norm_eps=1e-5, adapter_layer_norm_eps=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_original(name):
    case = ReferenceCase(name)
    case.check(convert_checkpoint(case.state_dict(), case.config))


def test_an_optimized_model_computes_the_same():
    case = ReferenceCase("eva/tiny-onepeace-mask2former")
    model, images = convert_checkpoint(case.state_dict(torch.float32), case.config), case.pixel_values(torch.float32)
    with torch.inference_mode():
        expected = model(images, sliding_window=False).logits
        assert relative_error(optimize_for_inference(model)(images, sliding_window=False).logits, expected) < 1e-5


def test_the_released_trunk():
    described = describe_trunk("one_peace_giant_patch16")
    assert (described["hidden_size"], described["num_hidden_layers"], described["num_attention_heads"]) == (
        1536,
        40,
        24,
    )
    assert described["mlp_ratio"] == 4.0 and described["use_relative_position_bias"]
    with pytest.raises(ValueError, match=r"make patches of 16 pixels, not of 14"):
        ViTAdapterBackbone(small_config(trunk="one_peace_giant_patch16", patch_size=14))
    with pytest.raises(ValueError, match="has no pre-trained weights"):
        ViTAdapterBackbone.from_trunk("one_peace_giant_patch16")


def test_positions_of_another_form_are_refused():
    case = ReferenceCase("eva/tiny-onepeace-upernet")
    state = case.state_dict()
    state["backbone.image_adapter.pos_embed"] = state["backbone.image_adapter.pos_embed"][None]
    with pytest.raises(ConversionError, match=r"pos_embed is 1x37x48, expected \(1 \+ positions, channels\)"):
        convert_checkpoint(state, case.config)


def test_published_row():
    (row,) = published_rows("one_peace").values()
    model, _, _ = empty_model(row["model"])
    assert sum(parameter.numel() for parameter in model.parameters()) == row["num_parameters"]
    assert model.config.num_labels == 150 and model.config.window_size == [896, 896]
    processor = read_test_pipeline(row["test_pipeline"], True, None, row["multi_scale_pipeline"])
    assert processor.size_divisor == 32 and len(processor.multi_scale["scales"]) == 7
    assert processor.image_mean[0] == pytest.approx(0.48145466, abs=1e-6)  # CLIP's
