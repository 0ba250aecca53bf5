# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import weakref

import accelerate
import pytest
import timm
import torch
from model_tests import BackboneTests, randomise
from reference_cases import ReferenceCase, relative_error

from segtransformers import ViTAdapterBackbone, ViTAdapterConfig
from segtransformers.conversion import convert_checkpoint
from segtransformers.models.layers.deformable_attention import SamplingGeometry

CASES = [
    "vit",
    "vit-light",
    "vit-nofeature",
    "vit-noscale",
    "vit-pretrain384",
    "vit-windowed",
    "beit",
    "beit-rect",
    "beit-noqkvbias",
    "uniperceiver",
    "uniperceiver-windowed",
]
MAPS = ["stage1", "stage2", "stage3", "stage4"]


def small_config(**changes) -> ViTAdapterConfig:
    settings = {
        "trunk": "vit_tiny_patch16_224",
        "pretrain_image_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "layer_scale_init_value": 1.0,
        "drop_path_rate": 0.2,
        "spatial_prior_channels": 8,
        "injector_init_value": 0.1,
        "deformable_value_ratio": 0.5,
        "out_features": MAPS,
    }
    return ViTAdapterConfig(**{**settings, **changes})


class TestViTAdapterBackbone(BackboneTests):
    model_class = ViTAdapterBackbone

    def config(self):
        return small_config()


class TestWindowed(BackboneTests):
    """Attention in windows that do not divide the token grid, and no prefix tokens."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(window_sizes=[3, 0, 2, 5], use_prefix_tokens=False)


class TestRegisters(BackboneTests):
    """A trunk with register tokens whose positions do not cover the prefix; the light settings."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(
            trunk="vit_medium_patch16_reg4_gap_256",
            interaction_indexes=[[0, 0], [1, 3]],
            add_trunk_features=False,
            use_conv_ffn=False,
            use_extra_extractors=False,
        )


class TestBeit(BackboneTests):
    """A class token and tables of relative positions, on grids smaller and larger than theirs."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(trunk="beitv2_base_patch16_224")


class TestRotary(BackboneTests):
    """Rotated queries and keys, registers, and no learned positions."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(trunk="vit_small_patch16_dinov3")


class TestPatch14(BackboneTests):
    """Patches of 14 pixels: the trunk's own input is resized."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(trunk="vit_small_patch14_reg4_dinov2", pretrain_image_size=70)


class TestUniPerceiver(BackboneTests):
    """A norm in front of the blocks, and windows that are filled up before the projection."""

    model_class = ViTAdapterBackbone

    def config(self):
        return small_config(
            trunk="vit_base_patch16_clip_224",
            patch_bias=True,
            window_sizes=[3, 0, 2, 5],
            pad_before_projection=True,
            use_prefix_tokens=False,
        )


@pytest.mark.parametrize("name", CASES)
def test_maps_equal_the_original(name):
    case = ReferenceCase(f"vit_adapter/tiny-{name}-upernet")
    backbone = convert_checkpoint(case.state_dict(), case.config).backbone
    with torch.no_grad():
        maps = backbone(case.pixel_values()).feature_maps
    outputs = case.outputs()
    for level, map_ in enumerate(maps):
        assert relative_error(case.sampled(f"feature_{level}", map_), outputs[f"feature_{level}"]) < 2e-6


def test_odd_sizes_are_padded_and_cropped():
    model = ViTAdapterBackbone(small_config()).eval()
    image = torch.randn(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :50, :70] = image
    with torch.no_grad():
        for map_, whole in zip(model(image).feature_maps, model(padded).feature_maps, strict=True):
            assert torch.equal(map_, whole[:, :, : map_.shape[2], : map_.shape[3]])


def test_defaults_are_the_tiny_model():
    config = ViTAdapterConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (192, 12, 3)
    assert config.interaction_indexes == [[0, 2], [3, 5], [6, 8], [9, 11]]
    assert (config.mlp_ratio, config.qkv_bias, config.layer_scale_init_value) == (4.0, True, 0.0)
    assert (config.layer_norm_eps, config.pretrain_image_size) == (1e-6, [224, 224])


def test_explicit_fields_survive_saving_even_where_timm_differs(tmp_path):
    small_config(trunk="vit_base_patch16_384", mlp_ratio=4.0, qkv_bias=False).save_pretrained(tmp_path)
    loaded = ViTAdapterConfig.from_pretrained(tmp_path)
    assert (loaded.mlp_ratio, loaded.qkv_bias, loaded.pretrain_image_size) == (4.0, False, [64, 64])


def test_loading_does_not_ask_timm_for_weights(tmp_path, monkeypatch):
    ViTAdapterBackbone(small_config()).save_pretrained(tmp_path)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: pytest.fail("timm was asked"))
    ViTAdapterBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": "no_such_model"}, "timm .* has no architecture 'no_such_model'.*plain ViT"),
        ({"trunk": "resnet18"}, "'resnet18' cannot be a trunk: it is a ResNet"),
        ({"trunk": "swin_tiny_patch4_window7_224"}, "it is a SwinTransformer"),
        ({"trunk": "vit_small_patch32_224"}, "patches of 32x32 pixels"),
        ({"trunk": "vit_base_patch16_224.augreg_in21k"}, "without a hub prefix or weight tag .*'vit_base_patch16_224'"),
        ({"trunk": "hf_hub:timm/vit_base_patch16_224"}, "did you mean 'vit_base_patch16_224'"),
        ({"interaction_indexes": [[0, 1], [3, 3]]}, "cover blocks 0 to 3 in order"),
        ({"interaction_indexes": [[0, 3]]}, "add_trunk_features needs four interactions"),
        (
            {"add_last_trunk_features": True, "add_trunk_features": False},
            "add_last_trunk_features has no effect without add_trunk_features",
        ),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"deformable_num_heads": 3}, r"hidden_size \* deformable_value_ratio \(16\)"),
        ({"num_hidden_layers": 2}, "trunk of 2 blocks cannot be cut into 4"),
        ({"window_sizes": [2, 2], "use_prefix_tokens": False}, "window_sizes needs one side"),
        ({"window_sizes": [2, 2, 2, 2]}, "set use_prefix_tokens=False"),
        (
            {"trunk": "vit_base_patch16_dinov3", "window_sizes": [2, 2, 2, 2], "use_prefix_tokens": False},
            "only trunks of timm's classes VisionTransformer and Beit attend in windows",
        ),
        ({"trunk": "samvit_base_patch16"}, "it is a VisionTransformerSAM"),
        ({"trunk": "eva02_enormous_patch14_clip_224"}, "of the kind EvaBlockPostNorm"),
        ({"trunk": "vit_base_r50_s16_224"}, "its embedding is a HybridEmbed"),
        ({"patch_size": 32}, "token_stride must equal patch_size"),
        (
            {"trunk": "vit_giant_patch14_dinov2", "mlp_ratio": 1.1},
            "'vit_giant_patch14_dinov2' cannot be built with hid",
        ),
        ({"pretrain_image_size": 8}, "at least one patch"),
        ({"interaction_indexes": [[1, 0], [0, 3]]}, "cover blocks 0 to 3"),
        ({"interaction_indexes": [0, 1, 2, 3]}, "cover blocks 0 to 3"),
        ({"deformable_num_heads": 0}, "deformable_num_heads must be a whole number from 1"),
        ({"deformable_num_points": 0}, "deformable_num_points must be a whole number from 1"),
        ({"drop_path_rate": 1.5}, r"\[0, 1\)"),
        ({"out_features": ["stage9"]}, "stage9"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTAdapterBackbone(small_config(**changes))


def test_differential_attention_is_refused():
    name = "vit_dwee_patch16_reg1_gap_256"
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}, the kind of model that is refused here")
    with pytest.raises(ValueError, match="Block around DiffAttention"):
        small_config(trunk=name)


def test_tuples_and_integers_are_as_good_as_lists_and_floats():
    config = small_config(
        interaction_indexes=((0, 0), (1, 1), (2, 2), (3, 3)), pretrain_image_size=(64, 64), layer_norm_eps=1
    )
    assert config.interaction_indexes == [[0, 0], [1, 1], [2, 2], [3, 3]] and config.pretrain_image_size == [64, 64]


@pytest.mark.parametrize(
    "trunk",
    ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_clip_224", "vit_little_patch16_reg4_gap_256"],
)
def test_trunk_equals_timm_at_its_own_size(trunk):
    """Our slices of blocks on our embedding, against timm's own intermediate features."""
    config = ViTAdapterConfig(trunk=trunk, num_hidden_layers=4, hidden_size=64, num_attention_heads=2)
    ours = randomise(ViTAdapterBackbone(config).double()).trunk.eval()
    theirs = (
        timm.create_model(trunk, depth=4, embed_dim=64, num_heads=2, num_classes=0, global_pool="avg").double().eval()
    )
    state_dict = {name.removeprefix("embeddings."): tensor for name, tensor in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state_dict, strict=False)
    assert not unexpected and all(name.startswith(("norm.", "fc_norm.")) for name in missing)
    images = torch.randn(1, 3, *config.pretrain_image_size, dtype=torch.float64)
    with torch.no_grad():
        tokens, grid = ours.embed(images)
        states = [*ours.run_blocks(tokens, 0, 1, grid)]
        states += ours.run_blocks(states[-1], 2, 3, grid)
        expected = theirs.forward_intermediates(images, norm=False, intermediates_only=True)
    for state, map_ in zip(states, expected, strict=True):
        torch.testing.assert_close(state[:, ours.num_prefix_tokens :], map_.flatten(2).transpose(1, 2))


def test_meta_device_gives_shapes():
    model = ViTAdapterBackbone(small_config()).to("meta")
    assert [tuple(map_.shape) for map_ in model(torch.empty(1, 3, 64, 96, device="meta")).feature_maps] == [
        (1, 32, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)
    ]


TRUNKS = [
    "vit_tiny_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_small_patch16_rope_mixed_224",
]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_weights_can_stay_on_disk_until_they_are_needed(tmp_path, trunk):
    """accelerate moves the weights of a module in front of its forward: each must be used there."""
    model = randomise(ViTAdapterBackbone(small_config(trunk=trunk, pretrain_image_size=112))).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).feature_maps
        model.save_pretrained(tmp_path / "model")
        loaded = ViTAdapterBackbone.from_pretrained(
            tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "map"
        )
        accelerate.disk_offload(model, tmp_path / "disk", execution_device="cpu")
        for offloaded in (model, loaded):
            for map_, other in zip(offloaded(images).feature_maps, expected, strict=True):
                torch.testing.assert_close(map_, other, rtol=1e-4, atol=1e-5)


def test_frozen_embedding_can_pass_gradients_on():
    model = ViTAdapterBackbone(small_config()).train()
    model.requires_grad_(False)
    model.trunk.blocks[0].attn.qkv.requires_grad_(True)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    sum(map_.mean() for map_ in model(torch.randn(1, 3, 64, 128)).feature_maps).backward()
    assert model.trunk.blocks[0].attn.qkv.weight.grad.any()


@pytest.mark.parametrize("trunk", TRUNKS)
def test_gradient_checkpointing_reaches_every_layer(trunk):
    """Trunk and interactions: what is inside a layer runs again in the backward pass."""
    model = ViTAdapterBackbone(small_config(trunk=trunk, pretrain_image_size=112)).train()
    model.gradient_checkpointing_enable()
    watched = [
        *(block.norm1 for block in model.trunk.blocks),
        *(interaction.injector.query_norm for interaction in model.interactions),
        *(interaction.extractor.query_norm for interaction in model.interactions),
        *(extractor.query_norm for extractor in model.interactions[-1].extra_extractors),
    ]
    assert len(watched) == 4 + 4 + 4 + 2
    calls = dict.fromkeys(watched, 0)

    def count(module, arguments, output):
        calls[module] += 1

    for module in watched:
        module.register_forward_hook(count)
    maps = model(torch.randn(2, 3, 64, 128)).feature_maps
    assert set(calls.values()) == {1}
    sum(map_.square().mean() for map_ in maps).backward()
    assert set(calls.values()) == {2}


def test_hidden_states_are_kept_only_if_asked_for():
    model = ViTAdapterBackbone(small_config()).eval()
    alive = []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda *args: alive.append(weakref.ref(args[2])))
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 64))
    assert outputs.hidden_states is None and not any(reference() is not None for reference in alive)


def test_what_interactions_are_given_moves_with_their_weights():
    """Hooks of a device map move a module's arguments by their `to`, in lists too."""
    geometry = SamplingGeometry.build([(2, 3)], [(4, 6), (2, 3)], torch.device("cpu"))
    (moved,) = accelerate.utils.send_to_device([geometry], torch.device("meta"))
    assert {moved.reference_points.device, moved.shapes_tensor.device, moved.level_starts.device} == {
        torch.device("meta")
    }
    assert moved.shapes == [(4, 6), (2, 3)] and moved.reference_points.shape == (1, 6, 1, 2)
