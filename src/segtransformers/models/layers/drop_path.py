# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Stochastic depth (https://arxiv.org/abs/1603.09382)."""

from torchvision.ops import StochasticDepth


class DropPath(StochasticDepth):
    """Drop a residual branch for whole images in training and scale the others by `1 / (1 - rate)`.

    Args:
        rate: probability of dropping, in [0, 1).
    """

    def __init__(self, rate: float = 0.0):
        super().__init__(rate, mode="row")


__all__ = ["DropPath"]
