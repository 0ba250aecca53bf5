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
        return fill.state_dict(self.manifest["state_dict"], dtype)

    def pixel_values(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return fill.image(self.manifest["input"]["shape"], self.manifest["input"]["name"], dtype)

    def outputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "outputs.safetensors")

    def sampled(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of `tensor` that was recorded under `name`."""
        slices = self.manifest["outputs"][name]["slices"]
        return eval(slices, {"tensor": tensor}) if slices else tensor


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the L2 distance relative to the norm of `expected`. Both tensors must have the same shape."""
    assert actual.shape == expected.shape
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm()).item()
