# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Pre-trained files of the originals as trunks. The files are made here, in the layouts of the real ones."""

import pytest
import timm
import torch
from reference_cases import ReferenceCase, fill
from test_trunk import assert_equals_timm, randomise, small_backbone

from segtransformers.conversion import ConversionError, convert_checkpoint, load_pretrained_trunk
from segtransformers.models.trunk.positions import resize_positions, resize_relative_position_table

SMALL = {"depth": 4, "embed_dim": 96, "num_heads": 2}


def timm_model(name: str, **arguments) -> torch.nn.Module:
    return randomise(timm.create_model(name, **SMALL, **arguments))


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_deit(tmp_path):
    """`{"model": ...}` with a classifier; the original's layer scale is not in the file and stays as it is."""
    weights = state_of(timm_model("deit_tiny_patch16_224"))
    torch.save({"model": weights}, tmp_path / "deit_tiny_patch16_224-a1311bcf.pth")
    backbone = small_backbone("vit_tiny_patch16_224", use_prefix_tokens=False, layer_scale_init_value=1.0)
    scale = backbone.trunk.blocks[0].ls1.gamma.clone()
    unused = load_pretrained_trunk(backbone, tmp_path / "deit_tiny_patch16_224-a1311bcf.pth")
    assert set(unused) == {"norm.weight", "norm.bias", "head.weight", "head.bias", "cls_token"}
    trunk = backbone.trunk
    assert torch.equal(trunk.blocks[3].mlp.fc2.weight, weights["blocks.3.mlp.fc2.weight"])
    assert torch.equal(trunk.embeddings.pos_embed, weights["pos_embed"][:, 1:])
    assert torch.equal(trunk.blocks[0].ls1.gamma, scale)


def test_augreg_at_another_size(tmp_path):
    """A file for 384 pixels into a trunk for 224: positions are resized bicubically."""
    weights = state_of(timm_model("vit_base_patch16_384"))
    torch.save(weights, tmp_path / "B_16.pth")
    backbone = small_backbone("vit_base_patch16_224")
    load_pretrained_trunk(backbone, tmp_path / "B_16.pth")
    positions = weights["pos_embed"]
    expected = torch.cat([positions[:, :1], resize_positions(positions[:, 1:], (24, 24), (14, 14))], dim=1)
    assert torch.equal(backbone.trunk.embeddings.pos_embed, expected)
    whole = small_backbone("vit_base_patch16_384")
    load_pretrained_trunk(whole, tmp_path / "B_16.pth")
    assert_equals_timm(whole, 1e-5)


@pytest.mark.parametrize("side", [224, 384])
@pytest.mark.parametrize("shared", [True, False])
def test_beit(tmp_path, side, shared):
    """Tables of every layer or one for all; an index and the token of masked patches are not needed."""
    weights = state_of(timm_model("beit_base_patch16_224"))
    tables = [weights[f"blocks.{index}.attn.relative_position_bias_table"] for index in range(4)]
    if shared:
        for index in range(4):
            del weights[f"blocks.{index}.attn.relative_position_bias_table"]
        weights["rel_pos_bias.relative_position_bias_table"] = tables[0]
        tables = tables[:1] * 4
    weights["rel_pos_bias.relative_position_index"] = torch.zeros(197, 197, dtype=torch.long)
    weights["blocks.0.attn.relative_position_index"] = torch.zeros(197, 197, dtype=torch.long)
    weights["mask_token"] = torch.zeros(1, 1, 96)
    torch.save({"model": weights}, tmp_path / "beit_base_patch16_224_pt22k_ft22k.pth")
    backbone = small_backbone("beit_base_patch16_224", pretrain_image_size=side)
    unused = load_pretrained_trunk(backbone, tmp_path / "beit_base_patch16_224_pt22k_ft22k.pth")
    assert {"mask_token", "rel_pos_bias.relative_position_index", "fc_norm.weight", "head.bias"} <= set(unused)
    grid = (side // 16, side // 16)
    for block, table in zip(backbone.trunk.blocks, tables, strict=True):
        expected = resize_relative_position_table(table, (14, 14), grid)
        assert torch.equal(block.relative_position_bias_table, expected)
    if side == 224 and not shared:
        assert_equals_timm(backbone, 1e-5)


def test_uniperceiver(tmp_path):
    """The names that the backbone has in a segmentation checkpoint, and what belongs to other tasks."""
    case = ReferenceCase("vit_adapter/tiny-uniperceiver-upernet")
    whole = case.state_dict(torch.float32)
    expected = convert_checkpoint(whole, case.config).backbone
    parts = ("backbone.layers.", "backbone.visual_embed.")
    weights = {name.removeprefix("backbone."): tensor for name, tensor in whole.items() if name.startswith(parts)}
    weights["text_embed.weight"] = fill.tensor("text_embed.weight", (9, 48), torch.float32)
    torch.save({"model": weights}, tmp_path / "uni-perceiver.pth")
    backbone = type(expected)(expected.config)
    assert load_pretrained_trunk(backbone, tmp_path / "uni-perceiver.pth") == ["text_embed.weight"]
    for (name, tensor), other in zip(
        backbone.trunk.state_dict().items(), expected.trunk.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name


def test_a_whole_model_takes_a_trunk(tmp_path):
    weights = state_of(timm_model("vit_tiny_patch16_224"))
    torch.save(weights, tmp_path / "vit.pth")
    case = ReferenceCase("vit_adapter/tiny-vit-upernet")
    model = convert_checkpoint(case.state_dict(torch.float32), case.config)
    with pytest.raises(ConversionError, match=r"patch_embed.proj.weight is \(96, 3, 16, 16\), expected"):
        load_pretrained_trunk(model, tmp_path / "vit.pth")


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path):
    weights = state_of(timm_model("vit_tiny_patch16_224"))
    del weights["blocks.2.norm1.weight"]
    weights["blocks.0.surprise"] = torch.zeros(3)
    torch.save(weights, tmp_path / "vit.pth")
    backbone = small_backbone("vit_tiny_patch16_224")
    before = state_of(backbone)
    with pytest.raises(ConversionError, match=r"no place for blocks.0.surprise; blocks.2.norm1.weight is missing"):
        load_pretrained_trunk(backbone, tmp_path / "vit.pth")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with pytest.raises(ConversionError, match="does not exist"):
        load_pretrained_trunk(backbone, tmp_path / "missing.pth")
    with pytest.raises(ConversionError, match="Linear is not a backbone with a plain ViT"):
        load_pretrained_trunk(torch.nn.Linear(2, 2), tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": torch.zeros(1, 1 + 8 * 16, 96)}, r"pos_embed is \(1, 129, 96\), expected .* a square"),
        ({"pos_embed": torch.zeros(1, 0, 96)}, r"pos_embed is \(1, 0, 96\)"),
        ({"cls_token": torch.zeros(1, 1, 96, dtype=torch.complex64)}, "cls_token is torch.complex64"),
        ({"pos_embed": torch.zeros(1, 197, 96, dtype=torch.long)}, "pos_embed is torch.int64"),
        (
            {f"blocks.0.attn.{part}.bias": torch.zeros(96) for part in ("query", "key", "value")},
            "'blocks.0.attn.qkv.bias' and 'blocks.0.attn.query.bias' become the same tensor",
        ),
        ({f"blocks.0.attn.{part}.bias": torch.zeros(()) for part in ("query", "key", "value")}, "have equal shapes"),
        ({"norm.weight": torch.zeros(96).to_sparse()}, "_rebuild_sparse_tensor under 'norm.weight', expected a dense"),
    ],
)
def test_odd_files_are_refused(tmp_path, change, message):
    torch.save({**state_of(timm_model("vit_tiny_patch16_224")), **change}, tmp_path / "vit.pth")
    with pytest.raises(ConversionError, match=message):
        load_pretrained_trunk(small_backbone("vit_tiny_patch16_224"), tmp_path / "vit.pth")


def test_names_of_data_parallel_training(tmp_path):
    weights = {f"module.{name}": tensor for name, tensor in state_of(timm_model("vit_tiny_patch16_224")).items()}
    torch.save({"model": weights}, tmp_path / "vit.pth")
    backbone = small_backbone("vit_tiny_patch16_224")
    load_pretrained_trunk(backbone, tmp_path / "vit.pth")
    assert torch.equal(backbone.trunk.embeddings.cls_token, weights["module.cls_token"])
