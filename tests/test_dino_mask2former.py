# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""DINOv2's and DINOv3's adapters with Mask2Former."""

import pytest
import torch
from model_tests import BackboneTests
from reference_cases import FOLDER, ReferenceCase, relative_error
from test_seg_mask2former import Mask2FormerTests, small_head, small_model
from test_vit_adapter import small_config
from torch.nn import functional as F

from segtransformers import ViTAdapterBackbone, ViTAdapterConfig, ViTCoMerConfig
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.models.layers.sliding_windows import SlidingWindow, slide

CASES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("dinov*_segmentors/tiny-m2f-*"))


def native_config(**changes) -> ViTAdapterConfig:
    """DINOv2's adapter: the trunk's own token grid, its class token, SwiGLU."""
    settings = {
        "trunk": "vit_giant_patch14_dinov2",
        "pretrain_image_size": 70,
        "patch_size": 14,
        "token_stride": 14,
        "mlp_ratio": 4.0,
        **changes,
    }
    return small_config(**settings)


def frozen_config(**changes) -> ViTAdapterConfig:
    """DINOv3's adapter: no injectors, and the trunk's tokens through its final norm."""
    settings = {
        "trunk": "vit_small_patch16_dinov3_qkvb",
        "use_injectors": False,
        "final_norm": True,
        "layer_norm_eps": 1e-5,
        "adapter_layer_norm_eps": 1e-6,
        "adapter_drop_path_rate": 0.3,
        **changes,
    }
    return small_config(**settings)


class AdapterTests(BackboneTests):
    model_class = ViTAdapterBackbone

    @pytest.mark.slow  # 11 s each; other adapters are exported by default
    def test_exports_with_a_dynamic_batch(self):
        super().test_exports_with_a_dynamic_batch()


class TestNativeTokenGrid(AdapterTests):
    def config(self):
        return native_config()


class TestWithoutInjectors(AdapterTests):
    def config(self):
        return frozen_config()


@pytest.mark.slow  # 50 s; the head is tested over other backbones by default
class TestResizedMaskLogits(Mask2FormerTests):
    def config(self):
        return small_head(frozen_config(), resize_mask_logits=True)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_original(name):
    case = ReferenceCase(name)
    case.check(convert_checkpoint(case.state_dict(), case.config))


def test_a_grid_of_tokens_apart_from_the_pyramid():
    """75x100 pixels, padded to 96x128: 6x9 tokens beside levels of 12x16, 6x8 and 3x4."""
    model = ViTAdapterBackbone(native_config()).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 75, 100), output_hidden_states=True)
    assert outputs.hidden_states[0].shape[1] == 1 + 6 * 9
    assert [tuple(feature_map.shape[2:]) for feature_map in outputs.feature_maps] == [
        (19, 25),
        (10, 13),
        (5, 7),
        (3, 4),
    ]


def test_without_injectors_the_trunk_computes_what_it_computes_alone():
    model = ViTAdapterBackbone(frozen_config()).double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states
        tokens, layout = model.trunk.embed(images)
        for state, tokens in zip(states[1:], model.trunk.run_blocks(tokens, 0, 3, layout), strict=True):  # noqa: B020
            assert torch.equal(state, tokens)


def test_no_graph_is_kept_of_a_frozen_trunk_without_injectors():
    model = ViTAdapterBackbone(frozen_config(drop_path_rate=0.0)).train()
    model.trunk.requires_grad_(False)
    outputs = model(torch.randn(2, 3, 64, 64), output_hidden_states=True)
    assert not any(state.requires_grad for state in outputs.hidden_states)
    sum(feature_map.square().mean() for feature_map in outputs.feature_maps).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("trunk.")}


def test_mask_logits_are_resized_before_the_sigmoid():
    """As transformers does it: 50x75 pixels are padded to 64x96, and cut to size at the end."""
    model = small_model(resize_mask_logits=True)
    images = torch.randn(2, 3, 50, 75, dtype=torch.float64)
    with torch.no_grad():
        outputs, padded = model(images), model(F.pad(images, (0, 21, 0, 14)))
        masks = F.interpolate(padded.masks_queries_logits, size=(64, 96), mode="bilinear").sigmoid()
        classes = padded.class_queries_logits.softmax(-1)[..., :-1]
        expected = torch.einsum("bqc,bqhw->bchw", classes, masks)[:, :, :50, :75]
        torch.testing.assert_close(outputs.logits, expected)
        model.config.resize_mask_logits = False
        assert not torch.allclose(model(images).logits, expected, rtol=1e-3)


@pytest.mark.slow  # 5 s, and about the original only
@torch.no_grad()
def test_the_original_rounds_its_sums_to_bfloat16():
    """Its sums in sliding windows differ from ours as it was recorded."""
    case = ReferenceCase("dinov3_segmentors/tiny-m2f-wide-slide")
    model = convert_checkpoint(case.state_dict(), case.config).eval()
    images, window = case.pixel_values(), SlidingWindow((64, 64), (43, 43))

    def rounded(parts):
        outputs = model(parts, sliding_window=False)
        masks = F.interpolate(outputs.masks_queries_logits, size=parts.shape[2:], mode="bilinear").sigmoid()
        classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes.bfloat16(), masks.bfloat16()).double()

    exact = model(images, sliding_window=window).logits
    effect = relative_error(slide(rounded, images, window), exact)
    assert effect == pytest.approx(case.manifest["bfloat16_sum_effect"]["relative L2"], rel=0.05)


def test_pre_norm_and_layer_scale_apart_from_the_architecture():
    plain = ViTAdapterBackbone(native_config(pre_norm=False, layer_scale_init_value=0.0))
    assert not any("ls1" in name or "norm_pre" in name for name, _ in plain.named_parameters())
    normed = ViTAdapterBackbone(native_config(pre_norm=True))
    assert normed.trunk.embeddings.norm_pre.weight.shape == (32,)
    for trunk in ("vit_small_patch16_dinov3_qkvb", "beit_base_patch16_224"):
        backbone = ViTAdapterBackbone(small_config(trunk=trunk, layer_scale_init_value=0.0))
        assert backbone.trunk.blocks[0].gamma_1 is None
    with pytest.raises(ValueError, match="pre_norm must be False for 'beit_base_patch16_224', got True"):
        ViTAdapterBackbone(small_config(trunk="beit_base_patch16_224", pre_norm=True))


def test_vit_comer_needs_the_pyramids_grid():
    with pytest.raises(ValueError, match="token_stride must be 16"):
        ViTCoMerConfig(trunk="vit_small_patch14_dinov2", token_stride=14)


def test_settings_that_no_file_shows_must_be_in_the_text():
    case = ReferenceCase("dinov2_segmentors/tiny-m2f-swiglu")
    config = case.config
    del config["backbone"]["pretrain_size"]
    with pytest.raises(ConversionError, match=r"backbone.pretrain_size is missing: add .* such as 518"):
        convert_checkpoint(case.state_dict(), config)
    config = case.config
    del config["decode_head"]["transformer_decoder"]["transformerlayers"]["attn_cfgs"]["num_heads"]
    with pytest.raises(ConversionError, match="attn_cfgs has no setting 'num_heads'"):
        convert_checkpoint(case.state_dict(), config)
    config = case.config
    del config["test_cfg"]
    with pytest.raises(ConversionError, match=r"the model config has no test_cfg: add .*crop_size"):
        convert_checkpoint(case.state_dict(), config)


def test_pieces_of_a_tensor_that_do_not_fit_are_named():
    case = ReferenceCase("dinov2_segmentors/tiny-m2f-swiglu")
    state = case.state_dict()
    state["backbone.blocks.0.mlp.w2.weight"] = state["backbone.blocks.0.mlp.w2.weight"][:, :-1]
    with pytest.raises(ConversionError, match=r"pieces of backbone.trunk.blocks.0.mlp.fc1.weight are 128x48, 128x47"):
        convert_checkpoint(state, case.config)
    state = case.state_dict()
    del state["backbone.blocks.0.mlp.w2.weight"]
    with pytest.raises(ConversionError, match=r"lacks .*: backbone.trunk.blocks.0.mlp.fc1.weight"):
        convert_checkpoint(state, case.config)
