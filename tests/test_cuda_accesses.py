# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/cuda_accesses.py`: numbers of the table from counts of the emulation."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("cuda_accesses", BENCHMARKS / "cuda_accesses.py")
    module = sys.modules["cuda_accesses"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cuda_accesses"]


def test_numbers_of_the_table(script, tmp_path):
    counts = tmp_path / "counts.txt"
    # direction, bytes, elements, lanes, blocks, threads, tensor; requests, sectors, bytes, threads, needed bytes
    lines = ["backward 2 8 4 7 256 0 10 60 1920 320 480", "backward 2 8 4 7 256 6 10 40 640 320 640"]
    counts.write_text("\n".join(lines))
    (launch,) = script.read_launches(counts)
    assert not counts.exists() and launch.parts.keys() == {"rows", "additions"}
    text = script.report([("case", "bfloat16", launch)], BENCHMARKS / "cuda_registers.md")
    assert "| case | bfloat16 | backward | rows | 6.0 | 100% | 4.0 | 60% | 0% |" in text
    assert "| case | bfloat16 | backward | additions | 4.0 | 50% | 1.0 | 40% | 20% |" in text
    assert "Worst by `used`: additions of case, bfloat16, backward, with 50%." in text
    assert "Worst by `unused`: additions of case, bfloat16, backward, with 20%." in text


def test_occupancy(script):
    assert script.occupancy(64, 8192, 256) == (4, 0.5)  # by registers
    assert script.occupancy(32, 100 * 1024, 256) == (2, 0.25)  # by shared memory
    assert script.occupancy(16, 0, 1024) == (2, 1.0)  # by threads


def test_published_table_has_all_cases(script):
    text = (BENCHMARKS / "results" / "cuda_accesses.md").read_text()
    for name in script.CASES:
        for dtype in script.DTYPES:
            assert f"| {name} | {dtype} | backward | additions |" in text, name
