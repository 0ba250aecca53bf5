# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read original checkpoint files. Nothing in them is run, and only tensors and plain data are built from them."""

import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import logging

from ..escaping import printable, short_repr
from .archive import archive_kind, read_arrays, unpacked_checkpoint
from .mapping import ConversionError, checked_tensors, separate_averages
from .pickle_objects import StandIn, StoredTensor
from .pytorch_file import FileError, PyTorchFile, TensorSizeError, read_file

logger = logging.get_logger(__name__)

# keys of the weights in files of mmcv, mmseg and the originals' own trainers
WEIGHT_KEYS = ("state_dict", "model", "module")
# keys of averaged weights beside them, in files of timm's and InternImage's trainers
AVERAGE_KEYS = ("model_ema", "state_dict_ema")
# Tensors may share numbers; if all did, a model could take any multiple of the file's size.
_LARGEST_MULTIPLE, _SMALL_SIZE = 4, 2**20
# modules whose classes trainers save beside the weights
_KNOWN_MODULES = (
    *("torch", "numpy", "collections", "argparse", "datetime", "pathlib", "copyreg", "_codecs"),
    *("mmcv", "mmengine", "mmseg", "mmdet", "addict", "timm", "yacs", "omegaconf"),
)
_KNOWN_NAMES = tuple(f"builtins.{name}" for name in ("getattr", "set", "frozenset", "object", "complex", "slice"))


@dataclass
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        state_dict: the weights by their original names.
        meta: the dict `meta` of mmcv (with `CLASSES`, `PALETTE` and the text `config`) or of mmengine (with
            `dataset_meta` and the text `cfg`); empty if the file has none. Its objects of other classes than Python's
            plain ones are [`StandIn`]s.
        others: names of the other entries, such as `optimizer`.
        average: the averaged weights that some trainers write under a key of their own; empty if the file has none.
        maps: the memory maps of files that the tensors lie in; empty if they lie in memory of their own.
    """

    state_dict: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    average: dict[str, torch.Tensor] = field(default_factory=dict)
    maps: list[mmap.mmap] = field(default_factory=list)

    def drop_read_pages(self) -> None:
        """Tell the system to drop the pages of the mapped files from memory. The next access reads them again.

        Pages that were read count as memory of the process, so the whole file would stay beside all that is made of
        it. A change of a tensor in place would be lost, so call this only while nothing has changed the tensors.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth`, `.pth.tar`, `.bin`, `.zip`, `.safetensors` or `.npz` file. No code from the file is run.

    A `.zip` archive must hold exactly one checkpoint file. A `.pth.tar` file is a PyTorch file, not an archive.

    Raises:
        ConversionError: if the file is missing, damaged, no checkpoint, or larger in memory than in the file.
    """
    path = Path(path)
    name = printable(path, 200)
    if not path.is_file():
        raise ConversionError(f"{name} is not a file" if path.exists() else f"the file {name} does not exist")
    try:
        match path.suffix.lower():
            case ".safetensors":
                try:
                    return Checkpoint(load_file(path))
                except Exception as error:  # a damaged file can raise any error
                    raise ConversionError(f"{name} is damaged or not a safetensors file: {_reason(error)}") from error
            case ".npz":
                return Checkpoint(read_arrays(path, name))
            case ".zip":
                with tempfile.TemporaryDirectory() as folder:
                    unpacked = unpacked_checkpoint(path, Path(folder))
                    # except on Windows, a mapped file may be deleted
                    return _read(unpacked, f"the checkpoint in {name}", mapped=os.name != "nt")
        return _read(path, name)
    except MemoryError as error:
        raise ConversionError(f"the memory does not suffice to read {name}") from error


def averaged_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the averaged weights of a checkpoint under the names of the weights.

    These are the buffers `ema_*` of mmcv's `EMAHook`, with the weights that have no average, or the averaged model of
    timm's and InternImage's trainers.

    Raises:
        ConversionError: if the checkpoint has neither.
    """
    if checkpoint.average:
        return checkpoint.average
    tensors = checked_tensors(checkpoint.state_dict)
    weights, averages = separate_averages(tensors)
    if averages:
        return {name: tensors[averages.get(name, name)] for name in weights}
    if "ema_state_dict" in checkpoint.others:
        raise ConversionError("mmengine saves the averaged weights as the checkpoint's weights: leave --ema out")
    raise ConversionError(
        f"the checkpoint has no averaged weights: neither buffers ema_* nor an entry {' or '.join(AVERAGE_KEYS)}"
    )


def _read(path: Path, name: str, mapped: bool = True) -> Checkpoint:
    size = path.stat().st_size
    if not size:
        raise ConversionError(f"{name} is damaged or not a PyTorch checkpoint (it is empty)")
    with path.open("rb") as opened:
        if kind := archive_kind(opened.read(512)):
            raise ConversionError(f"{name} is a {kind}: unpack it and pass the checkpoint in it")
        try:
            if mapped:
                data = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY)
            else:
                data = mmap.mmap(-1, size)
                opened.seek(0)
                opened.readinto(data)
        except OSError as error:
            raise ConversionError(f"{name} cannot be mapped into memory: {error.strerror}") from error
    try:
        file = read_file(data)
    except FileError as error:
        raise ConversionError(f"{name} is damaged or not a PyTorch checkpoint ({_reason(error)})") from error
    unknown = sorted(known for known in file.names if not _is_known(known))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        listed = ", ".join(printable(known) for known in unknown[:3])
        logger.warning(f"{name} refers to {listed}{more}, which weights do not need: nothing of it was built or called")
    checkpoint = _checkpoint(file, name, size)
    if mapped:
        checkpoint.maps.append(data)
    return checkpoint


def _checkpoint(file: PyTorchFile, name: str, size: int) -> Checkpoint:
    loaded = file.content
    if not isinstance(loaded, Mapping):
        kind = loaded.name if isinstance(loaded, StandIn) else type(loaded).__name__
        raise ConversionError(f"{name} holds a {printable(kind)}, not a dict with weights")
    meta = loaded.get("meta")
    weights = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
    average: Mapping[Any, Any] = next((loaded[key] for key in AVERAGE_KEYS if isinstance(loaded.get(key), Mapping)), {})
    state_dict = _tensors(file, weights, name, size)
    others = [key for key in weights if key not in state_dict]
    if others and (state_dict or weights is not loaded):
        _check_others(weights, others, name, weights is loaded)
    if not state_dict:
        found = ", ".join(short_repr(key, 40) for key in list(loaded)[:8])
        raise ConversionError(f"{name} holds no weights under {', '.join(WEIGHT_KEYS)}; found {found or 'nothing'}")
    entries = [str(key) for key in loaded if key != "meta" and loaded[key] is not weights and key not in state_dict]
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    return Checkpoint(state_dict, meta, entries, _tensors(file, average, name, size))


def _check_others(weights: Mapping[Any, Any], others: list[Any], name: str, is_whole_file: bool) -> None:
    """Refuse an entry among the weights that is no tensor."""
    key = others[0]
    value = weights[key]
    if isinstance(value, StandIn) and value.name.startswith("torch._utils._rebuild"):
        raise ConversionError(
            f"{name} holds a {printable(value.name)} under {short_repr(key)}, expected a dense tensor"
        )
    if not is_whole_file:
        kind = value.name if isinstance(value, StandIn) else type(value).__name__
        raise ConversionError(f"{name} holds a {printable(kind)} under {short_repr(key)}, not a tensor")


def _tensors(file: PyTorchFile, weights: Mapping[Any, Any], name: str, size: int) -> dict[Any, torch.Tensor]:
    """Return the tensors of a mapping by name.

    Raises:
        ConversionError: naming a tensor that is larger than its data.
    """
    tensors: dict[Any, torch.Tensor] = {}
    total = 0
    for key, value in weights.items():
        if not isinstance(value, StoredTensor):
            continue
        shown = printable(key)
        try:
            tensor = file.tensor(shown, value)
        except TensorSizeError as error:
            raise ConversionError(f"{name} declares a tensor larger than its data ({error})") from error
        except FileError as error:
            raise ConversionError(f"{name} is damaged or not a PyTorch checkpoint ({error})") from error
        needed, held = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
        if needed > max(held, size):  # a small constant may be saved expanded
            raise ConversionError(f"{name} declares {shown} as {tuple(tensor.shape)}, but has {held} bytes for it")
        total += needed
        tensors[key] = tensor
    if total > _LARGEST_MULTIPLE * size + _SMALL_SIZE:
        raise ConversionError(f"{name} declares tensors of {total} bytes, but has only {size}: it is refused")
    return tensors


def _is_known(name: str) -> bool:
    return name.partition(".")[0] in _KNOWN_MODULES or name in _KNOWN_NAMES


def _reason(error: Exception) -> str:
    """Return an error's text, short and in one line."""
    return printable(error, 200) or type(error).__name__
