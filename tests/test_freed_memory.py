# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Memory that is kept: allocations of the same sizes take no new pages."""

import importlib
import json
import os
import platform
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from segtransformers import example_image_path, freed_memory
from segtransformers.cli import app
from segtransformers.cli.common import load_model
from segtransformers.datasets.scenes import write_scenes

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")

PROGRAM = """
import json, resource, threading
import torch
from segtransformers import keep_freed_memory

kept = {kept}

def allocate():
    for size in (60, 15, 90):
        torch.ones(size * 2**20 // 4)

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=allocate)  # a server's requests come in threads
    thread.start()
    thread.join()
    allocate()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([kept, min([new_pages() for _ in range(10)][5:])]))
"""
PAGES = 2 * (60 + 15 + 90) * 256  # of 4 KiB


def run(kept: str, **variables: str) -> tuple[bool, int]:
    """Return whether the settings were made, and the new pages of a later round."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM.format(kept=kept)]
    done = subprocess.run(command, env={**plain, **variables}, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def test_kept_memory_is_used_again():
    kept, pages = run("keep_freed_memory() and keep_freed_memory()")
    assert kept
    assert pages < PAGES // 100


def test_memory_is_returned_without_it():
    assert run("False")[1] > PAGES // 2


@pytest.mark.parametrize("variable", [{"MALLOC_ARENA_MAX": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_settings_of_the_user_stay(variable):
    kept, pages = run("keep_freed_memory()", **variable)
    assert not kept
    assert pages > PAGES // 2


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: pytest.fail("no settings are made"))
    assert not freed_memory.keep_freed_memory()


@pytest.mark.parametrize("command", ["segment", "evaluate"])
def test_commands_keep_memory(command, monkeypatch, tmp_path):
    """A command keeps memory before it loads anything."""
    calls = []
    module = importlib.import_module(f"segtransformers.cli.{command}")
    monkeypatch.setattr(module, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(module, "load_model", lambda *a, **k: calls.append("loaded") or load_model(*a, **k))
    if command == "segment":
        arguments = [str(example_image_path()), "--output", str(tmp_path / "out.png")]
    else:
        write_scenes(tmp_path / "data", 1)
        arguments = ["--model", "packaged", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "r.json")]
    result = CliRunner().invoke(app, [command, *arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert calls == ["kept", "loaded"]
