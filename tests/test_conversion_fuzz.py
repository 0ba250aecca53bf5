# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Damaged checkpoints of both of PyTorch's formats end neither in a crash, nor in a hang, nor in lack of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_checkpoints.py")


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_checkpoints_are_read_or_refused(count):
    done = subprocess.run([sys.executable, SCRIPT, str(count), "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    del counts["megabytes"]
    assert sum(counts.values()) == count and len(counts) == 6  # some of each kind are read, others refused
