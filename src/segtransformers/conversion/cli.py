# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What the conversion scripts do: read a checkpoint, convert it, write a folder that `from_pretrained` loads."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.utils import logging

from ..datasets import DATASETS, get_dataset_info
from ..image_processing import SegmentationImageProcessor
from .checkpoint import Checkpoint, read_checkpoint
from .config_text import parse_config, parse_variant
from .convert import backbone_of_classifier, convert_checkpoint
from .mapping import ConversionError, Settings
from .protocol import read_test_pipeline
from .published import published_outputs, published_rows
from .segmenter import read_variant_processor

CONFIG_VARIABLES = ("model", "test_pipeline", "train_pipeline")
VARIANT = "variant.yml"  # what an official Segmenter calls its config, and where it looks for it


def main(family: str, backbones: Sequence[str], arguments: Sequence[str] | None = None) -> int:
    """Run one family's conversion script; returns the exit status.

    Args:
        family: which published rows `--config` knows.
        backbones: mmseg's names of the backbones that this script converts, and model types of the Hub.
        arguments: the command line, by default the process's own.
    """
    options = _parser(family).parse_args(arguments)
    logging.disable_progress_bar()
    try:
        output = _checked_output(options.output)
        model, processor, origin = _convert(options, family, backbones)
        _write(model, processor, output)
    except ConversionError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    parameters = sum(parameter.numel() for parameter in model.parameters())
    outputs = "feature maps" if isinstance(model, BackboneMixin) else f"{model.config.num_labels} classes"
    print(f"{type(model).__name__}, {parameters / 1e6:.1f}M parameters, {outputs} ({origin})")
    print(f"written to {output}")
    return 0


def _parser(family: str) -> argparse.ArgumentParser:
    rows = "\n  ".join(f"{name:<60} {_described(row)}" for name, row in published_rows(family).items())
    parser = argparse.ArgumentParser(
        description="Convert an original MMSegmentation 0.x checkpoint into a folder that from_pretrained loads.",
        epilog=f"published configs:\n  {rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="local .pth, .pth.tar, .zip, .bin or .safetensors file"
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="name of a published config, or a .py or .json file with the resolved config, its model dict, or the "
        "config.json of an image classifier on the Hub, or an official Segmenter's variant.yml; "
        "by default the config that mmcv saved in the checkpoint, or the variant.yml beside it",
    )
    parser.add_argument(
        "--dataset", choices=DATASETS, help="take class names and palette from this data set, not from the checkpoint"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write; it must be new or empty")
    return parser


def _described(row: dict[str, Any]) -> str:
    figures = [f"mIoU {row['miou']}"] if row["miou"] is not None else []
    return ", ".join([row["dataset"], str(row["crop_size"]), *figures])


def _checked_output(name: str) -> Path:
    """Where to write: a new or empty folder. Checked before any work is done."""
    try:
        output = Path(name).expanduser().resolve()
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConversionError(f"--output {name!r} is no path to write to: {error}") from error
    if output == Path.cwd() or taken:
        raise ConversionError(f"{output} is not a new or empty folder: choose another --output")
    return output


def _convert(
    options: argparse.Namespace, family: str, backbones: Sequence[str]
) -> tuple[PreTrainedModel, SegmentationImageProcessor, str]:
    row = published_rows(family).get(options.config or "", {})
    config = row
    if not row and options.config is not None:
        config = _read_config(options.config, family)
    checkpoint = read_checkpoint(options.checkpoint)
    if not config:
        config = _config_of(checkpoint, Path(options.checkpoint))
    described = backbone_of_classifier(config["model"], checkpoint.state_dict)
    is_variant = "net_kwargs" in described
    backbone = described.get("backbone", described)
    kind = backbone.get("type", backbone.get("model_type")) if isinstance(backbone, dict) else None
    kind = VARIANT if is_variant else kind
    if kind not in backbones:
        if is_variant:
            raise ConversionError(
                "the config is an official Segmenter's variant.yml, which convert_segmenter.py converts; "
                f"this script converts {', '.join(backbones)}"
            )
        known = ("an official Segmenter with its variant.yml" if name == VARIANT else name for name in backbones)
        raise ConversionError(f"the config's backbone is {kind!r}; this script converts {', '.join(known)}")
    model = convert_checkpoint(checkpoint.state_dict, described)
    dataset = options.dataset or row.get("dataset")
    if is_variant:
        dataset = dataset or _dataset_of(described)
        processor = read_variant_processor(described, _reduces_labels(config, dataset))
        return model, processor, _label(model, checkpoint, dataset, row)
    if isinstance(model, BackboneMixin):
        origin = "a backbone, whose head is yet to be trained"
    else:
        origin = _label(model, checkpoint, options.dataset, row)
    pipeline = config.get("test_pipeline")
    if pipeline is None:
        return (
            model,
            SegmentationImageProcessor(),
            f"{origin}; image processor: defaults, the config has no test_pipeline",
        )
    preprocessor = described.get("data_preprocessor")
    reduce_labels = _reduces_labels(config, dataset)
    processor = read_test_pipeline(pipeline, reduce_labels, preprocessor, config.get("multi_scale_pipeline"))
    return model, processor, origin


def _dataset_of(variant: Mapping[str, Any]) -> str | None:
    """The data set that an official Segmenter was trained on, where it is a known one with as many classes."""
    name = Settings(variant.get("dataset_kwargs") or {}, "the variant's dataset_kwargs").take("dataset", None)
    outputs = variant["net_kwargs"]["n_cls"]
    return name if name in DATASETS and len(get_dataset_info(name).classes) == outputs else None


def _reduces_labels(config: dict[str, Any], dataset: str | None) -> bool:
    """Whether label 0 means "no class": what the config loads labels with, or else a habit of the data set."""
    steps = config.get("train_pipeline") or []
    loading = [step for step in steps if isinstance(step, dict) and step.get("type") == "LoadAnnotations"]
    if loading:
        return bool(loading[0].get("reduce_zero_label", False))
    return dataset is not None and get_dataset_info(dataset).reduce_zero_label


def _read_config(name: str, family: str) -> dict[str, Any]:
    path = Path(name)
    suffix = path.suffix.lower()
    if not path.is_file():
        rows = ", ".join(published_rows(family))
        raise ConversionError(f"--config {name!r} is neither a file nor a published config. Published are: {rows}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix in (".yml", ".yaml"):
            config = parse_variant(text)
        else:
            config = json.loads(text) if suffix == ".json" else parse_config(text, CONFIG_VARIABLES)
    except (OSError, ValueError, RecursionError) as error:  # json raises a plain ValueError for huge integers
        hint = (
            ""
            if suffix in (".py", ".json", ".yml", ".yaml")
            else (". It was read as Python text; what holds JSON must be called .json, and a variant.yml .yml or .yaml")
        )
        raise ConversionError(f"{path} cannot be read as a config: {error}{hint}") from error
    return _checked_config(config, str(path))


def _config_of(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    text = checkpoint.meta.get("config", checkpoint.meta.get("cfg"))  # mmcv's name, and mmengine's
    if not isinstance(text, str):
        if path.with_name(VARIANT).is_file():
            return _read_config(str(path.with_name(VARIANT)), "segmenter")
        raise ConversionError("the checkpoint does not hold its config: say --config NAME or --config FILE")
    return _checked_config(parse_config(text, CONFIG_VARIABLES), "the config in the checkpoint")


def _checked_config(config: Any, where: str) -> dict[str, Any]:
    """A whole config; a lone model dict becomes one that has nothing else."""
    if isinstance(config, dict) and "model" not in config:
        config = {"model": config}
    model = config["model"] if isinstance(config, dict) else None
    if not isinstance(model, dict) or not {"type", "model_type", "net_kwargs"} & model.keys():
        raise ConversionError(f"{where} has no model dict with a type")
    return config


def _label(model: PreTrainedModel, checkpoint: Checkpoint, chosen: str | None, row: dict[str, Any]) -> str:
    """Name and colour the model's classes; returns where the names came from.

    Names come from the data set that the user names, else from the checkpoint, else from the published row's data set.
    A published checkpoint may name classes that it has no outputs for: then the row's data set is right. And some have
    outputs that were never trained, behind those of their data set.
    """
    config = model.config
    names, palette = checkpoint.meta.get("CLASSES"), checkpoint.meta.get("PALETTE")
    newer = checkpoint.meta.get("dataset_meta")  # of MMSegmentation 1.x
    if names is None and isinstance(newer, dict):
        names, palette = newer.get("classes"), newer.get("palette")
    origin = "names from the checkpoint"
    fit = isinstance(names, list | tuple) and len(names) == config.num_labels
    dataset = chosen or (row["dataset"] if row and not fit else None)
    if dataset is not None:
        info = get_dataset_info(dataset)
        names, palette, origin = info.classes, info.palette, f"names of {dataset}"
        outputs = published_outputs(row) if row and dataset == row["dataset"] else 0
        surplus = outputs - len(names)
        if surplus > 0 and outputs == config.num_labels:
            names = [*names, *(f"unused {len(names) + index}" for index in range(surplus))]
            palette = [*palette, *([[0, 0, 0]] * surplus)]
    if names is None:
        return "without names: say --dataset to name them"
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConversionError("the checkpoint's CLASSES are not a list of names")
    if len(names) != config.num_labels:
        advice = (
            "Choose another --dataset, or leave it out"
            if chosen
            else "Say --dataset to take names and colours from a data set"
        )
        raise ConversionError(
            f"the {origin} are {len(names)}, but the head has {config.num_labels} outputs: {', '.join(names[:4])}, ... "
            + advice
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    if isinstance(palette, list | tuple | np.ndarray) and len(palette) != len(names):
        return f"{origin}, without its {len(palette)} colours for {len(names)} classes"
    if palette is not None:
        config.palette = _checked_palette(palette, len(names))
    return origin


def _checked_palette(palette: Any, count: int) -> list[list[int]]:
    """mmseg saves a list, or a numpy array where it drew the colours at random."""
    try:
        colours = [[int(value) for value in colour] for colour in palette]
    except (TypeError, ValueError, OverflowError) as error:
        raise ConversionError(f"the checkpoint's PALETTE is no list of colours: {error}") from error
    if len(colours) != count or any(
        len(colour) != 3 or not 0 <= min(colour) <= max(colour) <= 255 for colour in colours
    ):
        raise ConversionError(f"the checkpoint's PALETTE must hold {count} colours of three values from 0 to 255")
    return colours


def _write(model: PreTrainedModel, processor: SegmentationImageProcessor, output: Path) -> None:
    """Save into a folder beside `output` that takes its name only when complete."""
    partial = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".segtransformers.", dir=output.parent))
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        partial.chmod(0o755)
        partial.replace(output)  # an empty folder of that name is replaced
    except (OSError, RuntimeError, ValueError) as error:
        raise ConversionError(f"cannot write {output}: {error}") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
