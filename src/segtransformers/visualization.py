# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Label maps drawn in colours: over their image, and with a legend."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .escaping import printable

Palette = Sequence[Sequence[int]]
BAND_PIXELS = 1 << 20  # pixels blended at once, which limits the memory for huge images
MIN_PANEL, MAX_ENLARGED = 160, 640  # pixels of the shorter and the longer side of an enlarged image in a comparison
TITLE_SIZE = 14  # pixels
MANY_LABELS = 1 << 20  # label values from here on are not counted one by one
BACKGROUND, FOREGROUND = (255, 255, 255), (32, 32, 32)  # of the legend


def distinct_colours(count: int) -> list[list[int]]:
    """Return `count` colours `[red, green, blue]` that are easy to tell apart, always the same."""
    hues = [(index * 0.61803398875) % 1 for index in range(count)]  # the golden ratio spreads them evenly
    return [
        [
            round(255 * part)
            for part in colorsys.hsv_to_rgb(hue, 0.65 + 0.35 * (index % 2), 0.95 - 0.25 * (index % 3) / 2)
        ]
        for index, hue in enumerate(hues)
    ]


def label_image(labels: np.ndarray, num_labels: int) -> Image.Image:
    """Return a label map as a grey image of class indices: 8 bits, or 16 bits for more than 256 classes.

    Args:
        labels: class indices `(height, width)`. Masks `(num_labels, height, width)` become a [`bit_plane_image`].
    """
    if labels.ndim == 3:
        return bit_plane_image(labels)
    return Image.fromarray(labels.astype(np.uint8 if num_labels <= 256 else np.uint16))


def palette_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """Return a label map in its colours: an image with a palette, or RGB for more than 256 classes.

    Args:
        labels: class indices `(height, width)`; or masks `(num_labels, height, width)` bool, whose image is RGB: the
            mean colour of the classes of a pixel, and black where there are none.
        palette: `[red, green, blue]` of each class, 0 to 255.
    """
    if labels.ndim == 3:
        return draw_overlay(Image.new("RGB", labels.shape[:0:-1]), labels, palette, opacity=1)
    colours = np.asarray(palette, dtype=np.uint8)
    if len(colours) > 256:
        return Image.fromarray(colours[labels])
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette(colours.flatten().tolist())
    return image


def bit_plane_image(masks: np.ndarray) -> Image.Image:
    """Return masks of multi-label data as one grey image whose bit k is 1 where class k is present.

    Args:
        masks: `(num_labels, height, width)` bool.

    Raises:
        ValueError: for more than 16 classes, which a PNG file cannot hold.
    """
    check_bit_planes(len(masks))
    values = np.zeros(masks.shape[1:], np.uint8 if len(masks) <= 8 else np.uint16)
    for index, mask in enumerate(masks):
        values |= mask.astype(values.dtype) << index
    return Image.fromarray(values)


def check_bit_planes(num_labels: int) -> None:
    """Raise ValueError if [`bit_plane_image`] cannot hold this number of classes."""
    if num_labels > 16:
        raise ValueError(f"a PNG file holds the masks of at most 16 classes as bits, but the model has {num_labels}")


def class_areas(labels: np.ndarray) -> dict[int, float]:
    """Return the share of the image that each class covers, largest first.

    Args:
        labels: class indices `(height, width)`, or masks `(num_labels, height, width)` bool.
    """
    if labels.ndim == 3:
        counts = np.array([np.count_nonzero(mask) for mask in labels])
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = _counted(labels)
    order = np.argsort(-counts, kind="stable")
    pixels = labels.shape[-1] * labels.shape[-2]
    return {int(values[index]): float(counts[index]) / pixels for index in order}


def _counted(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a label map and how often each occurs."""
    is_small = labels.dtype.kind in "iu" and labels.size and labels.min() >= 0 and labels.max() < MANY_LABELS
    if not is_small:
        return np.unique(labels, return_counts=True)  # sorts, which takes ten times as long
    counts = np.bincount(labels.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def draw_overlay(image: Image.Image, labels: np.ndarray, palette: Palette, opacity: float = 0.55) -> Image.Image:
    """Blend the colours of a label map, or of masks, into its image.

    Args:
        image: any mode.
        labels: class indices `(height, width)` at the size of the image. Those beyond the palette get no colour. Or
            masks `(num_labels, height, width)` bool: pixels of several classes get the mean of their colours.
        palette: `[red, green, blue]` of each class, 0 to 255.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: if the sizes differ.
    """
    if labels.shape[-2:] != (image.height, image.width):
        raise ValueError(
            f"the label map is {labels.shape[-2:]}, but the image is {(image.height, image.width)} (height, width): "
            "they must be equal"
        )
    pixels = np.array(image.convert("RGB"))
    colours = np.asarray(palette, dtype=np.float32)
    step = max(BAND_PIXELS // image.width, 1)
    for start in range(0, image.height, step):
        rows, classes = pixels[start : start + step], labels[..., start : start + step, :]
        if labels.ndim == 3:
            counts = classes[: len(palette)].sum(0, dtype=np.float32)
            sums = np.einsum("chw,ck->hwk", classes[: len(palette)], colours[: len(classes)])
            known, drawn = counts > 0, np.float32(opacity) * (sums / np.maximum(counts, 1)[..., None])
        else:
            known = (classes >= 0) & (classes < len(palette))
            drawn = (np.float32(opacity) * colours).take(
                classes if known.all() else np.where(known, classes, 0), axis=0
            )
        drawn += np.float32(1 - opacity) * rows
        drawn.round(out=drawn)
        rows[...] = drawn if known.all() else np.where(known[..., None], drawn, rows)
    return Image.fromarray(pixels)


def draw_legend(
    names: Mapping[int, str], areas: Mapping[int, float | None], palette: Palette, height: int
) -> Image.Image:
    """Draw a column with the colour, the name and the share of each class, as many as fit `height`.

    Args:
        names: name of each class.
        areas: share of each class to list, in the order of the list. None lists the class without a share.
        palette: `[red, green, blue]` of each class, 0 to 255.
        height: of the result, in pixels.
    """
    size = int(np.clip(height / 24, 11, 22))
    font, step, pad = ImageFont.load_default(size), round(1.7 * size), size
    max_lines = max((height - pad) // step, 1)
    shown = list(areas)[: max_lines if len(areas) <= max_lines else max_lines - 1]
    lines = []
    for index in shown:
        area = areas[index]
        lines.append(printable(names.get(index, index)) + ("" if area is None else f"  {100 * area:.1f} %"))
    if len(shown) < len(areas):
        lines.append(f"and {len(areas) - len(shown)} more")
    width = round(max((font.getlength(line) for line in lines), default=0)) + 3 * pad + size
    legend = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for row, line in enumerate(lines):
        top = pad // 2 + row * step
        if row < len(shown) and shown[row] < len(palette):
            draw.rectangle((pad, top, pad + size, top + size), fill=tuple(palette[shown[row]]), outline=FOREGROUND)
        draw.text((2 * pad + size, top + size / 2), line, fill=FOREGROUND, font=font, anchor="lm")
    return legend


def draw_segmentation(
    image: Image.Image, labels: np.ndarray, names: Mapping[int, str], palette: Palette | None = None
) -> Image.Image:
    """Draw the label map over its image, with a legend to the right.

    Args:
        image: any mode.
        labels: class indices `(height, width)` at the size of the image, or masks, see [`draw_overlay`].
        names: name of each class.
        palette: `[red, green, blue]` of each class. None or an empty one takes distinct colours.
    """
    palette = palette or distinct_colours(max(names, default=-1) + 1)
    overlay = draw_overlay(image, labels, palette)
    legend = draw_legend(names, class_areas(labels), palette, max(overlay.height, 64))
    result = Image.new("RGB", (overlay.width + legend.width, legend.height), BACKGROUND)
    result.paste(overlay, (0, 0))
    result.paste(legend, (overlay.width, 0))
    return result


def draw_comparison(
    image: Image.Image, label_maps: Mapping[str, np.ndarray], names: Mapping[int, str], palette: Palette | None = None
) -> Image.Image:
    """Draw an image and label maps of it side by side, each under its title, with a legend of their classes.

    Args:
        image: any mode. A small one is enlarged, so that the text fits.
        label_maps: title -> class indices `(height, width)` at the size of the image. Values that are no class get no
            colour. Or masks, see [`draw_overlay`].
        names: name of each class.
        palette: `[red, green, blue]` of each class. None or an empty one takes distinct colours.
    """
    palette = palette or distinct_colours(max(names, default=-1) + 1)
    factor = max(min(-(-MIN_PANEL // min(image.size)), MAX_ENLARGED // max(image.size)), 1)
    width, height = factor * image.width, factor * image.height
    panels = {"image": image.convert("RGB")}
    panels |= {title: draw_overlay(image, labels, palette) for title, labels in label_maps.items()}
    total: dict[int, float] = {}
    for labels in label_maps.values():
        for index, area in class_areas(labels).items():
            if index in names:
                total[index] = total.get(index, 0) + area
    listed = dict.fromkeys(sorted(total, key=lambda index: -total[index]))
    legend, title_height = draw_legend(names, listed, palette, max(height, 64)), 2 * TITLE_SIZE
    result = Image.new("RGB", (len(panels) * width + legend.width, title_height + legend.height), BACKGROUND)
    draw, font = ImageDraw.Draw(result), ImageFont.load_default(TITLE_SIZE)
    for column, (title, panel) in enumerate(panels.items()):
        draw.text((column * width + 4, TITLE_SIZE), title, fill=FOREGROUND, font=font, anchor="lm")
        result.paste(panel.resize((width, height), Image.Resampling.NEAREST), (column * width, title_height))
    result.paste(legend, (len(panels) * width, title_height))
    return result


__all__ = [
    "Palette",
    "bit_plane_image",
    "check_bit_planes",
    "class_areas",
    "distinct_colours",
    "draw_comparison",
    "draw_legend",
    "draw_overlay",
    "draw_segmentation",
    "label_image",
    "palette_image",
]
