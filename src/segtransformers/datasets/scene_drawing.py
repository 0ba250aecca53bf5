# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Draw the parts of a scene: random numbers, a canvas, the sky, and the nine classes of objects in front of it.

Pixels are the same on every machine: only operations that IEEE 754 rounds exactly are used (no sine, no exponential, no
sums of arrays), and random numbers are raw PCG64 words.
"""

from collections.abc import Sequence

import numpy as np

SKY, MOUNTAIN, MEADOW, WATER, ROAD, WALL, ROOF, TREE, CAR, BALLOON = range(10)

COLOURS = {
    "blue": (88, 140, 205),
    "teal": (80, 150, 150),
    "grey": (150, 152, 155),
    "white": (222, 220, 212),
    "dark": (78, 78, 86),
    "green": (98, 150, 72),
    "ochre": (200, 168, 95),
    "orange": (220, 138, 72),
    "red": (185, 72, 60),
    "brown": (135, 98, 72),
    "pink": (222, 150, 160),
    "purple": (140, 110, 165),
}
CLASS_COLOURS = {
    SKY: "blue blue teal grey white orange pink purple",
    MOUNTAIN: "blue grey dark green ochre brown purple pink",
    MEADOW: "green green teal ochre ochre brown purple orange",
    WATER: "blue blue teal grey green purple pink orange",
    ROAD: "grey grey dark brown ochre purple white",
    WALL: "red ochre white grey blue green pink orange brown",
    ROOF: "red red brown dark grey green blue purple orange",
    TREE: "green green green ochre orange red teal pink",
    CAR: "red blue white grey dark ochre green orange teal purple",
    BALLOON: "red blue white ochre green orange teal purple pink",
}


class PortableRandom:
    """Random numbers that depend on the seed only, not on the platform or on numpy's version."""

    def __init__(self, seed: int):
        self._bits = np.random.PCG64(seed)
        self._words: list[int] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._words:
            self._words = self._bits.random_raw(128).tolist()
        return low + (high - low) * ((self._words.pop() >> 11) / 2.0**53)

    def integer(self, low: int, high: int) -> int:
        """Return a number from `low` to `high`, both included."""
        return low + int(self.uniform(0, high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def choice(self, options: Sequence):
        return options[self.integer(0, len(options) - 1)]

    def noise(self, height: int, width: int) -> np.ndarray:
        """Return independent values in [0, 1], `(height, width)` float32."""
        words = self._bits.random_raw(-(-height * width // 8)).astype("<u8")
        return words.view(np.uint8)[: height * width].reshape(height, width).astype(np.float32) / np.float32(255)

    def smooth_noise(self, height: int, width: int, cell_height: float, cell_width: float) -> np.ndarray:
        """Return values in [0, 1] that are random on a grid of cells and interpolated in between.

        Args:
            height, width: shape of the result.
            cell_height, cell_width: sides of a cell, in pixels.
        """
        rows, row_part = _cells(height, cell_height)
        columns, column_part = _cells(width, cell_width)
        grid = self.noise(int(rows[-1]) + 2, int(columns[-1]) + 2)
        grid = grid[rows] + (grid[rows + 1] - grid[rows]) * row_part[:, None]
        return grid[:, columns] + (grid[:, columns + 1] - grid[:, columns]) * column_part


def _cells(size: int, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell of each pixel along one side, and a smooth weight of the next cell."""
    position = np.arange(size) / cell
    first = np.floor(position)
    part = (position - first).astype(np.float32)
    return first.astype(np.int64), part * part * (3 - 2 * part)


def wave(phase):
    """Approximate a sine of period 1 by two parabolas, -1 to 1."""
    part = 2 * (phase - np.floor(phase)) - 1
    return 4 * part * (np.abs(part) - 1)


def sawtooth(phase):
    """Return the fractional part, 0 to 1."""
    return phase - np.floor(phase)


class Canvas:
    """The image and the labels of a scene while it is drawn.

    Attributes:
        image: `(H, W, 3)` float32, 0 to 255.
        labels: `(H, W)` uint8.
        y, x: pixel coordinates, `(H, 1)` and `(1, W)` float32.
        unit: unit of length for the sizes of objects, in pixels.
        light_from_left: whether the light comes from the left or from the right.
    """

    def __init__(self, random: PortableRandom, height: int, width: int):
        self.random, self.height, self.width = random, height, width
        self.image = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.y = np.arange(height, dtype=np.float32)[:, None]
        self.x = np.arange(width, dtype=np.float32)[None]
        self.unit = random.uniform(0.85, 1.25) * (min(height, width) / 128) ** 0.5
        self.light_from_left = random.chance(0.5)

    def colour(self, class_index: int) -> np.ndarray:
        """Choose a colour of the class, `(3,)` float32."""
        random = self.random
        colour = COLOURS[random.choice(CLASS_COLOURS[class_index].split())]
        strength = random.uniform(0.8, 1.15)
        return np.array([part * strength + random.uniform(-18, 18) for part in colour], np.float32)

    def box(self, top: float, bottom: float, left: float, right: float):
        """Return the slices of the canvas between these edges with their y and x, or None if they are empty."""
        top, bottom = max(int(top), 0), min(int(bottom) + 1, self.height)
        left, right = max(int(left), 0), min(int(right) + 1, self.width)
        if top >= bottom or left >= right:
            return None
        where = np.s_[top:bottom, left:right]
        return where, self.y[top:bottom], self.x[:, left:right]

    def fill(self, where, mask: np.ndarray, colour: np.ndarray, class_index: int, shade=1.0) -> None:
        """Paint the pixels of a mask and set their labels.

        Args:
            where: slices of the canvas.
            mask: pixels of these slices to paint.
            colour: `(3,)`, or one for each pixel.
            class_index: the label.
            shade: factor on the colour, one or one for each pixel.
        """
        shade = np.asarray(shade, np.float32)
        painted = colour * (shade[..., None] if shade.ndim else shade)
        np.copyto(self.image[where], painted, where=mask[..., None])
        self.labels[where][mask] = class_index

    def cast_shadow(self, x: float, y: float, radius_x: float, radius_y: float) -> None:
        """Darken an ellipse of the ground. Labels stay."""
        part = self.box(y - radius_y, y + radius_y, x - radius_x, x + radius_x)
        if part is not None:
            where, yy, xx = part
            dy, dx = (yy - y) / radius_y, (xx - x) / radius_x
            self.image[where] *= (1 - 0.4 * np.clip(2.5 * (1 - dx * dx - dy * dy), 0, 1))[..., None]


def draw_sky(canvas: Canvas, horizon: float) -> None:
    """Draw a gradient, in some scenes with a sun and with clouds. `horizon` is a row of pixels."""
    random, unit = canvas.random, canvas.unit
    height, width = canvas.height, canvas.width
    top, low = canvas.colour(SKY), canvas.colour(SKY)
    low = top + (low - top) * random.uniform(0.1, 0.9)
    rise = np.clip(canvas.y / max(horizon, 1.0), 0, 1)[..., None]
    canvas.image[:] = top + (low - top) * rise
    if random.chance(0.3):
        x, y, radius = random.uniform(0, width), random.uniform(0, horizon), random.uniform(5, 11) * unit
        dx, dy = (canvas.x - x) / radius, (canvas.y - y) / radius
        glow = np.clip(1.6 - dx * dx - dy * dy, 0, 1)[..., None]
        canvas.image += (np.array([250, 238, 190], np.float32) - canvas.image) * glow
    if random.chance(0.75):
        wide = random.smooth_noise(height, width, 11 * unit, random.uniform(22, 40) * unit)
        fine = random.smooth_noise(height, width, 5 * unit, 11 * unit)
        cover = np.clip((0.7 * wide + 0.3 * fine - random.uniform(0.45, 0.65)) * 4, 0, random.uniform(0.5, 0.95))
        shine = random.uniform(150, 245)
        cloud = np.array([shine, shine - random.uniform(0, 12), shine - random.uniform(-8, 18)], np.float32)
        canvas.image += (cloud - canvas.image) * cover[..., None]


def draw_mountains(canvas: Canvas, horizon: float) -> None:
    """Draw peaks with diagonal strata, lit on one side, some with snow."""
    random, unit = canvas.random, canvas.unit
    where = np.s_[: int(horizon) + 1]
    y, x = canvas.y[where], canvas.x
    ridge_noise = random.smooth_noise(1, canvas.width, 1, 4 * unit) * (5 * unit)
    for _ in range(random.integer(1, 2)):
        colour, lit = canvas.colour(MOUNTAIN), random.uniform(1.05, 1.25)
        dark, period = random.uniform(0.6, 0.8), random.uniform(5, 7.5) * unit
        snow = random.uniform(6, 14) * unit if random.chance(0.5) else 0.0
        center = random.uniform(-0.1, 0.4) * canvas.width
        while center < canvas.width * 1.1:
            rise, slope = random.uniform(0.35, 0.85) * horizon, random.uniform(0.6, 1.3)
            side = x - center
            top = horizon - rise + np.abs(side) * slope + ridge_noise
            mask = y >= top
            left = (side + 2 * wave(y / (9 * unit)) * unit) < 0
            strata = wave((y * 0.8 + np.where(left, -x, x) * 0.8) / period)
            shade = np.where(left == canvas.light_from_left, lit, dark) * (1 + 0.22 * strata)
            canvas.fill(where, mask, colour, MOUNTAIN, shade)
            if snow:
                cap = mask & (y < horizon - rise + snow + 3 * unit * wave(x / (7 * unit)))
                canvas.fill(where, cap, np.array([222, 224, 230], np.float32), MOUNTAIN, 0.3 + 0.7 * shade)
            center += random.uniform(0.35, 0.8) * rise / slope * 2


def draw_meadow(canvas: Canvas, horizon: float) -> None:
    """Draw grass of short upright streaks, in some scenes with flowers."""
    random, unit = canvas.random, canvas.unit
    where = np.s_[int(horizon) :]
    y, x = canvas.y[where], canvas.x
    height, width = y.shape[0], x.shape[1]
    colour = canvas.colour(MEADOW)
    edge = 2 * unit * random.smooth_noise(1, width, 1, 14 * unit)
    blades = random.smooth_noise(height, width, random.uniform(5, 8) * unit, random.uniform(1.2, 1.7) * unit)
    patches = random.smooth_noise(height, width, 14 * unit, 30 * unit)
    shade = 0.62 + 0.55 * blades + 0.3 * patches
    canvas.fill(where, y >= horizon + edge, colour, MEADOW, shade)
    if random.chance(0.45):
        seeds = random.noise(height, width) > random.uniform(0.985, 0.996)
        seeds[:, 1:] |= seeds[:, :-1]
        seeds[1:] |= seeds[:-1]
        canvas.fill(where, seeds & (y > horizon + 3 + edge), canvas.colour(BALLOON), MEADOW, 1.1)


def draw_water(canvas: Canvas, horizon: float) -> None:
    """Draw a lake at the horizon, a shore in front, or a pond, with level ripples that widen towards the viewer."""
    random, unit = canvas.random, canvas.unit
    ground = canvas.height - horizon
    where = np.s_[int(horizon) :]
    y, x = canvas.y[where], canvas.x
    height, width = y.shape[0], x.shape[1]
    kind = random.integer(0, 2)
    bank = random.uniform(3, 9) * unit * random.smooth_noise(1, width, 1, random.uniform(18, 40) * unit)
    if kind == 0:
        mask = y < horizon + random.uniform(0.2, 0.5) * ground + bank
    elif kind == 1:
        mask = y > canvas.height - random.uniform(0.2, 0.55) * ground + bank
    else:
        dy = (y - (horizon + random.uniform(0.3, 0.85) * ground)) / (random.uniform(0.18, 0.35) * ground)
        dx = (x - random.uniform(0.15, 0.85) * width) / (random.uniform(0.25, 0.55) * width)
        mask = dx * dx + dy * dy + 0.04 * bank < 1
    colour = canvas.colour(WATER)
    if random.chance(0.4):  # water mirrors the sky
        colour = canvas.image[0, random.integer(0, width - 1)] * random.uniform(0.8, 1.05)
    bend = 0.9 * random.smooth_noise(height, width, 9 * unit, 9 * unit)
    phase = np.sqrt((y - horizon + 4) / (random.uniform(0.55, 0.85) * unit)) * random.uniform(0.95, 1.2)
    ripples = wave(phase + bend)
    shade = 0.95 + random.uniform(0.16, 0.26) * ripples
    canvas.fill(where, mask, colour, WATER, shade)
    glints = mask & (ripples > 0.8) & (random.smooth_noise(height, width, 2 * unit, 6 * unit) > 0.62)
    canvas.fill(where, glints, np.array([238, 240, 238], np.float32), WATER)


def draw_road(canvas: Canvas, horizon: float) -> list[tuple[float, float]]:
    """Draw asphalt with fine noise, light edges and a dashed middle line. Return positions (x, y) for cars."""
    random, unit = canvas.random, canvas.unit
    where = np.s_[int(horizon) :]
    y, x = canvas.y[where], canvas.x
    height, width = y.shape[0], x.shape[1]
    colour, line = canvas.colour(ROAD), canvas.colour(ROAD) * 0.3 + 150
    shade = 0.78 + 0.44 * random.noise(height, width)
    if random.chance(0.6):  # from left to right
        half = random.uniform(8, 15) * unit
        middle = horizon + random.uniform(0.3, 0.85) * (canvas.height - horizon)
        slope, bow = random.uniform(-0.2, 0.2), random.uniform(0, 6) * unit
        course = middle + slope * (x - width / 2) + bow * wave(x / (width * 1.3) + random.uniform())
        off = (y - course) / half
        dashes = sawtooth(x / (14 * unit)) < 0.55
        thick = 1.2 * unit / half
        positions = [random.uniform(0.05, 0.95) * (width - 1) for _ in range(2)]
        cars = [(at, float(course[0, int(at)]) + half * random.uniform(0.0, 0.6)) for at in positions]
    else:  # away from the viewer
        start, end = random.uniform(0.2, 0.8) * width, random.uniform(0.1, 0.9) * width
        depth = (y - horizon) / (canvas.height - horizon)
        half = (0.03 + depth * random.uniform(0.16, 0.34)) * width
        off = (x - (start + (end - start) * depth * (0.4 + 0.6 * depth))) / half
        dashes = sawtooth(6 / (depth + 0.25)) < 0.55
        thick = 0.06
        level = random.uniform(0.5, 0.95)
        at = start + (end - start) * level * (0.4 + 0.6 * level)
        cars = [(at, horizon + level * (canvas.height - horizon))]
    size = np.abs(off)
    canvas.fill(where, (size < 1) & (y > horizon + 1), colour, ROAD, shade)
    lines = ((size < thick) & dashes) | ((size > 0.86) & (size < 0.86 + thick))
    canvas.fill(where, lines & (size < 1) & (y > horizon + 1), line, ROAD, 0.3 + 0.7 * shade)
    return cars


def draw_house(canvas: Canvas, x: float, base: float) -> None:
    """Draw a brick wall with windows and a door, and a roof of scalloped tiles. `base` is its lowest row."""
    random, unit = canvas.random, canvas.unit
    half, height = random.uniform(14, 27) * unit, random.uniform(18, 30) * unit
    roof_height, overhang = random.uniform(12, 22) * unit, random.uniform(2, 4) * unit
    top = base - height
    canvas.cast_shadow(x + (half if canvas.light_from_left else -half) * 0.5, base, half * 1.2, 4 * unit)
    wall, mortar = canvas.colour(WALL), random.uniform(0.6, 0.75) if random.chance(0.6) else random.uniform(1.25, 1.4)
    brick_height, brick_width = random.uniform(3.4, 4.4) * unit, random.uniform(7.5, 10) * unit
    chimney = random.uniform(-0.7, 0.5) * half
    for left, right, upper, lower in (
        (x + chimney, x + chimney + 6 * unit, top - roof_height - 3 * unit, top),
        (x - half, x + half, top, base),
    ):
        part = canvas.box(upper, lower, left, right)
        if part is None:
            continue
        where, yy, xx = part
        row = (yy - top) / brick_height
        across = (xx - x) / brick_width + 0.5 * sawtooth(np.floor(row) * 0.5) * 2
        joint = (sawtooth(row) < 1.15 / brick_height) | (sawtooth(across) < 1.15 / brick_width)
        tone = 0.86 + 0.28 * sawtooth(np.floor(across) * 0.381 + np.floor(row) * 0.617)
        canvas.fill(where, np.ones(joint.shape, bool), wall, WALL, np.where(joint, mortar, tone))
    glass, frame = canvas.colour(CAR) * random.uniform(0.4, 1.1), canvas.colour(WALL) * 0.5 + 110
    door = random.integer(0, 2)
    for index in range(3):
        middle = x + (index - 1) * half * 0.62
        wide, low = 0.2 * half, base if index == door else base - 0.42 * height
        for edge, colour in ((1.3 * unit, frame), (0.0, glass)):
            part = canvas.box(base - 0.72 * height - edge, low, middle - wide - edge, middle + wide + edge)
            if part is not None:
                where, yy, xx = part
                gleam = 0.85 + 0.25 * ((xx - middle + yy - low) > -height * 0.2)
                canvas.fill(where, np.ones(gleam.shape, bool), colour, WALL, gleam)
    draw_roof(canvas, x, top, half, roof_height, overhang)


def draw_roof(canvas: Canvas, x: float, top: float, half: float, roof_height: float, overhang: float) -> None:
    """Draw a gable or a hip above the wall's upper edge `top`. The tiles are rows of scallops."""
    random, unit = canvas.random, canvas.unit
    ridge = random.uniform(0.0, 0.6) * half
    part = canvas.box(top - roof_height, top + unit, x - half - overhang, x + half + overhang)
    if part is None:
        return
    where, yy, xx = part
    down = (yy - (top - roof_height)) / roof_height
    mask = np.abs(xx - x) <= ridge + (half + overhang - ridge) * down
    row = (yy - top) / (random.uniform(3.6, 4.6) * unit)
    tile = random.uniform(4.2, 5.4) * unit
    bulge = np.abs(sawtooth((xx - x) / tile + 0.5 * sawtooth(np.floor(row) * 0.5) * 2) * 2 - 1)
    scallop = sawtooth(row + 0.45 * bulge)
    canvas.fill(where, mask, canvas.colour(ROOF), ROOF, 0.62 + 0.6 * scallop)


def draw_tree(canvas: Canvas, x: float, base: float) -> None:
    """Draw a trunk with foliage: a round crown of several discs, or a conifer of three tiers."""
    random, unit = canvas.random, canvas.unit
    conifer = random.chance(0.35)
    size = random.uniform(9, 17) * unit
    stem = random.uniform(0.3, 0.9) * size
    height = size * (random.uniform(2.4, 3.2) if conifer else 2)
    canvas.cast_shadow(x + (0.5 if canvas.light_from_left else -0.5) * size, base, size, 3.5 * unit)
    part = canvas.box(base - stem - size, base, x - 1.6 * unit, x + 1.6 * unit)
    if part is not None:
        where, yy, xx = part
        bark = 0.8 + 0.25 * wave(yy / (3 * unit)) + 0 * xx
        canvas.fill(where, bark > 0, np.array([98, 74, 58], np.float32), TREE, bark)
    part = canvas.box(base - stem - height - 4 * unit, base - stem * 0.4, x - 1.5 * size, x + 1.5 * size)
    if part is None:
        return
    where, yy, xx = part
    mask = np.zeros((yy.shape[0], xx.shape[1]), bool)
    middle = base - stem - height / 2
    if conifer:
        for tier in range(3):
            down = (yy - (base - stem - height + tier * 0.27 * height)) / (0.46 * height)
            mask |= (down > 0) & (down < 1) & (np.abs(xx - x) < down * size * (0.5 + 0.17 * tier))
    else:
        for _ in range(random.integer(4, 7)):
            radius = random.uniform(0.5, 0.8) * size
            dy = (yy - middle - random.uniform(-0.45, 0.4) * size) / radius
            dx = (xx - x - random.uniform(-0.65, 0.65) * size) / radius
            mask |= dx * dx + dy * dy < 1
    leaves = random.smooth_noise(
        mask.shape[0], mask.shape[1], random.uniform(2.2, 3.0) * unit, random.uniform(2.2, 3.0) * unit
    )
    sun = (-0.012 if canvas.light_from_left else 0.012) * (xx - x) - 0.012 * (yy - middle)
    shade = 0.5 + 0.75 * np.clip((leaves - 0.5) * 1.6 + 0.5, 0, 1) + sun * 17 / size
    canvas.fill(where, mask, canvas.colour(TREE), TREE, shade)
    if random.chance(0.25):
        fruit = mask & (random.noise(*mask.shape) > 0.97)
        canvas.fill(where, fruit, canvas.colour(BALLOON), TREE)


def draw_car(canvas: Canvas, x: float, base: float) -> None:
    """Draw a glossy body with a lighter shoulder, dark windows and two wheels."""
    random, unit = canvas.random, canvas.unit
    half, height = random.uniform(13, 20) * unit, random.uniform(11, 14) * unit
    wheel, facing = 0.26 * height, 1 if random.chance(0.5) else -1
    part = canvas.box(base - height, base + 1, x - half, x + half)
    canvas.cast_shadow(x, base, half * 1.1, 3 * unit)
    if part is None:
        return
    where, yy, xx = part
    up, along = (base - yy) / height, facing * (xx - x) / half
    corner = np.clip(np.abs(along) - 0.86, 0, None) / 0.14
    body = (up > 0.14) & (up < 0.58 - 0.12 * corner * corner) & (np.abs(along) <= 1)
    cabin = (up >= 0.5) & (up < 1) & (along > -0.85 + 0.55 * (up - 0.5)) & (along < 0.55 - 0.75 * (up - 0.5))
    gloss = 0.75 + 0.35 * np.clip(1.6 * up, 0, 1) + 0.35 * (np.abs(up - 0.47) < 0.05)
    colour = canvas.colour(CAR)
    canvas.fill(where, body | cabin, colour, CAR, gloss + 0 * along)
    glass = (up > 0.58) & (up < 0.9) & (along > -0.72 + 0.55 * (up - 0.5)) & (along < 0.42 - 0.75 * (up - 0.5))
    glass &= np.abs(along + 0.14) > 0.05
    canvas.fill(where, glass, np.array([70, 84, 98], np.float32), CAR, 0.8 + 0.6 * (along > up - 0.7))
    lamp = (np.abs(up - 0.42) < 0.07) & (np.abs(along) > 0.88) & body
    canvas.fill(where, lamp, np.array([245, 235, 190], np.float32), CAR)
    for center in (-0.58, 0.58):
        dx, dy = xx - (x + center * half), yy - (base - wheel)
        distance = (dx * dx + dy * dy) / (wheel * wheel)
        canvas.fill(where, distance < 1, np.array([38, 38, 42], np.float32), CAR)
        canvas.fill(where, distance < 0.22, np.array([190, 190, 195], np.float32), CAR)


def draw_balloon(canvas: Canvas, x: float, y: float) -> None:
    """Draw a hot-air balloon with gores of two colours that narrow towards the rim, and a basket."""
    random, unit = canvas.random, canvas.unit
    radius = random.uniform(9, 17) * unit
    part = canvas.box(y - radius, y + 1.75 * radius, x - radius, x + radius)
    if part is None:
        return
    where, yy, xx = part
    dy, dx = (yy - y) / radius, (xx - x) / radius
    width = np.where(dy < 0.25, np.sqrt(np.clip(1 - dy * dy, 0.0001, 1)), np.clip(1.17 - 0.81 * dy, 0.0001, 1))
    side = dx / width
    mask = (np.abs(side) < 1) & (np.abs(dy) < 1.2) & (dy > -1)
    turn = side * (1 + 0.5 * side * side)  # gores look narrower near the rim
    gores = sawtooth(turn * random.uniform(1.3, 2.2) + 0.25) < 0.5
    colours = np.where(gores[..., None], canvas.colour(BALLOON), canvas.colour(BALLOON) * 0.5 + 100)
    lit = -0.25 if canvas.light_from_left else 0.25
    canvas.fill(where, mask, colours, BALLOON, 1.05 + lit * dx - 0.2 * dy)
    basket = (np.abs(dx) < 0.2) & (dy > 1.35) & (dy < 1.7)
    ropes = (np.abs(np.abs(dx) - 0.17) < 0.06) & (dy >= 1.1) & (dy <= 1.4)
    canvas.fill(where, basket | ropes, np.array([120, 84, 52], np.float32), BALLOON)


def add_light_and_noise(canvas: Canvas) -> np.ndarray:
    """Return the image uint8 under coloured light with a fall-off, shadows of clouds and sensor noise."""
    random = canvas.random
    height, width = canvas.height, canvas.width
    strength = random.uniform(0.7, 1.08)
    tint = np.array([strength * random.uniform(0.86, 1.12) for _ in range(3)], np.float32)
    across, down = random.uniform(-0.35, 0.35), random.uniform(-0.2, 0.2)
    light = 1 + across * (canvas.x / width - 0.5) + down * (canvas.y / height - 0.5)
    if random.chance(0.6):
        light = light * (1.05 - 0.35 * random.smooth_noise(height, width, height * 0.45, width * 0.45))
    image = canvas.image * tint * light[..., None]
    noise = random.uniform(3, 16)
    image += ((random.noise(height, width) + random.noise(height, width) - 1) * noise)[..., None]
    image += (random.noise(height, width * 3).reshape(height, width, 3) - 0.5) * random.uniform(4, 14)
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)
