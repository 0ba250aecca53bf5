# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean of the weights of several saved models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

from ..escaping import one_line, printable
from ..files import staging_folder
from ..model_loading import without_load_report

_FREE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path")  # fields in which the configs may differ


def average_models(folders: Sequence[Path], output: Path) -> None:
    """Write the mean of models into a folder.

    Floating-point parameters and buffers are averaged in float64, others are those of the last model.

    Args:
        folders: saved models with equal configs, at least two.

    Raises:
        ValueError: naming the folder that does not fit the first, or whose weights are damaged or not finite.
        OSError: if a folder cannot be read or the result cannot be written.
    """
    if len(folders) < 2:
        raise ValueError("an average needs at least two models")
    first = _config(folders[0])
    for folder in folders[1:]:
        config = _config(folder)
        different = [name for name in config.keys() | first.keys() if config.get(name) != first.get(name)]
        if different:
            raise ValueError(f"{folder} is another model than {folders[0]}: {', '.join(sorted(different))} differ")
    sums: dict[str, torch.Tensor] = {}
    model: PreTrainedModel | None = None
    for folder in folders:
        model = _loaded(folder)
        for name, tensor in model.state_dict().items():
            is_averaged = tensor.is_floating_point() and name in sums
            sums[name] = sums[name] + tensor.double() if is_averaged else _wide(tensor)
    assert model is not None
    own = model.state_dict()
    model.load_state_dict(
        {
            name: (total / len(folders)).to(own[name]) if own[name].is_floating_point() else total
            for name, total in sums.items()
        }
    )
    processor = next((folder for folder in folders if (folder / "preprocessor_config.json").exists()), None)
    with staging_folder(output / "model") as folder:
        model.save_pretrained(folder)
        if processor is not None:
            AutoImageProcessor.from_pretrained(processor, trust_remote_code=False).save_pretrained(folder)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == "config.json"):  # the config last
            file.replace(output / file.name)


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    config = json.loads(AutoConfig.from_pretrained(folder, trust_remote_code=False).to_json_string(use_diff=False))
    return {name: value for name, value in config.items() if name not in _FREE}


def _loaded(folder: Path) -> PreTrainedModel:
    """Load a model whose weights are complete and finite.

    Raises:
        ValueError: naming the folder and what is wrong with it.
    """
    try:
        with without_load_report():
            model, info = AutoModelForSemanticSegmentation.from_pretrained(
                folder, dtype="auto", ignore_mismatched_sizes=True, output_loading_info=True, trust_remote_code=False
            )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded: {one_line(error)}") from None
    wrong = sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if wrong:
        raise ValueError(f"{folder} lacks weights that fit its config.json, such as {printable(wrong[0])}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{folder}: {printable(name)} holds NaN or infinity")
    return model


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


__all__ = ["average_models"]
