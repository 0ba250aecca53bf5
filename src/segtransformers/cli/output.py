# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Output of the commands: results, messages, tables, and one JSON document with `--json`.

Results are on standard output. Messages say what a command does; `--quiet` leaves them out. With `--json`, standard
output gets one JSON document, and everything else that would be printed there is printed on standard error.
"""

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

from ..escaping import printable
from ..terminal import hide_bars, is_terminal, write_line

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the results as one JSON document, and nothing else on standard output.")
]


@dataclass
class _Mode:
    quiet: bool = False
    document_stream: TextIO | None = None  # standard output, if the command has --json


_mode = _Mode()


def with_output_options(command: Callable[..., None], quiet: bool = True) -> Callable[..., None]:
    """Give a command the options `--json` and, if `quiet`, `--quiet`."""

    @functools.wraps(command)
    def run(*arguments: Any, quiet: bool = False, as_json: bool = False, **options: Any) -> None:
        with _output_mode(quiet, as_json):
            command(*arguments, **options)

    signature = inspect.signature(command)
    added = {"quiet": QuietOption, "as_json": JsonOption} if quiet else {"as_json": JsonOption}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in added.items()
    ]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *parameters]
    )
    return run


def is_quiet() -> bool:
    """Return whether the command has `--quiet`."""
    return _mode.quiet


def is_json() -> bool:
    """Return whether the command has `--json`."""
    return _mode.document_stream is not None


def message(text: str, err: bool = False) -> None:
    """Print a text that is no result, unless the command has `--quiet`."""
    if not _mode.quiet:
        write_line(text, sys.stderr if err else sys.stdout)


def result(text: str) -> None:
    """Print a result. With `--json` the document has it."""
    if not is_json():
        write_line(text, sys.stdout)


def document(value: Any) -> None:
    """Print the JSON document of a command with `--json`. Other commands print nothing."""
    if _mode.document_stream is not None:
        print(json.dumps(value, indent=2), file=_mode.document_stream, flush=True)


def result_table(
    plain: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str | None = None,
    left: Sequence[str] = (),
    dispensable: Sequence[str] = (),
    colours: Sequence[Sequence[int]] | None = None,
) -> None:
    """Print a table as a result: drawn on a terminal, as plain text elsewhere.

    Args:
        plain: the plain text.
        columns: headings, all different. If all are blank, the table has no line of headings.
        rows: cells.
        title: line above the table.
        left: columns of text, which is aligned to the left; others hold numbers. The first column is always text.
        dispensable: columns that a narrow terminal leaves out, in this order.
        colours: red, green and blue for a field in front of each row.
    """
    if is_json():
        return
    if not is_terminal(sys.stdout):
        write_line(plain, sys.stdout)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    hidden: list[str] = []
    texts = [*left, columns[0]]
    table = _rich_table(columns, rows, texts, hidden, colours)
    for name in dispensable:
        if console.measure(table, options=console.options.update(max_width=10_000)).minimum <= console.width:
            break
        hidden.append(name)
        table = _rich_table(columns, rows, texts, hidden, colours)
    if title is not None:
        console.print(Text(title), soft_wrap=True)
    console.print(table)
    if hidden:
        console.print(Text(f"not shown on this narrow terminal: {', '.join(hidden)}", style="dim"))


@contextlib.contextmanager
def _output_mode(quiet: bool, as_json: bool) -> Iterator[None]:
    global _mode
    _mode = _Mode(quiet, sys.stdout if as_json else None)
    hide_bars(quiet)
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            yield
    finally:
        _mode = _Mode()
        hide_bars(False)


def _rich_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str],
    hidden: Sequence[str],
    colours: Sequence[Sequence[int]] | None,
) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = [index for index, name in enumerate(columns) if name not in hidden]
    table = Table(box=box.SIMPLE_HEAD, show_header=any(map(str.strip, columns)), header_style="bold", pad_edge=False)
    if colours is not None:
        table.add_column("", no_wrap=True)
    for index in shown:
        # the first column is folded if nothing else makes the table fit
        table.add_column(
            Text(columns[index]),
            justify="left" if columns[index] in left else "right",
            no_wrap=index > 0,
            overflow="fold",
        )
    for number, row in enumerate(rows):
        # cells are Text, because rich would read markup and links in strings
        cells = [Text(printable(row[index], None)) for index in shown]
        if colours is not None:
            cells.insert(0, Text("  ", style=f"on rgb({','.join(map(str, colours[number]))})"))
        table.add_row(*cells)
    return table
