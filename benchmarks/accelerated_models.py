# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Time models of transformers with and without `segtransformers.operators.accelerate`, and compare their outputs.

    python benchmarks/accelerated_models.py [--threads 1] [--size 512] [--only NAME] [--device cuda --dtype bfloat16]

The models have the sizes of transformers' default configs (with Swin-T for three of them) and random weights, in which
sampling offsets and attention weights depend on the input. The rounds of both versions alternate; times are
medians in milliseconds. `attention` is the share of the stock model's time that its deformable attention takes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn

from segtransformers.operators import accelerate, dispatcher

SWIN_T = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def swin_t(stages: list[str] = STAGES):
    return transformers.SwinConfig(**SWIN_T, out_features=stages)


def deformable_detr() -> nn.Module:
    backbone = transformers.ResNetConfig(out_features=STAGES[1:])
    return transformers.DeformableDetrModel(
        transformers.DeformableDetrConfig(backbone_config=backbone, use_timm_backbone=False)
    )


def rt_detr() -> nn.Module:
    return transformers.RTDetrModel(transformers.RTDetrConfig())


def rt_detr_v2() -> nn.Module:
    return transformers.RTDetrV2Model(transformers.RTDetrV2Config())


def d_fine() -> nn.Module:
    return transformers.DFineModel(transformers.DFineConfig())


def rf_detr() -> nn.Module:
    return transformers.RfDetrModel(transformers.RfDetrConfig())


def grounding_dino() -> nn.Module:
    config = transformers.GroundingDinoConfig(backbone_config=swin_t(STAGES[1:]), use_timm_backbone=False)
    return transformers.GroundingDinoModel(config)


def mask2former() -> nn.Module:
    return transformers.Mask2FormerModel(transformers.Mask2FormerConfig(backbone_config=swin_t()))


def oneformer() -> nn.Module:
    config = transformers.OneFormerConfig(backbone_config=swin_t(), is_training=False)
    return transformers.OneFormerModel(config)


# name -> (constructor, the output to compare)
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "Deformable DETR, ResNet-50": (deformable_detr, "last_hidden_state"),
    "RT-DETR, ResNet-50": (rt_detr, "last_hidden_state"),
    "RT-DETRv2, ResNet-50": (rt_detr_v2, "last_hidden_state"),
    "D-FINE, HGNetV2": (d_fine, "last_hidden_state"),
    "RF-DETR": (rf_detr, "last_hidden_state"),
    # of the encoder, because the decoder starts from the best places, whose order rounding may change
    "Grounding DINO, Swin-T": (grounding_dino, "encoder_last_hidden_state_vision"),
    "Mask2Former, Swin-T": (mask2former, "pixel_decoder_last_hidden_state"),
    "OneFormer, Swin-T": (oneformer, "pixel_decoder_hidden_states"),
}


def randomised(model: nn.Module) -> nn.Module:
    """Let offsets and weights depend on the input, as after training; at the start they do not."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                parameter.normal_(std=0.05)
    return model.eval()


def inputs_of(model: nn.Module, size: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, transformers.RfDetrModel):
        size = size // 56 * 56  # four windows of patches of 14 pixels
    arguments = {"pixel_values": torch.randn(1, 3, size, size, generator=generator).to(device, dtype)}
    if isinstance(model, transformers.GroundingDinoModel):  # "a cat. a dog." of BERT's tokenizer
        arguments["input_ids"] = torch.tensor([[101, 1037, 4937, 1012, 1037, 3899, 1012, 102]], device=device)
    if isinstance(model, transformers.OneFormerModel):
        arguments["task_inputs"] = torch.randint(1000, (1, 77), generator=generator).to(device)
    return arguments


def attention_share(model: nn.Module, arguments: dict, device: str) -> float:
    """Return the share of the operator (grid_sample and what surrounds it) in the time of a stock model.

    This is measured as the time that the model saves if the operator returns at once.
    """
    from segtransformers.operators import acceleration

    def nothing(value, shapes, locations, weights):
        batch, _, heads, channels = value.shape
        return value.new_zeros(batch, weights.shape[1], heads * channels)

    original = acceleration.dispatcher.choose
    times = {"stock": [], "without": []}
    for _ in range(3):
        times["stock"].append(seconds(model, arguments, device))
        acceleration.dispatcher.choose = lambda *_, **__: nothing
        try:
            with accelerate(model):
                times["without"].append(seconds(model, arguments, device))
        finally:
            acceleration.dispatcher.choose = original
    return 1 - statistics.median(times["without"]) / statistics.median(times["stock"])


def seconds(model: nn.Module, arguments: dict, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.no_grad():
        model(**arguments)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(name: str, size: int, device: str, dtype: torch.dtype, budget: float) -> dict:
    """Return times, errors and the number of layers of a model.

    Args:
        budget: seconds for the rounds; there are three to twenty.
    """
    torch.manual_seed(0)
    make, output = MODELS[name]
    model = randomised(make()).to(device, dtype)
    arguments = inputs_of(model, size, device, dtype)

    def compared() -> torch.Tensor:
        with torch.no_grad():
            result = getattr(model(**arguments, output_hidden_states=True), output)
        return (result[-1] if isinstance(result, (tuple, list)) else result).double()

    expected = compared()
    with accelerate(model) as acceleration:
        layers, accelerated = len(acceleration.layers), compared()
    error = ((accelerated - expected).norm() / expected.norm()).item()
    times: dict[str, list[float]] = {"stock": [], "accelerated": []}
    end = time.perf_counter() + budget
    while len(times["stock"]) < 3 or (time.perf_counter() < end and len(times["stock"]) < 20):
        times["stock"].append(seconds(model, arguments, device))
        with accelerate(model):
            times["accelerated"].append(seconds(model, arguments, device))
    stock, faster = (1000 * statistics.median(values) for values in times.values())
    return {
        "model": name,
        "layers": layers,
        "stock_ms": stock,
        "accelerated_ms": faster,
        "speed_up": stock / faster,
        "attention": attention_share(model, arguments, device),
        "relative_error": error,
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| model | layers | stock | accelerated | faster | attention | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['layers']} | {row['stock_ms']:.0f} | {row['accelerated_ms']:.0f} | "
            f"{row['speed_up']:.2f} | {row['attention']:.0%} | {row['relative_error']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=512, help="height and width of the image")
    parser.add_argument("--only", default="", help="run the models whose name contains this")
    parser.add_argument("--seconds", type=float, default=10, help="time for the rounds of a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(dispatcher.describe())
    rows = []
    for name in MODELS:
        if options.only in name:
            row = measure(name, options.size, options.device, getattr(torch, options.dtype), options.seconds)
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    print(f"\n{options.size} x {options.size}, {options.threads} threads, {options.dtype}, {options.device}\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
