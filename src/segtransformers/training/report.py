# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The report of a training run: one HTML file that needs no network and runs no script."""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from ..escaping import html_text
from ..visualization import Palette, distinct_colours, draw_overlay

IMAGE_WIDTH = 360  # pixels of an image in the report
MOST_POINTS = 300  # of a curve
MOST_CLASSES = 24  # in the confusion matrix
MOST_PAIRS = 8  # confused pairs of classes
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 220, 62, 12, 10, 28  # of a chart
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NO_CLASS = 255


@dataclass(frozen=True)
class ShownImage:
    """An image of the report with its truth and its prediction.

    Attributes:
        name: of the sample.
        score: its own mean IoU, from 0 to 1.
        image: any mode.
        truth, prediction: label maps `(height, width)`; 255 means no class.
    """

    name: str
    score: float
    image: Image.Image
    truth: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Report:
    """The contents of a report.

    Attributes:
        title: a line of text.
        history: `log_history` of the trainer's state.
        best_step: step of the checkpoint that became the model, or None for the last one.
        results: of `evaluate_segmentation`, or None without evaluation data.
        confusion: pixels `(classes, classes + 1)`, true classes in rows, as of `MeanIoU`, or None.
        worst: images with the lowest scores, lowest first.
        palette: `[red, green, blue]` of each class, or None.
        facts: short facts about data, model and run.
        warnings: what the run warned of.
        command: the command that repeats the run.
        settings: the recipe and the arguments.
    """

    title: str
    history: Sequence[Mapping[str, Any]]
    best_step: int | None = None
    results: Mapping[str, Any] | None = None
    confusion: np.ndarray | None = None
    worst: Sequence[ShownImage] = ()
    palette: Palette | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    command: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def report_page(report: Report) -> str:
    """Return the report as HTML. All texts are escaped."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    parts = [
        f"<h1>{html_text(report.title)}</h1>",
        *(f'<p class="warning">{html_text(text)}</p>' for text in report.warnings),
        _tiles(report),
        _charts(report),
    ]
    if report.results is not None:
        parts.append(_class_table(report.results["classes"], report.palette))
    if report.worst:
        parts.append(_worst(report))
    if report.confusion is not None and report.results is not None:
        parts.append(_confusion(report.confusion, [entry["name"] for entry in report.results["classes"]]))
    parts.append(_settings(report))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html_text(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _tiles(report: Report) -> str:
    facts = dict(report.facts)
    if report.results is not None:
        means = {"mean_iou": "mean IoU", "mean_dice": "mean Dice", "overall_accuracy": "pixel accuracy"}
        figures = {
            title: _percent(report.results[name])
            for name, title in means.items()
            if report.results.get(name) is not None
        }
        facts = {**figures, **facts}
    if report.best_step is not None:
        facts["best step"] = str(report.best_step)
    tiles = "".join(
        f'<div class="tile"><span class="dim">{html_text(name)}</span><b>{html_text(value)}</b></div>'
        for name, value in facts.items()
    )
    return f'<div class="tiles">{tiles}</div>'


def _charts(report: Report) -> str:
    charts = [
        _chart("loss", [("training", "loss"), ("evaluation", "eval_loss")], report),
        _chart("mean IoU in %", [("evaluation", "eval_mean_iou")], report, factor=100.0),
        _chart("learning rate", [("of the heads", "learning_rate")], report),
    ]
    return f'<h2>Curves</h2>\n<div class="charts">{"".join(chart for chart in charts if chart)}</div>'


def _chart(title: str, series: Sequence[tuple[str, str]], report: Report, factor: float = 1.0) -> str:
    """Return a figure with lines over the steps, or an empty text without values."""
    lines = []
    for name, key in series:
        values = [
            (float(entry["step"]), factor * float(entry[key]))
            for entry in report.history
            if _is_finite(entry.get(key)) and _is_finite(entry.get("step"))
        ]
        if values:
            lines.append((name, 2 if name == "evaluation" else 1, _thinned(values)))
    if not lines:
        return ""
    steps = [float(entry["step"]) for entry in report.history if _is_finite(entry.get("step"))]  # of all charts
    heights = [value for *_, values in lines for _, value in values]
    low, high, ticks = _scale(min(heights), max(heights))
    first, last = min(0.0, min(steps)), max(max(steps), 1.0)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for tick in ticks:
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step, anchor in ((first, "start"), ((first + last) / 2, "middle"), (last, "end")):
        drawn.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step:g}</text>')
    if report.best_step is not None and first <= report.best_step <= last:
        at = x(report.best_step)
        drawn.append(f'<line class="best" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for name, index, values in lines:
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in values)
        drawn.append(f'<polyline class="line{index}" points="{points}"/>')
        if len(values) <= 40:
            drawn += [
                f'<circle class="dot{index}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3">'
                f"<title>{html_text(name)}, step {step:g}: {value:.4g}</title></circle>"
                for step, value in values
            ]
    keys = "".join(f'<span class="key key{index}">{html_text(name)}</span>' for name, index, _ in lines)
    label = html_text(f"{title} over the steps")
    return (
        f'<figure class="card"><figcaption>{html_text(title)}{keys if len(lines) > 1 else ""}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg></figure>'
    )


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return limits of an axis around the values, and round values in it for ticks."""
    if high - low < 1e-12 * max(abs(high), 1e-30):
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    start, stop = math.floor(low / step), math.ceil(high / step)
    ticks = [float(f"{index * step:.12g}") for index in range(start, stop + 1)]
    return ticks[0], ticks[-1], ticks


def _thinned(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most about `MOST_POINTS` points: means of equal numbers of neighbours."""
    size = math.ceil(len(values) / MOST_POINTS)
    if size == 1:
        return list(values)
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _class_table(classes: Sequence[Mapping[str, Any]], palette: Palette | None) -> str:
    """Return the figures of each class, lowest IoU first. All figures that the results have become columns."""
    kinds = [name for name in classes[0] if name != "name" and any(_is_finite(one.get(name)) for one in classes)]
    titles = {"iou": "IoU", "dice": "Dice"}
    colours = palette or distinct_colours(len(classes))
    order = sorted(range(len(classes)), key=lambda index: _or(classes[index].get("iou"), math.inf))
    rows = []
    for index in order:
        one, cells = classes[index], []
        for kind in kinds:
            bar = ""
            if kind == "iou" and _is_finite(one[kind]):
                bar = f'<span class="bar"><i style="width:{100 * one[kind]:.0f}%"></i></span>'
            cells.append(f"<td>{_percent(one.get(kind))}{bar}</td>")
        rows.append(f"<tr><td>{_swatch(colours, index)}{html_text(one['name'])}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html_text(titles.get(kind, kind.replace('_', ' ')))}</th>" for kind in kinds)
    return (
        '<h2>Classes</h2>\n<p class="dim">In percent, lowest IoU first. A dash: the class does not occur.</p>\n'
        f'<div class="scroll card"><table><tr><th>class</th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _swatch(colours: Palette, index: int) -> str:
    red, green, blue = (int(part) for part in colours[index]) if index < len(colours) else (128, 128, 128)
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _worst(report: Report) -> str:
    shown = []
    for one in report.worst:
        palette = report.palette or distinct_colours(
            int(max(one.truth[one.truth != NO_CLASS].max(initial=0), one.prediction.max(initial=0))) + 1
        )
        views = (
            ("image", one.image.convert("RGB")),
            ("truth", draw_overlay(one.image, one.truth, palette)),
            ("prediction", draw_overlay(one.image, one.prediction, palette)),
        )
        pictures = "".join(
            f'<figure><img src="{data_address(view)}" alt="{kind}: {html_text(one.name)}">'
            f"<figcaption>{kind}</figcaption></figure>"
            for kind, view in views
        )
        caption = f"{html_text(one.name)} &middot; mean IoU {_percent(one.score)}"
        shown.append(f'<div class="card"><p>{caption}</p><div class="row">{pictures}</div></div>')
    return (
        '<h2>Worst images</h2>\n<p class="dim">Look for wrong masks here first. Pixels without a class have no '
        f'colour.</p>\n<div class="images">{"".join(shown)}</div>'
    )


def data_address(image: Image.Image) -> str:
    """Return an image, reduced to the width of the report, as a `data:` address."""
    if image.width > IMAGE_WIDTH:
        image = image.resize((IMAGE_WIDTH, max(round(image.height * IMAGE_WIDTH / image.width), 1)))
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def confused_pairs(confusion: np.ndarray, count: int = MOST_PAIRS) -> list[tuple[int, int, float]]:
    """Return (true class, predicted class, share of the true class's pixels), the most pixels first."""
    counts = confusion[:, : len(confusion)].astype(np.float64)
    totals = confusion.sum(1)
    errors = counts - np.diag(np.diag(counts))
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    pairs = [divmod(int(index), len(counts)) for index in order]
    return [(row, column, errors[row, column] / totals[row]) for row, column in pairs if errors[row, column] > 0]


def _confusion(confusion: np.ndarray, names: Sequence[str]) -> str:
    pairs = confused_pairs(confusion)
    listed = "".join(
        f"<li>{html_text(names[row])} as {html_text(names[column])}: {_percent(share)} % of its pixels</li>"
        for row, column, share in pairs
    )
    totals = confusion.sum(1)
    shown = sorted(np.argsort(-totals, kind="stable")[:MOST_CLASSES].tolist())
    shown = [index for index in shown if totals[index] > 0]
    head = "".join(f"<th>{html_text(names[index])}</th>" for index in shown)
    rows = []
    for row in shown:
        shares = confusion[row] / totals[row]
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.75 * shares[column]:.2f})">{100 * shares[column]:.0f}</td>'
            for column in shown
        )
        rows.append(f"<tr><th>{html_text(names[row])}</th>{cells}</tr>")
    more = f" The {len(shown)} classes with the most pixels." if len(shown) < (totals > 0).sum() else ""
    return (
        f"<h2>Confusion</h2>\n<ol>{listed}</ol>\n"
        '<p class="dim">Rows: true classes. Columns: predictions. Numbers: percent of the pixels of the true '
        f'class.{more}</p>\n<div class="scroll card"><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}'
        "</table></div>"
    )


def _settings(report: Report) -> str:
    command = f"<pre>{html_text(report.command)}</pre>\n" if report.command else ""
    text = json.dumps(report.settings, indent=2, ensure_ascii=False, default=str)
    lines = "\n".join(html_text(line) for line in text.splitlines())
    return f"<h2>Settings</h2>\n{command}<details><summary>All settings</summary><pre>{lines}</pre></details>"


def _percent(share: Any) -> str:
    return f"{100 * share:.1f}" if _is_finite(share) else "\u2013"


def _or(value: Any, other: float) -> float:
    return float(value) if _is_finite(value) else other


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def worst_first(scores: Iterable[float], count: int) -> list[int]:
    """Return the indices of the `count` lowest scores, lowest first. NaN is left out."""
    known = [(score, index) for index, score in enumerate(scores) if not math.isnan(score)]
    return [index for _, index in sorted(known)[:count]]


__all__ = ["Report", "ShownImage", "confused_pairs", "report_page", "worst_first"]
