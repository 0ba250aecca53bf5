# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch
from model_tests import SegmentationTests, randomise
from reference_cases import ReferenceCase, relative_error
from test_vit_adapter import small_config
from torch import nn
from torch.nn import functional as F
from transformers import ConvNextConfig, Mask2FormerConfig, SwinConfig, pipeline
from transformers.modeling_outputs import BackboneOutput
from transformers.models.mask2former import modeling_mask2former as theirs

from segtransformers import (
    SegMask2FormerConfig,
    SegMask2FormerForSemanticSegmentation,
    SegmentationImageProcessor,
)
from segtransformers.conversion import ConversionError, convert_checkpoint, mask2former, vit_adapter
from segtransformers.conversion.mapping import Settings, find_rule, load_converted, prefixed
from segtransformers.models.layers.sliding_windows import SlidingWindow
from segtransformers.models.mask2former import loss_seg_mask2former as losses
from segtransformers.models.mask2former.modules_seg_mask2former import sine_encoding

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def convnext(widths=(8, 16, 16, 16)) -> ConvNextConfig:
    return ConvNextConfig(hidden_sizes=list(widths), depths=[1, 1, 1, 1], out_features=STAGES)


def small_head(backbone_config=None, **changes) -> SegMask2FormerConfig:
    settings = {
        "backbone_config": backbone_config if backbone_config is not None else convnext(),
        "hidden_dim": 24,
        "mask_feature_size": 20,
        "encoder_layers": 2,
        "encoder_feedforward_dim": 40,
        "encoder_attention_heads": 3,
        "norm_groups": 6,
        "decoder_layers": 5,
        "dim_feedforward": 56,
        "num_attention_heads": 2,
        "num_queries": 7,
        "train_num_points": 64,
        "num_labels": 5,
        **changes,
    }
    return SegMask2FormerConfig(**settings)


def small_model(**changes) -> SegMask2FormerForSemanticSegmentation:
    return randomise(SegMask2FormerForSemanticSegmentation(small_head(**changes)).double()).eval()


class Mask2FormerTests(SegmentationTests):
    model_class = SegMask2FormerForSemanticSegmentation

    def test_all_layers_of_the_head_are_checkpointed(self):
        model = self.model().train()
        model.gradient_checkpointing_enable()
        calls = []
        for layer in (*model.pixel_decoder.encoder.layers, *model.transformer_module.decoder.layers):
            assert layer.gradient_checkpointing
            layer.fc1.register_forward_hook(lambda *_: calls.append(1))
        layers = 2 + 4
        self.scalar(model, self.images()).backward()
        assert len(calls) == 2 * layers  # each was run again for its gradient

    def test_images_without_labels_train_too(self):
        model, images = self.model().train(), self.images(size=(64, self.smallest_width))
        loss = model(images, labels=torch.full((2, *images.shape[2:]), 255)).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert [name for name, tensor in model.named_parameters() if tensor.grad is None] == self.unreached

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_loss_under_autocast(self, dtype):
        model, images = self.model(torch.float32).train(), self.images(dtype=torch.float32)
        labels = self.labels(images)
        with torch.autocast("cpu", dtype=dtype):
            outputs = model(images, labels=labels)
        assert outputs.loss.dtype == torch.float32 and torch.isfinite(outputs.loss)
        outputs.loss.backward()
        assert all(torch.isfinite(tensor.grad).all() for tensor in model.parameters() if tensor.grad is not None)

    def test_sizes_that_are_no_multiple_of_the_stride(self):
        """They are those of the padded image, cut to size: masks and image stay in line."""
        model, images = self.model(), self.images(size=(50, 75))
        with torch.no_grad():
            outputs = model(images)
            whole = model(F.pad(images, (0, 21, 0, 14)))
        assert outputs.masks_queries_logits.shape[2:] == (13, 19)
        torch.testing.assert_close(outputs.masks_queries_logits, whole.masks_queries_logits[:, :, :13, :19])
        torch.testing.assert_close(outputs.logits, whole.logits[:, :, :50, :75])


class TestOverViTAdapter(Mask2FormerTests):
    def config(self):
        return small_head(small_config())


class OtherBackboneTests(Mask2FormerTests):
    """Backbones of transformers itself."""

    def test_backbone_can_be_extracted_and_inserted(self, tmp_path):
        pytest.skip("these backbones keep their weights under a prefix of their own, which transformers does not strip")


class TestOverSwin(OtherBackboneTests):
    unreached = ["backbone.swin.layernorm.weight", "backbone.swin.layernorm.bias"]
    attention_tolerance = {"rtol": 1e-6, "atol": 1e-6}  # Swin's eager attention has its softmax in single precision

    def config(self):
        return small_head(
            SwinConfig(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=2, out_features=STAGES)
        )


class TestOverConvNext(OtherBackboneTests):
    def config(self):
        return small_head()


class Recorded(nn.Module):
    """Gives recorded feature maps, whatever the image."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward_with_filtered_kwargs(self, pixel_values, **kwargs):
        return BackboneOutput(feature_maps=self.maps)


def converted_head(case: ReferenceCase, maps: tuple[torch.Tensor, ...]) -> SegMask2FormerForSemanticSegmentation:
    """The head of a case on maps in place of its backbone."""
    settings = {**case.config["decode_head"], "train_cfg": case.config.get("train_cfg")}
    assert settings.pop("type") == "Mask2FormerHead"
    backbone = convnext(settings["in_channels"])
    config = mask2former.read_config(Settings(settings, "decode_head"), None, backbone)
    with torch.device("meta"):
        model = SegMask2FormerForSemanticSegmentation(config)
    model.backbone = Recorded(maps)
    state_dict = {name: tensor for name, tensor in case.state_dict().items() if name.startswith("decode_head.")}
    load_converted(model, state_dict, mask2former.RULES)
    return model.eval()


@pytest.mark.parametrize(
    "name", ["vit_adapter/tiny-beit-mask2former", "vit_comer/tiny-mask2former", "internimage/tiny-h-mask2former-slide"]
)
def test_head_equals_the_original(name):
    """Exactly but for rounding: no bound is used up."""
    case = ReferenceCase(name)
    recorded = case.outputs()
    model = converted_head(case, tuple(recorded[f"feature_{index}"].double() for index in range(4)))
    # the original ran an image that is no multiple of 32 as it is
    model.config.pad_to_stride = name.split("/")[0] != "internimage"
    with torch.no_grad():
        outputs = model(case.pixel_values(), output_hidden_states=True)
        every = model._predict(case.pixel_values(), all_layers=True)
    actual = {
        "class_logits": outputs.class_queries_logits,
        "mask_logits": outputs.masks_queries_logits,
        "segmentation_logits": outputs.logits,
        "mask_features": every.mask_features,
        "initial_class_logits": every.class_logits[0],
        "initial_mask_logits": torch.einsum("bqc,bchw->bqhw", every.mask_embeddings[0], every.mask_features),
        "all_class_logits": every.class_logits,
        "all_mask_logits": torch.einsum("lbqc,bchw->lbqhw", every.mask_embeddings, every.mask_features),
    } | {f"multi_scale_memory_{index}": map_ for index, map_ in enumerate(outputs.pixel_decoder_hidden_states)}
    compared = recorded.keys() & actual.keys()
    assert len(compared) >= 7
    for key in compared:
        assert relative_error(case.sampled(key, actual[key]), recorded[key]) < 5e-7, key


def replay(monkeypatch, case: ReferenceCase, layers: int) -> None:
    """Make the loss take the recorded points. It draws those of an image for all layers at once, the original those of
    a layer for all images."""
    recorded = case.outputs()
    images = case.manifest["input"]["shape"][0]
    counts = [len(recorded[f"gt_labels.image{image}"]) for image in range(images)]
    points = [recorded[f"points.match.layer{layer}.image{image}"] for image in range(images) for layer in range(layers)]
    for image in range(images):
        own = slice(sum(counts[:image]), sum(counts[: image + 1]))
        for kind in ("oversample", "random"):
            points.append(torch.cat([recorded[f"points.{kind}.layer{layer}"][own] for layer in range(layers)]))
    points = iter(points)

    def recorded_points(count, num_points, like):
        drawn = next(points)
        assert drawn.shape == (count, num_points, 2)
        return drawn

    monkeypatch.setattr(losses, "random_points", recorded_points)


def test_losses_and_gradients_equal_the_original(monkeypatch):
    weights = ReferenceCase("vit_adapter/tiny-beit-mask2former")
    case = ReferenceCase("vit_adapter/tiny-beit-mask2former-loss")
    recorded = case.outputs()
    model = convert_checkpoint(weights.state_dict(), weights.config)
    config = model.config
    assert config.train_num_points == 12544 and config.decoder_layers == 5 and config.no_object_weight == 0.1
    config.train_num_points = case.manifest["train_cfg"]["num_points"]
    replay(monkeypatch, case, config.decoder_layers)
    costs, assignments, parts = [], [], []
    assign, total = losses._assign, losses.Mask2FormerLosses.total

    def watched_assign(cost):
        costs.append(cost)
        assignments.append(assign(cost))
        return assignments[-1]

    def watched_total(self):
        parts.append(self)
        return total(self)

    monkeypatch.setattr(losses, "_assign", watched_assign)
    monkeypatch.setattr(losses.Mask2FormerLosses, "total", watched_total)

    outputs = model(case.pixel_values(), labels=recorded["label"].long())
    assert outputs.loss.item() == pytest.approx(case.manifest["total"], rel=1e-8)
    for layer in range(5):
        prefix = "decode." if layer == 4 else f"decode.d{layer}."
        for name, part in (("cls", "classification"), ("mask", "mask"), ("dice", "dice")):
            expected = case.manifest["losses"][f"{prefix}loss_{name}"]
            assert getattr(parts[0], part)[layer].item() == pytest.approx(expected, rel=2e-8), (layer, name)
        for image in range(2):
            torch.testing.assert_close(
                costs[image][layer], recorded[f"cost.layer{layer}.image{image}"], rtol=0, atol=1e-6
            )
            rows, columns = (side[layer] for side in assignments[image])
            assert torch.equal(torch.stack([rows, columns]), recorded[f"assignment.layer{layer}.image{image}"])

    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    rules = [*prefixed("backbone.", vit_adapter.BEIT_RULES), *mask2former.RULES]
    for original, norm in case.manifest["gradients"]["l2_norms"].items():
        rule, name = find_rule(original, rules)
        gradient = torch.cat([gradients.pop(name.format(part=part)) for part in rule.parts or [""]])
        assert gradient.norm().item() == pytest.approx(norm, rel=2e-6, abs=1e-12), original
        if f"grad.{original}" in recorded:
            assert relative_error(gradient, recorded[f"grad.{original}"]) < 2e-6, original
    assert not gradients  # each was compared


@pytest.mark.parametrize("name", ["", "-base"])
def test_whole_models_equal_the_original(name):
    case = ReferenceCase(f"vit_adapter/tiny-beit{name}-mask2former")
    model = convert_checkpoint(case.state_dict(), case.config)
    model.config.inference_mode = "whole"
    recorded = case.outputs()
    with torch.no_grad():
        outputs = model(case.pixel_values())
    for key, tensor in {
        "class_logits": outputs.class_queries_logits,
        "mask_logits": outputs.masks_queries_logits,
        "segmentation_logits": outputs.logits,
    }.items():
        assert relative_error(case.sampled(key, tensor), recorded[key]) < 1e-6, key


def test_modules_equal_those_of_transformers():
    settings = {
        "hidden_dim": 64,
        "mask_feature_size": 32,
        "encoder_layers": 2,
        "encoder_feedforward_dim": 40,
        "decoder_layers": 5,
        "dim_feedforward": 56,
        "num_attention_heads": 4,
        "num_queries": 7,
    }
    ours = SegMask2FormerForSemanticSegmentation(small_head(**settings, norm_groups=32, encoder_attention_heads=None))
    ours = randomise(ours.eval())
    config = Mask2FormerConfig(backbone_config=convnext(), feature_size=64, **settings)
    pixel_decoder = theirs.Mask2FormerPixelDecoder(config, feature_channels=[8, 16, 16, 16]).eval()
    transformer_module = theirs.Mask2FormerTransformerModule(in_features=64, config=config).eval()
    pixel_decoder.load_state_dict(ours.pixel_decoder.state_dict())  # strict: the same names and shapes
    transformer_module.load_state_dict(ours.transformer_module.state_dict())
    with torch.no_grad():
        maps = [torch.randn(2, width, 48 // 2**index, 32 // 2**index) for index, width in enumerate((8, 16, 16, 16))]
        pixels = pixel_decoder(maps)
        expected = transformer_module(pixels.multi_scale_features, pixels.mask_features)
        ours.backbone = Recorded(maps)
        actual = ours._predict(torch.randn(2, 3, 192, 128), all_layers=True)
    torch.testing.assert_close(actual.mask_features, pixels.mask_features, rtol=1e-4, atol=1e-5)
    for index, masks in enumerate(expected.masks_queries_logits):
        mine = torch.einsum("bqc,bchw->bqhw", actual.mask_embeddings[index], actual.mask_features)
        torch.testing.assert_close(mine, masks, rtol=1e-4, atol=1e-4)
        normalised = expected.intermediate_hidden_states[index].transpose(0, 1)
        torch.testing.assert_close(actual.class_logits[index], ours.class_predictor(normalised), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (28, 28)])
def test_sine_encodings(grid):
    expected = theirs.Mask2FormerSinePositionEmbedding(16, normalize=True)((1, 1, *grid), "cpu", torch.float32)
    actual = sine_encoding(grid, 32, torch.device("cpu"))
    torch.testing.assert_close(actual, expected.flatten(2).transpose(1, 2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sine_encodings_are_made_in_single_precision(monkeypatch, dtype):
    from segtransformers.models.mask2former import modeling_seg_mask2former as modeling

    made = []
    monkeypatch.setattr(modeling, "sine_encoding", lambda *args: made.append(sine_encoding(*args)) or made[-1])
    model = SegMask2FormerForSemanticSegmentation(small_head()).to(dtype).eval()
    assert model(torch.randn(1, 3, 64, 64, dtype=dtype)).logits.dtype == dtype
    assert {encoding.dtype for encoding in made} == {torch.float32} and len(made) == 3


def test_logits_are_sums_over_queries():
    model, images = small_model(), torch.randn(2, 3, 64, 96).double()
    with torch.no_grad():
        outputs = model(images)
        classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
        expected = torch.einsum("bqk,bqhw->bkhw", classes, outputs.masks_queries_logits.sigmoid())
        expected = F.interpolate(expected, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(outputs.logits, expected)
    assert outputs.class_queries_logits.shape == (2, 7, 6) and outputs.masks_queries_logits.shape == (2, 7, 16, 24)


def test_what_is_returned():
    model, images = small_model(), torch.randn(1, 3, 64, 64).double()
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    always = {"class_queries_logits", "masks_queries_logits"}
    assert set(model(images)) == {"logits", *always}
    assert set(model(images, labels=labels)) == {"loss", "logits", *always}
    outputs = model(images, output_hidden_states=True)
    assert len(outputs.transformer_decoder_hidden_states) == 5 and len(outputs.pixel_decoder_hidden_states) == 3
    assert outputs.hidden_states is not None
    assert model.train()(images, labels=labels).logits is None
    assert model(images).logits is not None
    assert model(images, labels=labels, return_dict=False)[0].dim() == 0


def fixed_points(monkeypatch) -> None:
    """The same points for every mask, so that losses do not depend on how masks are dealt out."""

    def points(count, num_points, like):
        generator = torch.Generator().manual_seed(num_points)
        drawn = torch.rand(1, num_points, 2, generator=generator, dtype=torch.float64)
        return drawn.to(like.dtype).expand(count, -1, -1)

    monkeypatch.setattr(losses, "random_points", points)


def coarse_labels(batch, size, num_labels=5) -> torch.Tensor:
    cells = torch.randint(num_labels + 1, (batch, 1, 4, 4)).float()
    labels = F.interpolate(cells, size=size, mode="nearest")[:, 0].long()
    return torch.where(labels == num_labels, 255, labels)


@pytest.mark.parametrize("window_batch_size", [1, 2, 4])
def test_windows(monkeypatch, window_batch_size):
    fixed_points(monkeypatch)
    model = small_model(window_size=64, window_stride=40, window_batch_size=window_batch_size)
    images, labels = torch.randn(2, 3, 75, 130).double(), coarse_labels(2, (75, 130))
    windows = SlidingWindow((64, 64), (40, 40)).indices((75, 130))
    assert len(windows) == 6
    total, count, parts = torch.zeros(2, 5, 75, 130).double(), torch.zeros(75, 130), []
    with torch.no_grad():
        for window in windows:
            outputs = model(images[window], labels=labels[window])
            total[window] += outputs.logits
            count[window] += 1
            parts.append(outputs.loss)
        model.config.inference_mode = "slide"
        outputs = model(images, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, total / count)
    torch.testing.assert_close(outputs.loss, torch.stack(parts).mean())
    assert set(outputs) == {"loss", "logits"}


def test_masks_say_the_same_as_labels(monkeypatch):
    fixed_points(monkeypatch)
    model, images, labels = small_model(), torch.randn(2, 3, 64, 70).double(), coarse_labels(2, (64, 70))
    classes = [torch.tensor([index for index in (3, 0, 4, 1, 2) if (image == index).any()]) for image in labels]
    masks = [(image == own[:, None, None]).float() for image, own in zip(labels, classes, strict=True)]
    with torch.no_grad():
        expected = model(images, labels=labels).loss
        torch.testing.assert_close(model(images, mask_labels=masks, class_labels=classes).loss, expected)


def test_more_masks_than_queries(monkeypatch):
    model = small_model(num_queries=2)
    labels = torch.arange(64).expand(1, 64, 64) * 5 // 64
    loss = model.train()(torch.randn(1, 3, 64, 64).double(), labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda m, c: {"mask_labels": m}, "one of them is missing"),
        (lambda m, c: {"class_labels": c}, "one of them is missing"),
        (lambda m, c: {"mask_labels": m, "class_labels": c, "labels": m[0][:1].long()}, "not both"),
        (lambda m, c: {"mask_labels": m * 2, "class_labels": c * 2}, "each of the 1 images, got 2 and 2"),
        (lambda m, c: {"mask_labels": [m[0][:, :9]], "class_labels": c}, r"\(n, 64, 64\) like pixel_values"),
        (lambda m, c: {"mask_labels": m, "class_labels": [c[0][:2]]}, r"each of the 3 masks, got \(2,\)"),
        (lambda m, c: {"mask_labels": m, "class_labels": [c[0].float()]}, "integer class indices, got torch.float32"),
        (lambda m, c: {"mask_labels": [m[0].tolist()], "class_labels": c}, "must hold tensors, got list and Tensor"),
        (lambda m, c: {"mask_labels": [m[0] * 255], "class_labels": c}, "must hold 0 and 1, got values up to 255"),
        (lambda m, c: {"labels": m[0][:1].tolist()}, "labels must be a tensor .* got a list"),
        (lambda m, c: {"mask_labels": m, "class_labels": [c[0] + 3]}, r"values \[5\], but the model has num_labels=5"),
    ],
)
def test_wrong_masks_are_refused(arguments, message):
    model = small_model()
    masks, classes = [torch.ones(3, 64, 64)], [torch.tensor([0, 1, 2])]
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 64, 64).double(), **arguments(masks, classes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_config": small_config(out_features=["stage4"])}, "at least 4 feature maps, but the backbone gives"),
        ({"backbone_config": {"model_type": "no_such"}}, "model_type 'no_such'"),
        ({"hidden_dim": 26}, "multiple of 4 because of the sine encodings"),
        ({"norm_groups": 5}, "multiple of 5 because of norm_groups"),
        ({"num_attention_heads": 5}, "multiple of 5 because of num_attention_heads"),
        ({"encoder_attention_heads": 5}, "multiple of 5 because of encoder_attention_heads"),
        ({"num_queries": 0}, "num_queries must be a whole number from 1"),
        ({"decoder_layers": 1}, "decoder_layers must be at least 2"),
        ({"dice_weight": -1.0}, "dice_weight must not be negative"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be at least 1"),
        ({"importance_sample_ratio": 1.5}, r"a share in \[0, 1\]"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_head(**changes)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("num_transformer_feat_level", 4, "num_transformer_feat_level is 4; only 3"),
        ("enforce_decoder_input_project", True, "enforce_decoder_input_project is True"),
        ("surprise", 1, "unknown settings: surprise"),
        ("in_channels", [64], r"in_channels is \[64\]; expected one"),
        ("positional_encoding.normalize", False, "positional_encoding.normalize is False"),
        ("positional_encoding.num_feats", 16, "positional_encoding.num_feats is 16; only 32"),
        ("pixel_decoder.type", "PixelDecoder", "pixel_decoder.type is 'PixelDecoder'"),
        ("pixel_decoder.norm_cfg.type", "BN", "norm_cfg.type is 'BN'; only 'GN'"),
        ("pixel_decoder.norm_cfg.num_groups", 5, "multiple of 5 because of norm_groups"),
        ("pixel_decoder.encoder.transformerlayers.attn_cfgs.num_points", 8, "num_points is 8; only 4"),
        ("pixel_decoder.encoder.transformerlayers.ffn_cfgs.act_cfg", {"type": "GELU"}, "act_cfg is {'type': 'GELU'}"),
        ("transformer_decoder.transformerlayers.operation_order", ["norm"], "operation_order is"),
        ("transformer_decoder.transformerlayers.attn_cfgs.proj_drop", 0.1, "proj_drop is 0.1"),
        ("transformer_decoder.transformerlayers.attn_cfgs.embed_dims", 32, "embed_dims is 32; only 64"),
        ("transformer_decoder.num_layers", "9", "num_layers is '9'"),
    ],
)
def test_heads_that_cannot_be_converted_are_refused(path, value, message):
    settings = ReferenceCase("vit_adapter/tiny-beit-mask2former").config["decode_head"]
    settings.pop("type")
    *parents, key = path.split(".")
    part = settings
    for parent in parents:
        part = part[parent]
    part[key] = value
    with pytest.raises((ConversionError, ValueError), match=message):
        mask2former.read_config(Settings(settings, "decode_head"), None, convnext())


def test_other_losses_are_said(monkeypatch):
    said = []
    monkeypatch.setattr(mask2former.logger, "warning", said.append)
    settings = ReferenceCase("vit_adapter/tiny-beit-mask2former").config["decode_head"]
    settings.pop("type")
    mask2former.read_config(Settings(dict(settings), "decode_head"), None, convnext())
    assert not said
    settings["loss_mask"]["type"] = "FocalLoss"
    settings["loss_cls"]["class_weight"][3] = 7.0
    settings["loss_cls"]["loss_weight"] = 1.5
    settings["train_cfg"] = {"num_points": 100, "assigner": {"cls_cost": {"weight": 2.0}, "dice_cost": {"weight": 5.0}}}
    config = mask2former.read_config(Settings(settings, "decode_head"), None, convnext())
    assert config.class_weight == 1.5 and config.no_object_weight == 0.1
    assert config.label_weights[3] == 7 and config.label_weights[0] == 1 and len(config.label_weights) == 20
    assert len(said) == 2 and "FocalLoss" in said[0] and "cls_cost" in said[1]
    assert config.train_num_points == 100


def test_weights_of_classes(monkeypatch):
    fixed_points(monkeypatch)
    images, labels = torch.randn(2, 3, 64, 64).double(), coarse_labels(2, (64, 64))
    model = small_model().double().train()
    plain = model(images, labels=labels).loss
    model.config.label_weights = [1.0] * model.config.num_labels
    torch.testing.assert_close(model(images, labels=labels).loss, plain)
    model.config.label_weights = [7.0] * model.config.num_labels
    model.config.no_object_weight *= 7  # common factors cancel
    torch.testing.assert_close(model(images, labels=labels).loss, plain)
    model.config.label_weights = [1.0, 7.0, 1.0, 7.0, 1.0]
    assert not torch.isclose(model(images, labels=labels).loss, plain)
    with pytest.raises(ValueError, match="class_weights has 2 numbers, but the model has 5 classes"):
        small_head(label_weights=[1, 2])


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="mask_label"):
        small_model()(torch.randn(1, 3, 64, 64).double(), mask_label=[])


def test_unused_tensors_of_early_releases_are_left_out():
    case = ReferenceCase("vit_adapter/tiny-beit-mask2former")
    extra = {"decode_head.conv_seg.weight": torch.zeros(20, 64, 1, 1), "decode_head.conv_seg.bias": torch.zeros(20)}
    state_dict = case.state_dict
    case.state_dict = lambda: state_dict() | extra
    converted_head(case, ())
    extra["decode_head.other"] = torch.zeros(1)
    with pytest.raises(ConversionError, match=r"does not have: decode_head\.other"):
        converted_head(case, ())


def test_pipeline(tmp_path):
    import numpy as np
    from PIL import Image

    config = small_head(inference_mode="slide", window_size=64, window_stride=43)
    SegMask2FormerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegmentationImageProcessor(size={"shortest_edge": 96, "longest_edge": 256}).save_pretrained(tmp_path)
    segmenter = pipeline("image-segmentation", model=str(tmp_path))
    assert type(segmenter.model) is SegMask2FormerForSemanticSegmentation
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8))
    segments = segmenter(picture)
    total = sum((np.asarray(segment["mask"]) == 255).astype(int) for segment in segments)
    assert total.shape == (100, 150) and (total == 1).all()
