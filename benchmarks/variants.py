# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Figures of several variants, each measured in processes of its own."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable


def medians_of_processes(variants: Iterable[str], rounds: int) -> dict[str, dict[str, float]]:
    """Run this script again with `--inside VARIANT`, in turns, and return the medians of its last lines, JSON objects.

    Args:
        variants: names of what is measured.
        rounds: number of processes for each.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, figures in found.items():
            done = subprocess.run([sys.executable, *sys.argv, "--inside", name], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
            figures.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {key: statistics.median(figure[key] for figure in figures) for key in figures[0]}
        for name, figures in found.items()
    }
