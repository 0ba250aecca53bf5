# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""EVA-01's adapters around a BEiT with absolute positions."""

import pytest
import torch
from model_tests import BackboneTests
from reference_cases import FOLDER, ReferenceCase
from test_pretrained_trunks import state_of, timm_model
from test_vit_adapter import small_config

from segtransformers import ViTAdapterBackbone, ViTAdapterConfig
from segtransformers.conversion import ConversionError, convert_checkpoint, load_pretrained_trunk
from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets import get_dataset_info
from segtransformers.models.trunk.attention import join_windows, split_windows
from segtransformers.models.trunk.positions import resize_positions
from segtransformers.published import published_rows

ROWS = published_rows("eva01")
CASES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("eva/tiny-eva01-*"))


def eva_config(**changes) -> ViTAdapterConfig:
    settings = {
        "trunk": "beit_base_patch16_224",
        "use_absolute_position_embeddings": True,
        "use_prefix_positions": False,
        "layer_norm_eps": 1e-6,
    }
    return small_config(**{**settings, **changes})


class AdapterTests(BackboneTests):
    model_class = ViTAdapterBackbone

    @pytest.mark.slow  # 11 s each; other adapters are exported by default
    def test_exports_with_a_dynamic_batch(self):
        super().test_exports_with_a_dynamic_batch()


@pytest.mark.slow  # 10 s; other adapters, and one around a BEiT, are tested by default
class TestEva01(AdapterTests):
    """Absolute positions, no tables, no layer scale."""

    def config(self):
        return eva_config(use_relative_position_bias=False, layer_scale_init_value=0.0)


@pytest.mark.slow  # 15 s; nothing released is like this
class TestWindows(AdapterTests):
    """Windows with tables of their own, and the last tokens added to every feature map."""

    def config(self):
        return eva_config(use_prefix_tokens=False, window_sizes=[3, 0, 2, 0], add_last_trunk_features=True)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_original(name):
    case = ReferenceCase(name)
    case.check(convert_checkpoint(case.state_dict(), case.config))


def test_the_index_of_relative_positions_is_not_needed():
    """A released checkpoint has 3.1 GB of it."""
    case = ReferenceCase("eva/tiny-eva01-relpos-mask2former")
    assert any("relative_position_index" in name for name, *_ in case.manifest["state_dict"])
    state = {**case.state_dict()}
    state["backbone.blocks.0.attn.relative_position_index"] = torch.zeros(37, 37, dtype=torch.long)
    model = convert_checkpoint(state, case.config)
    assert not any("index" in name for name in model.state_dict())
    assert model.backbone.trunk.blocks[0].relative_position_bias_table.shape == (11 * 11 + 3, 4)


def test_windows_are_padded_with_zeros():
    tokens = torch.randn(2, 5 * 7, 3)
    windows = split_windows(tokens, (5, 7), 4)
    assert windows.shape == (2 * 2 * 2, 16, 3)
    assert torch.equal(join_windows(windows, (5, 7), 4), tokens)
    assert torch.equal(windows[1].unflatten(0, (4, 4))[:, :3], tokens[0].unflatten(0, (5, 7))[:4, 4:])
    assert not windows[1].unflatten(0, (4, 4))[:, 3].any() and not windows[3].unflatten(0, (4, 4))[1:].any()


def test_a_global_block_with_a_table_of_another_grid_is_refused():
    case = ReferenceCase("eva/tiny-eva01-windowed-new-upernet")
    config = case.config
    config["backbone"]["window_size"] = [4] * 8
    with pytest.raises(ConversionError, match=r"window_size is .* expected the side of the whole token grid .* = 6"):
        convert_checkpoint(case.state_dict(), config)


def test_absolute_positions_of_other_trunks_are_fixed():
    with pytest.raises(ValueError, match="use_absolute_position_embeddings must be True for 'vit_tiny_patch16_224'"):
        ViTAdapterBackbone(small_config(use_absolute_position_embeddings=False))


def test_pretrained_trunk(tmp_path):
    """`eva_psz14to16.pth`: without layer scale and tables, which EVA-01 adds at the start of the training."""
    weights = state_of(timm_model("beit_base_patch16_224", use_abs_pos_emb=True, init_values=None))
    weights = {name: tensor for name, tensor in weights.items() if "gamma" not in name and "relative" not in name}
    weights |= {"mask_token": torch.zeros(1, 1, 96), "lm_head.weight": torch.zeros(4, 96)}
    torch.save({"model": weights}, tmp_path / "eva_psz14to16.pth")
    backbone = ViTAdapterBackbone(
        eva_config(hidden_size=96, pretrain_image_size=320, layer_scale_init_value=1.0, use_relative_position_bias=True)
    )
    unused = load_pretrained_trunk(backbone, tmp_path / "eva_psz14to16.pth")
    assert {"mask_token", "lm_head.weight"} <= set(unused)
    block, embeddings = backbone.trunk.blocks[3], backbone.trunk.embeddings
    assert torch.equal(block.attn.q_bias, weights["blocks.3.attn.q_bias"])
    assert torch.equal(embeddings.pos_embed, resize_positions(weights["pos_embed"][:, 1:], (14, 14), (20, 20)))
    assert block.gamma_1.eq(1).all() and not block.relative_position_bias_table.any()


@pytest.mark.parametrize("name", ROWS)
def test_published_row_describes_a_model(name):
    row = ROWS[name]
    model, _, _ = empty_model(row["model"])
    unused = model.config.backbone_config.hidden_size  # the class token's position
    assert row["num_parameters"] - sum(parameter.numel() for parameter in model.parameters()) == unused
    assert model.config.num_labels == len(get_dataset_info(row["dataset"]).classes)
    assert model.config.window_size == [896, 896] and row["crop_size"] == 896
    processor = read_test_pipeline(row["test_pipeline"], True, None, row["multi_scale_pipeline"])
    assert processor.size_divisor == 32 and dict(processor.size)["shortest_edge"] == 896
    assert (row["miou_ms"] is not None) == (row["dataset"] == "ade20k")
