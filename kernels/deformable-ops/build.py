# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Build this kernel project for the installed torch: `python build.py [--output FOLDER] [--cuda]`.

The script reads `build.toml` and writes `FOLDER/build/<variant>/` as kernel-builder does, but it needs only a C++17
compiler (`$CXX`, else c++) and torch: no Nix, network or Python headers. The binary uses torch's stable ABI, so it also
works with newer versions of torch. It depends on this machine's C library, so it is not for uploading.

CUDA code needs nvcc (`$CUDACXX`, else nvcc on the path, in `$CUDA_HOME/bin` or in `/usr/local/cuda/bin`) with the major
version of CUDA that torch was built for, and takes minutes to compile. By default it is compiled only if torch finds a
GPU, and for this GPU only. `--cuda` compiles it for all `cuda-capabilities` of build.toml, also without a GPU;
`--no-cuda` does not compile it. If torch was built for CUDA, a CUDA variant is written in any case, because `kernels`
loads it also on a CPU; without CUDA code it serves CPUs.

`$CXXFLAGS` is added to the options of the C++ compiler, for example `-fsanitize=address -g`. nvcc reads
`$NVCC_APPEND_FLAGS`.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

REGISTRATION = """\
// Written by build.py. torch.ops.load_library loads the library, so it needs no Python module.
#pragma once
#define STABLE_TORCH_LIBRARY_EXPAND(NAME, MODULE) STABLE_TORCH_LIBRARY(NAME, MODULE)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, DEVICE, MODULE)
#define REGISTER_EXTENSION(NAME)
"""

OPS = """\
# Written by build.py.
from pathlib import Path

import torch

torch.ops.load_library(Path(__file__).with_name("{identifier}.so"))
ops = torch.ops.{identifier}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{identifier}::{{op_name}}"
"""


class BuildError(RuntimeError):
    """A compiler is missing or too old, or compilation failed."""


def read_config(folder: Path = FOLDER) -> dict:
    """Read `build.toml`."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # a dependency of `kernels` there
    return tomllib.loads((folder / "build.toml").read_text())


def sources(folder: Path = FOLDER) -> list[Path]:
    """Return all files of a build in a fixed order."""
    config = read_config(folder)
    names = {"build.toml", "build.py", *config["torch"]["src"]}
    for component in config["kernel"].values():
        names.update(component["src"])
    return sorted({folder / name for name in names} | set((folder / "torch-ext").glob("*/**/*.py")))


def source_hash(folder: Path = FOLDER) -> str:
    """Return seven characters that change with the sources; the identifier of a build ends with them."""
    digest = hashlib.sha256()
    for path in sources(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:7]


def variants(config: dict) -> dict[str, str]:
    """Return the variants for the installed torch, as a dict from name to backend."""
    import torch

    def stable_abi(backend: str) -> str:
        return "torch-stable-abi" + config["torch"]["stable-abi"][backend].replace(".", "")

    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    system = f"{machine}-{platform.system().lower()}"
    found = {f"{stable_abi('cpu')}-cpu-{system}": "cpu"}
    if torch.version.cuda is not None:
        found[f"{stable_abi('cuda')}-cu{torch.version.cuda.replace('.', '')}-{system}"] = "cuda"
    return found


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output = (result.stdout + result.stderr).splitlines()
        raise BuildError("\n".join([" ".join(command), *output[:20]]))


def find_compiler() -> str:
    """Return the path of the C++ compiler.

    Raises:
        BuildError: if it is missing.
    """
    name = os.environ.get("CXX") or "c++"
    found = shutil.which(name)
    if found is None:
        raise BuildError(
            f"the C++ compiler {name!r} is missing: install one (for example your system's package g++, or conda's "
            "cxx-compiler) or set CXX"
        )
    return found


@dataclass(frozen=True)
class Nvcc:
    """CUDA's compiler.

    Attributes:
        path: the executable.
        toolkit: the folder of its toolkit.
        capabilities: the compute capabilities to compile for, such as "9.0".
    """

    path: str
    toolkit: Path
    capabilities: tuple[str, ...]

    def flags(self, compiler: str) -> list[str]:
        """Return the options; `compiler` is the C++ compiler that nvcc calls."""
        flags = ["-std=c++17", "-O3", "-ccbin", compiler, "-Xcompiler=-fPIC,-fvisibility=hidden"]
        for capability in self.capabilities:
            number = capability.replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        return flags


def find_nvcc(capabilities: Sequence[str]) -> Nvcc:
    """Find nvcc.

    Raises:
        BuildError: if it is missing, or does not have the major version of CUDA that torch was built for.
    """
    import torch

    if torch.version.cuda is None:
        raise BuildError(f"torch {torch.__version__} was built without CUDA: install a CUDA build of torch")
    folders = [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders.append(Path("/usr/local/cuda/bin"))
    candidates = [os.environ.get("CUDACXX") or "nvcc", *(str(folder / "nvcc") for folder in folders)]
    path = next(filter(None, map(shutil.which, candidates)), None)
    major = torch.version.cuda.split(".")[0]
    if path is None:
        raise BuildError(
            f"the CUDA compiler nvcc is missing: install CUDA {major} (or conda's cuda-nvcc) or set CUDACXX"
        )
    found = re.search(r"release (\d+)\.(\d+)", version_of(path))
    if found is None or found[1] != major:
        version = "an unknown version" if found is None else f"CUDA {found[1]}.{found[2]}"
        raise BuildError(
            f"{path} belongs to {version}, but torch was built for CUDA {torch.version.cuda}: install nvcc {major}"
        )
    # on some systems nvcc is a script or a link, so the toolkit's folder is read from its output
    dry = subprocess.run([path, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stdout + dry.stderr, re.MULTILINE)
    toolkit = Path(top[1]) if top else Path(path).resolve().parents[1]
    return Nvcc(path, toolkit.resolve(), tuple(capabilities))


def _wanted_nvcc(config: dict, cuda: bool | None) -> Nvcc | None:
    import torch

    if cuda:
        return find_nvcc(config["kernel"]["cuda"]["cuda-capabilities"])
    if cuda is None and torch.version.cuda is not None and torch.cuda.is_available():
        try:
            return find_nvcc([".".join(map(str, torch.cuda.get_device_capability()))])
        except BuildError as error:
            print(f"building for the CPU only: {error}", file=sys.stderr)
    return None


def _libraries(nvcc: Nvcc | None) -> list[str]:
    """Return the linker's options for the libraries of a variant.

    CUDA's runtime is the shared library that torch loads, because another copy would not know torch's current device.

    Raises:
        BuildError: if CUDA's runtime is missing.
    """
    import torch

    if platform.system() == "Darwin":
        return ["-undefined", "dynamic_lookup"]
    linking = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
    if nvcc is None:
        return linking
    name = f"libcudart.so.{str(torch.version.cuda).split('.')[0]}"
    packages = Path(torch.__file__).parents[1] / "nvidia"
    folders = [nvcc.toolkit / "lib64", nvcc.toolkit / "lib", *sorted(packages.glob("*/lib"))]
    found = next((path for folder in folders for path in sorted(folder.glob(f"{name}*"))), None)
    if found is None:
        raise BuildError(f"{name} was not found in {', '.join(map(str, folders))}")
    return [*linking, "-ltorch_cuda", str(found)]


def build(output: Path, folder: Path = FOLDER, cuda: bool | None = None, emulate: bool = False) -> list[Path]:
    """Build every variant that this machine's torch can use.

    Args:
        output: the folder that `build/` is written to.
        folder: the folder of the sources.
        cuda: True to compile CUDA code for all capabilities in build.toml, False for none, None for this machine's GPU.
        emulate: compile the CUDA code for the CPU instead of the CPU code. This is slow, and for tests.

    Returns:
        the folders of the variants.

    Raises:
        BuildError: if the compiler is missing or fails, or torch is too old.
    """
    import torch

    config = read_config(folder)
    if platform.system() == "Windows":
        raise BuildError("the sources need GCC or Clang, on Linux or macOS")
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    target = tuple(int(part) for part in config["torch"]["stable-abi"]["cpu"].split("."))
    if installed < target:
        raise BuildError(f"torch {torch.__version__} is too old: install {'.'.join(map(str, target))} or newer")

    compiler = find_compiler()
    (output / "build").mkdir(parents=True, exist_ok=True)  # fails before the minutes of compilation
    nvcc = None if emulate else _wanted_nvcc(config, cuda)
    name = config["general"]["name"].replace("-", "_")
    include = Path(torch.__file__).parent / "include"
    extra = os.environ.get("CXXFLAGS", "").split()
    shared = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", f"-ffile-prefix-map={folder}=."]
    shared += [f"-DTORCH_TARGET_VERSION={(target[0] << 56) | (target[1] << 48):#x}", "-isystem", str(include), *extra]
    if "GCC" in version_of(compiler) or "g++" in version_of(compiler):
        shared.append("-fno-gnu-unique")
    if emulate:
        header = str(folder / "tests" / "emulation.h")
        shared += ["-DDEFORMABLE_OPS_EMULATED", "-Wno-unknown-pragmas", "-include", header]

    written = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "registration.h").write_text(REGISTRATION)
        commands: dict[Path, list[str]] = {}  # by object file, so that a shared object is compiled once
        objects: dict[str, list[Path]] = {}
        state = source_hash(folder)  # computed once, because the sources may change meanwhile
        identifiers = {
            variant: f"_{name}_{'emulated' if emulate else backend}_{state}"
            for variant, backend in variants(config).items()
        }
        for variant, backend in variants(config).items():
            has_cuda = backend == "cuda" and nvcc is not None
            component = config["kernel"]["cuda" if has_cuda or emulate else "cpu"]
            objects[variant] = []
            for source in component["src"]:
                made, path = work / f"{source.replace('/', '-')}.o", str(folder / source)
                if source.endswith(".cu") and nvcc is not None:
                    commands[made] = [nvcc.path, *nvcc.flags(compiler), "-c", path, "-o", str(made)]
                elif source.endswith((".cpp", ".cu")) and not (emulate and source.startswith("cpu/")):
                    flags = [*shared, *component.get("cxx-flags", []), "-x", "c++"]
                    commands[made] = [compiler, *flags, "-c", path, "-o", str(made)]
                else:
                    continue
                objects[variant].append(made)
            binding = next(source for source in config["torch"]["src"] if source.endswith(".cpp"))
            made = work / f"{variant}.o"
            flags = [*shared, f"-DTORCH_EXTENSION_NAME={identifiers[variant]}", "-I", str(work)]
            flags += ["-DCUDA_KERNEL"] if has_cuda else []
            commands[made] = [compiler, *flags, "-c", str(folder / binding), "-o", str(made)]
            objects[variant].append(made)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            longest_first = sorted(commands, key=lambda made: not made.name.endswith(".cu.o"))
            list(pool.map(_run, [commands[made] for made in longest_first]))

        for variant, backend in variants(config).items():
            made, identifier = work / variant, identifiers[variant]
            shutil.copytree(folder / "torch-ext" / name, made, ignore=shutil.ignore_patterns("__pycache__", "_ops.py"))
            used = nvcc if backend == "cuda" else None
            library = str(made / f"{identifier}.so")
            _run([compiler, "-shared", *extra, *map(str, objects[variant]), *_libraries(used), "-o", library])
            (made / "_ops.py").write_text(OPS.format(identifier=identifier))
            metadata = {
                "name": config["general"]["name"],
                "id": identifier,
                "version": config["general"]["version"],
                "license": config["general"]["license"],
                "python-depends": [],
                "backend": {"type": backend} | ({} if used is None else {"archs": list(used.capabilities)}),
            }
            (made / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
            final = output / "build" / variant
            beside = final.with_name(f".{variant}.{os.getpid()}")
            shutil.copytree(made, beside)
            shutil.rmtree(final, ignore_errors=True)
            beside.replace(final)
            written.append(final)
    return written


def version_of(compiler: str) -> str:
    """Return the output of a compiler's `--version`."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder that build/ is written to")
    parser.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="compile CUDA code for all GPUs of build.toml; by default only for the GPU of this machine, if any",
    )
    parser.add_argument("--emulate-cuda", action="store_true", help="for tests: compile the CUDA code for the CPU")
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        written = build(arguments.output.resolve(), cuda=arguments.cuda, emulate=arguments.emulate_cuda)
    except (BuildError, OSError) as error:
        sys.exit(f"error: {error}")
    for path in written:
        print(path)
    print(f"built in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
