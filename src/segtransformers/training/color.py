# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Conversion between RGB and HSV of 8-bit images by lookup tables, bit-identical with OpenCV.

Source: `RGB2HSV_b` and `HSV2RGB_b` in `modules/imgproc/src/color_hsv.simd.hpp` of OpenCV 4 (4.5 to 5.0 agree). OpenCV
truncates in its vectorised loop and rounds the last pixels of rows that do not fill a vector. This module always
truncates.
"""

import torch

HUES = 180  # OpenCV's hue has steps of two degrees
_FRACTION_BITS = 12  # of OpenCV's fixed-point quotients
_BYTE = torch.arange(256)


def _quotients(dividend: float) -> torch.Tensor:
    """Return the dividend divided by every byte, `(256,)` in fixed point; 0 for the byte 0."""
    return torch.where(_BYTE > 0, dividend * (1 << _FRACTION_BITS) / _BYTE.clamp(min=1).double(), 0.0).round().long()


def _rounded(products: torch.Tensor) -> torch.Tensor:
    """Round fixed-point numbers to integers."""
    return (products + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS


def _saturations() -> torch.Tensor:
    """Return the saturation by value and spread, flattened. The spread is the largest minus the smallest channel."""
    return _rounded(_BYTE * _quotients(255.0)[:, None]).to(torch.uint8).flatten()


def _hues() -> torch.Tensor:
    """Return the hue by scaled angle and spread, flattened.

    The scaled angle is the angle in sectors of 60 degrees times the spread, plus 255 to make it an index.
    """
    hues = _rounded(torch.arange(-255, 5 * 255 + 1)[:, None] * _quotients(HUES / 6))
    return torch.where(hues < 0, hues + HUES, hues).to(torch.uint8).flatten()


def _shade_tables() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the tables of [`hsv_to_rgb`].

    Returns:
        the factors of the three shades on the value, by hue and saturation and flattened; and `(3, HUES)` numbers of
        bits by which to shift four packed shades to the right, so that red, green or blue is the lowest byte. The
        lowest shade is the value itself.
    """
    angle = torch.arange(HUES).float() * (6 / HUES)  # in sectors of 60 degrees
    share = (angle - angle.floor())[:, None]
    saturation = _BYTE.float() * (1 / 255)
    exact = saturation.double()  # OpenCV rounds once after multiplying and subtracting
    factors = [(1 - saturation).expand(HUES, -1), (1 - exact * share).float(), (1 - exact * (1 - share)).float()]
    # the shade of red, green and blue in each of the six sectors
    order = torch.tensor([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]])
    return [factor.flatten() for factor in factors], 8 * order[:, angle.long()].int()


_SATURATIONS, _HUES_BY_ANGLE = _saturations(), _hues()
_FACTORS, _SHIFTS = _shade_tables()


def rgb_to_hsv(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hue in 0..179, saturation and value, uint8 `(H, W)` each, of a uint8 image `(3, H, W)` on the CPU."""
    red, green, blue = image.short()
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    angle = torch.where(value == green, (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4))
    angle = torch.where(value == red, green - blue, angle)
    spread = spread.int()
    hue = _looked_up(_HUES_BY_ANGLE, angle.int().add_(255).mul_(256).add_(spread))
    return hue, _looked_up(_SATURATIONS, value.int().mul_(256).add_(spread)), value.to(torch.uint8)


def hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the uint8 image `(3, H, W)` of hue in 0..179, saturation and value, uint8 `(H, W)` each, on the CPU."""
    hue, brightness = hue.int(), value.float().mul_(1 / 255)
    index = saturation.int().add_(hue, alpha=256)
    packed = (brightness * 255).int()  # OpenCV truncates here, which may lose a level
    for number, factors in enumerate(_FACTORS, start=1):
        shade = _looked_up(factors, index).mul_(brightness).mul_(255).int()
        packed.bitwise_or_(shade.bitwise_left_shift_(8 * number))
    return torch.stack([(packed >> _looked_up(shifts, hue)).to(torch.uint8) for shifts in _SHIFTS])


def _looked_up(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, index.flatten()).view(index.shape)


__all__ = ["HUES", "hsv_to_rgb", "rgb_to_hsv"]
