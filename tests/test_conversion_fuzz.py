# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Damaged and hostile checkpoints end neither in a crash, nor in a hang, nor in lack of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run(script: str, *arguments: str) -> dict:
    """Run a script of the tests in a process of its own, and return the JSON of its last line."""
    done = subprocess.run([sys.executable, FOLDER / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_checkpoints_are_read_or_refused(count):
    counts = run("fuzz_checkpoints.py", str(count), "0")
    del counts["megabytes"]
    assert sum(counts.values()) == count and len(counts) == 6  # some of each kind are read, others refused


def test_hostile_checkpoints_are_refused():
    results = run("hostile_checkpoints.py")["files"]
    assert len(results) > 150
    read = {name for name, result in results.items() if result.startswith("read ")}
    assert read == {"tensor: a tensor as weights", "tensor: storages of many sizes"}
    damaged = {name for name, result in results.items() if "damaged" in result}
    assert "file: an old file without its storages" in damaged and len(damaged) > 50
