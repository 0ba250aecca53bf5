# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Losses of heads that classify pixels, as settings that a recipe and a config hold."""

from .base import PixelLoss
from .cross_entropy import BinaryCrossEntropy, CrossEntropy, FocalLoss
from .hard_pixels import HardPixelCrossEntropy
from .lovasz import LovaszLoss
from .overlap import DiceLoss, JaccardLoss, TverskyLoss
from .settings import LOSSES, build_losses, check_losses, for_sigmoids, total_loss, without_class_settings

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "DiceLoss",
    "FocalLoss",
    "HardPixelCrossEntropy",
    "JaccardLoss",
    "LovaszLoss",
    "PixelLoss",
    "TverskyLoss",
    "build_losses",
    "check_losses",
    "for_sigmoids",
    "total_loss",
    "without_class_settings",
]
