# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""FlashInternImage: InternImage's backbone with DCNv4, its conversion and its published rows."""

import pytest
import torch
from reference_cases import FOLDER, ReferenceCase, relative_error
from test_internimage import InternImageTests, small_internimage
from torch.nn import functional as F

from segtransformers import (
    InternImageBackbone,
    InternImageConfig,
    SegUperNetConfig,
    SegUperNetForSemanticSegmentation,
)
from segtransformers.conversion import ConversionError, convert_checkpoint
from segtransformers.conversion.convert import empty_model
from segtransformers.datasets import get_dataset_info
from segtransformers.models.internimage.modeling_internimage import InternImageDeformableConvolutionV4
from segtransformers.operators import DeformableConvolutionV4, compiled_operators
from segtransformers.published import PUBLISHED_FIELDS, published_outputs, published_rows
from segtransformers.training import get_recipe, parameter_groups

CASES = sorted(folder.name for folder in (FOLDER / "flash_internimage").glob("tiny-*"))
ROWS = published_rows("flash_internimage")
BIASES = {"output_bias": False, "mlp_output_bias": False}


def small_flash(**changes) -> InternImageConfig:
    """Return a small config with the options of FlashInternImage-T."""
    return small_internimage(**{"core_operator": "dcnv4", "depthwise_kernel_size": None, **BIASES, **changes})


class TestT(InternImageTests):
    def config(self):
        return small_flash()


class TestOptions(InternImageTests):
    """FlashInternImage-L with the options of no published model."""

    def config(self):
        return small_flash(
            depthwise_kernel_size=3,
            output_bias=True,
            mlp_output_bias=True,
            post_norm=True,
            offset_scale=2.0,
            center_feature_scale=True,
            remove_center=True,
            stage3_norm_block_ids=[0, 2],
        )

    @pytest.mark.slow  # 15 seconds, and TestT exports the same operator
    def test_exports_with_a_dynamic_batch(self):
        super().test_exports_with_a_dynamic_batch()


@pytest.mark.parametrize("name", CASES)
def test_segmentors_equal_the_original(name):
    case = ReferenceCase(f"flash_internimage/{name}")
    model, outputs, images = convert_checkpoint(case.state_dict(), case.config), case.outputs(), case.pixel_values()
    assert sum(parameter.numel() for parameter in model.parameters()) == case.manifest["num_parameters"]
    with torch.no_grad():
        maps = model.backbone(images).feature_maps
        actual = {f"feature_{level}": feature_map for level, feature_map in enumerate(maps)}
        result = model(images)
        actual["segmentation_logits"] = result.logits
        if "mask2former" in name:
            actual |= {"class_logits": result.class_queries_logits, "mask_logits": result.masks_queries_logits}
        else:
            actual |= {"logits": model.decode_head(maps), "auxiliary_logits": model.auxiliary_head(maps)}
    assert len(actual) == 7
    for key, tensor in actual.items():
        assert relative_error(case.sampled(key, tensor), outputs[key]) < 2e-6, key


def test_number_of_recorded_cases():
    assert len(CASES) == 7


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_images_of_a_batch_are_independent(mode):
    """The original's CUDA kernel mixes images with an odd number of pixels."""
    backbone = InternImageBackbone(small_flash()).double().eval()
    for module in backbone.modules():
        if isinstance(module, InternImageDeformableConvolutionV4):
            torch.nn.init.normal_(module.offset_mask.weight, std=0.2)
    images = torch.randn(3, 3, 36, 44, dtype=torch.float64)
    with torch.no_grad(), compiled_operators(mode):
        together = backbone(images).feature_maps
        for index in range(3):
            for feature_map, alone in zip(together, backbone(images[index : index + 1]).feature_maps, strict=True):
                torch.testing.assert_close(feature_map[index : index + 1], alone, rtol=1e-8, atol=1e-8)


def test_starts_as_an_average_over_its_kernel():
    for remove_center, points in ((False, 9), (True, 8)):
        backbone = InternImageBackbone(small_flash(remove_center=remove_center))
        for layer in backbone.modules():
            if not isinstance(layer, InternImageDeformableConvolutionV4):
                continue
            assert not layer.offset_mask.weight.any()
            used = layer.groups * points * 3
            numbers = layer.offset_mask.bias[:used].view(layer.groups, points * 3)
            assert not numbers[:, : points * 2].any() and not layer.offset_mask.bias[used:].any()
            assert (numbers[:, points * 2 :] == 1 / points).all()


def test_offsets_keep_their_precision_under_autocast():
    backbone = InternImageBackbone(small_flash()).eval()
    seen = []
    for module in backbone.modules():
        if isinstance(module, DeformableConvolutionV4):
            module.register_forward_pre_hook(lambda _, arguments: seen.append([t.dtype for t in arguments[:2]]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        backbone(torch.randn(1, 3, 64, 64))
    assert seen == [[torch.bfloat16, torch.float32]] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core_operator": "dcnv5"}, "core_operator must be one of dcnv3, dcnv4, got 'dcnv5'"),
        (
            {"core_operator": "dcnv3"},
            'depthwise_kernel_size must be an odd number with core_operator "dcnv3", got None',
        ),
        ({"depthwise_kernel_size": 4}, "must be odd"),
        ({"depthwise_kernel_size": 0}, "depthwise_kernel_size must be a whole number from 1"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_flash(**changes)


def _change(**values):
    return lambda config: config["backbone"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change(core_op="DCNv3"), "core_op is 'DCNv3'; only 'DCNv4'"),
        (_change(surprise=1), "backbone has unknown settings: surprise"),
        (_change(dw_kernel_size=3), "the checkpoint lacks .*depthwise"),
        (_change(dcn_output_bias=True), r"the checkpoint lacks .*output_proj\.bias"),
        (_change(mlp_fc2_bias=True), r"the checkpoint lacks .*fc2\.bias"),
        (_change(groups=[2, 2, 4, 8]), r"offset_mask\.weight is 32x16, expected 56x16"),
        (_change(type="InternImage"), "core_op is 'DCNv4'; only 'DCNv3'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message):
    case = ReferenceCase("flash_internimage/tiny-flash-t-upernet")
    config = case.config
    change(config)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(case.state_dict(), config)


def test_classifier_files_become_backbones():
    """For example flash_intern_image_t_1k_224.pth, with the config of its segmentor's backbone."""
    case = ReferenceCase("flash_internimage/tiny-flash-t-upernet")
    names = {name.removeprefix("backbone."): tensor for name, tensor in case.state_dict().items() if "backbone" in name}
    head = {"conv_head.0.weight": torch.zeros(192, 128, 1, 1), "head.weight": torch.zeros(10, 192)}
    backbone = convert_checkpoint(names | head, case.config["backbone"])
    assert type(backbone) is InternImageBackbone and backbone.config.core_operator == "dcnv4"
    outputs = case.outputs()
    with torch.no_grad():
        for level, feature_map in enumerate(backbone(case.pixel_values()).feature_maps):
            assert relative_error(case.sampled(f"feature_{level}", feature_map), outputs[f"feature_{level}"]) < 2e-6


@pytest.mark.parametrize("name", ROWS)
def test_published_row_describes_a_model(name):
    row = ROWS[name]
    assert list(row) == [*PUBLISHED_FIELDS, "model", "test_pipeline", "multi_scale_pipeline"]
    assert published_outputs(row) == len(get_dataset_info(row["dataset"]).classes) == 150
    model, _, _ = empty_model(row["model"])
    assert sum(parameter.numel() for parameter in model.parameters()) == row["num_parameters"]
    assert row["download"] == f"https://huggingface.co/OpenGVLab/DCNv4/resolve/main/{name}.pth"
    assert model.config.backbone_config.core_operator == "dcnv4"
    assert model.config.backbone_config.offset_scale == {"t": 1, "s": 1, "b": 0.5, "l": 2}[name.split("_")[3]]


def test_published_table():
    figures = {name: (row["miou"], row["miou_ms"]) for name, row in ROWS.items()}
    assert len(figures) == 8
    assert figures["upernet_flash_internimage_l_640_160k_ade20k"] == (55.6, 56.0)
    assert figures["mask2former_flash_internimage_l_640_160k_ade20k_ss"] == (56.7, None)


def test_layer_decay_of_a_recipe():
    """As InternImage's: the stem has layer 0, and the norm of the last stage is with that stage's first block."""
    name = "mask2former_flash_internimage_t_512_160k_ade20k_ss"
    model, _, _ = empty_model(ROWS[name]["model"])
    groups = parameter_groups(model, get_recipe(name))
    treated = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    for parameter, layer, decay in (
        ("backbone.embeddings.conv1.weight", 0, 0.05),
        ("backbone.stages.0.blocks.3.spatial.layer.offset_mask.weight", 4, 0.05),
        ("backbone.stages.2.blocks.0.spatial.layer.offset_mask.bias", 9, 0.0),
        ("backbone.downsamples.1.conv.weight", 9, 0.05),
        ("backbone.stages.3.norm.weight", 27, 0.0),
        ("transformer_module.level_embed.weight", 0, 0.05),
        ("pixel_decoder.level_embed", 31, 0.05),
    ):
        assert treated[parameter] == (pytest.approx(0.9 ** (31 - layer)), decay), parameter


def test_learns_where_to_look():
    """The class of a pixel is the colour two pixels to its left, which only the deformable convolutions can fetch.

    UperNet's head is replaced by a linear classifier on the first stage, whose stride of 4 is a pixel of the scene.
    """
    torch.manual_seed(0)
    backbone = InternImageBackbone(small_flash(depths=[2, 1, 1, 1], drop_path_rate=0.0, out_features=["stage1"]))
    classifier = torch.nn.Conv2d(16, 4, 1)
    parameters = [*backbone.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.0)
    palette = torch.randn(4, 3)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        colours = torch.randint(4, (8, 12, 12))
        images = palette[colours].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
        labels = torch.full_like(colours, 255)
        labels[:, :, 2:] = colours[:, :, :-2]
        return images, labels

    for _ in range(150):
        images, labels = batch()
        loss = F.cross_entropy(classifier(backbone(images).feature_maps[0]), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    images, labels = batch()
    with torch.no_grad():
        predicted = classifier(backbone(images).feature_maps[0]).argmax(1)
    valid = labels != 255
    accuracy = (predicted[valid] == labels[valid]).double().mean()
    print("accuracy", accuracy.item(), loss.item())
    assert accuracy > 0.9


def test_loads_what_it_saves_with_a_head(tmp_path):
    config = SegUperNetConfig(backbone_config=small_flash(), hidden_size=16, auxiliary_channels=8, num_labels=5)
    model = SegUperNetForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    loaded = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.backbone_config.core_operator == "dcnv4"
    assert loaded.config.backbone_config.depthwise_kernel_size is None
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images).logits, loaded(images).logits)
