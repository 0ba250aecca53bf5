# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments for the operators, and their expected results."""

import json
from pathlib import Path

import torch

REFERENCE = Path(__file__).parents[3] / "tests" / "reference" / "operators"


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    difference = (actual.double().cpu() - expected.double().cpu()).norm()
    return (difference / expected.double().norm().clamp_min(1e-300).cpu()).item()


def on_device(arguments: dict, device: str) -> dict:
    """Return the arguments with their tensors on a device."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}


def recorded(name: str, device: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors of a recorded case of the original operator, and its other arguments."""
    from safetensors.torch import load_file  # scripts/gpu_day uses this module with torch alone

    tensors = on_device(load_file(REFERENCE / name / "tensors.safetensors"), device)
    if name.startswith("ms_deform_attn"):
        return tensors, {"spatial_shapes": [tuple(shape) for shape in tensors.pop("spatial_shapes").tolist()]}
    params = json.loads((REFERENCE / name / "manifest.json").read_text())["params"]
    tensors["value"], tensors["grad_value"] = tensors.pop("input"), tensors.pop("grad_input")
    return tensors, {
        "kernel_size": (params["kernel_h"], params["kernel_w"]),
        "stride": (params["stride"],) * 2,
        "padding": (params["pad"],) * 2,
        "dilation": (params["dilation"],) * 2,
        "groups": params["group"],
        "offset_scale": params["offset_scale"],
        "remove_center": bool(params["remove_center"]),
    }


def flat(arguments: dict) -> tuple:
    """Return the arguments in the order and form of the operator's schema."""
    return tuple(
        [side for shape in value for side in shape]
        if name == "spatial_shapes"
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in arguments.items()
    )


def attention(
    shapes=((5, 7), (3, 4)),
    batch=2,
    queries=9,
    heads=3,
    channels=8,
    points=4,
    dtype=torch.float64,
    device="cpu",
) -> dict:
    """Return arguments of ms_deform_attn, with most points inside the levels and some outside."""
    levels = len(shapes)
    tokens = sum(height * width for height, width in shapes)
    weights = torch.randn(batch, queries, heads, levels * points, dtype=dtype, device=device).softmax(-1)
    return {
        "value": torch.randn(batch, tokens, heads, channels, dtype=dtype, device=device),
        "spatial_shapes": [tuple(shape) for shape in shapes],
        "sampling_locations": torch.rand(batch, queries, heads, levels, points, 2, dtype=dtype, device=device) * 1.4
        - 0.2,
        "attention_weights": weights.unflatten(3, (levels, points)),
    }


def convolution(
    batch=2, height=6, width=7, groups=3, channels=4, stride=1, dtype=torch.float64, device="cpu", remove_center=False
) -> dict:
    """Return arguments of dcnv3 with a 3x3 kernel."""
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    points = 8 if remove_center else 9
    mask = torch.randn(batch, out_height, out_width, groups, points, dtype=dtype, device=device).softmax(-1)
    return {
        "value": torch.randn(batch, height, width, groups * channels, dtype=dtype, device=device),
        "offset": torch.randn(batch, out_height, out_width, groups * points * 2, dtype=dtype, device=device),
        "mask": mask.flatten(3),
        "kernel_size": (3, 3),
        "stride": (stride, stride),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": groups,
        "offset_scale": 1.5,
        "remove_center": remove_center,
    }


def packed(arguments: dict) -> dict:
    """Convert arguments of dcnv3 into equivalent ones of dcnv4, with NaN in the numbers that are not read."""
    offset, mask, groups = arguments["offset"], arguments["mask"], arguments["groups"]
    numbers = torch.cat([offset.unflatten(3, (groups, -1)), mask.unflatten(3, (groups, -1))], -1).flatten(3)
    unused = torch.full((*numbers.shape[:3], -numbers.shape[3] % 8), torch.nan, dtype=mask.dtype, device=mask.device)
    others = {key: value for key, value in arguments.items() if key not in ("value", "offset", "mask")}
    return {"value": arguments["value"], "offset_mask": torch.cat([numbers, unused], 3), **others}


def fused(arguments: dict, levels: int | None = None, batch: int | None = None) -> dict:
    """Return arguments of ms_deform_attn_fused in the sizes of arguments of ms_deform_attn.

    Args:
        levels, batch: sizes of the reference points, which may be 1.
    """
    weights = arguments["attention_weights"]
    options = {"dtype": weights.dtype, "device": weights.device}
    return {
        "value": arguments["value"],
        "spatial_shapes": arguments["spatial_shapes"],
        "reference_points": torch.rand(
            batch or weights.shape[0], weights.shape[1], levels or weights.shape[3], 2, **options
        ),
        "sampling_offsets": torch.randn(*weights.shape, 2, **options) * 2,
        "attention_logits": torch.randn(weights.shape, **options),
    }


def unfused(arguments: dict) -> dict:
    """Convert arguments of ms_deform_attn_fused into equivalent arguments of ms_deform_attn."""
    offsets, logits = arguments["sampling_offsets"], arguments["attention_logits"]
    sides = torch.tensor(arguments["spatial_shapes"], dtype=offsets.dtype, device=offsets.device).flip(-1)
    return {
        "value": arguments["value"],
        "spatial_shapes": arguments["spatial_shapes"],
        "sampling_locations": arguments["reference_points"][:, :, None, :, None] + offsets / sides[:, None],
        "attention_weights": logits.flatten(3).softmax(-1).view_as(logits),
    }


def as_attention(
    value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
) -> dict:
    """Convert arguments of dcnv3 into equivalent ones of ms_deform_attn: one level, and a query per output pixel."""
    batch, height, width, channels = value.shape
    out_height, out_width = offset.shape[1:3]
    steps = [dilation[axis] * torch.arange(kernel_size[axis]) for axis in (0, 1)]
    middle = [dilation[axis] * (kernel_size[axis] - 1) // 2 for axis in (0, 1)]
    grid = torch.stack(torch.meshgrid(steps[1] - middle[1], steps[0] - middle[0], indexing="ij"), -1).reshape(-1, 2)
    if remove_center:
        grid = torch.cat([grid[: len(grid) // 2], grid[len(grid) // 2 + 1 :]])
    points = len(grid)
    starts = [stride[axis] * torch.arange(size) - padding[axis] for axis, size in ((0, out_height), (1, out_width))]
    y, x = torch.meshgrid(starts[0] + middle[0], starts[1] + middle[1], indexing="ij")
    centre = torch.stack([x, y], -1).reshape(-1, 1, 1, 2)
    shifts = (grid + offset.reshape(batch, -1, groups, points, 2)) * offset_scale
    return {
        "value": value.reshape(batch, height * width, groups, channels // groups),
        "spatial_shapes": [(height, width)],
        "sampling_locations": ((centre + shifts + 0.5) / torch.tensor([width, height]))[:, :, :, None],
        "attention_weights": mask.reshape(batch, -1, groups, 1, points),
    }


def expected_attention(value, spatial_shapes, sampling_locations, attention_weights) -> torch.Tensor:
    """Compute deformable attention in float64, corner by corner, without code of the kernel or `grid_sample`."""
    batch, _, heads, channels = value.shape
    queries = attention_weights.shape[1]
    output = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    value, locations, weights = (
        tensor.detach().double().cpu() for tensor in (value, sampling_locations, attention_weights)
    )
    image = torch.arange(batch)[:, None, None, None]
    head = torch.arange(heads)[:, None]
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        x = locations[:, :, :, level, :, 0] * width - 0.5
        y = locations[:, :, :, level, :, 1] * height - 0.5
        finite = x.isfinite() & y.isfinite()
        output = output + torch.where(finite, 0.0, torch.nan).sum(-1)[..., None]
        for row, row_weight in ((y.floor(), 1 - (y - y.floor())), (y.floor() + 1, y - y.floor())):
            for column, column_weight in ((x.floor(), 1 - (x - x.floor())), (x.floor() + 1, x - x.floor())):
                inside = finite & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                if not inside.any():
                    continue
                token = torch.where(inside, start + row * width + column, start).long()
                samples = torch.where(inside[..., None], value[image, token, head], 0.0)
                factor = torch.where(inside, row_weight * column_weight, 0.0) * weights[:, :, :, level]
                output = output + (samples * factor[..., None]).sum(3)
        start += height * width
    return output.flatten(2)
