# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Select the implementation of an operator for a device and dtype: compiled kernel, fallback or reference.

Fallback and reference are plain PyTorch. A kernel is a build of `kernels/deformable-ops` in the layout of the `kernels`
package. The dispatcher searches for one once per process, in this order:

1. the folder named by `LOCAL_KERNELS="segtransformers/deformable-ops=folder"`;
2. the repository named by `SEGTRANSFORMERS_KERNELS_REPO="org/name@version"`, or `org/name@commit` to pin its contents.
   Nothing is downloaded without this variable, because a kernel is code, and the user decides whose code runs;
3. `kernels/deformable-ops/build` of a source checkout;
4. the installed package `segtransformers-kernels` (`pip install "segtransformers[kernels]"`);
5. the user's cache folder, where `segtransformers build-kernels` writes.

A build found by 3 or 5 is skipped if it was made from other sources than the installed ones, and a package of another
version of the operators too. If torch finds a GPU, a build with code for it is taken before one without.

`SEGTRANSFORMERS_KERNELS` is `auto` (the default), `off`, or `force`, which makes a missing kernel an error;
[`compiled_operators`] sets the same for a block of code. Programs from `torch.export` and ONNX contain the reference,
or gathers within [`gathers_in_exports`], so that they run anywhere, unless the mode is `force`. The `kernels` package
can replace the layers' `forward` by this project's kernel or another one (`kernelize`, `use_kernels=True` of
transformers).
"""

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import kernels
import torch
from transformers.utils import logging

from ..cache import user_cache
from .modes import MODES, default_mode

logger = logging.get_logger(__name__)

KERNEL_ID = "segtransformers/deformable-ops"
PACKAGE = "segtransformers_kernels"
VERSION = 1  # of the operators, as in build.toml
OPERATORS = ("ms_deform_attn", "ms_deform_attn_fused", "dcnv3", "dcnv4")
DENSE_INTERFACE = 2  # of the kernel's dense operators
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernel:
    """A loaded build.

    Attributes:
        functions: the module with the functions of `OPERATORS`.
        origin: the folder or repository of the build, for messages.
        devices: the device types that the build has code for.
    """

    functions: ModuleType
    origin: str
    devices: frozenset[str]


_SEARCHING = threading.Lock()
# a namespace, because torch.compile can read and guard plain attributes
_state = SimpleNamespace(searched=False, kernel=None, problems=[], mode=None, warned_devices=set(), gathers=False)


@contextlib.contextmanager
def compiled_operators(mode: str) -> Iterator[None]:
    """Set the mode within a block: use compiled kernels if available (`auto`), never (`off`) or always (`force`).

    The mode holds for all threads of the process. A kernel that `kernelize` put into a layer runs in every mode.

    Raises:
        ValueError: if `mode` is not one of `MODES`.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    before = _state.mode
    _state.mode = mode
    try:
        if mode != "off":
            find_kernel()
        yield
    finally:
        _state.mode = before


def prepare() -> None:
    """Search for a kernel, once. Layers call this in `__init__`, because torch.compile cannot trace the search."""
    if _state.mode is None:
        _state.mode = default_mode()
    if _state.mode != "off":
        find_kernel()


def compiled(operator: str, value: torch.Tensor) -> Callable | None:
    """Return the compiled function of an operator for `value`'s device and dtype, or None to use plain PyTorch.

    Args:
        operator: one of `OPERATORS`.

    Raises:
        RuntimeError: if the mode is `force` and no kernel supports the device and dtype.
    """
    mode = _state.mode or default_mode()
    if value.device.type == "meta" or mode == "off" or (mode == "auto" and _is_exporting()):
        return None
    kernel = find_kernel() if not _state.searched else _state.kernel
    if kernel is not None and value.device.type in kernel.devices and value.dtype in DTYPES:
        return getattr(kernel.functions, operator)
    if mode == "force":
        raise RuntimeError(
            f"compiled kernels are forced, but none was found for {operator} on {value.device.type} in "
            f"{value.dtype}. {_advice(value.device.type)}"
        )
    is_device_served = kernel is not None and value.device.type in kernel.devices  # a build would not help the dtype
    if not is_device_served and not torch.compiler.is_compiling():
        _warn_plain_pytorch(value.device.type)
    return None


def dense_operators(value: torch.Tensor, *channels: int) -> ModuleType | None:
    """Return the kernel's dense operators for inference if they serve `value`'s device and dtype, or None.

    These are minimal filtering, resizes, softmax, layer norms and labels in float32 and bfloat16 on a CPU, without
    gradients. See `deformable_ops/dense.py` of the kernel.

    Args:
        value: an input.
        channels: numbers of channels, for operators on pixels with channels last.
    """
    is_served = value.device.type == "cpu" and value.dtype in (torch.float32, torch.bfloat16)
    if torch.is_grad_enabled() and value.requires_grad:
        return None
    if not is_served or (_state.mode or default_mode()) == "off" or torch.compiler.is_compiling() or _is_exporting():
        return None
    dense = _cpu_module("dense")
    if dense is None or not _is_dense_current(dense):
        return None
    return dense if all(count % dense.CHANNEL_MULTIPLE == 0 for count in channels) else None


def _is_dense_current(dense: ModuleType) -> bool:
    """Return whether the dense operators have the arguments that this version calls them with."""
    return getattr(dense, "INTERFACE", None) == DENSE_INTERFACE


def matrix_operators(value: torch.Tensor) -> ModuleType | None:
    """Return the kernel's products and attention if they serve `value`'s device and dtype, or None.

    These are for a CPU with AVX-512 or AMX, in float32 or bfloat16, without gradients. See `deformable_ops/matrix.py`
    of the kernel.
    """
    if value.dtype not in (torch.float32, torch.bfloat16) or value.device.type != "cpu":
        return None
    if (_state.mode or default_mode()) == "off" or _is_exporting() or (torch.is_grad_enabled() and value.requires_grad):
        return None
    if not _state.searched and torch.compiler.is_compiling():
        return None
    matrix = _cpu_module("matrix")
    products: dict[torch.dtype, str | None] = getattr(matrix, "PRODUCTS", {})
    return matrix if products.get(value.dtype) is not None else None


def _cpu_module(name: str) -> ModuleType | None:
    """Return a module of the kernel in use if it has code for the CPU; a build of older sources may lack it."""
    kernel = _state.kernel if _state.searched else find_kernel()
    return getattr(kernel.functions, name, None) if kernel is not None and "cpu" in kernel.devices else None


def choose(
    operator: str, value: torch.Tensor, *, fallback: Callable, reference: Callable, gather: Callable | None = None
) -> Callable:
    """Return the implementation of an operator for `value`'s device and dtype.

    Args:
        operator: one of `OPERATORS`. [`compiled`] decides if its kernel is used.
        fallback: plain PyTorch for a CPU, in inference or under torch.compile.
        reference: plain PyTorch for eager training, other devices and export.
        gather: plain PyTorch for export within [`gathers_in_exports`]; None takes `reference`.

    Raises:
        RuntimeError: if the mode is `force` and no kernel supports the device and dtype.
    """
    if gather is not None and exports_gathers():
        return gather
    implementation = compiled(operator, value)
    if implementation is not None:
        return implementation
    # measured: eager embedding_bag has a slower backward than grid_sample
    is_eager_training = torch.is_grad_enabled() and value.requires_grad and not torch.compiler.is_compiling()
    return reference if _is_exporting() or is_eager_training or value.device.type != "cpu" else fallback


@contextlib.contextmanager
def gathers_in_exports(enabled: bool = True) -> Iterator[None]:
    """Let programs that are exported within the block sample by gathers and arithmetic instead of `grid_sample`.

    This holds for all threads of the process.
    """
    before = _state.gathers
    _state.gathers = enabled
    try:
        yield
    finally:
        _state.gathers = before


def exports_gathers() -> bool:
    """Return whether a program is being exported within [`gathers_in_exports`]."""
    return _state.gathers and _is_exporting()


@torch.compiler.assume_constant_result  # called, not traced: in a trace of torch 2.10 is_exporting is always true
def _is_exporting() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def find_kernel() -> Kernel | None:
    """Return the kernel in use, or None. The first call searches for it."""
    if not _state.searched:
        with _SEARCHING:
            if not _state.searched:  # another thread may have searched in the meantime
                _search()
    return _state.kernel


def _search() -> None:
    _state.kernel = None
    _state.problems.clear()
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    for origin, load in _candidates():
        try:
            functions = load()
            devices = devices_of(functions)
        except Exception as error:  # for example for another torch, or incomplete: the next one may work
            _state.problems.append(f"{origin}: {' '.join(str(error).split())[:300]}")
            continue
        if _state.kernel is None or wanted in devices:
            _state.kernel = Kernel(functions, origin, devices)
        if wanted in devices:
            break
    _state.searched = True
    dense = _cpu_module("dense")
    if dense is not None and not _is_dense_current(dense):
        logger.warning(
            f"{_state.kernel.origin} was built for another version of segtransformers, and optimized models are slower "
            "with it. `segtransformers build-kernels` builds a new one."
        )
    for problem in _state.problems:
        logger.warning(f"A compiled kernel was skipped. {problem}")
    if _state.kernel is not None:
        logger.info(describe())


def reset() -> None:
    """Search again at the next use, for example after a build. A loaded library stays in the process."""
    _state.searched = False
    _state.kernel = None
    _state.warned_devices.clear()


def describe() -> str:
    """Describe in one line the devices and dtypes that have compiled operators."""
    mode = _state.mode or default_mode()
    kernel = find_kernel() if mode != "off" else None
    if kernel is None:
        missing = "no kernel found; install segtransformers-kernels, or `segtransformers build-kernels` compiles one"
        reason = "switched off" if mode == "off" else missing
        return f"deformable attention, DCNv3, DCNv4: plain PyTorch on every device ({reason})"
    dtypes = " ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    return (
        f"deformable attention, DCNv3, DCNv4: compiled on {' '.join(sorted(kernel.devices))} ({dtypes}; "
        f"{kernel.origin}), plain PyTorch elsewhere"
    )


def sources() -> Path | None:
    """Return the folder of the kernel's sources in the source checkout or installed package, or None."""
    package = Path(__file__).parents[1]
    for folder in (package.parents[1] / "kernels" / "deformable-ops", package / "kernel_sources" / "deformable-ops"):
        if (folder / "build.py").is_file():
            return folder
    return None


def cache_folder() -> Path:
    """Return the folder that `segtransformers build-kernels` writes to: `~/.cache/segtransformers/deformable-ops`."""
    return user_cache("deformable-ops")


def build_script() -> ModuleType:
    """Import `build.py` of the kernel's sources.

    Raises:
        RuntimeError: if the sources are missing.
    """
    folder = sources()
    if folder is None:
        raise RuntimeError(
            "the sources of the compiled operators are missing from this installation: reinstall segtransformers"
        )
    spec = importlib.util.spec_from_file_location("segtransformers_build_kernels", folder / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _candidates() -> Iterator[tuple[str, Callable[[], ModuleType]]]:
    """Yield the origin and load function of every kernel that may exist, in the order of the search."""
    for entry in filter(None, os.environ.get("LOCAL_KERNELS", "").split(":")):
        name, _, path = entry.partition("=")
        if name == KERNEL_ID:
            yield f"{path} of LOCAL_KERNELS", partial(load_folder, Path(path))
    repository = os.environ.get("SEGTRANSFORMERS_KERNELS_REPO")
    if repository:
        yield f"the repository {repository}", partial(_load_repository, repository)
    checkout = sources()
    if checkout is not None:
        yield from _own_build(checkout)
    package = package_folder()
    if package is not None:
        yield "the package segtransformers-kernels", partial(_load_package, package)
    yield from _own_build(cache_folder())


def _own_build(folder: Path) -> Iterator[tuple[str, Callable[[], ModuleType]]]:
    if any((folder / "build").glob("*/metadata.json")):
        yield str(folder / "build"), partial(_load_own_build, folder)


def package_folder() -> Path | None:
    """Return the folder of the installed package `segtransformers-kernels`, or None."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _load_package(folder: Path) -> ModuleType:
    functions = load_folder(folder)
    version = _metadata(functions).get("version")
    if version != VERSION:
        raise RuntimeError(
            f"its operators have version {version}, but this segtransformers needs {VERSION}: "
            f'pip install "segtransformers-kernels=={VERSION}.*"'
        )
    return functions


def _load_own_build(folder: Path) -> ModuleType:
    current = build_script().source_hash()
    stale = RuntimeError("it was built from other sources than the installed ones: run `segtransformers build-kernels`")
    # Reject before loading if no variant is current. The one that loads is then checked too, because a variant for
    # another torch may be older.
    identifiers = [json.loads(path.read_text())["id"] for path in (folder / "build").glob("*/metadata.json")]
    if not any(identifier.endswith(current) for identifier in identifiers):
        raise stale
    functions = load_folder(folder)
    if not functions.add_op_namespace_prefix("").endswith(f"{current}::"):
        raise stale
    return functions


def load_folder(folder: Path) -> ModuleType:
    """Load the build in a folder that fits this machine's torch and GPU best."""
    try:
        return kernels.get_local_kernel(folder)
    except (OSError, RuntimeError, ValueError) as error:  # by the version of `kernels`
        # the kernel was built for another kind of GPU than torch or this machine: its CPU code can still serve
        try:
            return kernels.get_local_kernel(folder, backend="cpu")
        except (OSError, ValueError):
            raise error from None


def _load_repository(repository: str) -> ModuleType:
    name, _, version = repository.partition("@")
    pinned: dict[str, Any] = {"version": int(version)} if version.isdigit() else {"revision": version}
    if not version.isdigit() and re.fullmatch("[0-9a-f]{40}", version) is None:
        raise ValueError(
            "SEGTRANSFORMERS_KERNELS_REPO must be org/name@version with an integer, or org/name@commit with "
            f"the 40 digits of a commit, got {repository!r}"
        )
    folder = kernels.install_kernel(name, **pinned, trust_remote_code=[name])
    check_hashes(folder)
    return kernels.get_local_kernel(folder)


def check_hashes(variant: Path) -> None:
    """Compare the files of a variant with the hashes in its `metadata.json`.

    Raises:
        RuntimeError: if a file is missing, has other contents or is not listed, or if there are no hashes.
    """
    digest = json.loads((variant / "metadata.json").read_text()).get("digest") or {}
    if digest.get("algorithm") != "sha256":
        raise RuntimeError(f"{variant.name} has no sha256 hashes in metadata.json")
    listed = dict(digest["files"])
    for path in sorted(variant.rglob("*")):
        if path.is_dir() or path.name.startswith("metadata.json") or path.suffix == ".pyc":
            continue
        name = path.relative_to(variant).as_posix()
        if listed.pop(name, None) != base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode():
            raise RuntimeError(f"{name} of {variant.name} has another hash than metadata.json lists")
    if listed:
        raise RuntimeError(f"{next(iter(listed))} of {variant.name} is missing")


def _metadata(functions: ModuleType) -> dict:
    return json.loads(Path(str(functions.__file__)).with_name("metadata.json").read_text())


def devices_of(functions: ModuleType) -> frozenset[str]:
    """Return the device types that a build has code for, as its `metadata.json` states them.

    Raises:
        RuntimeError: if an operator is missing.
    """
    missing = [name for name in OPERATORS if not hasattr(functions, name)]
    if missing:
        raise RuntimeError(f"it has no {', '.join(missing)}")
    backend = _metadata(functions)["backend"]
    # every variant contains the CPU code; a CUDA variant without GPU architectures contains nothing else
    return frozenset({"cpu", "cuda"} if backend["type"] == "cuda" and backend.get("archs") else {"cpu"})


def _warn_plain_pytorch(device: str) -> None:
    """Warn once per device type that plain PyTorch serves it."""
    if device not in _state.warned_devices:
        _state.warned_devices.add(device)
        logger.warning(
            f"Deformable operators run in plain PyTorch on {device}, which is slower than compiled. {_advice(device)} "
            "SEGTRANSFORMERS_KERNELS=off hides this message."
        )


def _advice(device: str) -> str:
    package = "The package segtransformers-kernels has them compiled"
    if device == "cpu":
        return f"{package}, or `segtransformers build-kernels` compiles them (a minute; needs a C++ compiler)."
    if device == "cuda":
        return (
            f"{package}, or `segtransformers build-kernels` compiles them for this GPU (minutes; needs nvcc and a C++ "
            "compiler)."
        )
    return f"This package has no compiled kernel for {device} yet."
