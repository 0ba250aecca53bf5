# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Tests that every model of the package must pass. The test class of a model inherits one of these classes."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel

SIZES = [(1, 1), (1, 40), (20, 25), (32, 32), (33, 47), (64, 96), (75, 130)]


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Record the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def randomise(model: nn.Module) -> nn.Module:
    """Add noise to parameters and running statistics that start constant, so that every branch changes the output.

    Buffers that are not saved stay, because they are constants of the architecture.
    """
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and (tensor.dim() <= 1 or not tensor.any()):
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model


class ModelCase:
    """A small model, its inputs and its outputs.

    Subclasses define `model_class`, `config()` (small, with all options on), `tensors(outputs)` (the output tensors to
    compare) and `scalar(model, pixel_values)` (a number to differentiate).
    """

    model_class: type[PreTrainedModel]

    def config(self) -> PreTrainedConfig:
        raise NotImplementedError

    def tensors(self, outputs) -> list[torch.Tensor]:
        raise NotImplementedError

    def scalar(self, model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def model(self, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        return randomise(self.model_class(self.config()).to(dtype)).eval()

    def images(self, batch: int = 2, size=(64, 96), dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(batch, 3, *size, dtype=dtype)

    @torch.no_grad()
    def run(self, model, pixel_values):
        return self.tensors(model(pixel_values))

    def assert_same(self, first, second, **tolerance):
        assert len(first) == len(second) > 0
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


class ModelTests(ModelCase):
    """Tests shared by backbones and whole models."""

    unreached: list[str] = []  # parameters that a backbone of transformers owns and never uses
    attention_tolerance = {"rtol": 1e-8, "atol": 1e-10}  # between implementations of the same attention
    smallest_width = 128  # pixels, so that batch norms see more than 1 x 1 feature maps and every parameter matters

    @pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
    def test_saves_and_loads_bit_equal(self, tmp_path, max_shard_size):
        model, images = self.model(torch.float32), self.images(dtype=torch.float32)
        model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        shards = list(tmp_path.glob("*.safetensors"))
        assert len(shards) > 1 if max_shard_size == "100KB" else len(shards) == 1
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        for (name, tensor), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name
        for (name, buffer), other in zip(model.named_buffers(), loaded.buffers(), strict=True):
            assert torch.equal(buffer, other), name  # unsaved buffers, too
        for tensor in (*loaded.parameters(), *loaded.buffers()):
            tensor.data = tensor.data.clone()  # another alignment in memory selects kernels that round otherwise
        self.assert_same(self.run(model, images), self.run(loaded, images))

    def test_weights_can_stay_on_disk(self, tmp_path):
        """accelerate loads weights before the forward of their module, so only this forward may use them."""
        model, images = self.model(torch.float32), self.images(dtype=torch.float32)
        model.save_pretrained(tmp_path / "model")
        loaded = self.model_class.from_pretrained(
            tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
        )
        self.assert_same(self.run(model, images), self.run(loaded, images), rtol=1e-4, atol=1e-4)

    def test_config_round_trip(self, tmp_path):
        config = self.config()
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is type(config)
        # "_name_or_path" differs, because it holds the folder
        assert {k: v for k, v in loaded.to_dict().items() if k != "_name_or_path"} == {
            k: v for k, v in config.to_dict().items() if k != "_name_or_path"
        }

    @pytest.mark.parametrize("size", SIZES)
    def test_any_input_size(self, size):
        for tensor in self.run(self.model(), self.images(size=size)):
            assert torch.isfinite(tensor).all()

    def test_images_without_pixels_are_refused(self):
        with pytest.raises(ValueError, match=r"pixel_values must"):
            self.run(self.model(), self.images(size=(0, 64)))

    def test_wrong_channels_are_refused(self):
        with pytest.raises(ValueError, match=r"\(batch, 3, height, width\)"):
            self.run(self.model(), torch.randn(1, 4, 64, 64, dtype=torch.float64))

    @pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.byte])
    def test_anything_but_normalized_images_is_refused(self, convert):
        with pytest.raises(
            ValueError, match=r"must be normalized floating-point images .* got (a ndarray|a list|torch)"
        ):
            self.model()(convert(self.images(size=(32, 32))))

    def test_images_of_a_batch_are_independent(self):
        model, images = self.model(), self.images(batch=3)
        alone = [torch.cat(parts) for parts in zip(*(self.run(model, image[None]) for image in images), strict=True)]
        self.assert_same(self.run(model, images), alone, rtol=1e-10, atol=1e-12)

    def test_gradients_of_a_batch_are_sums_over_its_images(self):
        model, images = self.model(), self.images()
        gradients = []
        for parts in (images.split(2), images.split(1)):
            model.zero_grad()
            for index, part in enumerate(parts):
                for tensor in self.tensors(model(part)):
                    weights = torch.randn(2, *tensor.shape[1:], generator=torch.Generator().manual_seed(0)).double()
                    (tensor * weights[index : index + len(part)]).sum().backward(retain_graph=True)
            gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        self.assert_same(*gradients, rtol=1e-8, atol=1e-10)

    def test_is_deterministic(self):
        model, images = self.model(), self.images()
        self.assert_same(self.run(model, images), self.run(model, images))

    def test_new_weights_come_from_init_weights(self):
        """A tensor that `_init_weights` forgets would keep uninitialised memory after loading."""
        states = []
        for garbage in (7, 8):
            model = self.model_class(self.config())
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data.fill_(garbage)
            for module in model.modules():
                module._is_hf_initialized = False
            torch.manual_seed(0)
            model.init_weights()
            states.append(model.state_dict())
        for (name, tensor), other in zip(states[0].items(), states[1].values(), strict=True):
            assert torch.equal(tensor, other), name

    def test_every_parameter_gets_a_gradient(self):
        for training in (True, False):  # drop path may skip a branch in training
            model = self.model().train(training)
            self.scalar(model, self.images(size=(64, self.smallest_width))).backward()
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            assert [name for name, gradient in gradients.items() if gradient is None] == self.unreached
        assert [name for name, gradient in gradients.items() if gradient is not None and not gradient.any()] == []

    def test_gradient_checkpointing_changes_nothing(self):
        gradients = []
        for enabled in (False, True):
            torch.manual_seed(0)
            model = self.model().train()
            if enabled:
                model.activation_checkpointing_enable()
                assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
            images = self.images(size=(64, self.smallest_width))
            self.scalar(model, images).backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        self.assert_same(*gradients, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_finite(self, dtype):
        model, images = self.model(torch.float32), self.images(dtype=torch.float32)
        exact = self.run(model, images)
        for tensor, expected in zip(self.run(model.to(dtype), images.to(dtype)), exact, strict=True):
            assert tensor.dtype == dtype and torch.isfinite(tensor).all()
            error = (tensor.float() - expected).norm() / expected.norm()
            assert error < (0.1 if dtype == torch.bfloat16 else 0.02)

    def test_autocast(self):
        model, images = self.model(torch.float32), self.images(dtype=torch.float32)
        exact = self.run(model, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = self.run(model, images)
        for tensor, expected in zip(actual, exact, strict=True):
            assert (tensor.float() - expected).norm() / expected.norm() < 0.1

    @pytest.mark.slow  # seconds for each of 40 classes: by default the classes of EXPORTED_BY_DEFAULT (conftest.py)
    def test_exports_with_a_dynamic_batch(self):
        model, images = self.model(torch.float32), self.images(dtype=torch.float32)
        batch = torch.export.Dim("batch", min=1, max=8)
        # strict=False traces with fake tensors, which is enough
        program = torch.export.export(model, (images,), dynamic_shapes={"pixel_values": {0: batch}}, strict=False)
        more = self.images(batch=3, dtype=torch.float32)
        self.assert_same(self.tensors(program.module()(more)), self.run(model, more), rtol=1e-5, atol=1e-5)

    @staticmethod
    def is_norm(name: str, tensor: torch.Tensor) -> bool:
        return name.endswith("weight") and tensor.dim() == 1

    def test_missing_weights_are_reported_and_initialised(self, tmp_path):
        model = self.model(torch.float32)
        state_dict = model.state_dict()
        dropped = next(name for name, tensor in state_dict.items() if self.is_norm(name, tensor))
        del state_dict[dropped]
        model.save_pretrained(tmp_path, state_dict=state_dict)
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == {dropped}
        assert torch.equal(loaded.state_dict()[dropped], torch.ones_like(model.state_dict()[dropped]))

    def test_mismatched_weights_are_refused(self, tmp_path):
        model = self.model(torch.float32)
        state_dict = model.state_dict()
        name = next(name for name, tensor in state_dict.items() if self.is_norm(name, tensor))
        state_dict[name] = torch.zeros(5)
        model.save_pretrained(tmp_path, state_dict=state_dict)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            self.model_class.from_pretrained(tmp_path)

    def test_returns_tuples_on_request(self):
        model, images = self.model(), self.images()
        outputs = model(images, return_dict=False)
        assert isinstance(outputs, tuple)

    def test_attention_implementations_agree(self):
        config = copy.deepcopy(self.config())
        model = self.model()
        config._attn_implementation = "eager"
        other = self.model_class(config).to(torch.float64).eval()
        other.load_state_dict(model.state_dict())
        images = self.images()
        self.assert_same(self.run(model, images), self.run(other, images), **self.attention_tolerance)


class BackboneCase(ModelCase):
    """The outputs of a backbone."""

    def tensors(self, outputs):
        return list(outputs.feature_maps)

    def scalar(self, model, pixel_values):
        return sum(feature_map.square().mean() for feature_map in model(pixel_values).feature_maps)


class BackboneTests(BackboneCase, ModelTests):
    """Tests of backbones with feature maps at strides 4, 8, 16 and 32."""

    strides = (4, 8, 16, 32)

    @pytest.mark.parametrize("size", SIZES)
    def test_shapes_of_the_feature_maps(self, size):
        model = self.model()
        feature_maps = self.run(model, self.images(size=size))
        for feature_map, stride, channels in zip(feature_maps, self.strides, model.channels, strict=True):
            assert feature_map.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))

    def test_stages_can_be_chosen(self):
        images = self.images()
        model = self.model()
        feature_maps = dict(zip(model.out_features, self.run(model, images), strict=True))
        for name in model.stage_names:
            model.out_features = [name]
            (feature_map,) = self.run(model, images)
            assert feature_map.shape[1] == model.channels[0]
            if name in feature_maps:
                assert torch.equal(feature_map, feature_maps[name])

    def test_takes_the_arguments_of_stock_backbones(self):
        model, images = self.model(), self.images()
        expected = self.run(model, images)
        with torch.no_grad():
            outputs = model(images, output_attentions=True, num_items_in_batch=torch.tensor(2))
            self.assert_same(self.tensors(outputs), expected)
            assert outputs.attentions is None
            feature_maps = model(images, output_attentions=False, return_dict=False)[0]
            self.assert_same(list(feature_maps), expected)
        with pytest.raises(TypeError, match="'output_hiden_states'"):
            model(images, output_hiden_states=True)

    def test_auto_backbone(self):
        assert type(AutoBackbone.from_config(self.config())) is self.model_class

    def test_hidden_states(self):
        model, images = self.model(), self.images()
        with torch.no_grad():
            assert model(images).hidden_states is None
            states = model(images, output_hidden_states=True).hidden_states
            picked = model(images, output_hidden_states=[-1]).hidden_states
        assert len(states) == model.config.num_hidden_layers + 1
        assert {state.shape[::2] for state in states} == {(2, model.config.hidden_size)}
        assert torch.equal(picked[-1], states[-1]) and picked[0] is None


class SegmentationCase(ModelCase):
    """The labels and outputs of a `...ForSemanticSegmentation` model."""

    num_labels = 5

    def tensors(self, outputs):
        return [outputs.logits]

    def labels(self, pixel_values):
        labels = torch.randint(self.num_labels, (pixel_values.shape[0], *pixel_values.shape[2:]))
        labels[:, :5] = 255
        return labels

    def scalar(self, model, pixel_values):
        return model(pixel_values, labels=self.labels(pixel_values)).loss


class SegmentationTests(SegmentationCase, ModelTests):
    """Tests of `...ForSemanticSegmentation` models."""

    @pytest.mark.parametrize("size", SIZES)
    def test_logits_have_the_size_of_the_image(self, size):
        (logits,) = self.run(self.model(), self.images(size=size))
        assert logits.shape == (2, self.num_labels, *size)

    def test_auto_model(self, tmp_path):
        model, images = self.model(torch.float32), self.images(dtype=torch.float32)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert type(loaded) is self.model_class
        assert loaded.accepts_loss_kwargs is False and loaded.loss_type == "ForSemanticSegmentation"
        self.assert_same(self.run(model, images), self.run(loaded, images), rtol=1e-5, atol=1e-5)

    def test_new_head_by_num_labels(self, tmp_path):
        model = self.model(torch.float32)
        model.config.palette = [[0, 0, 0]] * self.num_labels
        model.save_pretrained(tmp_path)
        loaded, info = AutoModelForSemanticSegmentation.from_pretrained(
            tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
        )
        changed = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
        assert changed and not info["missing_keys"] and not info["unexpected_keys"]
        assert loaded.config.palette is None and len(loaded.config.id2label) == 3
        (logits,) = self.run(loaded, self.images(dtype=torch.float32))
        assert logits.shape[1] == 3 and torch.isfinite(logits).all()
        for name, tensor in model.state_dict().items():
            assert name in changed or torch.equal(tensor, loaded.state_dict()[name])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda labels: labels[:, :-1], r"labels must be \(batch, height, width\) = \(2, 64, 96\)"),
            (lambda labels: labels.float(), "integer class indices, got torch.float32"),
            (lambda labels: torch.where(labels == 1, 9, labels), r"values \[9\].* num_labels=5 .* ignores 255"),
            (lambda labels: labels - 1, r"values \[-1, 254\]"),
        ],
    )
    def test_wrong_labels_are_refused(self, change, message):
        model, images = self.model(), self.images()
        with pytest.raises(ValueError, match=message):
            model(images, labels=change(self.labels(images)))

    def test_hidden_states_come_from_the_backbone(self):
        model, images = self.model(), self.images()
        assert model(images).hidden_states is None
        assert model(images, output_hidden_states=True).hidden_states is not None
        model.config.output_hidden_states = True
        assert model(images).hidden_states is not None

    def test_backbone_can_be_extracted_and_inserted(self, tmp_path):
        model, images = self.model(torch.float32), self.images(dtype=torch.float32)
        model.save_pretrained(tmp_path / "whole")
        backbone = type(model.backbone).from_pretrained(tmp_path / "whole")
        with torch.no_grad():
            expected = model.backbone(images).feature_maps
            self.assert_same(expected, backbone(images).feature_maps, rtol=1e-5, atol=1e-5)
        backbone.save_pretrained(tmp_path / "backbone")
        other, info = self.model_class.from_pretrained(
            tmp_path / "backbone", config=self.config(), output_loading_info=True
        )
        assert info["missing_keys"] and not any(name.startswith("backbone.") for name in info["missing_keys"])
        without_config = self.model_class.from_pretrained(tmp_path / "backbone", num_labels=3)
        assert without_config.config.num_labels == 3 and type(without_config.config) is type(model.config)
        with torch.no_grad():
            for loaded in (other, without_config):
                self.assert_same(expected, loaded.backbone(images).feature_maps, rtol=1e-5, atol=1e-5)
