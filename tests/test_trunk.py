# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Trunks of every kind against timm's own models, and their positions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from model_tests import randomise
from reference_cases import FOLDER, fill
from safetensors.torch import load_file, save_file
from timm.models.beit import gen_relative_position_index
from torch.nn import functional as F

from segtransformers import (
    SegmentationImageProcessor,
    SegmenterViTBackbone,
    ViTAdapterBackbone,
    ViTAdapterConfig,
    ViTCoMerBackbone,
    trunk_normalization,
)
from segtransformers.models.trunk.architectures import describe_trunk
from segtransformers.models.trunk.positions import (
    RelativePositionBias,
    offset_interpolation,
    positions_of_same_count,
    resize_positions,
    resize_relative_position_table,
)
from segtransformers.models.trunk.pretrained import load_trunk_weights

# One of each kind: class, class token, registers, pre-norm, gated MLP, norms inside, rotations, patches of 14 pixels
KINDS = [
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_little_patch16_reg4_gap_256",
    "vit_base_patch16_siglip_gap_256",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "beit_base_patch16_224",
    "beitv2_base_patch16_224",
    "vit_small_patch16_dinov3",
    "vit_huge_plus_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
    "vit_small_patch16_rope_ape_224",
    "vit_small_patch16_rope_mixed_224",
]
SMALL = {"num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 2}


def small_backbone(trunk: str, **fields) -> ViTAdapterBackbone:
    torch.manual_seed(0)
    config = ViTAdapterConfig(trunk=trunk, out_features=["stage1", "stage2", "stage3", "stage4"], **{**SMALL, **fields})
    return randomise(ViTAdapterBackbone(config))


def theirs(backbone: ViTAdapterBackbone):
    """Return timm's own model with the weights of the trunk."""
    config, trunk = backbone.config, backbone.trunk
    model = timm.create_model(
        config.trunk,
        depth=config.num_hidden_layers,
        embed_dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_classes=0,
    ).to(trunk.embeddings.patch_embed.proj.weight.dtype)
    names = {}
    for name, tensor in trunk.state_dict().items():
        name = name.removeprefix("embeddings.").replace("rotary.", "rope.")
        names[name.replace(".relative_position_bias_table", ".attn.relative_position_bias_table")] = tensor
    missing, unexpected = model.load_state_dict(names, strict=False)
    assert not unexpected and all(name.startswith(("norm.", "fc_norm.", "head", "attn_pool.")) for name in missing)
    return model.eval()


def assert_equals_timm(backbone: ViTAdapterBackbone, tolerance: float) -> None:
    trunk, model = backbone.trunk.eval(), theirs(backbone)
    native = backbone.config.pretrain_image_size
    patch = backbone.config.patch_size
    images = torch.randn(1, 3, *[side // patch * 16 for side in native]).to(backbone.dtype)
    own_size = images if patch == 16 else F.interpolate(images, size=native, mode="bilinear")
    with torch.no_grad():
        tokens, layout = trunk.embed(images)
        states = [*trunk.run_blocks(tokens, 0, 1, layout)]
        states += trunk.run_blocks(states[-1], 2, len(trunk.blocks) - 1, layout)
        expected = model.forward_intermediates(own_size, norm=False, intermediates_only=True)
    assert len(states) == len(expected)
    for state, feature_map in zip(states, expected, strict=True):
        feature_map = feature_map.flatten(2).transpose(1, 2)
        error = (state[:, trunk.num_prefix_tokens :] - feature_map).norm() / feature_map.norm()
        assert error < tolerance, error


def assert_reload_is_bit_equal(backbone: ViTAdapterBackbone, folder: Path) -> None:
    backbone.eval().save_pretrained(folder)
    loaded, info = ViTAdapterBackbone.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    buffers = dict(loaded.named_buffers())
    for name, buffer in backbone.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    images = torch.randn(1, 3, 64, 96)
    for tensor in (*loaded.parameters(), *loaded.buffers()):
        tensor.data = tensor.data.clone()  # loaded ones lie otherwise in memory, and other kernels round otherwise
    with torch.no_grad():
        for one, other in zip(backbone(images).feature_maps, loaded(images).feature_maps, strict=True):
            assert torch.equal(one, other)


def assert_every_parameter_gets_a_gradient(backbone: ViTAdapterBackbone) -> None:
    backbone.train().zero_grad()
    sum(feature_map.square().mean() for feature_map in backbone(torch.randn(2, 3, 64, 128)).feature_maps).backward()
    missing = [name for name, tensor in backbone.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert missing == []


def needed(trunk: str) -> str:
    if not timm.is_model(trunk):
        pytest.skip(f"timm {timm.__version__} has no {trunk}")
    return trunk


@pytest.mark.parametrize("trunk", KINDS)
def test_blocks_equal_timm_at_the_native_size(trunk):
    backbone = small_backbone(needed(trunk))
    if trunk.startswith("vit_small_patch16_rope_mixed"):
        assert_equals_timm(backbone, 1e-5)  # timm's own model of this kind did not run in float64 before 1.0.28
        return
    # timm keeps rotations of the native size in float32, ours are computed for each size
    assert_equals_timm(backbone.double(), 1e-12 if backbone.trunk.rotary is None else 1e-6)


@pytest.mark.parametrize("trunk", KINDS)
def test_reload_is_bit_equal_and_gradients_reach_everything(trunk, tmp_path):
    backbone = small_backbone(needed(trunk))
    assert_reload_is_bit_equal(backbone, tmp_path)
    assert_every_parameter_gets_a_gradient(backbone)


@pytest.mark.parametrize("trunk", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_without_prefix_tokens(trunk, tmp_path):
    backbone = small_backbone(needed(trunk), use_prefix_tokens=False)
    assert backbone.trunk.num_prefix_tokens == 0
    assert_reload_is_bit_equal(backbone, tmp_path)
    assert_every_parameter_gets_a_gradient(backbone)


@pytest.mark.parametrize("trunk", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch14_dinov2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_as_it_is_cast(trunk, dtype, tmp_path):
    backbone = small_backbone(needed(trunk)).eval()
    backbone.save_pretrained(tmp_path)
    loaded = ViTAdapterBackbone.from_pretrained(tmp_path, dtype=dtype)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact = backbone(images).feature_maps
        for one, other, feature_map in zip(
            backbone.to(dtype)(images.to(dtype)).feature_maps, loaded(images.to(dtype)).feature_maps, exact, strict=True
        ):
            torch.testing.assert_close(one, other)
            assert (one.float() - feature_map).norm() / feature_map.norm() < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trunk",
    [
        "vit_tiny_patch16_384",
        "vit_small_patch16_224",
        "vit_base_patch16_224",
        "vit_large_patch16_224",
        "deit_base_patch16_224",
        "deit3_base_patch16_384",
        "deit3_large_patch16_224",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_siglip_512",
        "vit_so150m_patch16_reg4_gap_256",
        "vit_base_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2",
        "vit_large_patch14_dinov2",
        "beit_base_patch16_384",
        "beit_large_patch16_224",
        "beitv2_large_patch16_224",
        "beit3_base_patch16_224",
        "vit_base_patch16_dinov3",
        "vit_large_patch16_dinov3",
        "vit_huge_plus_patch16_dinov3",
        "vit_small_plus_patch16_dinov3",
        "eva02_small_patch14_336",
        "eva02_base_patch14_448",
        "eva02_large_patch14_224",
        "eva_large_patch14_196",
        "vit_base_patch16_rope_mixed_ape_224",
    ],
)
def test_named_trunks_whole(trunk, tmp_path):
    """Build the architecture at full width and depth, as timm defines it."""
    config = ViTAdapterConfig(trunk=needed(trunk), out_features=["stage1", "stage2", "stage3", "stage4"])
    backbone = randomise(ViTAdapterBackbone(config))
    assert_reload_is_bit_equal(backbone, tmp_path)
    assert_every_parameter_gets_a_gradient(backbone)
    assert_equals_timm(backbone, 2e-5)


def expanded(table, table_grid, grid, num_prefix_tokens):
    interpolation = offset_interpolation(table_grid, grid, table.dtype, table.device)
    return RelativePositionBias(table_grid, num_prefix_tokens)(table, grid, interpolation)


@pytest.mark.parametrize("grid", [(4, 4), (4, 7), (1, 3), (9, 2)])
@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
def test_relative_position_bias_is_what_an_index_would_gather(grid, num_prefix_tokens):
    offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    table = torch.randn(offsets + 3 * num_prefix_tokens, 3, dtype=torch.float64)
    index = gen_relative_position_index(grid)
    if not num_prefix_tokens:
        index = index[1:, 1:]
    expected = table[index].permute(2, 0, 1)[None]
    assert torch.equal(expanded(table, grid, grid, num_prefix_tokens), expected)
    with torch.no_grad():
        assert torch.equal(expanded(table, grid, grid, num_prefix_tokens), expected)


def test_a_smaller_grid_uses_a_part_of_the_table():
    """The bias of two tokens depends on the offset between them and not on the grid."""
    table = torch.randn(7 * 11 + 3, 2)
    whole = expanded(table, (4, 6), (4, 6), 1)
    part = expanded(table, (4, 6), (3, 5), 1)
    kept = [0] + [1 + row * 6 + column for row in range(3) for column in range(5)]
    torch.testing.assert_close(part, whole[:, :, kept][..., kept])


@pytest.mark.parametrize("known", [1, 2, 3, 14])
def test_a_larger_grid_keeps_the_middle_and_the_ends(known):
    """Gradients flow to the whole table."""
    table = torch.randn((2 * known - 1) ** 2, 1, requires_grad=True)
    wanted = known + 3
    bias = expanded(table, (known, known), (wanted, wanted), 0)
    maps = table.detach().view(2 * known - 1, 2 * known - 1)
    assert bias.shape == (1, 1, wanted**2, wanted**2)
    torch.testing.assert_close(bias[0, 0, 0, 0], maps[known - 1, known - 1])  # a token and itself
    torch.testing.assert_close(bias[0, 0, 0, -1], maps[0, 0])  # the key furthest to the right and the bottom
    torch.testing.assert_close(bias[0, 0, -1, 0], maps[-1, -1])
    if known > 2:  # neighbours stay neighbours
        torch.testing.assert_close(bias[0, 0, 1, 0], maps[known - 1, known])
    bias.sum().backward()
    assert (table.grad != 0).all()


def test_biases_between_known_ones_are_interpolated():
    """A bias that grows with the distance grows on a larger grid, too, and stays in the table's range."""
    distances = torch.arange(-4, 5.0).abs()
    table = (distances[:, None] + distances)[..., None].reshape(-1, 1)
    row = expanded(table, (5, 5), (9, 9), 0)[0, 0, 0, :9]
    assert (row.diff() > 0).all() and row.max() <= 4.001 and abs(row[1] - 1) < 1e-4


def test_pretrained_tables_are_resized_as_the_original_does():
    outputs = load_file(FOLDER / "vit_adapter" / "relative-position-resize" / "outputs.safetensors")
    names = {
        "shared_table": "rel_pos_bias.relative_position_bias_table",
        "layer_table": "blocks.0.attn.relative_position_bias_table",
    }
    resized_ones = {name: tensor for name, tensor in outputs.items() if "_at_" in name}
    assert len(resized_ones) == 7
    for name, expected in resized_ones.items():
        table, _, side = name.rpartition("_at_")
        resized = resize_relative_position_table(
            fill.tensor(names[table], (732, 2), torch.float32), (14, 14), (int(side) // 16,) * 2
        )
        assert resized.dtype == torch.float32 and resized.shape == expected.shape
        assert (resized - expected).abs().max() < 2e-7, name


@pytest.mark.parametrize("old, new", [((37, 37), (46, 46)), ((5, 5), (6, 9)), ((8, 8), (3, 5)), ((4, 6), (6, 4))])
def test_positions_resized_by_a_scale_factor_with_an_offset(old, new):
    """DINOv2's rule; torch takes the factors as the distance of the sampling positions."""
    positions = torch.randn(1, old[0] * old[1], 8)
    factors = [(side + 0.1) / known for side, known in zip(new, old, strict=True)]
    expected = F.interpolate(
        positions.transpose(1, 2).unflatten(2, old), scale_factor=factors, mode="bicubic", align_corners=False
    )
    resized = resize_positions(positions, old, new, offset=0.1)
    assert resize_positions(positions.bfloat16(), old, new, offset=0.1).dtype == torch.float32
    torch.testing.assert_close(resized, expected.flatten(2).transpose(1, 2), rtol=0, atol=2e-5)
    to_size = resize_positions(positions, old, new)
    assert (resized - to_size).norm() / to_size.norm() > 0.01
    assert torch.equal(resize_positions(positions, old, old, offset=0.1), positions)


@pytest.mark.parametrize("trunk", ["vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"])
def test_native_token_grid_equals_timm(trunk):
    """A stride of one patch keeps the trunk's own grid. timm antialiases positions, as DINOv2 does with registers."""
    config = SegmenterViTBackbone.config_class(
        trunk=trunk, position_interpolation_antialias=True, pretrain_image_size=112, **SMALL
    )
    backbone = randomise(SegmenterViTBackbone(config)).eval()
    model = timm.create_model(
        trunk, img_size=112, dynamic_img_size=True, num_classes=0, depth=4, embed_dim=96, num_heads=2
    ).eval()
    names = {name.removeprefix("embeddings."): tensor for name, tensor in backbone.trunk.state_dict().items()}
    model.load_state_dict(names)
    images = torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        tokens, layout = backbone.trunk.embed(images)
        *_, tokens = backbone.trunk.run_blocks(tokens, 0, 3, layout)
        feature_map = backbone.trunk.feature_map(tokens, layout, normalize=True)
        (theirs,) = model.get_intermediate_layers(images, n=1, reshape=True, norm=True)
    assert layout.grid == (4, 6) and feature_map.shape == (2, 96, 4, 6)
    torch.testing.assert_close(feature_map, theirs, rtol=1e-4, atol=1e-4)


def test_attention_bias_costs_no_index():
    """The biases are expanded without an integer tensor of (tokens)^2 elements."""
    sizes = {True: 0, False: 0}  # of the largest tensor of floating-point numbers, and of any others

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    kind = tensor.is_floating_point()
                    sizes[kind] = max(sizes[kind], tensor.numel())
            return result

    trunk = small_backbone("beit_base_patch16_224", pretrain_image_size=256).eval().trunk
    with torch.no_grad(), Watch():
        tokens, layout = trunk.embed(torch.randn(1, 3, 256, 320))
        assert len([*trunk.run_blocks(tokens, 0, 3, layout)]) == 4
    assert sizes[True] >= 2 * (16 * 20) ** 2 > 100 * sizes[False]


def test_interpolation_does_not_depend_on_its_first_caller():
    """Its numbers are cached: used on the meta device, in inference mode, and then for training."""
    backbone = small_backbone("beit_base_patch16_224", pretrain_image_size=64).double()
    with torch.device("meta"):
        ViTAdapterBackbone(backbone.config)(torch.empty(1, 3, 160, 96))
    with torch.inference_mode():
        expected = backbone.eval()(torch.ones(1, 3, 160, 96, dtype=torch.float64)).feature_maps
    maps = backbone(torch.ones(1, 3, 160, 96, dtype=torch.float64)).feature_maps
    sum(feature_map.mean() for feature_map in maps).backward()
    for feature_map, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(feature_map.detach(), other.clone())


@pytest.mark.parametrize("trunk", ["beit_base_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize(
    "backbone_class",
    [
        pytest.param(ViTAdapterBackbone, marks=pytest.mark.slow),
        pytest.param(ViTCoMerBackbone, marks=pytest.mark.slow),
        SegmenterViTBackbone,  # the trunk alone; test_compile.py has a whole model with interactions
    ],
)
def test_compiles_whole_for_two_sizes(trunk, backbone_class):
    config = backbone_class.config_class(trunk=needed(trunk), pretrain_image_size=64, **SMALL)
    backbone = randomise(backbone_class(config)).eval()
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in ((64, 64), (64, 96)):
            images = torch.randn(1, 3, *size)
            for one, other in zip(compiled(images).feature_maps, backbone(images).feature_maps, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("trunk", "fields"),
    [
        ("vit_tiny_patch16_224", {"window_sizes": [3, 0, 2, 5], "use_prefix_tokens": False}),
        ("beit_base_patch16_224", {}),
        ("eva02_tiny_patch14_224", {}),  # one projection to queries, keys and values, biases without keys
        ("eva02_base_patch14_448", {}),
        ("vit_small_patch16_rope_mixed_224", {}),
    ],
)
def test_layers_are_called_and_their_results_stay(trunk, fields):
    backbone = small_backbone(needed(trunk), **fields).eval()
    seen, with_gradient = {}, set()
    layers = {
        name: layer
        for name, layer in backbone.trunk.named_modules()
        if next(layer.parameters(recurse=False), None) is not None and name != "embeddings"
    }
    for name, layer in layers.items():
        assert not isinstance(layer, torch.nn.Linear) or type(layer) is torch.nn.Linear
        layer.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (output, output.clone())}))
        layer.register_full_backward_hook(lambda *_, name=name: with_gradient.add(name))
    images = torch.randn(1, 3, 64, 96, requires_grad=True)
    sum(feature_map.square().mean() for feature_map in backbone(images).feature_maps).backward()
    assert seen.keys() == layers.keys()
    assert [name for name, (output, copied) in seen.items() if not torch.equal(output, copied)] == []
    assert with_gradient >= layers.keys() - {"rotary"}  # which has no input that a gradient flows to


# Weights from timm


def test_from_trunk_without_weights():
    backbone = ViTAdapterBackbone.from_trunk("vit_tiny_patch16_224", pretrained=False, drop_path_rate=0.1)
    assert backbone.config.trunk == "vit_tiny_patch16_224" and backbone.config.drop_path_rate == 0.1
    assert not backbone.training


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        (
            "vit_tiny_patch16_224.no_such_tag",
            "no pre-trained weights 'vit_tiny_patch16_224.no_such_tag'; known are vit",
        ),
        ("vit_tiny_patch16_184", "no architecture 'vit_tiny_patch16_184'"),
        ("resnet50.a1_in1k", "it is a ResNet, no plain ViT.*class VisionTransformer.*Beit.*Eva"),
    ],
)
def test_from_trunk_names_what_there_is(trunk, message):
    with pytest.raises(ValueError, match=message):
        ViTAdapterBackbone.from_trunk(trunk)


@pytest.mark.parametrize(
    ("trunk", "fields"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"use_prefix_tokens": False, "pretrain_image_size": 256}),
        ("beit_base_patch16_224", {"pretrain_image_size": 256}),
        ("beit_base_patch16_224", {"use_prefix_tokens": False}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_small_patch16_dinov3", {}),
        ("vit_small_patch16_rope_mixed_224", {}),
    ],
)
def test_timm_weights_load(trunk, fields):
    backbone = small_backbone(needed(trunk), **fields)
    source = randomise(theirs(small_backbone(trunk)))
    grid = source.patch_embed.grid_size
    load_trunk_weights(backbone.trunk, backbone.config, source.state_dict(), grid, "the weights")
    if not fields:
        assert_equals_timm(backbone, 1e-5)
    else:
        with torch.no_grad():
            assert all(
                feature_map.isfinite().all() for feature_map in backbone.eval()(torch.randn(1, 3, 64, 64)).feature_maps
            )


def test_weights_of_another_shape_are_refused():
    backbone, source = small_backbone("vit_tiny_patch16_224", qkv_bias=False), small_backbone("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"configured: the trunk has no place for blocks.0.attn.qkv.bias;"):
        load_trunk_weights(backbone.trunk, backbone.config, theirs(source).state_dict(), (14, 14), "the weights")
    wide = small_backbone("vit_tiny_patch16_224", hidden_size=32)
    with pytest.raises(ValueError, match=r"cls_token is \(1, 1, 96\), expected \(1, 1, 32\)"):
        load_trunk_weights(wide.trunk, wide.config, theirs(source).state_dict(), (14, 14), "the weights")


def test_layer_scale_can_be_added_to_weights_without():
    """ViT-Adapter adds layer scales to every ViT. They start at the config's value."""
    backbone = small_backbone("vit_tiny_patch16_224", layer_scale_init_value=1.0)
    backbone.trunk.blocks[0].ls1.gamma.data.fill_(1.0)
    source = theirs(small_backbone("vit_tiny_patch16_224"))
    load_trunk_weights(backbone.trunk, backbone.config, source.state_dict(), (14, 14), "the weights")
    assert (backbone.trunk.blocks[0].ls1.gamma == 1).all()
    assert torch.equal(backbone.trunk.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trunk": "vit_small_patch16_dinov3", "hidden_size": 36}, "multiple of 4, got 18"),
        ({"trunk": "vit_tiny_patch16_224", "use_relative_position_bias": True}, "for trunks of timm's class Beit"),
        ({"trunk": "vit_tiny_patch16_224", "mlp_ratio": float("inf")}, "must be positive"),
        ({"trunk": "vit_tiny_patch16_224", "layer_scale_init_value": -1.0}, "must be 0 or more"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        small_backbone(**fields)


def test_from_trunk_loads_what_timm_downloads(tmp_path):
    """timm finds the weights in the Hub's cache, in a process without downloads."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    snapshot = tmp_path / "hub" / f"models--timm--{name}" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    program = (
        "import sys, torch\n"
        "from segtransformers import ViTAdapterBackbone\n"
        f"backbone = ViTAdapterBackbone.from_trunk({name!r})\n"
        "torch.save(backbone.trunk.state_dict(), sys.argv[1])\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "trunk.pt"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    trunk = torch.load(tmp_path / "trunk.pt")
    assert torch.equal(trunk["blocks.3.attn.qkv.weight"], model.blocks[3].attn.qkv.weight)
    assert torch.equal(trunk["embeddings.pos_embed"], model.pos_embed)


def test_normalization_is_that_of_the_weights():
    assert trunk_normalization("vit_tiny_patch16_224.augreg_in21k")["image_mean"] == [0.5, 0.5, 0.5]
    assert trunk_normalization("vit_small_patch14_dinov2")["image_std"] == [0.229, 0.224, 0.225]
    assert SegmentationImageProcessor(**trunk_normalization("beit_base_patch16_224")).image_mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="no pre-trained weights"):
        trunk_normalization("vit_tiny_patch16_224.nothing")


def test_description_is_what_the_name_says():
    description = describe_trunk("vit_large_patch14_reg4_dinov2")
    assert (description["patch_size"], description["pretrain_image_size"]) == (14, [518, 518])
    assert (description["hidden_size"], description["num_hidden_layers"]) == (1024, 24)
    assert describe_trunk("beit_large_patch16_224")["use_relative_position_bias"] is True


@pytest.mark.parametrize("patch_size", [14, 16])
def test_patch_size_can_be_chosen(patch_size):
    backbone = small_backbone("vit_tiny_patch16_224", patch_size=patch_size, pretrain_image_size=7 * patch_size)
    embeddings = backbone.trunk.embeddings
    assert embeddings.patch_embed.proj.kernel_size == (patch_size, patch_size)
    assert embeddings.pos_embed.shape[1] == 1 + 49
    assert backbone.eval()(torch.randn(1, 3, 64, 96)).feature_maps[2].shape[2:] == (4, 6)


@pytest.mark.parametrize(("tokens", "is_kept"), [(12, True), (10, False), (20, False)])
def test_positions_of_the_same_count_are_kept_in_programs_of_any_size(tokens, is_kept):
    positions, resized = torch.randn(1, 12, 4), torch.randn(1, tokens, 4)
    assert torch.equal(positions_of_same_count(positions, resized), positions if is_kept else resized)
