# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""From the name of a checkpoint to a checked folder that holds the converted model."""

import contextlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from ..hub.model_card import RECORD, write_model_card
from ..image_processing import SegmentationImageProcessor
from ..published import published_rows
from ..version import __version__
from .checkpoint import Checkpoint, read_checkpoint
from .config_source import VARIANT, config_of, read_config
from .convert import backbone_of_classifier, convert_with_report
from .download import download, file_sha256, is_url, shown_url
from .labels import dataset_of_variant, name_classes, reduces_labels
from .mapping import ConversionError, checked_tensors
from .protocol import read_test_pipeline
from .report import ConversionReport
from .segmenter import read_variant_processor
from .verification import EXACT_TOLERANCE, Verification, outputs_of, verify_outputs, verify_tensors


@dataclass
class Source:
    """The file that was converted.

    Attributes:
        file: its name, without folders.
        size: in bytes.
        sha256: of the file.
        url: where it was fetched from, without what may be secret; None for a local file.
        row: the published config it was converted by, if any.
    """

    file: str
    size: int
    sha256: str
    url: str | None = None
    row: str | None = None


@dataclass
class Conversion:
    """What was done, as `conversion.json` in the folder says it.

    Attributes:
        model: what was made, in words.
        source: the file that was converted.
        config: where the original's config came from.
        dtype: of the stored weights.
        report: what became of every tensor.
        tensors_checked: how many were read back and compared.
        verification: how the folder's outputs compare with the model's, where that was asked for.
        license: of the weights, where the user named it.
        versions: of the packages that did it.
    """

    model: str
    source: Source
    config: str
    dtype: str
    report: ConversionReport
    tensors_checked: int
    verification: Verification | None
    license: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        checked = f"checked: {self.tensors_checked} tensors read back, equal to the checkpoint's"
        lines = [self.model, *self.report.summary(), checked]
        if self.verification is not None:
            lines.append(f"verified: {self.verification.describe()}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "source": vars(self.source),
            "config": self.config,
            "dtype": self.dtype,
            "license": self.license,
            "versions": self.versions,
            "tensors_checked": self.tensors_checked,
            "verification": self.verification and self.verification.to_dict(),
            "tensors": self.report.to_dict(),
        }


# mmseg's names of the backbones that are converted for each family, model types of the Hub, and VARIANT
BACKBONES = {
    "vit_adapter": ("ViTAdapter", "BEiTAdapter", "UniPerceiverAdapter"),
    "internimage": ("InternImage", "internimage"),
    "vit_comer": ("ViTCoMer",),
    "segmenter": ("VisionTransformer", VARIANT),
}


def convert_to_folder(
    checkpoint: str,
    output: Path,
    family: str,
    config: str | None = None,
    dataset: str | None = None,
    sha256: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "50GB",
    verify: bool = False,
    repo_id: str | None = None,
    license: str | None = None,
) -> Conversion:
    """Convert a checkpoint into a folder, which appears when it is complete and checked.

    Args:
        checkpoint: a file, an https address, or the name of a published row of `family`.
        output: the folder to write; it must be new or empty.
        family: one of `published.FAMILIES`.
        config: the name of a published row, or a file; by default what `checkpoint` itself says.
        dataset: take names and colours of the classes from it.
        sha256: what the file must have, in hexadecimal digits.
        dtype: of the stored weights; by default that of the checkpoint.
        max_shard_size: of one file with weights, such as "2GB".
        verify: also compare outputs after a reload.
        repo_id: where the folder will be pushed to, for its card.
        license: of the weights, for the card; by default that of a published row's authors.

    Raises:
        ConversionError: saying what is wrong and what to do.
    """
    rows = published_rows(family)
    path, source = _located(checkpoint, rows, sha256)
    row_name = config if config in rows else source.row if config is None else None
    row = rows.get(row_name or "", {})
    chosen: dict[str, Any] = row
    if not row and config is not None:
        chosen = read_config(config, family)
    original = read_checkpoint(path)
    if not chosen:
        chosen = config_of(original, path)
    source.row = row_name
    described = backbone_of_classifier(chosen["model"], original.state_dict)
    is_variant = "net_kwargs" in described
    _check_kind(described, is_variant, BACKBONES[family])
    model, report = convert_with_report(original.state_dict, described)
    report.beside = original.others
    dataset_or_row = dataset or row.get("dataset")
    if is_variant:
        dataset_or_row = dataset_or_row or dataset_of_variant(described)
        processor = read_variant_processor(described, reduces_labels(chosen, dataset_or_row, original.meta))
        origin = name_classes(model, original, dataset_or_row, row)
    else:
        processor, note = _processor(chosen, described, dataset_or_row, original)
        if isinstance(model, BackboneMixin):
            origin = f"a backbone, whose head is yet to be trained{note}"
        else:
            origin = name_classes(model, original, dataset, row) + note
    if row_name is not None and not isinstance(model, BackboneMixin):
        model.config.source_config = row_name  # so that an evaluation knows the published figures
    told = f"published config {row_name}" if row else Path(config).name if config else "in the checkpoint"
    description = _described(model, origin)
    with _complete_folder(output) as folder:
        stored, tensors, verification = _save(
            folder, model, processor, original, report, dtype or model.dtype, max_shard_size, verify
        )
        conversion = Conversion(
            description, source, told, stored, report, tensors, verification, license, versions=_versions()
        )
        (folder / RECORD).write_text(json.dumps(conversion.to_dict(), indent=2) + "\n", encoding="utf-8")
        write_model_card(folder, repo_id=repo_id, name=output.name, license=license)
    return conversion


@contextlib.contextmanager
def _complete_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output`, which takes its name when what is done with it ends without an error."""
    partial = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".segtransformers.", dir=output.parent))
        yield partial
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes for its user alone
        partial.chmod(0o755)
        partial.replace(output)  # an empty folder of that name is replaced
    except ConversionError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ConversionError(f"cannot write {output}: {error}") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def _save(
    folder: Path,
    model: PreTrainedModel,
    processor: SegmentationImageProcessor,
    original: Checkpoint,
    report: ConversionReport,
    dtype: torch.dtype,
    max_shard_size: str,
    verify: bool,
) -> tuple[str, int, Verification | None]:
    """Write the model and its processor, and read them back. Neither model nor checkpoint holds anything afterwards.

    Returns:
        the precision, how many tensors were compared, and with `verify` how outputs compare.
    """
    expected = outputs_of(model.float()) if verify else []
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps it
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    tensors = verify_tensors(folder, model, checked_tensors(original.state_dict), report)
    # the memory is needed for the reload, and callers still refer to both
    original.state_dict.clear()
    model.to("meta")  # type: ignore[arg-type]
    verification = None
    if verify:
        verification = verify_outputs(folder, type(model), expected)
        if dtype == torch.float32 and verification.relative_error > EXACT_TOLERANCE:
            raise ConversionError(f"the written model is not the converted one: {verification.describe()}")
    return str(dtype).removeprefix("torch."), tensors, verification


def _located(checkpoint: str, rows: Mapping[str, Any], sha256: str | None) -> tuple[Path, Source]:
    """The file behind the name of a checkpoint: fetched where it is an address or a published row."""
    path, row = Path(checkpoint), None
    url = checkpoint if is_url(checkpoint) else None
    if url is None and not path.is_file() and checkpoint in rows:
        row, url = checkpoint, rows[checkpoint]["download"]
        if url is None:
            raise ConversionError(f"the authors of {checkpoint} have published no file for it: give one of your own")
    if url is not None:
        path = download(url, sha256)
    if not path.is_file():
        raise ConversionError(f"there is no file {checkpoint}, and it is no published config or https address")
    digest = file_sha256(path)
    if sha256 is not None and digest != sha256:
        raise ConversionError(f"{path} has the SHA-256 {digest}, expected {sha256}")
    name = path.name if url is None else path.name.partition("-")[2]
    return path, Source(name, path.stat().st_size, digest, None if url is None else shown_url(url), row)


def _check_kind(described: Mapping[str, Any], is_variant: bool, backbones: Sequence[str]) -> None:
    """Refuse what another script converts."""
    backbone = described.get("backbone", described)
    kind = backbone.get("type", backbone.get("model_type")) if isinstance(backbone, dict) else None
    kind = VARIANT if is_variant else kind
    if kind in backbones:
        return
    if is_variant:
        raise ConversionError(
            "the config is an official Segmenter's variant.yml, which convert_segmenter.py converts; "
            f"this script converts {', '.join(backbones)}"
        )
    known = ("an official Segmenter with its variant.yml" if name == VARIANT else name for name in backbones)
    raise ConversionError(f"the config's backbone is {kind!r}; this script converts {', '.join(known)}")


def _processor(
    config: Mapping[str, Any], described: Mapping[str, Any], dataset: str | None, original: Checkpoint
) -> tuple[SegmentationImageProcessor, str]:
    """The image processor, and what must be said about it."""
    pipeline = config.get("test_pipeline")
    if pipeline is None:
        return SegmentationImageProcessor(), "; image processor: defaults, the config has no test_pipeline"
    preprocessor = described.get("data_preprocessor")
    reduce_labels = reduces_labels(config, dataset, original.meta)
    return read_test_pipeline(pipeline, reduce_labels, preprocessor, config.get("multi_scale_pipeline")), ""


def _described(model: PreTrainedModel, origin: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    outputs = "feature maps" if isinstance(model, BackboneMixin) else f"{model.config.num_labels} classes"
    return f"{type(model).__name__}, {parameters / 1e6:.1f}M parameters, {outputs} ({origin})"


def _versions() -> dict[str, str]:
    others = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "timm")}
    return {"segtransformers": __version__, **others}
