# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a checkpoint file, address or published name into a checked folder with the model."""

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from ..escaping import printable, short_repr
from ..files import check_readable, staging_folder, write_failure
from ..hub.model_card import RECORD, write_model_card
from ..image_processing import SegmentationImageProcessor
from ..published import download_addresses, published_row, published_rows, trunk_addresses
from ..version import __version__
from . import dinov2, dinov3, mmseg_zoo, trunk_file
from .checkpoint import Checkpoint, averaged_weights, read_checkpoint
from .config_source import VARIANT, config_of, read_config
from .convert import backbone_of_classifier, convert_with_report
from .download import download, file_sha256, is_file_url, is_url, shown_url
from .errors import is_memory_error, memory_errors
from .labels import dataset_of_variant, name_classes, reduces_labels
from .mapping import ConversionError, checked_tensors
from .protocol import read_test_pipeline
from .report import ConversionReport
from .segmenter import read_variant_processor
from .two_files import has_trunk, with_trunk
from .verification import EXACT_TOLERANCE, Verification, outputs_of, verify_outputs, verify_tensors


@dataclass
class Source:
    """The file that was converted.

    Attributes:
        file: its name, without folders.
        size: its size in bytes.
        sha256: its SHA-256 in hexadecimal digits.
        url: its address without secrets; None for a local file.
        row: the name of the published config that was used, if any.
        trunk: the file of the backbone, if it was a second one.
    """

    file: str
    size: int
    sha256: str
    url: str | None = None
    row: str | None = None
    trunk: dict[str, Any] | None = None


@dataclass
class Conversion:
    """Record of a conversion, written to `conversion.json`.

    Attributes:
        model: description of the model.
        source: the file that was converted.
        config: origin of the original's config.
        dtype: dtype of the stored weights.
        report: the use of every tensor.
        tensors_checked: number of tensors that were read back and compared.
        verification: comparison of outputs after a reload, if requested.
        license: licence of the weights, if given by the user.
        versions: versions of this package, torch, transformers and timm.
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
        """Return the lines that the command prints."""
        checked = f"checked: {self.tensors_checked} tensors read back, equal to the checkpoint's"
        lines = [self.model, *self.report.summary(), checked]
        if self.verification is not None:
            lines.append(f"verified: {self.verification.describe()}")
        return "\n".join(printable(line, None) for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `conversion.json`."""
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


# DINOv3's authors end the names of their files with the first digits of the SHA-256
_HASH_IN_NAME = re.compile(r"dinov3_\w+-([0-9a-f]{8})\.pth")

# backbones of each family, by type name of mmseg, model type on the Hub, or VARIANT
BACKBONES = {
    "vit_adapter": ("ViTAdapter", "BEiTAdapter", "UniPerceiverAdapter"),
    "internimage": ("InternImage", "internimage"),
    "vit_comer": ("ViTCoMer",),
    "segmenter": ("VisionTransformer", VARIANT),
    "dinov2": (dinov2.BACKBONE, "ViTAdapter", trunk_file.KINDS["dinov2"]),
    "dinov3": (dinov3.KIND, trunk_file.KINDS["dinov3"]),
    "flash_internimage": ("FlashInternImage",),
    "eva02": ("EVA2", "BEiT"),
    "mmseg_zoo": tuple(mmseg_zoo.BACKBONES),
    "eva01": ("BEiTAdapter", "BEiTWINAdapter"),
    "one_peace": ("OnePeaceAdapter",),
}


@memory_errors()
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
    ema: bool = False,
    trunk_weights: str | None = None,
    separate_trunk: str | None = None,
) -> Conversion:
    """Convert a checkpoint into a folder. The folder appears when it is complete and checked.

    Args:
        checkpoint: a file, an https address, or the name of a published config of `family`.
        output: the folder to write; it must be new or empty.
        family: one of `published.FAMILIES`.
        config: the name of a published config, or a file; by default the config that belongs to `checkpoint`.
        dataset: data set to take the names and colours of the classes from.
        sha256: expected SHA-256 of the file, in hexadecimal digits.
        dtype: dtype of the stored weights; by default that of the checkpoint.
        max_shard_size: largest size of one file with weights, such as "2GB".
        verify: also compare outputs after a reload.
        repo_id: the repository that the folder will be pushed to, for the model card.
        license: licence of the weights, for the model card; by default that of the authors of a published config.
        ema: convert the averaged weights that some trainers save beside the weights.
        trunk_weights: the backbone's file or its https address, where the authors published it apart from the head. A
            published config downloads its own.
        separate_trunk: leave the trunk out of the folder, which then names these weights instead; see
            `separate_trunk` of the models.

    Raises:
        ConversionError: if the checkpoint or its config cannot be converted, or the folder cannot be written.
    """
    if separate_trunk is not None and verify:
        raise ConversionError("--verify loads the folder alone, which --separate-trunk makes impossible: leave one out")
    rows = published_rows(family)
    path, source = _find_checkpoint(checkpoint, rows, sha256)
    row_name = config if config in rows else source.row if config is None else None
    row = rows.get(row_name or "", {})
    original_config: dict[str, Any] = row
    if not row and config is not None:
        original_config = read_config(config, family)
    original = read_checkpoint(path)
    if ema:
        original.state_dict = averaged_weights(original)
    if trunk_weights is not None or (trunk_addresses(row) and not has_trunk(original.state_dict, family)):
        trunk, source.trunk = _find_trunk(trunk_weights, row_name or "", row)
        backbone = read_checkpoint(trunk)
        original.state_dict = with_trunk(original.state_dict, backbone.state_dict, family, trunk)
        original.maps += backbone.maps
    if not original_config:
        original_config = trunk_file.described(original.state_dict, family)
    if not original_config and family == "dinov3":
        original_config = dinov3.described(original.state_dict)
    if not original_config:
        original_config = config_of(original, path)
    source.row = row_name
    model_config = backbone_of_classifier(original_config["model"], original.state_dict)
    is_variant = "net_kwargs" in model_config
    _check_backbone(model_config, is_variant, BACKBONES[family])
    model, report = convert_with_report(original.state_dict, model_config, original.drop_read_pages)
    report.left_behind = original.others
    status = row.get("config_status", "Certain")
    if not status.startswith("Certain"):
        report.notes.append(f"the published config is not certain, pass your copy as --config: {status}")
    mmseg_zoo.set_padding(model.config, model_config)
    dataset_or_row = dataset or row.get("dataset")
    if is_variant:
        dataset_or_row = dataset_or_row or dataset_of_variant(model_config, model.config.num_labels or 0)
        processor = read_variant_processor(model_config, reduces_labels(original_config, dataset_or_row, original.meta))
        origin = name_classes(model, original, dataset_or_row, row)
    else:
        processor, note = _processor(original_config, model_config, dataset_or_row, original)
        if isinstance(model, BackboneMixin):
            origin = f"a backbone without a head{note}"
        else:
            origin = name_classes(model, original, dataset, row) + note
    if row_name is not None and not isinstance(model, BackboneMixin):
        model.config.source_config = row_name  # an evaluation reads the published figures by it
    config_origin = f"published config {row_name}" if row else Path(config).name if config else "in the checkpoint"
    description = _describe(model, origin + ("; averaged weights" if ema else ""))
    with _complete_folder(output) as folder:
        stored, tensors, verification = _save(
            folder, model, processor, original, report, dtype or model.dtype, max_shard_size, verify, separate_trunk
        )
        conversion = Conversion(
            description, source, config_origin, stored, report, tensors, verification, license, versions=_versions()
        )
        (folder / RECORD).write_text(json.dumps(conversion.to_dict(), indent=2) + "\n", encoding="utf-8")
        write_model_card(folder, repo_id=repo_id, name=output.name, license=license)
    return conversion


@contextlib.contextmanager
def _complete_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `output`, and rename it to `output` if the block ends without an error.

    Raises:
        ConversionError: if the folder or a file in it cannot be written.
    """
    try:
        with staging_folder(output) as folder:
            yield folder
            for path in folder.iterdir():
                path.chmod(0o644)  # safetensors writes files that only their owner may read
            folder.chmod(0o755)
            folder.replace(output)  # replaces an empty folder
    except (OSError, SafetensorError) as error:
        if is_memory_error(error):
            raise
        reason = getattr(error, "strerror", None) or write_failure(error) or error
        raise ConversionError(f"cannot write {output}: {reason}") from error


def _save(
    folder: Path,
    model: PreTrainedModel,
    processor: SegmentationImageProcessor,
    original: Checkpoint,
    report: ConversionReport,
    dtype: torch.dtype,
    max_shard_size: str,
    verify: bool,
    separate_trunk: str | None,
) -> tuple[str, int, Verification | None]:
    """Write the model and its processor, and read them back. Afterwards model and checkpoint hold no weights.

    Returns:
        the name of the dtype, the number of tensors that were compared, and with `verify` the comparison of outputs.
    """
    expected: list[torch.Tensor] = []
    if verify:
        _change_dtype(model, torch.float32, original)
        expected = outputs_of(model)
    _change_dtype(model, dtype, original)
    if separate_trunk is not None:
        try:
            model.separate_trunk(separate_trunk)  # type: ignore[operator]  # a method of all our models
        except ValueError as error:
            raise ConversionError(f"--separate-trunk: {error}") from error
    # under the names of the model, which are compared below; transformers would write older names of its Swin
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=False)
    processor.save_pretrained(folder)
    tensors = verify_tensors(
        folder,
        model,
        checked_tensors(original.state_dict),
        report,
        with_trunk=separate_trunk is None,
        after_tensor=original.drop_read_pages,
    )
    # free the memory for the reload; the caller still refers to both
    original.state_dict.clear()
    model.to("meta")  # type: ignore[arg-type]
    verification = None
    if verify:
        verification = verify_outputs(folder, type(model), expected, report.not_finite)
        if dtype == torch.float32 and verification.relative_error > EXACT_TOLERANCE:
            raise ConversionError(f"the written model differs from the converted one: {verification.describe()}")
    return str(dtype).removeprefix("torch."), tensors, verification


def _change_dtype(model: PreTrainedModel, dtype: torch.dtype, original: Checkpoint) -> None:
    """Change a model's dtype layer by layer, so that its old and new weights are never all in memory at once."""
    for module in model.modules():
        if next(module.children(), None) is None:
            module.to(dtype)
            original.drop_read_pages()
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps it


def _find_checkpoint(checkpoint: str, rows: Mapping[str, Any], sha256: str | None) -> tuple[Path, Source]:
    """Return a checkpoint's file. Download it if `checkpoint` is an address or the name of a published config.

    Raises:
        ConversionError: if the file does not exist, cannot be downloaded, or has another SHA-256.
    """
    path, row = Path(checkpoint), None
    url = checkpoint if is_url(checkpoint) else None
    try:
        if url is None:
            check_readable(path)
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # a pipe, a name that is too long, or has a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"{printable(checkpoint, 200)}: {reason}") from error
    if url is None and not is_file and checkpoint in rows:
        row = checkpoint
        path, url = _download_first(checkpoint, download_addresses(rows[checkpoint]), sha256)
    elif url is not None:
        path = download(url, sha256)
    elif not is_file:
        raise ConversionError(
            f"{printable(checkpoint, 200)} is neither a file nor a published config nor an https address"
        )
    digest = file_sha256(path)
    if sha256 is not None and digest != sha256:
        raise ConversionError(f"{printable(path, 200)} has the SHA-256 {digest}, expected {sha256}")
    name = path.name if url is None else path.name.partition("-")[2]
    in_name = _HASH_IN_NAME.fullmatch(name)
    if in_name and not digest.startswith(in_name[1]):
        raise ConversionError(
            f"{printable(path, 200)} has the SHA-256 {digest}, which should begin with the digits in its name, "
            f"{in_name[1]}: it is damaged, or another file was renamed"
        )
    return path, Source(name, path.stat().st_size, digest, None if url is None else shown_url(url), row)


def _find_trunk(trunk_weights: str | None, name: str, row: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the backbone's file and its description, as [`_find_checkpoint`] does for the checkpoint."""
    url: str | None
    if trunk_weights is None:
        path, url = _download_first(name, trunk_addresses(row), None)
    else:
        path, source = _find_checkpoint(trunk_weights, {}, None)
        url = source.url
    file = path.name if url is None else path.name.partition("-")[2]
    shown = None if url is None else shown_url(url)
    return path, {"file": file, "size": path.stat().st_size, "sha256": file_sha256(path), "url": shown}


def _download_first(name: str, addresses: Sequence[str], sha256: str | None) -> tuple[Path, str]:
    """Download the file of a published config from the first address that has it.

    Returns:
        the file, and its address.

    Raises:
        ConversionError: if no address has it.
    """
    if not addresses:
        raise ConversionError(f"the authors of {name} published no file for it: pass a file of your own")
    files = [url for url in addresses if is_file_url(url)]
    if not files:
        raise ConversionError(
            f"the authors of {name} published its file on a page that programs cannot read: open {addresses[0]} in a "
            f"browser, save the file, and run `segtransformers models {name} --checkpoint FILE`"
            + (" with `--trunk-weights FILE` for the backbone's file" if trunk_addresses(published_row(name)) else "")
        )
    failures = []
    for url in files:
        try:
            return download(url, sha256), url
        except ConversionError as error:
            failures.append(str(error))
    raise ConversionError("; ".join(failures))


def _check_backbone(model_config: Mapping[str, Any], is_variant: bool, backbones: Sequence[str]) -> None:
    """Refuse a backbone that another script converts.

    Raises:
        ConversionError: naming the backbone and those of this script.
    """
    backbone = model_config.get("backbone", model_config)
    kind = backbone.get("type", backbone.get("model_type")) if isinstance(backbone, dict) else None
    kind = VARIANT if is_variant else dinov3.KIND if model_config.get("type") == dinov3.KIND else kind
    if kind in backbones:
        return
    if is_variant:
        raise ConversionError(
            "the config is an official Segmenter's variant.yml, which convert_segmenter.py converts; "
            f"this script converts {', '.join(backbones)}"
        )
    known = ("an official Segmenter with its variant.yml" if name == VARIANT else name for name in backbones)
    others = [family for family, kinds in BACKBONES.items() if kind in kinds]
    hint = f"; `segtransformers convert {others[0]}` converts it" if others else ""
    raise ConversionError(f"the config's backbone is {short_repr(kind)}; this script converts {', '.join(known)}{hint}")


def _processor(
    config: Mapping[str, Any], model_config: Mapping[str, Any], dataset: str | None, original: Checkpoint
) -> tuple[SegmentationImageProcessor, str]:
    """Return the image processor, and a note for the description of the model."""
    pipeline = config.get("test_pipeline")
    if model_config.get("type") == dinov3.KIND:
        return dinov3.read_processor(model_config, reduces_labels(config, dataset, original.meta)), ""
    if pipeline is None:
        return SegmentationImageProcessor(), "; default image processor, because the config has no test_pipeline"
    preprocessor = model_config.get("data_preprocessor")
    reduce_labels = reduces_labels(config, dataset, original.meta)
    return read_test_pipeline(pipeline, reduce_labels, preprocessor, config.get("multi_scale_pipeline")), ""


def _describe(model: PreTrainedModel, origin: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    outputs = "feature maps" if isinstance(model, BackboneMixin) else f"{model.config.num_labels} classes"
    return f"{type(model).__name__}, {parameters / 1e6:.1f}M parameters, {outputs} ({origin})"


def _versions() -> dict[str, str]:
    others = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "timm")}
    return {"segtransformers": __version__, **others}
