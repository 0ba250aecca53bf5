# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Hue, saturation and value of bytes, bit by bit as OpenCV has them: what hue and saturation are changed in.

Source: `RGB2HSV_b` and `HSV2RGB_b` in `modules/imgproc/src/color_hsv.simd.hpp` of OpenCV 4.
"""

import torch

HUES = 180  # OpenCV's hue has steps of two degrees
_SHIFT = 12  # bits behind the point
_RANGE = torch.arange(1, 256, dtype=torch.float64)
_ZERO = torch.zeros(1, dtype=torch.int32)
_SATURATION = torch.cat([_ZERO, ((255 << _SHIFT) / _RANGE).round().int()])
_HUE = torch.cat([_ZERO, ((HUES << _SHIFT) / (6 * _RANGE)).round().int()])


def rgb_to_hsv(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hue in 0..179, saturation and value, uint8 `(H, W)` each, of a uint8 image `(3, H, W)`."""
    red, green, blue = image.to(torch.int32)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    saturation = (spread * _SATURATION[value] + (1 << (_SHIFT - 1))) >> _SHIFT
    sixth = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (sixth * _HUE[spread] + (1 << (_SHIFT - 1))) >> _SHIFT
    hue = torch.where(hue < 0, hue + HUES, hue)
    return hue.to(torch.uint8), saturation.to(torch.uint8), value.to(torch.uint8)


def hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The uint8 image `(3, H, W)` of hue in 0..179, saturation and value, uint8 `(H, W)` each."""
    place = hue.float() * (6 / HUES)
    sector = place.floor()
    share = place - sector
    saturation, value = saturation.float() * (1 / 255), value.float() * (1 / 255)
    exact = saturation.double()  # OpenCV rounds once after multiplying and subtracting
    shades = torch.stack(
        [
            value,
            value * (1 - saturation),
            value * (1 - exact * share).float(),
            value * (1 - exact * (1 - share)).float(),
        ]
    )
    shades = (shades * 255).round().to(torch.uint8)
    return shades.gather(0, _SHADES.to(hue.device)[:, sector.long()])


# which of the four shades red, green and blue are, in each of the six sectors of the circle of hues
_SHADES = torch.tensor([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]])

__all__ = ["HUES", "hsv_to_rgb", "rgb_to_hsv"]
