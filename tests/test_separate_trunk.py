# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Saved folders without the weights of their trunk."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from hub_server import client_environment, running_hub
from safetensors import safe_open
from test_vit_adapter import small_config
from transformers import AutoModelForSemanticSegmentation

from segtransformers import (
    PlainViTBackbone,
    PlainViTConfig,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
    ViTAdapterBackbone,
)
from segtransformers.models.trunk import pretrained

TIMM_NAME = "vit_small_patch16_224.augreg_in21k"


def make_model(**changes) -> SegUperNetForSemanticSegmentation:
    config = SegUperNetConfig(
        backbone_config=small_config(**changes), hidden_size=16, auxiliary_channels=8, num_labels=5
    )
    return SegUperNetForSemanticSegmentation(config).eval()


def tensors_in(folder) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            names |= set(opened.keys())
    return names


def assert_equal_models(first, second):
    state = second.state_dict()
    assert first.state_dict().keys() == state.keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor)), name


@pytest.fixture
def saved(tmp_path):
    """A whole model, the folder of a backbone with its trunk, and the folder of the model without it."""
    model = make_model()
    model.backbone.save_pretrained(tmp_path / "trunk")
    model.separate_trunk(str(tmp_path / "trunk"))
    model.save_pretrained(tmp_path / "rest")
    return model, tmp_path / "trunk", tmp_path / "rest"


def test_the_folder_lacks_the_trunk_and_names_it(saved):
    model, trunk, rest = saved
    names = tensors_in(rest)
    assert names == {name for name in model.state_dict() if not name.startswith("backbone.trunk.")}
    backbone = json.loads((rest / "config.json").read_text())["backbone_config"]
    assert backbone["trunk_weights"] == str(trunk) and len(backbone["trunk_samples"]) == 32
    assert_equal_models(SegUperNetForSemanticSegmentation.from_pretrained(rest), model)
    assert_equal_models(AutoModelForSemanticSegmentation.from_pretrained(rest), model)
    trunk.rename(trunk.parent / "elsewhere")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(rest, trunk_from=trunk.parent / "elsewhere")
    assert_equal_models(loaded, model)
    assert loaded.config.num_labels == 5


def test_options_of_from_pretrained_work(saved, tmp_path):
    model, _, rest = saved
    other = SegUperNetForSemanticSegmentation.from_pretrained(
        rest, num_labels=3, ignore_mismatched_sizes=True, dtype=torch.bfloat16
    )
    assert other.config.num_labels == 3 and other.dtype == torch.bfloat16
    key = "backbone.trunk.blocks.3.mlp.fc2.weight"
    assert torch.equal(other.state_dict()[key], model.state_dict()[key].bfloat16())
    loaded, info = SegUperNetForSemanticSegmentation.from_pretrained(rest, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.backbone_config.trunk_weights == str(tmp_path / "trunk")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_another_precision_is_the_same_trunk(saved, tmp_path, dtype):
    _, _, rest = saved
    loaded = SegUperNetForSemanticSegmentation.from_pretrained(rest, dtype=dtype)
    loaded.save_pretrained(tmp_path / "again")
    assert not any("trunk" in name for name in tensors_in(tmp_path / "again"))
    assert_equal_models(SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "again"), loaded)


def test_a_trained_trunk_is_saved(saved, tmp_path, caplog):
    """Nothing that was trained is lost, and the saved folder loads alone."""
    _, trunk, rest = saved
    model = SegUperNetForSemanticSegmentation.from_pretrained(rest)
    with torch.no_grad():
        for parameter in model.backbone.trunk.parameters():
            parameter += 1e-4
    model.save_pretrained(tmp_path / "trained")
    assert tensors_in(tmp_path / "trained") == set(model.state_dict())
    assert model.config.backbone_config.trunk_weights == str(trunk)  # the folder alone is whole
    trunk.rename(tmp_path / "elsewhere")
    assert_equal_models(SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "trained"), model)


def test_include_trunk_saves_all(saved, tmp_path):
    model, trunk, _ = saved
    model.save_pretrained(tmp_path / "whole", include_trunk=True)
    trunk.rename(tmp_path / "elsewhere")
    assert_equal_models(SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "whole"), model)
    with pytest.raises(ValueError, match="holds the weights of its trunk: leave trunk_from out"):
        SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "whole", trunk_from=tmp_path / "elsewhere")


def test_a_state_dict_of_the_trainer_is_filtered(saved, tmp_path):
    model, _, _ = saved
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "checkpoint", state_dict=state)
    assert not any("trunk" in name for name in tensors_in(tmp_path / "checkpoint"))


def test_a_backbone_alone(tmp_path):
    backbone = ViTAdapterBackbone(small_config()).eval()
    backbone.save_pretrained(tmp_path / "whole")
    backbone.separate_trunk(tmp_path / "whole")
    backbone.save_pretrained(tmp_path / "rest")
    assert not any(name.startswith("trunk.") for name in tensors_in(tmp_path / "rest"))
    assert_equal_models(ViTAdapterBackbone.from_pretrained(tmp_path / "rest"), backbone)
    model = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "rest", num_labels=4)
    assert_equal_models(model.backbone, backbone)


def test_weights_of_timm(tmp_path, monkeypatch):
    """Positions of another grid are resized as at the start of the training."""
    torch.manual_seed(0)
    source = timm.create_model("vit_small_patch16_224", depth=4, embed_dim=32, num_heads=2, num_classes=0)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    monkeypatch.setattr(pretrained, "check_trunk_available", lambda *arguments: True)
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: source if options.get("pretrained") else create(name, **options)
    )
    model = make_model(trunk="vit_small_patch16_224", layer_scale_init_value=0.0)
    weights = pretrained.weights_of_timm(TIMM_NAME, model.config.backbone_config)
    model.backbone.trunk.load_state_dict(weights)
    model.separate_trunk(TIMM_NAME)
    model.save_pretrained(tmp_path / "rest")
    assert_equal_models(SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "rest"), model)
    assert_equal_models(
        SegUperNetForSemanticSegmentation.from_pretrained(tmp_path / "rest", trunk_from=f"timm/{TIMM_NAME}"), model
    )


def test_errors_name_the_trunk_and_what_to_do(saved, tmp_path, monkeypatch):
    model, trunk, rest = saved
    load = SegUperNetForSemanticSegmentation.from_pretrained
    make_model().backbone.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds other weights \(blocks.*pass trunk_from="):
        load(rest, trunk_from=tmp_path / "other")
    make_model(hidden_size=48, num_attention_heads=3).backbone.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"is \(.*but .*wide has \(.*pass trunk_from="):
        load(rest, trunk_from=tmp_path / "wide")
    with pytest.raises(ValueError, match="holds no weights of a trunk either"):
        load(rest, trunk_from=rest)
    with pytest.raises(OSError, match=r"'nothing' is neither a folder nor weights of timm; pass trunk_from="):
        load(rest, trunk_from="nothing")
    trunk.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="does not exist; pass trunk_from="):
        load(rest)
    with pytest.raises(ValueError, match="must name the weights"):
        model.separate_trunk("")


def test_missing_and_damaged_files_are_named(saved, tmp_path):
    """A folder without weights never becomes a model with a random head."""
    model, trunk, rest = saved
    load = SegUperNetForSemanticSegmentation.from_pretrained
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    (shard, *_) = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    (tmp_path / "shards" / "other.safetensors").write_bytes(b"is not read")
    assert_equal_models(load(tmp_path / "shards"), model)
    shard.unlink()
    with pytest.raises(OSError, match=rf"lacks {shard.name}, which its model.safetensors.index.json names"):
        load(tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(OSError, match=r"index\.json is damaged"):
        load(tmp_path / "shards")
    (rest / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(OSError, match=r"rest/model\.safetensors is damaged"):
        load(rest)
    (rest / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"rest holds no weights: it lacks model\.safetensors"):
        load(rest)
    model.save_pretrained(rest)
    with pytest.raises(OSError, match=r"which are '.*trunk'.*you/nothing cannot be loaded from the Hub.*trunk_from="):
        load(rest, trunk_from="you/nothing", local_files_only=True)
    (trunk / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(OSError, match=r"which are '.*trunk/model\.safetensors is damaged.*pass trunk_from="):
        load(rest)


def test_a_backbone_that_is_only_its_trunk_has_no_weights_of_its_own(tmp_path):
    backbone = PlainViTBackbone(PlainViTConfig(trunk="vit_small_patch16_224", num_hidden_layers=2, hidden_size=384))
    backbone.save_pretrained(tmp_path / "whole")
    backbone.separate_trunk(str(tmp_path / "whole"))
    backbone.save_pretrained(tmp_path / "named")
    assert not tensors_in(tmp_path / "named")
    assert_equal_models(PlainViTBackbone.from_pretrained(tmp_path / "named"), backbone)


def test_offloaded_parts(saved, tmp_path):
    """`device_map="auto"` with little memory: most parts stay on the disk."""
    model, _, rest = saved
    loaded = SegUperNetForSemanticSegmentation.from_pretrained(
        rest, device_map="auto", max_memory={"cpu": 300_000}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded(image).logits, model(image).logits, atol=1e-6)


@pytest.mark.slow  # 20 s: a process that talks to a Hub on this machine
def test_folders_on_the_hub(saved, tmp_path):
    """Both are repositories: that of the rest names that of the trunk."""
    model, _, _ = saved
    model.separate_trunk("you/trunk")
    model.save_pretrained(tmp_path / "named", max_shard_size="50KB")
    code = """
import sys, torch
from segtransformers import SegUperNetForSemanticSegmentation
from segtransformers.hub.publishing import push_folder
from transformers import AutoModelForSemanticSegmentation
push_folder("trunk", "you/trunk")
push_folder("named", "you/named")
model = AutoModelForSemanticSegmentation.from_pretrained("you/named")
again = SegUperNetForSemanticSegmentation.from_pretrained("you/named", trunk_from="you/trunk", dtype=torch.bfloat16)
torch.save(model.state_dict(), "loaded.pt")
assert again.dtype == torch.bfloat16
"""
    with running_hub() as hub:
        environment = client_environment(hub, tmp_path, token="hf_yourTokenForTests")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "loaded.pt")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
