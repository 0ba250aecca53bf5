# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read original checkpoint files without running code from them."""

import argparse
import importlib
import os
import pickle
import re
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file

from .archive import check_pytorch_archive, check_ratio, unpacked_checkpoint
from .mapping import ConversionError

# keys of the weights in files of mmcv, mmseg and the originals' own trainers
WEIGHT_KEYS = ("state_dict", "model", "module")


class _Dropped:
    """Inert replacement of an object of the training state: accepts any arguments and state, and keeps nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


# Trainers save these values beside the weights, and torch does not allow them by default. numpy 2 renamed its core
# module, so its functions are listed under both names. Nothing here has side effects.
_MULTIARRAY = importlib.import_module("numpy.core.multiarray" if numpy.__version__ < "2" else "numpy._core.multiarray")
_ALLOWED: list[Any] = [
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for core in ("core", "_core")
        for function in (_MULTIARRAY.scalar, _MULTIARRAY._reconstruct)
    ),
    numpy.ndarray,
    numpy.dtype,
    *(
        type(numpy.dtype(code))
        for code in ("?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d", "U", "S")
    ),
    argparse.Namespace,
    # torch fills plain mappings only, so these classes become one
    *(
        (OrderedDict, name)
        for name in ("mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict", "addict.Dict")
    ),
    *(
        (_Dropped, name)
        for name in (
            "mmengine.logging.history_buffer.HistoryBuffer",  # its state refers to its methods by getattr
            "builtins.getattr",
            "__builtin__.getattr",
            "datetime.datetime",
            "datetime.timedelta",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
        )
    ),
]


@dataclass
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        state_dict: the weights by their original names.
        meta: the dict `meta` of mmcv (with `CLASSES`, `PALETTE` and the text `config`) or of mmengine (with
            `dataset_meta` and the text `cfg`); empty if the file has none.
        others: names of the other entries, such as `optimizer`.
    """

    state_dict: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth`, `.pth.tar`, `.bin`, `.zip`, `.safetensors` or `.npz` file. No code from the file is run.

    A `.zip` archive must hold exactly one checkpoint file. A `.pth.tar` file is a PyTorch file, not an archive.

    Raises:
        ConversionError: if the file is missing, damaged, no checkpoint, or needs code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"the file {path} does not exist")
    if path.suffix.lower() == ".safetensors":
        try:
            return Checkpoint(load_file(path))
        except Exception as error:  # a damaged file can raise any error
            raise ConversionError(f"{path} is damaged or not a safetensors file: {_reason(error)}") from error
    if path.suffix.lower() == ".npz":
        try:
            check_ratio(path)
            with numpy.load(path, allow_pickle=False) as arrays:
                return Checkpoint({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        except ConversionError:
            raise
        except Exception as error:  # a damaged file can raise any error
            raise ConversionError(f"{path} is damaged or not a file of numpy arrays: {_reason(error)}") from error
    if path.suffix.lower() != ".zip":
        return _read(path, str(path))
    with tempfile.TemporaryDirectory() as folder:
        # except on Windows, a memory-mapped file may be deleted
        return _read(unpacked_checkpoint(path, Path(folder)), f"the checkpoint in {path}", mmap=os.name != "nt")


def _read(path: Path, name: str, mmap: bool = True) -> Checkpoint:
    if tarfile.is_tarfile(path):
        raise ConversionError(f"{name} is a tar archive: unpack it and pass the checkpoint in it")
    check_pytorch_archive(path, name)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            mmap = mmap and zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be memory-mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        refused = re.search(
            r"GLOBAL ([\w.]+\w)|unrecognized (?:function|class) ([^\n]+)|got (<class [^\n]+>)", str(error)
        )
        if refused is None:
            raise ConversionError(f"{name} is damaged or not a PyTorch checkpoint ({_reason(error)})") from error
        raise ConversionError(
            f"{name} asks to call {next(filter(None, refused.groups()))}, which no weights need: it is refused"
        ) from error
    except Exception as error:  # a damaged pickle can raise any error
        if re.search(r"record size|resize storage|calculation overflowed|allocate memory|out of bounds", str(error)):
            raise ConversionError(f"{name} declares a tensor larger than its data ({_reason(error)})") from error
        raise ConversionError(f"{name} is damaged or not a PyTorch checkpoint ({_reason(error)})") from error
    return _checkpoint(loaded, name, path.stat().st_size)


def _checkpoint(loaded: Any, name: str, size: int) -> Checkpoint:
    if not isinstance(loaded, Mapping):
        raise ConversionError(f"{name} holds a {type(loaded).__name__}, not a dict with weights")
    meta = loaded.get("meta")
    weights = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
    state_dict = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    others = [key for key in weights if key not in state_dict]
    if state_dict and others and weights is not loaded:
        raise ConversionError(f"{name} holds a {type(weights[others[0]]).__name__} under {others[0]!r}, not a tensor")
    for key, tensor in state_dict.items():
        if tensor.layout != torch.strided:
            continue  # `checked_tensors` refuses it
        held = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.itemsize > max(held, size):  # a small constant may be saved expanded
            raise ConversionError(f"{name} declares {key} as {tuple(tensor.shape)}, but has {held} bytes for it")
    if not state_dict:
        raise ConversionError(f"{name} holds no weights under {', '.join(WEIGHT_KEYS)}; found {list(loaded)[:8]}")
    entries = [str(key) for key in loaded if key != "meta" and loaded[key] is not weights and key not in state_dict]
    return Checkpoint(state_dict, dict(meta) if isinstance(meta, Mapping) else {}, entries)


def _reason(error: Exception) -> str:
    """Return an error's first line, without torch's advice to load the file unsafely."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    if "TorchScript" in text:
        return "it is a TorchScript archive"
    text = re.split(r"In PyTorch 2\.6|Re-running|\n", text.strip())[0].strip()
    return text or type(error).__name__
