# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The README: its two commands, its snippet, its links. test_docs.py runs the pages of the documentation."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from segtransformers.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_two_commands(tmp_path, monkeypatch):
    """One runs the main job, the other the tests; `.ci/run` installs by the second."""
    monkeypatch.chdir(tmp_path)
    first, second = (shlex.split(code) for kind, code in BLOCKS if kind == "bash")
    assert first[:4] == ["pip", "install", ".", "&&"]
    done = CliRunner().invoke(app, first[5:])
    assert done.exit_code == 0 and (tmp_path / "segmentation.png").exists(), done.output
    assert second == shlex.split('pip install -e ".[test]" && python -m pytest')


def test_python_snippet(capsys):
    (code,) = [code for kind, code in BLOCKS if kind == "python"]
    exec(code, {})
    assert capsys.readouterr().out == "sky\n"


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_stays_short():
    """Details belong on the pages of the documentation."""
    assert len(README.splitlines()) <= 150
