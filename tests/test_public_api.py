# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The public names: at the top of the package, and one level below it in the modules that the top lists."""

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

import segtransformers

ROOT = Path(__file__).parent.parent
LEVELS = (
    "conversion",
    "datasets",
    "evaluation",
    "export",
    "hub",
    "inference",
    "metrics",
    "operators",
    "published",
    "rasters",
    "training",
    "visualization",
)
PUBLIC_MODULES = {"segtransformers", *(f"segtransformers.{level}" for level in LEVELS)}


@pytest.mark.parametrize("name", ["segtransformers", *(f"segtransformers.{level}" for level in LEVELS)])
def test_every_public_name_can_be_imported(name):
    module = importlib.import_module(name)
    assert module.__all__ and len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for public in module.__all__:
        assert getattr(module, public) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018
    # a submodule of the same name would hide it
    submodules = {submodule.name for submodule in pkgutil.iter_modules(getattr(module, "__path__", []))}
    assert not submodules & set(module.__all__)


@pytest.mark.parametrize("name", ["segtransformers", *(f"segtransformers.{level}" for level in LEVELS)])
def test_type_checkers_see_the_names_that_are_imported_lazily(name):
    module = importlib.import_module(name)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.asname or alias.name
        for node in [*tree.body, *(child for block in blocks for child in block.body)]
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    if blocks:
        assert set(module.__all__) <= seen


def test_the_levels_are_attributes_of_the_package():
    for level in LEVELS:
        assert getattr(segtransformers, level) is importlib.import_module(f"segtransformers.{level}")


def _snippets():
    for block in re.findall(r"```python[^\n]*\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        yield "README.md", block
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                yield path.name, "\n".join(line for line in lines if not line.startswith(("!", "%")))


def test_readme_and_notebooks_import_public_names():
    imported = []
    for file, code in _snippets():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "segtransformers":
                imported += [(file, node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names if alias.name.partition(".")[0] == "segtransformers"]
                assert set(modules) <= PUBLIC_MODULES, file
    assert len(imported) > 20
    for file, module, name in imported:
        assert module in PUBLIC_MODULES, (file, module)
        assert name in {*importlib.import_module(module).__all__, "dispatcher"}, (file, module, name)


def test_the_package_says_that_it_has_types():
    assert Path(segtransformers.__file__).with_name("py.typed").is_file()
