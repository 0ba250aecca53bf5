# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`accelerate` gives models of other packages our deformable attention: equal outputs, and undone without a trace."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from operator_cases import OperatorCalls
from reference_cases import relative_error
from torch import nn
from torch.nn import functional as F

from segtransformers.operators import accelerate, compiled_operators, dispatcher, ms_deform_attn_reference

RESNET = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
)
SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
DETR = {**SMALL, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 7}
RT_BACKBONE = transformers.RTDetrResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 16, 24, 32],
    depths=[1, 1, 1, 1],
    layer_type="basic",
    out_features=["stage2", "stage3", "stage4"],
)
RT = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [16, 16, 16],
    "d_model": 16,
    "num_queries": 7,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2,
    "encoder_attention_heads": 2,
    "num_denoising": 0,
}


def deformable_detr():
    config = transformers.DeformableDetrConfig(
        backbone_config=RESNET, use_timm_backbone=False, num_feature_levels=3, **DETR
    )
    return transformers.DeformableDetrModel(config), "last_hidden_state"


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
    )
    return transformers.Mask2FormerModel(config), "pixel_decoder_last_hidden_state"


def rt_detr():
    config = transformers.RTDetrConfig(backbone_config=RT_BACKBONE, **RT)
    return transformers.RTDetrModel(config), "last_hidden_state"


def rt_detr_v2(method="default"):
    config = transformers.RTDetrV2Config(backbone_config=RT_BACKBONE, decoder_method=method, **RT)
    return transformers.RTDetrV2Model(config), "last_hidden_state"


def rt_detr_v2_discrete():
    return rt_detr_v2("discrete")


def d_fine():
    """Levels with different numbers of points."""
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 24],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 24, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        embedding_size=8,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.DFineConfig(backbone_config=backbone, decoder_n_points=[3, 6, 3], hidden_expansion=0.5, **RT)
    return transformers.DFineModel(config), "last_hidden_state"


ROOT = Path(__file__).parents[1]
MODELS = [deformable_detr, mask2former, rt_detr, rt_detr_v2, rt_detr_v2_discrete, d_fine]


def small(make) -> tuple[nn.Module, str]:
    """Return a model whose sampling offsets and weights depend on the input, as in a trained one."""
    torch.manual_seed(0)
    model, output = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.normal_(std=0.3)
    return model.eval(), output


def run(model, output: str) -> torch.Tensor:
    torch.manual_seed(1)
    return getattr(model(pixel_values=torch.randn(1, 3, 64, 96)), output)


@pytest.mark.parametrize("make", MODELS)
def test_outputs_and_gradients_equal(make):
    model, output = small(make)
    names = set(vars(model))
    expected = run(model, output)
    # locations at the nearest pixel have no gradient
    kind = "value_proj.weight" if make is rt_detr_v2_discrete else "sampling_offsets.weight"
    weight = next(parameter for name, parameter in model.named_parameters() if name.endswith(kind))
    direction = torch.randn_like(expected)  # not the squares, whose sum behind a norm is constant
    (gradient,) = torch.autograd.grad(expected, weight, direction)
    with accelerate(model) as acceleration, OperatorCalls() as calls, torch.no_grad():
        accelerated = run(model, output)
        assert acceleration.layers
    kernel = dispatcher.find_kernel() if dispatcher._state.mode != "off" else None
    assert "aten::grid_sampler_2d" not in calls.names
    assert ("ms_deform_attn" in calls.compiled()) == (kernel is not None)
    assert relative_error(accelerated, expected) < 1e-5
    with accelerate(model):
        (own,) = torch.autograd.grad(run(model, output), weight, direction)
    assert gradient.any() and relative_error(own, gradient) < 1e-4
    assert set(vars(model)) == names and not acceleration.layers
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(run(model, output), expected)


@pytest.mark.parametrize("make", [deformable_detr, mask2former, d_fine])
def test_only_the_given_model_changes(make):
    model, output = small(make)
    other = copy.deepcopy(model)
    accelerate(model)
    with torch.no_grad(), OperatorCalls() as calls:
        run(other, output)
    assert "aten::grid_sampler_2d" in calls.names and not calls.compiled()
    copied = copy.deepcopy(model)  # a copy computes with its own parameters
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.9)
        assert relative_error(run(copied, output), run(model, output)) > 1e-3
        for mine, own in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, own)


def test_accelerated_model_saves(tmp_path):
    model, output = small(mask2former)
    accelerate(model)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert relative_error(run(type(model).from_pretrained(tmp_path), output), run(model, output)) < 1e-5


def test_accelerated_layer_compiles():
    """The `forward` with other globals, in one graph."""
    model, _ = small(mask2former)
    layer = next(module for module in model.modules() if "DeformableAttention" in type(module).__name__)
    shapes = [(4, 5), (2, 3), (1, 2)]
    hidden, reference = torch.randn(1, 28, 32), torch.rand(1, 28, 3, 2)
    arguments = {"encoder_hidden_states": hidden, "reference_points": reference, "spatial_shapes_list": shapes}
    expected = layer(hidden, **arguments)[0]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    with accelerate(layer), torch.no_grad():
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        assert relative_error(compiled(hidden, **arguments)[0], expected) < 1e-5
    kernel = dispatcher.find_kernel() if dispatcher._state.mode != "off" else None
    assert len(graphs) == 1 and ("_deformable_ops" in graphs[0]) == (kernel is not None)


def ms_deform_attn_core_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    raise AssertionError("the function of the model is replaced")


class MSDeformAttnFunction(torch.autograd.Function):
    pass


class MSDeformAttn(nn.Module):
    """A layer in the style of Deformable DETR's repository, as Mask DINO and DINO have it."""

    def __init__(self, function: bool):
        super().__init__()
        self.function, self.value_proj = function, nn.Linear(8, 8)

    def forward(self, query, locations, weights, shapes, starts):
        value = self.value_proj(query).unflatten(2, (2, 4))
        if self.function:
            return MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64)
        return ms_deform_attn_core_pytorch(value, shapes, locations, weights)


@pytest.mark.parametrize("function", [False, True])
def test_code_in_the_style_of_deformable_detr(function):
    layer = nn.Sequential(MSDeformAttn(function))
    shapes = torch.tensor([(4, 5), (2, 3)])
    query, locations = torch.randn(2, 26, 8), torch.rand(2, 26, 2, 2, 4, 2)
    weights = torch.rand(2, 26, 2, 2, 4)
    with accelerate(layer) as acceleration, torch.no_grad():
        assert acceleration.layers == ["0"]
        result = layer[0](query, locations, weights, shapes, torch.tensor([0, 20]))
        value = layer[0].value_proj(query).unflatten(2, (2, 4))
    assert relative_error(result, ms_deform_attn_reference(value, shapes.tolist(), locations, weights)) < 1e-5


def test_model_without_such_attention_is_an_error():
    with pytest.raises(ValueError, match="Linear has no multi-scale deformable attention that is known here"):
        accelerate(nn.Linear(2, 2))


def test_own_models_need_no_call():
    from segtransformers.operators import FusedDeformableAttention

    layer = FusedDeformableAttention()
    assert accelerate(layer).layers == [] and "forward" not in vars(layer.attention)


def test_replaced_forward_is_left_alone(caplog):
    model, _ = small(deformable_detr)
    hooked = [module for module in model.modules() if type(module).__name__ == "MultiScaleDeformableAttention"]
    for module in hooked:
        add_hook_to_module(module, ModelHook())
    with accelerate(model) as acceleration:
        assert acceleration.layers == [] and f"left {len(hooked)} layers as they are" in caplog.text
    assert all("forward" in vars(module) for module in hooked)


def test_later_replacement_survives_undo():
    model, _ = small(deformable_detr)
    module = next(module for module in model.modules() if type(module).__name__ == "MultiScaleDeformableAttention")
    acceleration = accelerate(model)
    module.forward = F.relu
    acceleration.undo()
    acceleration.undo()
    assert module.forward is F.relu


def test_modes_hold_in_accelerated_models():
    model, output = small(deformable_detr)
    with torch.no_grad():
        expected = run(model, output)
        with accelerate(model), compiled_operators("off"), OperatorCalls() as calls:
            assert relative_error(run(model, output), expected) < 1e-5
    assert not calls.compiled()


@pytest.mark.parametrize("page", ["kernels/deformable-ops/CARD.md", "docs/operators.md"])
def test_ten_lines_of_the_card_and_the_docs_run(page, tmp_path):
    """The example as it stands, on a small model: equal outputs, none by grid_sample, and the model is restored."""
    if not (ROOT / page).is_file():
        pytest.skip("the documentation is not in this distribution")
    blocks = re.findall(r"```python[^\n]*\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "import accelerate" in block]
    assert len(code.splitlines()) <= 10
    config = deformable_detr()[0].config
    config.decoder_layers = 2  # transformers ties the heads of several layers
    detector = transformers.DeformableDetrForObjectDetection(config)
    detector.save_pretrained(tmp_path)
    names = {"model": detector.eval(), "pixel_values": torch.randn(1, 3, 64, 96)}
    with torch.no_grad(), OperatorCalls() as calls:
        exec(code.replace("your/deformable-detr", str(tmp_path)), names)
    assert "aten::grid_sampler_2d" not in calls.names
    with torch.no_grad():
        expected = detector(names["pixel_values"]).logits
    assert relative_error(names["outputs"].logits, expected) < 1e-5
    assert not any("forward" in vars(module) for module in names["model"].modules())
