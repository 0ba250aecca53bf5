# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Progress bars on a terminal, and lines that are printed while a bar is shown.

`rich` draws the bars. It is imported only when a bar is shown, because its import takes time.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

LINES_PAUSE = 30.0  # seconds between the lines of a bar in a log
NARROW = 70  # columns; a narrower terminal gets a shorter bar
_hidden = False  # whether the user asked for no bars
_shown: Any = None  # rich's Progress while a bar is shown


class Bar:
    """A progress bar. This one is not shown."""

    def update(self, count: int = 1) -> None:
        """Add to the number of units that are done."""

    def restart(self, total: int | None, done: int) -> None:
        """Set the number of all units, None if it is unknown, and of those that are done."""

    def note(self, text: str) -> None:
        """Show a short text beside the bar."""


class _RichBar(Bar):
    def __init__(self, progress: Any, task: Any):
        self.progress, self.task = progress, task

    def update(self, count: int = 1) -> None:
        self.progress.advance(self.task, count)

    def restart(self, total: int | None, done: int) -> None:
        self.progress.update(self.task, total=total, completed=done)

    def note(self, text: str) -> None:
        self.progress.update(self.task, note=text)


class _LinesBar(Bar):
    def __init__(self, bar: Any):
        self.bar = bar

    def update(self, count: int = 1) -> None:
        self.bar.update(count)

    def note(self, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)


def hide_bars(hidden: bool) -> None:
    """Show no progress bars from now on, or show them again."""
    global _hidden
    _hidden = hidden


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # there is no such stream, or it is closed
        return False


@contextlib.contextmanager
def progress_bar(
    total: int | None, unit: str, description: str = "", in_logs: bool = False, shown: bool = True
) -> Iterator[Bar]:
    """Show a progress bar on standard error, which disappears at the end.

    Args:
        total: number of units, or None if it is not known yet.
        unit: name of the units in the singular; "byte" shows sizes and speed in larger units.
        description: short text in front of the bar.
        in_logs: whether to print a line every 30 seconds if standard error is no terminal.
        shown: False shows nothing.
    """
    global _shown
    if _hidden or _shown is not None or not shown:
        yield Bar()
    elif is_terminal(sys.stderr):
        with _rich_progress(unit, description) as progress:
            _shown = progress
            try:
                yield _RichBar(progress, progress.add_task(description, total=total, note=""))
            finally:
                _shown = None
    elif in_logs:
        from tqdm import tqdm

        with tqdm(desc=description or None, total=total, unit=unit, mininterval=LINES_PAUSE) as bar:
            yield _LinesBar(bar)
    else:
        yield Bar()


def write_line(text: str, stream: IO[str]) -> None:
    """Print a text on standard output or standard error, above the bar if one is shown."""
    if _shown is not None and is_terminal(stream):
        from rich.text import Text

        _shown.console.print(Text(text), soft_wrap=True)
        return
    stream.write(f"{text}\n")
    stream.flush()


def _rich_progress(unit: str, description: str) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Any) -> Text:
            total = "?" if task.total is None else f"{int(task.total)}"
            return Text(f"{int(task.completed)}/{total} {unit}s")

    class Speed(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text("" if not task.speed else f"{task.speed:.3g} {unit}s/s", style="dim")

    console = Console(stderr=True)
    columns: list[Any] = [TextColumn("{task.description}", markup=False)] if description else []
    columns += [BarColumn(20 if console.width < NARROW else 40)]
    columns += [DownloadColumn() if unit == "byte" else Count()]
    if console.width >= NARROW:
        columns += [TransferSpeedColumn() if unit == "byte" else Speed(), TimeRemainingColumn()]
    columns += [TextColumn("{task.fields[note]}", markup=False)]
    # the redirection of rich would print results on standard error
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


__all__ = ["Bar", "hide_bars", "is_terminal", "progress_bar", "write_line"]
