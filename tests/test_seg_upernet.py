# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from model_tests import SegmentationTests, randomise
from reference_cases import ReferenceCase, relative_error
from test_vit_adapter import CASES, small_config
from transformers import ConvNextConfig, SwinConfig, Trainer, TrainerCallback, TrainingArguments, UperNetConfig
from transformers import UperNetForSemanticSegmentation as TransformersUperNet

from segtransformers import SegUperNetConfig, SegUperNetForSemanticSegmentation
from segtransformers.conversion import convert_checkpoint, upernet, vit_adapter
from segtransformers.conversion.mapping import find_rule, prefixed
from segtransformers.models.losses import build_losses, total_loss
from segtransformers.models.upernet.upsampled_convolution import upsampled_convolution

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def small_head(backbone_config=None, **changes) -> SegUperNetConfig:
    settings = {
        "backbone_config": backbone_config if backbone_config is not None else small_config(),
        "hidden_size": 16,
        "auxiliary_channels": 8,
        "num_labels": 5,
        **changes,
    }
    return SegUperNetConfig(**settings)


class TestSegUperNet(SegmentationTests):
    model_class = SegUperNetForSemanticSegmentation

    def config(self):
        return small_head(auxiliary_num_convs=2, auxiliary_concat_input=True)


class OtherBackboneTests(SegmentationTests):
    """Backbones of transformers itself: they choose their own smallest image and messages."""

    model_class = SegUperNetForSemanticSegmentation

    def test_too_small_an_image_is_refused(self):
        pytest.skip("the smallest image is the backbone's affair, and these take any")

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
    def test_gradient_checkpointing_changes_nothing(self):
        with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
            super().test_gradient_checkpointing_changes_nothing()  # ConvNext itself has none

    def config(self):
        return small_head(ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=STAGES))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_original(name):
    case = ReferenceCase(f"vit_adapter/tiny-{name}-upernet")
    model = convert_checkpoint(case.state_dict(), case.config)
    model.config.inference_mode = "whole"
    outputs = case.outputs()
    with torch.no_grad():
        maps = model.backbone(case.pixel_values()).feature_maps
        actual = {
            "logits": model.decode_head(maps),
            "auxiliary_logits": model.auxiliary_head(maps),
            "segmentation_logits": model(case.pixel_values()).logits,
        }
    for key, tensor in actual.items():
        assert relative_error(case.sampled(key, tensor), outputs[key]) < 2e-6, key


def test_loss_and_gradients_equal_the_original():
    weights = ReferenceCase("vit_adapter/tiny-vit-upernet")
    case = ReferenceCase("vit_adapter/tiny-vit-upernet-loss")
    recorded = case.outputs()
    state_dict = weights.state_dict()
    model = convert_checkpoint(state_dict, weights.config)
    model.config.inference_mode = "whole"
    outputs = model(pixel_values=case.pixel_values(), labels=recorded["label"].long())
    assert outputs.loss.item() == pytest.approx(case.manifest["total"], rel=1e-9)
    outputs.loss.backward()

    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for original, expected in case.manifest["gradients"]["l2_norms"].items():
        assert gradients[_new_name(original)].norm().item() == pytest.approx(expected, rel=2e-6, abs=1e-12), original
    assert len(case.manifest["gradients"]["l2_norms"]) == len(gradients)
    for key in case.manifest["gradients"]["full"]:
        original = key.removeprefix("grad.")
        expected = recorded[key]
        if original == "backbone.pos_embed":  # we do not keep the entry of the class token, which is never used
            assert not expected[:, 0].any()
            expected = expected[:, 1:]
        assert relative_error(gradients[_new_name(original)], expected) < 2e-6, original


def _new_name(original: str) -> str:
    rules = [*prefixed("backbone.", vit_adapter.VIT_RULES), *upernet.RULES]
    return find_rule(original, rules)[1]


def test_equals_transformers_upernet_where_they_mean_the_same():
    config = small_head()
    ours = randomise(SegUperNetForSemanticSegmentation(config).double()).eval()
    theirs = TransformersUperNet(
        UperNetConfig(backbone_config=small_config(), hidden_size=16, auxiliary_channels=8, num_labels=5)
    )
    theirs = theirs.double().eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 75, 130, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images).logits, rtol=1e-9, atol=1e-12)


def test_auxiliary_head_works_for_a_loss_only():
    model = SegUperNetForSemanticSegmentation(small_head()).eval()
    calls = []
    model.auxiliary_head.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(1, 3, 64, 64)
    model(images)
    assert not calls
    model(images, labels=torch.zeros(1, 64, 64, dtype=torch.long))
    assert calls == [1]


def test_classifiers_drop_channels_in_training_only():
    model = SegUperNetForSemanticSegmentation(small_head())
    features = torch.ones(4, 16, 5, 5)
    for head in (model.decode_head, model.auxiliary_head):
        assert head.dropout.p == 0.1
    dropout = model.decode_head.dropout
    assert torch.equal(dropout.eval()(features), features)
    dropout.train()
    dropped = [(dropout(features) == 0).all(dim=(2, 3)) for _ in range(200)]
    assert torch.stack(dropped).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_ignored_pixels_count_in_the_divisor():
    model = SegUperNetForSemanticSegmentation(small_head(use_auxiliary_head=False)).eval()
    images, labels = torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.long)
    half = labels.clone()
    half[:, :32] = 255
    with torch.no_grad():
        logits = model(images).logits
        expected = torch.nn.functional.cross_entropy(logits[:, :, 32:], half[:, 32:]) / 2
        assert model(images, labels=half).loss.item() == pytest.approx(expected.item(), rel=1e-5)
        everything_ignored = model(images, labels=torch.full_like(labels, 255)).loss
    assert everything_ignored.item() == 0


class _Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(3, 64, 64, generator=generator),
            "labels": torch.randint(5, (64, 64), generator=generator),
        }


class _GradientNorm(TrainerCallback):
    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norms.append(torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm().item())


def test_gradient_accumulation_changes_nothing(tmp_path):
    """Batch norm and random depth, which depend on the other images of a batch, are switched off."""
    norms = []
    for accumulation in (1, 2, 4):
        torch.manual_seed(0)
        model = SegUperNetForSemanticSegmentation(small_head(small_config(drop_path_rate=0.0), classifier_dropout=0.0))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module
                module.training = False
        callback = _GradientNorm()
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=8 // accumulation,
                gradient_accumulation_steps=accumulation,
                max_steps=2,
                learning_rate=1e-3,
                max_grad_norm=0.0,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=_Samples(),
            callbacks=[callback],
        ).train()
        norms.append(callback.norms)
    assert len(norms[0]) == 2
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert norms[2] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone_config": small_config(out_features=["stage4"])},
            "at least 3 feature maps, but the backbone gives 1: set the out_features",
        ),
        ({"inference_mode": "tiles"}, "'whole' or 'slide'"),
        ({"inference_mode": "slide"}, "needs window_size and window_stride"),
        ({"inference_mode": "slide", "window_size": 64, "window_stride": 65}, "must not exceed window_size"),
        ({"window_size": [64, 64, 64]}, "window_size must be two whole numbers of pixels"),
        ({"window_batch_size": 0}, "must be a whole number from 1"),
        ({"auxiliary_in_index": -1}, "0 or more"),
        ({"pool_scales": []}, "pool_scales must be 1 to 16 sides"),
        ({"hidden_size": 0}, "must be a whole number from 1"),
        ({"classifier_dropout": 1.0}, r"\[0, 1\)"),
        ({"palette": [[0, 0, 256]] * 5}, "from 0 to 255"),
        ({"backbone_config": {"out_features": ["stage4"]}}, "model_type None, which transformers does not know"),
        ({"backbone_config": {"model_type": "no_such"}}, "model_type 'no_such'"),
        ({"auxiliary_num_convs": 0}, "must be a whole number from 1"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_head(**changes)


def test_fields_changed_after_construction_are_checked():
    model = SegUperNetForSemanticSegmentation(small_head()).eval()
    images = torch.randn(1, 3, 64, 96)
    model.config.inference_mode = "slide"
    with pytest.raises(ValueError, match="needs window_size"):
        model(images)
    model.config.window_size, model.config.window_stride = 64, 43
    assert model(images).logits.shape == (1, 5, 64, 96)
    model.config.inference_mode = "slid"
    with pytest.raises(ValueError, match="'whole' or 'slide'"):
        model(images)


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 64, 64), torch.zeros(0, 3, 64, 64), torch.zeros(1, 3, 64, 64).byte()]
)
def test_what_is_no_batch_of_images_is_refused(images):
    model = SegUperNetForSemanticSegmentation(small_head(inference_mode="slide", window_size=32, window_stride=32))
    with pytest.raises(ValueError, match=r"normalized floating-point images \(batch, 3, height, width\)"):
        model.eval()(images)


def test_evaluation_loss_means_the_same_for_all_sizes():
    """In slide mode the auxiliary head has no part in it, also where one window is enough."""
    model = SegUperNetForSemanticSegmentation(
        small_head(inference_mode="slide", window_size=64, window_stride=43)
    ).eval()
    images, labels = torch.randn(1, 3, 64, 64), torch.randint(5, (1, 64, 64))
    with torch.no_grad():
        outputs = model(images, labels=labels)
        expected = torch.nn.functional.cross_entropy(outputs.logits, labels)
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_dtype_does_not_depend_on_the_size():
    config = small_head(inference_mode="slide", window_size=64, window_stride=43)
    model = SegUperNetForSemanticSegmentation(config).to(torch.bfloat16).eval()
    for side in (64, 96):
        assert model(torch.randn(1, 3, side, side, dtype=torch.bfloat16)).logits.dtype == torch.bfloat16


@pytest.mark.slow  # a quarter of a minute; test_export_matrix.py exports with a dynamic batch
def test_export_with_windows_and_a_dynamic_batch():
    model = SegUperNetForSemanticSegmentation(
        small_head(inference_mode="slide", window_size=64, window_stride=43)
    ).eval()
    images = torch.randn(2, 3, 64, 96)
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=8)}}
    program = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
    more = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(program.module()(more).logits, model(more).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_resized_convolution_exports_with_any_batch_and_size(memory_format):
    """EVA-02 and ConvNeXt give feature maps with channels last, the other backbones mostly not."""

    class Convolution(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 6, 3, 3))

        def forward(self, fine, coarse):
            return upsampled_convolution([fine, coarse], self.weight, None)

    def feature_maps(batch, height, width):
        sizes = ((height, width), (height // 2, width // 2))
        return tuple(torch.randn(batch, 3, *size).to(memory_format=memory_format) for size in sizes)

    batch, rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "rows", "columns"))
    shapes = {"fine": {0: batch, 2: 2 * rows, 3: 2 * columns}, "coarse": {0: batch, 2: rows, 3: columns}}
    module = Convolution()
    program = torch.export.export(module, feature_maps(2, 12, 16), dynamic_shapes=shapes, strict=False).module()
    for size in ((3, 12, 16), (2, 8, 20)):
        arguments = feature_maps(*size)
        torch.testing.assert_close(program(*arguments), module(*arguments), rtol=1e-5, atol=1e-5)


def test_losses_of_the_config_train_the_heads():
    losses = [{"name": "cross_entropy", "label_smoothing": 0.1}, {"name": "dice", "weight": 3.0}]
    model = SegUperNetForSemanticSegmentation(small_head(losses=losses, auxiliary_losses=["focal"])).eval()
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(model.config.num_labels, (2, 64, 64))
    labels[0, :20] = 255
    outputs = model(images, labels=labels)
    auxiliary = model.auxiliary_head(model.backbone(images).feature_maps)
    expected = total_loss(build_losses(losses), outputs.logits, labels, 255)
    expected = expected + 0.4 * total_loss(build_losses(["focal"]), auxiliary, labels, 255)
    torch.testing.assert_close(outputs.loss, expected)
    model.set_losses(["lovasz"])
    again = model(images, labels=labels).loss
    assert model.config.losses == [{"name": "lovasz"}] and model.config.auxiliary_losses is None
    assert not torch.isclose(again, outputs.loss)


def test_losses_are_saved_and_class_weights_go_with_the_classes(tmp_path, caplog):
    weights = [1.0] * (small_head().num_labels - 1) + [3.0]
    losses = [{"name": "cross_entropy", "class_weights": weights}, {"name": "dice"}]
    model = SegUperNetForSemanticSegmentation(small_head(losses=losses))
    model.save_pretrained(tmp_path)
    assert SegUperNetForSemanticSegmentation.from_pretrained(tmp_path).pixel_losses == build_losses(losses)
    other = SegUperNetForSemanticSegmentation.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert other.config.losses == [{"name": "cross_entropy"}, {"name": "dice"}]
    assert "losses of the config has settings that do not fit the new classes and are left out" in caplog.text
    with pytest.raises(ValueError, match="class_weights has 2 numbers, but the model has"):
        small_head(losses=[{"name": "cross_entropy", "class_weights": [1, 2]}])
    with pytest.raises(ValueError, match="class_weights has 2 numbers, but the model has"):
        model.set_losses([{"name": "cross_entropy", "class_weights": [1, 2]}])
    assert model.config.losses == losses
