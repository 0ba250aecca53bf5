# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Compile the kernels for the wheel `segtransformers-kernels`: `python -m build kernels/deformable-ops`.

On Linux the wheel is portable (build.py): one wheel serves every Python and every torch from 2.10 on, needs glibc 2.28
and no compiler. It is compiled by the package `ziglang`, so that the source distribution needs no compiler either.
CUDA code for all GPUs of build.toml is in it if nvcc and g++ are found; `DEFORMABLE_OPS_CUDA=1` makes it an error if
they are not, and 0 leaves CUDA code out. Elsewhere, and if `$CXX` is set, the C++ compiler of the machine is taken.
Without one the build ends with one sentence, and segtransformers works without the package.
"""

import importlib.util
import os
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CUDA = {"": None, "0": False, "1": True}


class KernelBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        spec = importlib.util.spec_from_file_location("build_deformable_ops", Path(self.root) / "build.py")
        assert spec is not None and spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = script  # its dataclass looks there
        spec.loader.exec_module(script)
        wanted = os.environ.get("DEFORMABLE_OPS_CUDA", "")
        if wanted not in CUDA:
            sys.exit(f"error: DEFORMABLE_OPS_CUDA must be 0, 1 or unset, got {wanted!r}")
        self.folder = tempfile.TemporaryDirectory()
        machine = platform.machine()
        portable = platform.system() == "Linux" and machine in script.MACHINES and not os.environ.get("CXX")
        try:
            folders = script.build(Path(self.folder.name), cuda=CUDA[wanted], portable="wheel" if portable else "")
        except script.BuildError as error:  # pip would show a traceback of its own files
            sys.exit(
                f"error: segtransformers-kernels cannot be built here: {error}\n"
                "segtransformers works without this package, in plain PyTorch."
            )
        system = f"manylinux_{script.GLIBC.replace('.', '_')}_{machine}" if portable else sysconfig.get_platform()
        build_data["tag"] = f"py3-none-{system.replace('-', '_').replace('.', '_')}"
        build_data["pure_python"] = False
        for folder in folders:
            build_data["force_include"][str(folder)] = f"segtransformers_kernels/build/{folder.name}"

    def finalize(self, version: str, build_data: dict, artifact_path: str) -> None:
        self.folder.cleanup()
