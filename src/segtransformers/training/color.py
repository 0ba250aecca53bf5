# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Hue, saturation and value of bytes, bit by bit as OpenCV has them, by looking them up.

Source: `RGB2HSV_b` and `HSV2RGB_b` in `modules/imgproc/src/color_hsv.simd.hpp` of OpenCV 4 (4.5 to 5.0 agree). This is
what it does to whole vectors; the last pixels of rows that are no multiple of one are rounded there, and not cut.
"""

import torch

HUES = 180  # OpenCV's hue has steps of two degrees
_BITS = 12  # behind the point, in OpenCV's divisions
_BYTE = torch.arange(256)


def _quotients(dividend: float) -> torch.Tensor:
    """Of the dividend and every byte, in fixed point; 0 for 0."""
    return torch.where(_BYTE > 0, dividend * (1 << _BITS) / _BYTE.clamp(min=1).double(), 0.0).round().long()


def _rounded(products: torch.Tensor) -> torch.Tensor:
    return (products + (1 << (_BITS - 1))) >> _BITS


def _saturations() -> torch.Tensor:
    """By value and spread, which is the difference of the largest and the smallest of red, green and blue."""
    return _rounded(_BYTE * _quotients(255.0)[:, None]).to(torch.uint8).flatten()


def _hues() -> torch.Tensor:
    """By place on the circle, in units of a sixth of it divided by the spread, plus 255; and by spread."""
    hues = _rounded(torch.arange(-255, 5 * 255 + 1)[:, None] * _quotients(HUES / 6))
    return torch.where(hues < 0, hues + HUES, hues).to(torch.uint8).flatten()


def _shade_tables() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Three shades that are no value, as factors on it, by hue and saturation; and for each hue, how many bits to shift
    four packed shades to find red, green and blue."""
    place = torch.arange(HUES).float() * (6 / HUES)
    share = (place - place.floor())[:, None]
    saturation = _BYTE.float() * (1 / 255)
    exact = saturation.double()  # OpenCV rounds once after multiplying and subtracting
    factors = [(1 - saturation).expand(HUES, -1), (1 - exact * share).float(), (1 - exact * (1 - share)).float()]
    # which shade red, green and blue are in each of the six sectors
    order = torch.tensor([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]])
    return [factor.flatten() for factor in factors], 8 * order[:, place.long()].int()


_SATURATIONS, _HUE_OF_PLACE = _saturations(), _hues()
_FACTORS, _SHIFTS = _shade_tables()


def rgb_to_hsv(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hue in 0..179, saturation and value, uint8 `(H, W)` each, of a uint8 image `(3, H, W)` on the CPU."""
    red, green, blue = image.short()
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    place = torch.where(value == green, (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4))
    place = torch.where(value == red, green - blue, place)
    spread = spread.int()
    hue = _looked_up(_HUE_OF_PLACE, place.int().add_(255).mul_(256).add_(spread))
    return hue, _looked_up(_SATURATIONS, value.int().mul_(256).add_(spread)), value.to(torch.uint8)


def hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The uint8 image `(3, H, W)` of hue in 0..179, saturation and value, uint8 `(H, W)` each, on the CPU."""
    hue, light = hue.int(), value.float().mul_(1 / 255)
    index = saturation.int().add_(hue, alpha=256)
    packed = (light * 255).int()  # OpenCV cuts, so that a level may be lost
    for number, factors in enumerate(_FACTORS, start=1):
        shade = _looked_up(factors, index).mul_(light).mul_(255).int()
        packed.bitwise_or_(shade.bitwise_left_shift_(8 * number))
    return torch.stack([(packed >> _looked_up(shifts, hue)).to(torch.uint8) for shifts in _SHIFTS])


def _looked_up(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, index.flatten()).view(index.shape)


__all__ = ["HUES", "hsv_to_rgb", "rgb_to_hsv"]
