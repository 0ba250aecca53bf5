# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Which implementation serves an operator: a compiled kernel where one is found, else plain PyTorch.

A kernel is a build of `kernels/deformable-ops` in the layout of the `kernels` package. It is looked for, once in a
process and without any network, in this order:

1. the folder that `LOCAL_KERNELS="segtransformers/deformable-ops=folder"` names;
2. the repository that `SEGTRANSFORMERS_KERNELS_REPO="org/name@version"` names: the only way to have one downloaded,
   because a kernel is code, and naming its publisher is the user's decision;
3. `kernels/deformable-ops/build` of a source checkout;
4. what `segtransformers build-kernels` made in the user's cache folder.

Builds in the last two places are passed over where they were made from other sources than those installed.

`SEGTRANSFORMERS_KERNELS` is `auto` (the default), `off`, or `force`, which makes a missing kernel an error;
[`compiled_operators`] does the same for a block of code. Programs from `torch.export` and ONNX hold the plain
PyTorch reference, so that they run anywhere, unless a kernel is forced. The `kernels` package can still replace the
layers' `forward`, with this project's kernel or another (`kernelize`, `use_kernels=True` of transformers).
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import kernels
import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

KERNEL_ID = "segtransformers/deformable-ops"
OPERATORS = ("ms_deform_attn", "ms_deform_attn_fused", "dcnv3")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MODES = ("auto", "off", "force")


@dataclass(frozen=True)
class Kernel:
    """A loaded build: its functions, where it came from, and the device types it has code for."""

    functions: ModuleType
    origin: str
    devices: frozenset[str]


# plain attributes, because torch.compile can read and guard those
_state = SimpleNamespace(searched=False, kernel=None, problems=[], mode=None, said=set())


def default_mode() -> str:
    mode = os.environ.get("SEGTRANSFORMERS_KERNELS", "auto").lower() or "auto"
    if mode not in MODES:
        raise ValueError(f"SEGTRANSFORMERS_KERNELS must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


@contextlib.contextmanager
def compiled_operators(mode: str) -> Iterator[None]:
    """Within the block, use compiled kernels where there are some (`auto`), never (`off`) or only (`force`).

    Holds for the whole process, not for one thread. A kernel that was put into a layer by `kernelize` stays there.
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
    """Look for a kernel, once. Layers call it when they are made, so that torch.compile finds it done."""
    if _state.mode is None:
        _state.mode = default_mode()
    if _state.mode != "off":
        find_kernel()


def compiled(operator: str, value: torch.Tensor) -> Callable | None:
    """The kernel's function for an operator on `value`'s device and dtype; None where plain PyTorch has to serve.

    Args:
        operator: one of `OPERATORS`.

    Raises:
        RuntimeError: if kernels are forced and there is none for the device.
    """
    mode = _state.mode or default_mode()
    if value.device.type == "meta" or mode == "off" or (mode == "auto" and _is_exported()):
        return None
    kernel = find_kernel() if not _state.searched else _state.kernel
    if kernel is not None and value.device.type in kernel.devices and value.dtype in DTYPES:
        return getattr(kernel.functions, operator)
    if mode == "force":
        raise RuntimeError(
            f"compiled kernels are forced, but there is none for {operator} on {value.device.type} in "
            f"{value.dtype}. {_advice(value.device.type)}"
        )
    served = kernel is not None and value.device.type in kernel.devices  # but not in this dtype
    if not served and not torch.compiler.is_compiling():
        _say_fallback(value.device.type)
    return None


def choose(operator: str, value: torch.Tensor, *, fallback: Callable, reference: Callable) -> Callable:
    """The implementation of an operator for `value`'s device and dtype: [`compiled`], or one of these two.

    Args:
        fallback: plain PyTorch that is fast forward, and compiled, on a CPU. `reference`: plain PyTorch for eager
            training, other devices and export.
    """
    implementation = compiled(operator, value)
    if implementation is not None:
        return implementation
    # measured: embedding_bag's gradient is slower than grid_sample's, unless compiled
    trains = torch.is_grad_enabled() and value.requires_grad and not torch.compiler.is_compiling()
    return reference if _is_exported() or trains or value.device.type != "cpu" else fallback


def _is_exported() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def find_kernel() -> Kernel | None:
    """The kernel that is used, or None; the search runs once."""
    if not _state.searched:
        _state.kernel = None
        _state.problems.clear()
        for origin, load in _places():
            try:
                functions = load()
                devices = devices_of(functions)
            except Exception as error:  # of another compiler or torch, half copied, refused: the next may do
                _state.problems.append(f"{origin}: {' '.join(str(error).split())[:300]}")
                continue
            _state.kernel = Kernel(functions, origin, devices)
            break
        _state.searched = True
        for problem in _state.problems:
            logger.warning(f"A compiled kernel was passed over. {problem}")
        if _state.kernel is not None:
            logger.info(describe())
    return _state.kernel


def forget() -> None:
    """Search again at the next use, for example after a build. A library that was loaded stays in the process."""
    _state.searched = False
    _state.kernel = None
    _state.said.clear()


def describe() -> str:
    """One line: which implementation serves which device and dtype."""
    mode = _state.mode or default_mode()
    kernel = find_kernel() if mode != "off" else None
    if kernel is None:
        why = "switched off" if mode == "off" else "no compiled kernel found; `segtransformers build-kernels` makes one"
        return f"deformable attention, DCNv3: plain PyTorch on every device ({why})"
    dtypes = " ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    return (
        f"deformable attention, DCNv3: compiled on {' '.join(sorted(kernel.devices))} ({dtypes}; {kernel.origin}), "
        "plain PyTorch elsewhere"
    )


def sources() -> Path | None:
    """The folder of the kernel's sources: of this package's installation, or of its source checkout."""
    package = Path(__file__).parents[1]
    for folder in (package.parents[1] / "kernels" / "deformable-ops", package / "kernel_sources" / "deformable-ops"):
        if (folder / "build.py").is_file():
            return folder
    return None


def cache_folder() -> Path:
    """Where `segtransformers build-kernels` writes: `~/.cache/segtransformers/deformable-ops`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segtransformers" / "deformable-ops"


def build_script() -> ModuleType:
    """The module `build.py` of the kernel's sources.

    Raises:
        RuntimeError: if the sources are missing.
    """
    folder = sources()
    if folder is None:
        raise RuntimeError("the sources of the kernel are missing from this installation of segtransformers")
    spec = importlib.util.spec_from_file_location("segtransformers_build_kernels", folder / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _places() -> Iterator[tuple[str, Callable[[], ModuleType]]]:
    """What to try, in order."""
    for entry in filter(None, os.environ.get("LOCAL_KERNELS", "").split(":")):
        name, _, path = entry.partition("=")
        if name == KERNEL_ID:
            yield f"{path} by LOCAL_KERNELS", partial(load_folder, Path(path))
    repository = os.environ.get("SEGTRANSFORMERS_KERNELS_REPO")
    if repository:
        yield f"the repository {repository}", partial(_load_repository, repository)
    checkout = sources()
    for folder in ([] if checkout is None else [checkout]) + [cache_folder()]:
        if any((folder / "build").glob("*/metadata.json")):
            yield str(folder / "build"), partial(_load_own, folder)


def _load_own(folder: Path) -> ModuleType:
    current = build_script().source_hash()
    stale = RuntimeError("built from other sources than those installed: run `segtransformers build-kernels`")
    # a variant for another torch may be older: what counts is the one that loads
    identifiers = [json.loads(path.read_text())["id"] for path in (folder / "build").glob("*/metadata.json")]
    if not any(identifier.endswith(current) for identifier in identifiers):
        raise stale
    functions = load_folder(folder)
    if not functions.add_op_namespace_prefix("").endswith(f"{current}::"):
        raise stale
    return functions


def load_folder(folder: Path) -> ModuleType:
    """The best build in a folder for this machine's torch and GPU."""
    try:
        return kernels.get_local_kernel(folder)
    except (FileNotFoundError, RuntimeError) as error:
        # torch is built for another kind of GPU than the kernel, or the GPU at hand is another
        try:
            return kernels.get_local_kernel(folder, backend="cpu")
        except FileNotFoundError:
            raise error from None


def _load_repository(repository: str) -> ModuleType:
    name, _, version = repository.partition("@")
    if not version.isdigit():
        raise ValueError("SEGTRANSFORMERS_KERNELS_REPO must be org/name@version with a whole number as version")
    return kernels.get_kernel(name, version=int(version), trust_remote_code=[name])


def devices_of(functions: ModuleType) -> frozenset[str]:
    """The device types that every operator of a kernel has code for."""
    missing = [name for name in OPERATORS if not hasattr(functions, name)]
    if missing:
        raise RuntimeError(f"it has no {', '.join(missing)}")
    operator_names = [functions.add_op_namespace_prefix(name) for name in OPERATORS]
    found = []
    for device in ("cpu", "cuda", "xpu", "mps"):
        key = device.upper()
        if all(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for name in operator_names):
            found.append(device)
    if not found:
        raise RuntimeError("it serves no device")
    return frozenset(found)


def _say_fallback(device: str) -> None:
    """Once for each device type."""
    if device not in _state.said:
        _state.said.add(device)
        logger.warning(
            f"Deformable operators run in plain PyTorch on {device}, which is slower than compiled. {_advice(device)} "
            "SEGTRANSFORMERS_KERNELS=off hides this message."
        )


def _advice(device: str) -> str:
    if device == "cpu":
        return "`segtransformers build-kernels` compiles a CPU kernel (it needs a C++ compiler, about a minute)."
    if device == "cuda":
        return "`segtransformers build-kernels` compiles one for this GPU (it needs nvcc and a C++ compiler, minutes)."
    return f"This package has no compiled kernel for {device} yet."
