# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Build this kernel project for the installed torch: `python build.py [--output FOLDER]`.

Reads `build.toml` as kernel-builder does and writes the same layout, `FOLDER/build/<variant>/`, but needs only a C++17
compiler (`$CXX`, else c++) and torch: no Nix, no network, no Python headers. The binary uses torch's stable ABI, so it
also serves newer versions of torch. It depends on this machine's C library: right for use here, not for uploading.

`$CXXFLAGS` is added to the compiler's options, for example `-fsanitize=address -g`.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

REGISTRATION = """\
// Written by the build. The library is loaded with torch.ops.load_library, so it needs no Python module of its own.
#pragma once
#define STABLE_TORCH_LIBRARY_EXPAND(NAME, MODULE) STABLE_TORCH_LIBRARY(NAME, MODULE)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, DEVICE, MODULE)
#define REGISTER_EXTENSION(NAME)
"""

OPS = """\
# Written by the build.
from pathlib import Path

import torch

torch.ops.load_library(Path(__file__).with_name("{identifier}.so"))
ops = torch.ops.{identifier}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{identifier}::{{op_name}}"
"""


class BuildError(RuntimeError):
    """What is missing, or what the compiler said."""


def read_config(folder: Path = FOLDER) -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    return tomllib.loads((folder / "build.toml").read_text())


def sources(folder: Path = FOLDER) -> list[Path]:
    """Every file that goes into a build, in a fixed order."""
    config = read_config(folder)
    names = {"build.toml", "build.py", *config["torch"]["src"]}
    for component in config["kernel"].values():
        names.update(component["src"])
    return sorted({folder / name for name in names} | set((folder / "torch-ext").glob("*/**/*.py")))


def source_hash(folder: Path = FOLDER) -> str:
    """Seven characters that change with the sources; the end of the identifier of every build."""
    digest = hashlib.sha256()
    for path in sources(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:7]


def variants(config: dict) -> dict[str, str]:
    """Variant names to backends.

    Where torch was built for CUDA, `kernels` looks for the CUDA variant even to serve a CPU: that one is built too.
    """
    import torch

    def stable_abi(backend: str) -> str:
        return "torch-stable-abi" + config["torch"]["stable-abi"][backend].replace(".", "")

    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    place = f"{machine}-{platform.system().lower()}"
    found = {f"{stable_abi('cpu')}-cpu-{place}": "cpu"}
    if torch.version.cuda is not None:
        found[f"{stable_abi('cuda')}-cu{torch.version.cuda.replace('.', '')}-{place}"] = "cuda"
    return found


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        said = (result.stdout + result.stderr).splitlines()
        raise BuildError("\n".join([" ".join(command), *said[:20]]))


def _compiler() -> str:
    name = os.environ.get("CXX", "c++")
    found = shutil.which(name)
    if found is None:
        raise BuildError(
            f"there is no C++ compiler {name!r}: install one (for example the package g++ of your system, or conda's "
            "cxx-compiler) or set CXX"
        )
    return found


def build(output: Path, folder: Path = FOLDER) -> list[Path]:
    """Build every variant that this machine's torch can use; give their folders.

    Raises:
        BuildError: without a compiler, with a torch that is too old, or with what the compiler printed.
    """
    import torch

    config = read_config(folder)
    if platform.system() == "Windows":
        raise BuildError("these sources need GCC or Clang on Linux or macOS")
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    target = tuple(int(part) for part in config["torch"]["stable-abi"]["cpu"].split("."))
    if installed < target:
        raise BuildError(f"torch {torch.__version__} is too old, {'.'.join(map(str, target))} or newer is needed")

    compiler = _compiler()
    include = Path(torch.__file__).parent / "include"
    extra = os.environ.get("CXXFLAGS", "").split()
    shared = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", f"-ffile-prefix-map={folder}=."]
    shared += [f"-DTORCH_TARGET_VERSION={(target[0] << 56) | (target[1] << 48):#x}", "-isystem", str(include), *extra]
    if "GCC" in _version(compiler) or "g++" in _version(compiler):
        shared.append("-fno-gnu-unique")
    linking = (
        ["-undefined", "dynamic_lookup"]
        if platform.system() == "Darwin"
        else [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
    )

    name = config["general"]["name"].replace("-", "_")
    components = {key: value for key, value in config["kernel"].items() if value["backend"] == "cpu"}
    written = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "registration.h").write_text(REGISTRATION)
        commands, objects = [], []
        for component in components.values():
            for source in component["src"]:
                if source.endswith(".cpp"):
                    objects.append(work / f"{source.replace('/', '-')}.o")
                    flags = shared + component.get("cxx-flags", [])
                    commands.append([compiler, *flags, "-c", str(folder / source), "-o", str(objects[-1])])
        bindings = {}
        for variant, backend in variants(config).items():
            identifier = f"_{name}_{backend}_{source_hash(folder)}"
            bindings[variant] = (backend, identifier, work / f"{variant}.o")
            flags = [*shared, f"-DTORCH_EXTENSION_NAME={identifier}", "-I", str(work)]
            binding = next(source for source in config["torch"]["src"] if source.endswith(".cpp"))
            commands.append([compiler, *flags, "-c", str(folder / binding), "-o", str(bindings[variant][2])])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))

        for variant, (backend, identifier, binding_object) in bindings.items():
            made = work / variant
            shutil.copytree(folder / "torch-ext" / name, made, ignore=shutil.ignore_patterns("__pycache__", "_ops.py"))
            library = made / f"{identifier}.so"
            everything = [*map(str, objects), str(binding_object)]
            _run([compiler, "-shared", *extra, *everything, *linking, "-o", str(library)])
            (made / "_ops.py").write_text(OPS.format(identifier=identifier))
            metadata = {
                "name": config["general"]["name"],
                "id": identifier,
                "version": config["general"]["version"],
                "license": config["general"]["license"],
                "python-depends": [],
                "backend": {"type": backend},
            }
            (made / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
            final = output / "build" / variant
            final.parent.mkdir(parents=True, exist_ok=True)
            beside = final.with_name(f".{variant}.{os.getpid()}")
            shutil.copytree(made, beside)
            shutil.rmtree(final, ignore_errors=True)
            beside.replace(final)
            written.append(final)
    return written


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=FOLDER, help="the folder that build/ is written to")
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        written = build(arguments.output.resolve())
    except (BuildError, OSError) as error:
        sys.exit(f"error: {error}")
    for path in written:
        print(path)
    print(f"built in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
