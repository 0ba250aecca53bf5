# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Pictures of label maps."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Palette = Sequence[Sequence[int]]
BAND_PIXELS = 1 << 20  # mixed at once: a huge photo costs no more than its bytes
PAPER, INK = (255, 255, 255), (32, 32, 32)


def distinct_colours(count: int) -> list[list[int]]:
    """`count` colours that are easy to tell apart, always the same."""
    turns = [(index * 0.61803398875) % 1 for index in range(count)]  # the golden ratio spreads them over the circle
    return [
        [
            round(255 * part)
            for part in colorsys.hsv_to_rgb(turn, 0.65 + 0.35 * (index % 2), 0.95 - 0.25 * (index % 3) / 2)
        ]
        for index, turn in enumerate(turns)
    ]


def class_areas(labels: np.ndarray) -> dict[int, float]:
    """Share of the picture that each class covers, largest first."""
    values, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(values[index]): float(counts[index]) / labels.size for index in order}


def draw_overlay(image: Image.Image, labels: np.ndarray, palette: Palette, opacity: float = 0.55) -> Image.Image:
    """Lay the colours of a label map over its picture.

    Args:
        image: any mode.
        labels: class indices `(height, width)` at the picture's size; those beyond the palette stay uncoloured.
        palette: `[red, green, blue]` of each class, 0 to 255.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: if the sizes differ.
    """
    picture = np.array(image.convert("RGB"))
    if labels.shape != picture.shape[:2]:
        raise ValueError(f"labels are {labels.shape}, the picture is {picture.shape[:2]} (height, width)")
    step = max(BAND_PIXELS // picture.shape[1], 1)
    for start in range(0, len(picture), step):
        rows, own = picture[start : start + step], labels[start : start + step]
        known = (own >= 0) & (own < len(palette))
        colours = np.asarray(palette, dtype=np.uint8)[np.where(known, own, 0)]
        mixed = np.float32(1 - opacity) * rows + np.float32(opacity) * colours
        rows[...] = np.where(known[..., None], mixed.round(), rows)
    return Image.fromarray(picture)


def draw_legend(names: Mapping[int, str], areas: Mapping[int, float], palette: Palette, height: int) -> Image.Image:
    """A white column with a colour, a name and a share for each class, as many as fit `height`, largest first."""
    size = int(np.clip(height / 24, 11, 22))
    font, step, pad = ImageFont.load_default(size), round(1.7 * size), size
    room = max((height - pad) // step, 1)
    shown = list(areas)[: room if len(areas) <= room else room - 1]
    lines = [f"{names.get(index, index)}  {100 * areas[index]:.1f} %" for index in shown]
    if len(shown) < len(areas):
        lines.append(f"and {len(areas) - len(shown)} more")
    width = round(max(font.getlength(line) for line in lines)) + 3 * pad + size
    legend = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(legend)
    for row, line in enumerate(lines):
        top = pad // 2 + row * step
        if row < len(shown) and shown[row] < len(palette):
            draw.rectangle((pad, top, pad + size, top + size), fill=tuple(palette[shown[row]]), outline=INK)
        draw.text((2 * pad + size, top + size / 2), line, fill=INK, font=font, anchor="lm")
    return legend


def draw_segmentation(
    image: Image.Image, labels: np.ndarray, names: Mapping[int, str], palette: Palette | None = None
) -> Image.Image:
    """The picture under its label map, with a legend beside it.

    Args:
        image: any mode.
        labels: class indices `(height, width)` at the picture's size.
        names: of the classes.
        palette: `[red, green, blue]` of each class; None or none takes distinct colours.
    """
    palette = palette or distinct_colours(max(names, default=-1) + 1)
    overlay = draw_overlay(image, labels, palette)
    legend = draw_legend(names, class_areas(labels), palette, max(overlay.height, 64))
    picture = Image.new("RGB", (overlay.width + legend.width, legend.height), PAPER)
    picture.paste(overlay, (0, 0))
    picture.paste(legend, (overlay.width, 0))
    return picture


__all__ = [
    "Palette",
    "class_areas",
    "distinct_colours",
    "draw_legend",
    "draw_overlay",
    "draw_segmentation",
]
