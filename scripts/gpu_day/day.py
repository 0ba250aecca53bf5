# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Options, results and items of a run of gpu_day."""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass


class Skipped(Exception):
    """An item cannot run on this machine. The message says why."""


@dataclass(frozen=True)
class Item:
    """A piece of work whose result is saved.

    Attributes:
        part: a letter.
        name: of the item in its part.
        seconds: roughly what it takes on a GPU.
        run: does the work, prints a table and returns the data for results.json. A list "bounds" has those of
            [`bound`].
    """

    part: str
    name: str
    seconds: int
    run: Callable[[], dict]

    @property
    def key(self) -> str:
        return f"{self.part}: {self.name}"


class Day:
    """The options and the results so far."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.dry = options.dry_run
        self.device = "cpu" if self.dry else "cuda"
        self.end = time.perf_counter() + 60 * options.minutes
        self.output = options.output.resolve()
        self.output.mkdir(parents=True, exist_ok=True)
        self.path = self.output / "results.json"
        self.results: dict[str, dict] = {}
        if self.path.is_file():
            try:
                saved = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                raise SystemExit(f"error: {self.path} is no JSON: move it away to begin anew") from None
            if saved["dry_run"] != self.dry:
                raise SystemExit(
                    f"error: {self.path} is of a run with dry_run {saved['dry_run']}: choose another --output"
                )
            self.results = saved["results"]

    def timeout(self) -> float:
        """Return the seconds after which a program is ended: those that are left, and a minute at least."""
        return max(60.0, self.end - time.perf_counter())

    def save(self, machine: dict) -> None:
        """Write the results so that an interruption leaves the old or the new file."""
        text = json.dumps({"dry_run": self.dry, "machine": machine, "results": self.results}, indent=2)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


def bound(name: str, measured: float | None, wanted: float) -> dict:
    """Return a bound for the results: `measured`, None if nothing was measured, must be `wanted` or more."""
    result = "not measured" if measured is None else "pass" if measured >= wanted else "FAIL"
    return {"name": name, "measured": measured, "wanted": wanted, "result": result}


def table(columns: list[str], rows: list[list]) -> None:
    """Print rows under their columns."""

    def text(cell) -> str:
        return "-" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)

    cells = [columns, *[list(map(text, row)) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)
