# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Files of PyTorch (.pt2): programs of `torch.export`, and programs that AOTInductor compiled."""

import io
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .description import METADATA
from .errors import ExportError, reason
from .quiet import quiet

# The number of threads of the machine that compiles would stand in the file otherwise. Freezing lays out weights once.
COMPILER_OPTIONS = {"freezing": True, "cpp.dynamic_threads": True}

_UNPACKING = threading.Lock()  # TMPDIR belongs to the whole process

CPU = "segmentation_cpu.json"  # name of the CPU's description in a compiled program
# of the flags in /proc/cpuinfo, those that decide which instructions a compiler writes
VECTOR_FLAGS = (
    "sse",
    "ssse",
    "avx",
    "amx",
    "fma",
    "bmi",
    "f16c",
    "gfni",
    "vaes",
    "sve",
    "sme",
    "asimd",
    "i8mm",
    "bf16",
)


class _WriteErrorsKept(io.BufferedIOBase):
    """A file for PyTorch's archive writer, which aborts the process if a write raises an error.

    Attributes:
        error: the first error. What is written after it is dropped.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def write_program(program: torch.export.ExportedProgram, path: Path, description: str) -> None:
    """Write a program of `torch.export`.

    Raises:
        ExportError: if PyTorch has no form for an operation of the program in a file.
        OSError: if the file cannot be written.
    """
    with open(path, "wb") as file:
        kept: Any = _WriteErrorsKept(file)
        try:
            torch.export.save(program, kept, extra_files={METADATA: description})
        except (OSError, MemoryError):
            raise
        except Exception as error:  # PyTorch raises errors of several private kinds
            raise ExportError(f"torch.export cannot save the model: {reason(error)}") from error
        if kept.error is not None:
            raise kept.error


def check_compiler() -> None:
    """Check that the C++ compiler which AOTInductor calls is installed.

    Raises:
        ExportError: naming it.
    """
    name = os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    if shutil.which(name.split()[0]) is None:
        raise ExportError(
            f"a compiled program needs the C++ compiler {name}, which is not installed: install it, or name another "
            "one in the environment variable CXX"
        )


def write_compiled_program(program: torch.export.ExportedProgram, path: Path, description: str) -> None:
    """Compile a program with AOTInductor for the device of its weights, and write it.

    Raises:
        ExportError: if the compiler is not installed or refuses the program.
        OSError: if the file cannot be written.
    """
    from torch._inductor import aoti_compile_and_package  # loads the compiler's modules

    check_compiler()
    metadata = {METADATA: description, CPU: json.dumps(_this_cpu())}
    options = {**COMPILER_OPTIONS, "aot_inductor.metadata": metadata}
    with open(path, "wb") as file:
        kept: Any = _WriteErrorsKept(file)
        try:
            aoti_compile_and_package(program, package_path=kept, inductor_configs=options)
        except OSError:
            raise
        except Exception as error:  # the compiler raises errors of many kinds
            raise ExportError(f"AOTInductor cannot compile the model: {_message(error)}") from error
        if kept.error is not None:
            raise kept.error


def _message(error: Exception) -> str:
    """Return the first line of a compiler's output that names an error, or the first line of all."""
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line or "No space left" in line]
    return lines[0][:300] if lines else reason(error)


def _this_cpu() -> dict[str, Any]:
    """Return the operating system, the architecture and the vector instructions of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "flags": sorted(flag for flag in flags.split() if flag.startswith(VECTOR_FLAGS)),
    }


def compiled_metadata(path: Path) -> dict[str, str] | None:
    """Return what AOTInductor wrote about a compiled program, or None for a program of `torch.export`.

    Raises:
        OSError, zipfile.BadZipFile: if the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/data/aotinductor/" in name and name.endswith("_metadata.json"):
                return json.loads(archive.read(name))
    return None


def _check_cpu(metadata: dict[str, str]) -> None:
    """Check that this machine has the instructions of a compiled program, because PyTorch does not.

    Raises:
        ExportError: naming what it lacks.
    """
    wanted, own = json.loads(metadata.get(CPU, "{}")), _this_cpu()
    missing = [str(wanted[key]) for key in ("system", "machine") if key in wanted and wanted[key] != own[key]]
    missing += sorted({*wanted.get("flags", ())} - {*own["flags"]})
    if missing:
        raise ExportError(
            f"the program is compiled for a machine with {', '.join(missing)}, unlike this one: export the model again "
            "on this machine"
        )


def _load_compiled(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load a compiled program, whose unpacked files disappear with it.

    PyTorch unpacks it into the folder that TMPDIR names, and would leave the files there if it cannot load them.
    """
    from torch._inductor import aoti_load_package  # loads the compiler's modules

    with _UNPACKING:
        folder, before = tempfile.mkdtemp(prefix="segtransformers-program-"), os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = folder
        try:
            with quiet("torch._inductor"):  # without a compiler it calls the file outdated
                program = aoti_load_package(os.fspath(path))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before
    weakref.finalize(program, shutil.rmtree, folder, ignore_errors=True)
    return program


def load_program(path: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.device]:
    """Load a .pt2 file as a function, with the device of its input. Compiled programs do not check their input.

    Raises:
        ExportError: if the program is compiled for another machine.
    """
    metadata = compiled_metadata(path)
    if metadata is not None:
        _check_cpu(metadata)
        return _load_compiled(path), torch.device(metadata.get("AOTI_DEVICE_KEY", "cpu"))
    exported = torch.export.load(path)
    return exported.module(), next(iter(exported.state_dict.values())).device


__all__ = ["check_compiler", "load_program", "write_compiled_program", "write_program"]
