# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Machine, commit, date and operators, as all benchmarks write them into their results."""

import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

from segtransformers.operators import dispatcher


def machine_name() -> str:
    """Return the name of the processor and the number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    """Return the short hash of the checkout's commit, empty outside of a checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()


def operators() -> str:
    """Describe the operators in use, without the folder of their build."""
    return re.sub(r"; [^()]*\)", ")", dispatcher.describe())


def today() -> str:
    return date.today().isoformat()


__all__ = ["commit", "machine_name", "operators", "today"]
