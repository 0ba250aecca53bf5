# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Settings of the documentation, built by `python -m sphinx -W docs docs/_build`."""

import re
import sys
import textwrap
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))  # for generate.py

from generate import write_pages  # noqa: E402

from segtransformers import __version__  # noqa: E402

project = "segtransformers"
author = "The segtransformers authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"segtransformers {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

REPOSITORY = "https://github.com/segtransformers/segtransformers/blob/main"
LINK = re.compile(r"\[`~?([\w.]+)`\]")
CODE = re.compile(r"(?<!`)`(?!`)([^`]+)`(?!`)")


def to_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn the Markdown of our docstrings into reStructuredText: code, links to names, and lists."""
    if not name.startswith("segtransformers"):
        return
    text = LINK.sub(r":py:obj:`~\1`", "\n".join(lines))
    pieces = re.split(r"(^ *```\w*\n.*?^ *```$|:py:obj:`[^`]*`)", text, flags=re.DOTALL | re.MULTILINE)
    text = "".join(_converted(piece) for piece in pieces)
    converted: list[str] = []
    for line in text.split("\n"):
        before = converted[-1] if converted else ""
        is_item, follows_item = line.lstrip().startswith("- "), before.lstrip().startswith("- ")
        indent = len(line) - len(line.lstrip())
        if is_item and before.strip() and not follows_item and len(before) - len(before.lstrip()) <= indent:
            converted.append("")
        converted.append(line)
    # markup ends at a word boundary
    lines[:] = [re.sub(r"(:py:obj:`[^`]*`|``[^`]+``)(?=\w)", r"\1\\ ", line) for line in converted]


def _converted(piece: str) -> str:
    """Return code as literals, and a fenced block as a code block; a link stays."""
    if piece.startswith(":py:obj:"):
        return piece
    fenced = re.fullmatch(r"( *)```(\w*)\n(.*?)\n? *```", piece, re.DOTALL)
    if fenced is None:
        return CODE.sub(r"``\1``", piece)
    indent, language, code = fenced.groups()
    return f"\n{indent}.. code-block:: {language or 'text'}\n\n{textwrap.indent(code, '   ')}\n"


def link_repository(app, docname: str, content: list[str]) -> None:
    """Point links to files outside this folder, such as `../examples`, to the repository."""
    content[0] = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({REPOSITORY}/\1)", content[0])


def link_repository_in_included(app, path: Path, docname: str, content: list[str]) -> None:
    """Point the relative links of included files, which stand in the root folder, to the repository."""
    content[0] = re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", rf"]({REPOSITORY}/\1)", content[0])


def setup(app) -> None:
    app.connect("source-read", link_repository)
    app.connect("include-read", link_repository_in_included)
    app.connect("autodoc-process-docstring", to_restructured_text, priority=400)  # before napoleon
    app.connect("builder-inited", lambda app: write_pages(DOCS))
