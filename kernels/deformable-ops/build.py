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
import base64
import hashlib
import importlib.util
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


# The Hub's requirements ask for a folder with the kernel's name, where older versions of `kernels` look.
OLD_LAYOUT = """\
# Written by build.py.
import importlib.util
import sys
from pathlib import Path

_folder = Path(__file__).parents[1]
_name = f"deformable_ops_{abs(hash(_folder)):x}"
_spec = importlib.util.spec_from_file_location(_name, _folder / "__init__.py")
_module = sys.modules[_name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
globals().update({name: getattr(_module, name) for name in _module.__all__})
__all__ = _module.__all__
"""

GLIBC = "2.28"  # of portable builds
MACHINES = ("x86_64", "aarch64")  # of portable builds
CUDA_MAJORS = ("12", "13")  # of builds of torch 2.10 and newer


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
    names = {"build.toml", "build.py", "portable.py", *config["torch"]["src"]}
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


def _system() -> str:
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"{machine}-{platform.system().lower()}"


def variants(config: dict, portable: str = "", nvcc: "Nvcc | None" = None) -> dict[str, str]:
    """Return the variants of a build, as a dict from name to backend.

    They are for the installed torch. Portable ones are for any torch: for CPUs, and for CUDA if there is an nvcc. Those
    of the Hub include all CUDA_MAJORS, because `kernels` loads no other variant into a build of torch for CUDA.
    """
    import torch

    def stable_abi(backend: str) -> str:
        return "torch-stable-abi" + config["torch"]["stable-abi"][backend].replace(".", "")

    versions = set() if torch.version.cuda is None else {torch.version.cuda}
    if portable:
        # a variant also serves newer minor versions of CUDA than the one in its name
        versions = {f"{major}.0" for major in (CUDA_MAJORS if portable == "hub" else ())}
        versions |= set() if nvcc is None else {f"{nvcc.major}.0"}
    found = {f"{stable_abi('cpu')}-cpu-{_system()}": "cpu"}
    for version in sorted(versions):
        found[f"{stable_abi('cuda')}-cu{version.replace('.', '')}-{_system()}"] = "cuda"
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
        major: the major version of CUDA.
    """

    path: str
    toolkit: Path
    capabilities: tuple[str, ...]
    major: str

    def flags(self, compiler: str) -> list[str]:
        """Return the options; `compiler` is the C++ compiler that nvcc calls."""
        flags = ["-std=c++17", "-O3", "-ccbin", compiler, "-Xcompiler=-fPIC,-fvisibility=hidden"]
        for capability in self.capabilities:
            number = capability.replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        return flags


def find_nvcc(capabilities: Sequence[str], portable: bool = False) -> Nvcc:
    """Find nvcc.

    Raises:
        BuildError: if it is missing, or does not have the major version of CUDA that torch was built for. A portable
            build needs no particular version.
    """
    import torch

    if torch.version.cuda is None and not portable:
        raise BuildError(f"torch {torch.__version__} was built without CUDA: install a CUDA build of torch")
    folders = [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders.append(Path("/usr/local/cuda/bin"))
    candidates = [os.environ.get("CUDACXX") or "nvcc", *(str(folder / "nvcc") for folder in folders)]
    path = next(filter(None, map(shutil.which, candidates)), None)
    major = None if portable else str(torch.version.cuda).split(".")[0]
    if path is None:
        wanted = "CUDA" if major is None else f"CUDA {major}"
        raise BuildError(f"the CUDA compiler nvcc is missing: install {wanted} (or conda's cuda-nvcc) or set CUDACXX")
    found = re.search(r"release (\d+)\.(\d+)", version_of(path))
    if found is None or (major is not None and found[1] != major):
        version = "an unknown version" if found is None else f"CUDA {found[1]}.{found[2]}"
        raise BuildError(
            f"{path} belongs to {version}, but torch was built for CUDA {torch.version.cuda}: install nvcc {major}"
        )
    # on some systems nvcc is a script or a link, so the toolkit's folder is read from its output
    dry = subprocess.run([path, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stdout + dry.stderr, re.MULTILINE)
    toolkit = Path(top[1]) if top else Path(path).resolve().parents[1]
    return Nvcc(path, toolkit.resolve(), tuple(capabilities), found[1])


def _wanted_nvcc(config: dict, cuda: bool | None, portable: bool = False) -> Nvcc | None:
    import torch

    capabilities = config["kernel"]["cuda"]["cuda-capabilities"]
    if portable and cuda is None:
        try:
            find_compiler()  # that nvcc calls
            return find_nvcc(capabilities, portable)
        except BuildError as error:
            print(f"without CUDA code: {error}", file=sys.stderr)
        return None
    if cuda:
        return find_nvcc(capabilities, portable)
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


def portable_compiler() -> list[str]:
    """Return the command of the C++ compiler of portable builds.

    Raises:
        BuildError: if it is missing, or this machine is not one that it compiles for.
    """
    machine, _, system = _system().partition("-")
    if system != "linux" or machine not in MACHINES:
        raise BuildError(f"portable builds are for Linux on {' and '.join(MACHINES)}, not for {_system()}")
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError("portable builds need the package ziglang: pip install ziglang")
    return [sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-gnu.{GLIBC}"]


def build(
    output: Path,
    folder: Path = FOLDER,
    cuda: bool | None = None,
    emulate: bool = False,
    portable: str = "",
) -> list[Path]:
    """Build every variant that this machine's torch can use, or portable ones.

    Args:
        output: the folder that `build/` is written to.
        folder: the folder of the sources.
        cuda: True to compile CUDA code for all capabilities in build.toml, False for none, None for this machine's GPU
            (portable: for all capabilities if nvcc is found).
        emulate: compile the CUDA code for the CPU instead of the CPU code. This is slow, and for tests.
        portable: make a build for other machines. The word is part of the operators' namespace, so that builds of
            different origin can be loaded into one process.

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

    compiler = portable_compiler() if portable else [find_compiler()]
    (output / "build").mkdir(parents=True, exist_ok=True)  # fails before the minutes of compilation
    nvcc = None if emulate else _wanted_nvcc(config, cuda, bool(portable))
    name = config["general"]["name"].replace("-", "_")
    include = Path(torch.__file__).parent / "include"
    extra = os.environ.get("CXXFLAGS", "").split()
    shared = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", f"-ffile-prefix-map={folder}=."]
    shared += [f"-DTORCH_TARGET_VERSION={(target[0] << 56) | (target[1] << 48):#x}", "-isystem", str(include), *extra]
    if "GCC" in version_of(*compiler) or "g++" in version_of(*compiler):
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
        backends = variants(config, portable, nvcc)
        identifiers, compilers = {}, {}
        for variant, backend in backends.items():
            kind = f"{variant.split('-')[3]}_{portable}" if portable else backend
            kind += "_emulated" if emulate else ""  # a namespace for each variant: a process may load both
            identifiers[variant] = f"_{name}_{kind}_{state}"
            has_cuda = nvcc is not None and backend == "cuda"
            if portable and has_cuda:
                has_cuda = f"-cu{nvcc.major}0-" in variant
            compilers[variant] = nvcc if has_cuda else None
        for variant in backends:
            has_cuda = compilers[variant] is not None
            component = config["kernel"]["cuda" if has_cuda or emulate else "cpu"]
            objects[variant] = []
            for source in component["src"]:
                made, path = work / f"{source.replace('/', '-')}.o", str(folder / source)
                if source.endswith(".cu") and nvcc is not None:
                    commands[made] = [nvcc.path, *nvcc.flags(find_compiler()), "-c", path, "-o", str(made)]
                elif source.endswith((".cpp", ".cu")) and not (emulate and source.startswith("cpu/")):
                    flags = [*shared, *component.get("cxx-flags", []), "-x", "c++"]
                    commands[made] = [*compiler, *flags, "-c", path, "-o", str(made)]
                else:
                    continue
                objects[variant].append(made)
            binding = next(source for source in config["torch"]["src"] if source.endswith(".cpp"))
            made = work / f"{variant}.o"
            flags = [*shared, f"-DTORCH_EXTENSION_NAME={identifiers[variant]}", "-I", str(work)]
            flags += ["-DCUDA_KERNEL"] if has_cuda else []
            commands[made] = [*compiler, *flags, "-c", str(folder / binding), "-o", str(made)]
            objects[variant].append(made)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            longest_first = sorted(commands, key=lambda made: not made.name.endswith(".cu.o"))
            list(pool.map(_run, [commands[made] for made in longest_first]))

        for variant, backend in backends.items():
            made, identifier = work / variant, identifiers[variant]
            shutil.copytree(folder / "torch-ext" / name, made, ignore=shutil.ignore_patterns("__pycache__", "_ops.py"))
            used = compilers[variant]
            library = made / f"{identifier}.so"
            if portable:
                loader = _link_portable(compiler, objects[variant], used, library, work)
            else:
                _run([*compiler, "-shared", *extra, *map(str, objects[variant]), *_libraries(used), "-o", str(library)])
                loader = OPS.format(identifier=identifier)
            (made / "_ops.py").write_text(loader)
            (made / name).mkdir()
            (made / name / "__init__.py").write_text(OLD_LAYOUT)
            capabilities = [] if used is None else list(used.capabilities)  # none: a CUDA variant for CPUs
            metadata = {
                "name": config["general"]["name"],
                "id": identifier,
                "version": config["general"]["version"],
                "license": config["general"]["license"],
                "python-depends": [],
                "backend": {"type": backend} | ({"archs": capabilities} if backend == "cuda" else {}),
                "digest": digest(made),
            }
            (made / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
            final = output / "build" / variant
            beside = final.with_name(f".{variant}.{os.getpid()}")
            shutil.copytree(made, beside)
            shutil.rmtree(final, ignore_errors=True)
            beside.replace(final)
            written.append(final)
    return written


def _link_portable(compiler: list[str], objects: list[Path], nvcc: Nvcc | None, library: Path, work: Path) -> str:
    """Link a portable library and return the contents of its `_ops.py`."""
    spec = importlib.util.spec_from_file_location("deformable_ops_portable", FOLDER / "portable.py")
    assert spec is not None and spec.loader is not None
    portable = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(portable)
    link = [*compiler, "-shared", "-s", *map(str, objects)]
    _run([*link, "-o", str(library)])  # undefined functions are allowed
    functions = portable.undefined_functions(library)
    libraries = ["libtorch_cpu.so", *([] if nvcc is None else ["libtorch_cuda.so", f"libcudart.so.{nvcc.major}"])]
    source, made = work / f"{library.stem}.cpp", work / f"{library.stem}.functions.o"
    source.write_text(portable.late_binding(functions, libraries, _system().partition("-")[0]))
    _run([*compiler, "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-c", str(source), "-o", str(made)])
    _run([*link, str(made), "-Wl,-z,defs", "-ldl", "-o", str(library)])
    return portable.OPS.format(identifier=library.stem, libraries=libraries, functions=functions)


def digest(variant: Path) -> dict:
    """Return the hashes of a variant's files for its `metadata.json`, which is not among them."""
    files = {
        path.relative_to(variant).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(variant.rglob("*"))
        if path.is_file() and path.name != "metadata.json" and path.suffix != ".pyc"
    }
    return {"algorithm": "sha256", "files": files}


def version_of(*compiler: str) -> str:
    """Return the output of a compiler's `--version`."""
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder that build/ is written to")
    parser.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="compile CUDA code for all GPUs of build.toml; by default only for the GPU of this machine, if any",
    )
    parser.add_argument("--portable", action="store_true", help="build for other machines, with the package ziglang")
    parser.add_argument("--emulate-cuda", action="store_true", help="for tests: compile the CUDA code for the CPU")
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        label = "portable" if arguments.portable else ""
        written = build(arguments.output.resolve(), cuda=arguments.cuda, emulate=arguments.emulate_cuda, portable=label)
    except (BuildError, OSError) as error:
        sys.exit(f"error: {error}")
    for path in written:
        print(path)
    print(f"built in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
