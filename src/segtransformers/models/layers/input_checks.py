# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Checks of the tensors that a user passes to `forward`."""

import torch


def check_pixel_values(pixel_values: torch.Tensor, num_channels: int | None = None) -> None:
    """Refuse anything but a batch of at least one normalized image.

    Args:
        num_channels: channels of the images; None if a backbone's config does not have the number.

    Raises:
        ValueError: with the type, or the dtype and shape found.
    """
    channels = "channels" if num_channels is None else num_channels
    if (
        not isinstance(pixel_values, torch.Tensor)
        or pixel_values.dim() != 4
        or pixel_values.numel() == 0
        or not pixel_values.is_floating_point()
        or (num_channels is not None and pixel_values.shape[1] != num_channels)
    ):
        raise ValueError(
            f"pixel_values must be normalized floating-point images (batch, {channels}, height, width), got "
            f"{_description(pixel_values)}"
        )


def check_image_size(pixel_values: torch.Tensor, num_channels: int) -> None:
    """Refuse anything but normalized images with pixels and this number of channels.

    Raises:
        ValueError: with the type, or the dtype and shape found.
    """
    if (
        not isinstance(pixel_values, torch.Tensor)
        or pixel_values.dim() != 4
        or pixel_values.shape[1] != num_channels
        or not pixel_values.is_floating_point()
    ):
        raise ValueError(
            f"pixel_values must be normalized floating-point images (batch, {num_channels}, height, width), got "
            f"{_description(pixel_values)}: the backbone's config has num_channels={num_channels}"
        )
    if pixel_values.shape[2] < 1 or pixel_values.shape[3] < 1:
        raise ValueError(f"pixel_values must have at least one pixel, got {tuple(pixel_values.shape)}")


def check_labels(labels: torch.Tensor, pixel_values: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Refuse label maps that do not fit the images or the classes.

    Values are checked on the CPU only: on another device the check would wait for the device.

    Raises:
        ValueError: with the type, shape, dtype or values found and those expected.
    """
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"labels must be a tensor (batch, height, width), got a {type(labels).__name__}")
    expected = (pixel_values.shape[0], *pixel_values.shape[2:])
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must be (batch, height, width) = {expected} like pixel_values, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must hold integer class indices, got {labels.dtype}")
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    labels = labels.long()
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_labels))]
    if wrong.numel():
        raise ValueError(
            f"labels contain the values {wrong.unique()[:8].tolist()}, but the model has num_labels={num_labels} and "
            f"ignores {ignore_index}: check the format of the label maps (reduce_labels, 0 and 255)"
        )


def check_masks(masks: torch.Tensor, pixel_values: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Refuse labels of a multi-label model that are no masks of its classes, as [`check_labels`] does.

    Raises:
        ValueError: with the type, shape, dtype or values found and those expected.
    """
    expected = (pixel_values.shape[0], num_labels, *pixel_values.shape[2:])
    if not isinstance(masks, torch.Tensor) or tuple(masks.shape) != expected:
        found = tuple(masks.shape) if isinstance(masks, torch.Tensor) else f"a {type(masks).__name__}"
        raise ValueError(
            f"labels of a multi-label model must be masks (batch, num_labels, height, width) = {expected}, got {found}"
        )
    if masks.is_floating_point() or masks.is_complex():
        raise ValueError(f"labels of a multi-label model must hold the integers 0 and 1, got {masks.dtype}")
    if masks.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = masks[(masks != 0) & (masks != 1) & (masks != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"labels of a multi-label model must be 0, 1 or {ignore_index} (ignored), got the values "
            f"{wrong.unique()[:8].tolist()}"
        )


def _description(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


__all__ = ["check_image_size", "check_labels", "check_masks", "check_pixel_values"]
