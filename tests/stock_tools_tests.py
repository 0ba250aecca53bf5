# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Tests that stock tools of PyTorch and Hugging Face work on a model: hooks, quantisation, LoRA, tracing, torch.func.

All of them take hold of layers. They find a layer by its type or its name, replace it, wrap its forward, or change its
weight, and rely on the model to call the layer on one tensor and to leave its result as it is.
"""

import copy
import functools
import io
import pickle
import warnings
from collections import Counter

import accelerate
import pytest
import torch
from model_tests import ModelCase
from torch import nn
from torch.nn.utils import parametrize
from transformers import BitsAndBytesConfig

from segtransformers.operators import compiled_operators

# our layers whose forward takes tensors and depends neither on their shape nor on their values
TRACEABLE = {
    "DropPath",
    "InternImageDownsample",
    "InternImageEmbeddings",
    "InternImageMLP",
    "SegMask2FormerMaskPredictor",
    "SegMask2FormerSelfAttention",
    "SpatialPrior",
    "ViTCoMerReceptiveFields",
}
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus)


class Doubled(nn.Module):
    """Parametrization that doubles a weight."""

    def forward(self, weight):
        return 2 * weight


def layers_with_parameters(model: nn.Module) -> dict[str, nn.Module]:
    """Return the innermost modules with parameters, except `out_proj` of `nn.MultiheadAttention`.

    PyTorch itself never calls that layer.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if next(module.children(), None) is None
        and next(module.parameters(), None) is not None
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    }


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in layers_with_parameters(model).items() if isinstance(layer, nn.Linear)}


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in layers_with_parameters(model).items() if isinstance(layer, nn.Conv2d)}


def tensors_in(value) -> list[torch.Tensor]:
    """Return the tensors in the arguments or the output of a module."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in values for tensor in tensors_in(item)]


class StockToolsTests(ModelCase):
    """Tests of one model. Subclasses define what [`ModelCase`] asks for."""

    uncalled: list[str] = []  # layers with parameters whose forward transformers or timm never calls
    runs_in_8_bits = True  # bitsandbytes' 8-bit layers take features with up to three dimensions on a CPU

    def float_model(self):
        return self.model(torch.float32), self.images(dtype=torch.float32)

    def assert_near(self, actual, expected, bound: float):
        """Compare by relative L2 distance."""
        for one, other in zip(actual, expected, strict=True):
            assert one.isfinite().all()
            assert (one.float() - other.float()).norm() / other.float().norm() < bound

    def seeded_scalar(self, model, images):
        """Mask2Former's loss samples points at random."""
        torch.manual_seed(0)
        return self.scalar(model, images)

    # quantisation

    def test_layers_have_the_types_of_torch(self):
        """Tools look for `type(layer) is nn.Linear` and `nn.Conv2d`."""
        model = self.model()
        assert {type(module) for module in linear_layers(model).values()} <= {nn.Linear}
        assert {type(module) for module in convolutions(model).values()} <= {nn.Conv2d}

    @pytest.mark.filterwarnings("ignore")
    def test_quantize_dynamic(self):
        model, images = self.float_model()
        expected, count = self.run(model, images), len(linear_layers(model))
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        replaced = [m for m in quantised.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
        assert len(replaced) == count and not linear_layers(quantised)
        self.assert_near(self.run(quantised, images), expected, 0.1)

    @pytest.mark.parametrize("option", ["load_in_8bit", "load_in_4bit"])
    def test_bitsandbytes(self, option, tmp_path):
        bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        model, images = self.float_model()
        expected, count = self.run(model, images), len(linear_layers(model))
        model.save_pretrained(tmp_path)
        # the default skips the last layer of a model
        config = BitsAndBytesConfig(**{option: True}, llm_int8_skip_modules=["no_such_layer"])
        quantised = self.model_class.from_pretrained(tmp_path, quantization_config=config, device_map="cpu").eval()
        kinds = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
        assert sum(isinstance(module, kinds) for module in quantised.modules()) == count
        if option == "load_in_8bit" and not self.runs_in_8_bits:
            return
        # with gradients, because inference on a CPU with AVX512-BF16 asks for a multiple of 32 output channels
        actual = self.tensors(quantised(images.requires_grad_()))
        self.assert_near(actual, expected, 0.1 if option == "load_in_8bit" else 0.6)

    def test_torchao_int8_weights(self):
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        model, images = self.float_model()
        expected = self.run(model, images)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        assert {type(module.weight) for module in linear_layers(model).values()} <= {quantization.Int8Tensor}
        self.assert_near(self.run(model, images), expected, 0.1)

    def test_quanto_int8_weights(self):
        quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
        model, images = self.float_model()
        expected = self.run(model, images)
        names = [*linear_layers(model), *convolutions(model)]
        quanto.quantize(model, weights=quanto.qint8)
        quanto.freeze(model)
        assert all(isinstance(model.get_submodule(name), quanto.QLinear | quanto.QConv2d) for name in names)
        self.assert_near(self.run(model, images), expected, 0.1)

    # adapters

    @pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
    def test_lora_on_linear_layers_and_convolutions(self, dora):
        peft = pytest.importorskip("peft", reason="peft is not installed")
        model, images = self.model(), self.images(size=(64, 128))
        plain = self.run(model, images)
        names = [*linear_layers(model), *(name for name, layer in convolutions(model).items() if layer.groups == 1)]
        config = peft.LoraConfig(r=2, target_modules=names, use_dora=dora, init_lora_weights=False)
        adapted = peft.get_peft_model(model, config)
        parameters = {name: tensor for name, tensor in adapted.named_parameters() if tensor.requires_grad}
        assert len(parameters) == (3 if dora else 2) * len(names)
        self.seeded_scalar(adapted, images).backward()
        assert [name for name, tensor in parameters.items() if tensor.grad is None] == []
        unmerged = self.run(adapted, images)
        assert not any(torch.allclose(one, other) for one, other in zip(unmerged, plain, strict=True))
        self.assert_same(self.run(adapted.merge_and_unload(), images), unmerged, rtol=1e-6, atol=1e-7)

    # hooks

    @pytest.mark.parametrize("mode", ["inference", "gradients", "training"])
    def test_forward_hooks(self, mode):
        """Every layer with parameters is called on one tensor, and no tensor changes after a hook saw it."""
        model, images = self.model().train(mode == "training"), self.images(size=(64, 128))
        layers = layers_with_parameters(model)
        calls, seen = Counter(), []

        def hook(module, arguments, output, name):
            calls[name] += 1
            seen.extend((name, tensor, tensor.detach().clone()) for tensor in tensors_in((arguments, output)))
            if name in layers:
                assert [type(argument) for argument in arguments] == [torch.Tensor], name

        for name, module in model.named_modules():
            module.register_forward_hook(functools.partial(hook, name=name))
        if mode == "inference":
            self.run(model, images)
        with torch.set_grad_enabled(mode != "inference"):
            scalar = self.scalar(model, images)
        if mode != "inference":
            scalar.backward()
        assert sorted(set(layers) - set(calls)) == sorted(self.uncalled)
        assert sorted({name for name, tensor, copied in seen if not torch.equal(tensor, copied)}) == []

    def test_backward_hooks(self):
        model, images = self.model(), self.images(size=(64, 128))
        self.seeded_scalar(model, images).backward()
        expected = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
        model.zero_grad()
        calls = Counter()
        for name, module in model.named_modules():
            module.register_full_backward_hook(lambda *_, name=name: calls.update([name]))
        self.seeded_scalar(model, images).backward()
        actual = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
        assert actual.keys() == expected.keys()
        self.assert_same(list(actual.values()), list(expected.values()), rtol=1e-9, atol=1e-12)
        linear = linear_layers(model)
        assert [name for name in linear if not calls[name] and name not in self.uncalled] == []

    def test_replaced_forwards(self):
        """accelerate's hooks replace the `forward` of a module by one that is no method."""
        model, images = self.model(), self.images()
        expected = self.run(model, images)
        for module in model.modules():
            accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
        self.assert_same(self.run(model, images), expected, rtol=1e-9, atol=1e-11)

    # replaced layers and weights

    def test_replaced_activations_change_the_output(self):
        model, images = self.model(), self.images()
        with torch.no_grad():
            expected = self.seeded_scalar(model, images)
            unused = []
            for name, module in [*model.named_modules()]:
                if isinstance(module, ACTIVATIONS):
                    parent, _, attribute = name.rpartition(".")
                    replacement = nn.Tanh() if isinstance(module, nn.Sigmoid | nn.Softplus) else nn.GELU("tanh")
                    setattr(model.get_submodule(parent), attribute, replacement)
                    if torch.allclose(self.seeded_scalar(model, images), expected, rtol=1e-12, atol=0):
                        unused.append(name)
                    setattr(model.get_submodule(parent), attribute, module)
        assert unused == []

    def test_parametrized_weights(self):
        """A parametrization changes the class of a layer, and computes its weight when it is used."""
        model, images = self.model(), self.images()
        doubled = copy.deepcopy(model)
        layers = {**linear_layers(model), **convolutions(model)}
        with torch.no_grad():
            for name, layer in layers.items():
                doubled.get_submodule(name).weight.mul_(2)
                parametrize.register_parametrization(layer, "weight", Doubled())
        self.assert_same(self.run(model, images), self.run(doubled, images), rtol=1e-9, atol=1e-11)

    def test_synchronised_batch_norms(self):
        model, images = self.model(), self.images()
        expected = self.run(model, images)
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert not any(type(module) is nn.BatchNorm2d for module in synchronised.modules())
        self.assert_same(self.run(synchronised, images), expected, rtol=1e-9, atol=1e-11)

    # tracing and torch.func

    def test_layers_can_be_traced(self):
        """fx traces every `nn.Sequential` of stock layers and our own layers without control flow."""
        model, images = self.model(), self.images()
        inputs, hooks = {}, []
        for name, module in model.named_modules():
            stock = all(type(child).__module__.startswith("torch.nn.") for child in list(module.modules())[1:])
            if (stock and isinstance(module, nn.Sequential)) or type(module).__name__ in TRACEABLE:
                record = functools.partial(lambda name, _, arguments: inputs.update({name: arguments}), name)
                hooks.append(module.register_forward_pre_hook(record))
        self.run(model, images)
        for hook in hooks:
            hook.remove()
        for name, arguments in inputs.items():
            module = model.get_submodule(name)
            traced = torch.fx.symbolic_trace(module)
            with torch.no_grad():
                self.assert_same([traced(*arguments)], [module(*arguments)], rtol=1e-9, atol=1e-11)

    def test_gradients_of_each_image(self):
        """`vmap` runs the whole model on batches of one image with an additional dimension."""
        model, images = self.model(), self.images(size=(32, 64))
        parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

        def scalar(parameters, image):
            outputs = torch.func.functional_call(model, parameters, (image[None],))
            return sum(tensor.square().mean() for tensor in self.tensors(outputs))

        with compiled_operators("off"):  # torch refuses transforms of operators that register their own gradient
            gradients = torch.func.vmap(torch.func.grad(scalar), in_dims=(None, 0))(parameters, images)
        for index, image in enumerate(images):
            model.zero_grad()
            scalar(dict(model.named_parameters()), image).backward()
            for name, tensor in model.named_parameters():
                if tensor.grad is not None:
                    torch.testing.assert_close(gradients[name][index], tensor.grad, rtol=1e-7, atol=1e-9, msg=name)

    # copies

    @pytest.mark.parametrize("tool", ["deepcopy", "pickle", "torch.save"])
    def test_copies(self, tool):
        model, images = self.model(), self.images()
        expected = self.run(model, images)
        if tool == "deepcopy":
            copied = copy.deepcopy(model)
        elif tool == "pickle":
            copied = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copied = torch.load(file, weights_only=False)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.zero_()
        self.assert_same(self.run(copied, images), expected)
        self.scalar(copied.train(), self.images(size=(64, 128))).backward()
        assert all(tensor.grad is None for tensor in model.parameters())

    @pytest.mark.parametrize("dtype", ["half", "bfloat16"])
    def test_half_precision(self, dtype):
        model, images = self.float_model()
        expected = self.run(model, images)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            actual = self.run(getattr(model, dtype)(), getattr(images, dtype)())
        self.assert_near(actual, expected, 0.02 if dtype == "half" else 0.1)
