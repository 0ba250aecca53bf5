# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Recorded inputs and outputs of the original code."""

import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "reference"

_spec = importlib.util.spec_from_file_location("fill", FOLDER / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


class ReferenceCase:
    """A folder of `reference/`, such as `vit_adapter/tiny-vit-upernet`."""

    def __init__(self, name: str):
        self.folder = FOLDER / name
        self.manifest = json.loads((self.folder / "manifest.json").read_text())

    @property
    def config(self) -> dict:
        return json.loads(json.dumps(self.manifest["config"]))

    def state_dict(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        """Return the checkpoint, without buffers whose values follow from the config."""
        derived = self.manifest.get("derived", ())
        return fill.state_dict([entry for entry in self.manifest["state_dict"] if entry[0] not in derived], dtype)

    def pixel_values(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return fill.image(self.manifest["input"]["shape"], self.manifest["input"]["name"], dtype)

    def outputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "outputs.safetensors")

    def sampled(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of `tensor` that was recorded under `name`."""
        slices = self.manifest["outputs"][name]["slices"]
        return eval(slices, {"tensor": tensor}) if slices else tensor

    @torch.no_grad()
    def check(self, model, feature_bound: float = 2e-6, logits_bound: float = 1e-5) -> None:
        """Assert that a model of float64 weights gives the recorded feature maps, query logits and logits."""
        recorded, images = self.outputs(), self.pixel_values()
        model.config.inference_mode = "whole"
        outputs = model(images)
        actual = {f"feature_{level}": tensor for level, tensor in enumerate(model.backbone(images).feature_maps)}
        actual["segmentation_logits"] = outputs.logits
        if "mask_logits" in recorded:
            actual |= {"class_logits": outputs.class_queries_logits, "mask_logits": outputs.masks_queries_logits}
        if "sliding_window_logits" in recorded:
            window = self.manifest["slide"]
            model.config.inference_mode = "slide"
            model.config.window_size, model.config.window_stride = window["crop_size"], window["stride"]
            actual["sliding_window_logits"] = model(images).logits
        for name, tensor in actual.items():
            bound = feature_bound if name.startswith("feature") else logits_bound
            assert relative_error(self.sampled(name, tensor), recorded[name]) < bound, name


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the L2 distance relative to the norm of `expected`. Both tensors must have the same shape."""
    assert actual.shape == expected.shape
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm()).item()
