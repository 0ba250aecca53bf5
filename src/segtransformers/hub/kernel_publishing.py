# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Push a build of the compiled operators to the Hub, in the layout that the `kernels` package loads.

The Hub's requirements: https://huggingface.co/docs/kernels/kernel-requirements. A version of a kernel is the branch
`v<version>` of a repository of the type kernel. `main` has the card.
"""

import ast
import json
import re
import sys
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from jinja2 import Environment, StrictUndefined

from ..operators.dispatcher import check_hashes
from .publishing import PublishingError, check_destination, failure

# the newest symbols of manylinux_2_28
NEWEST_SYMBOLS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
# besides torch's and CUDA's, the libraries that manylinux_2_28 promises and the operators may need
LIBRARIES = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|c10\w*|torch\w*|cudart)$")


def check_build(folder: Path) -> int:
    """Check that a build meets the Hub's requirements: layout, hashes, namespaces, imports, symbols and libraries.

    Args:
        folder: the folder that has `build/<variant>/`.

    Returns:
        the version of the kernel.

    Raises:
        PublishingError: if something is missing or wrong. The message names the variant.
    """
    variants = sorted(path.parent for path in (folder / "build").glob("*/metadata.json"))
    if not variants:
        raise PublishingError(f"{folder} has no build/<variant>/metadata.json: build it with build.py --portable")
    versions, identifiers = set(), set()
    for variant in variants:
        metadata = json.loads((variant / "metadata.json").read_text(encoding="utf-8"))
        identifier = metadata["id"]
        if identifier in identifiers or not identifier.isidentifier():
            raise PublishingError(f"{variant.name}: the namespace {identifier} is invalid or used twice")
        identifiers.add(identifier)
        versions.add(metadata["version"])
        try:
            check_hashes(variant)
        except RuntimeError as error:
            raise PublishingError(f"{error}: build it again") from None
        library = variant / f"{identifier}.so"
        for path in (library, variant / metadata["name"].replace("-", "_") / "__init__.py"):
            if not path.is_file():
                raise PublishingError(f"{variant.name} has no {path.relative_to(variant)}: build it again")
        newer = newest_symbol(library)
        if newer is not None:
            raise PublishingError(
                f"{library.name} needs {newer}, which manylinux_2_28 lacks, so it works on few machines: build it with "
                "build.py --portable"
            )
        foreign = foreign_library(library)
        if foreign is not None:
            raise PublishingError(f"{library.name} needs {foreign}, which is neither torch's nor in manylinux_2_28")
        for path in sorted(variant.rglob("*.py")):
            name = foreign_import(path)
            if name is not None:
                raise PublishingError(
                    f"{path.relative_to(variant)} of {variant.name} imports {name}: a kernel may only import torch, "
                    "Python's library, and its own modules by relative names"
                )
        if "layers" not in public_names(variant):
            raise PublishingError(f"{variant.name}: __all__ of __init__.py must name the layers")
    if len(versions) != 1:
        raise PublishingError(f"the variants of {folder} have different versions: {sorted(versions)}")
    return versions.pop()


def newest_symbol(library: Path) -> str | None:
    """Return a version of symbols that a binary names and manylinux_2_28 lacks, or None."""
    for name, digits in re.findall(rb"\b(GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)\0", library.read_bytes()):
        version = tuple(map(int, digits.decode().split(".")))
        if version > NEWEST_SYMBOLS[name.decode()]:
            return f"{name.decode()}_{digits.decode()}"
    return None


def foreign_library(library: Path) -> str | None:
    """Return a library that a binary names and that the Hub's requirements do not allow, or None."""
    for name, rest in re.findall(rb"\0(lib[\w+-]+)(\.so[.\d]*)\0", library.read_bytes()):
        if LIBRARIES.match(name.decode()) is None:
            return (name + rest).decode()
    return None


def foreign_import(path: Path) -> str | None:
    """Return a module that a file imports and that the Hub's requirements do not allow, or None."""
    names = []
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names += [item.name for item in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
            names.append(str(statement.module))
    allowed = sys.stdlib_module_names | {"torch"}
    return next((name for name in names if name.partition(".")[0] not in allowed), None)


def public_names(variant: Path) -> list[str]:
    """Return `__all__` of a variant without running it."""
    names: list[str] = []
    for statement in ast.parse((variant / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            names = ast.literal_eval(statement.value)
    return names


def kernel_card(template: str, repo_id: str, folder: Path, version: int) -> str:
    """Fill the template CARD.md, as kernel-builder does, with what the build has."""
    variant = sorted(path.parent for path in (folder / "build").glob("*/metadata.json"))[0]
    layers = ast.parse((variant / "layers.py").read_text(encoding="utf-8")).body
    hidden = {"dense", "layers", "matrix", "ops", "add_op_namespace_prefix"}
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(
        repo_id=repo_id,
        version=version,
        license=json.loads((variant / "metadata.json").read_text(encoding="utf-8"))["license"].lower(),
        functions=[name for name in public_names(variant) if name not in hidden],
        layers=[item.name for item in layers if isinstance(item, ast.ClassDef)],
        has_benchmark=True,
        upstream=None,
    )


def push_kernels(folder: Path, sources: Path, repo_id: str, private: bool = False) -> str:
    """Push a build to the branch of its version, and the card to `main`; create the repository if it does not exist.

    The branch gets the variants of this build and loses those of an earlier push in one commit, so that nobody loads
    half of one.

    Args:
        folder: the folder that has `build/<variant>/`.
        sources: the folder of the kernel project, which has CARD.md and benchmarks/.
        repo_id: `owner/name`, or only a name for a repository of the user.
        private: make the repository private.

    Returns:
        The repository and the commit, as `owner/name@commit`.

    Raises:
        PublishingError: if the build cannot be published or the push failed.
    """
    version = check_build(folder)
    destination = check_destination(repo_id, private, repo_type="kernel")
    repo_id, branch, api = destination.repo_id, f"v{version}", HfApi()
    card = kernel_card((sources / "CARD.md").read_text(encoding="utf-8"), repo_id, folder, version).encode()
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted((folder / "build").rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and not path.relative_to(folder).parts[1].startswith(".")
    }
    benchmark = sources / "benchmarks" / "benchmark.py"
    if benchmark.is_file():
        files["benchmarks/benchmark.py"] = benchmark
    done = f"{repo_id} is unchanged"
    try:
        if not destination.exists:
            api.create_repo(repo_id, repo_type="kernel", private=private or None)
            done = f"{repo_id} was created and is empty"
        api.create_branch(repo_id, branch=branch, repo_type="kernel", exist_ok=True)
        old = api.list_repo_files(repo_id, repo_type="kernel", revision=branch)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd("README.md", card),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in old if name.startswith("build/") and name not in files),
        ]
        commit = api.create_commit(
            repo_id, operations, commit_message=f"Push version {version}", repo_type="kernel", revision=branch
        )
        done = f"the branch {branch} of {repo_id} has the build, and main keeps its card"
        api.create_commit(
            repo_id,
            [CommitOperationAdd("README.md", card)],
            commit_message=f"Card of version {version}",
            repo_type="kernel",
        )
    except Exception as error:
        raise failure(f"the push failed, {done}", error) from None
    return f"{repo_id}@{commit.oid}"


__all__ = [
    "check_build",
    "foreign_import",
    "foreign_library",
    "kernel_card",
    "newest_symbol",
    "public_names",
    "push_kernels",
]
