# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory and time of the Mask2Former head beside transformers' own modules with the same weights, on random maps.

    python benchmarks/mask2former_head.py                  # the head of the large models, 896 x 896
    python benchmarks/mask2former_head.py --size 512 --width 256 --heads 8 --queries 100

Each implementation runs in a process of its own. Memory is the highest resident size over that of weights and maps
(Linux only); time is the best of the repeats, and only its ratio means something.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import ConvNextConfig, Mask2FormerConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder, Mask2FormerTransformerModule

from segtransformers import SegMask2FormerConfig, SegMask2FormerForSemanticSegmentation


class Maps(torch.nn.Module):
    """In place of a backbone."""

    def __init__(self, maps: list[torch.Tensor]):
        super().__init__()
        self.maps = maps

    def forward_with_filtered_kwargs(self, pixel_values, **kwargs):
        return BackboneOutput(feature_maps=self.maps)


def build(arguments: argparse.Namespace):
    """A function from nothing to logits `(1, labels, size, size)`."""
    width, size = arguments.width, arguments.size
    shared = {
        "hidden_dim": width,
        "mask_feature_size": width,
        "num_attention_heads": arguments.heads,
        "num_queries": arguments.queries,
        "encoder_feedforward_dim": 4 * width,
        "dim_feedforward": 4 * width,
        "num_labels": arguments.labels,
        "backbone_config": ConvNextConfig(
            hidden_sizes=[width] * 4, depths=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
        ),
    }
    torch.manual_seed(0)
    maps = [torch.randn(1, width, size // stride, size // stride) for stride in (4, 8, 16, 32)]
    with torch.device("meta"):
        model = SegMask2FormerForSemanticSegmentation(SegMask2FormerConfig(**shared))
    model.backbone = Maps(maps)
    model = model.to_empty(device="cpu").eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1)
    if arguments.implementation == "ours":
        image = torch.zeros(1, 3, size, size)
        return lambda: model(image).logits

    config = Mask2FormerConfig(feature_size=width, **shared)
    with torch.device("meta"):
        pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=[width] * 4).eval()
        transformer_module = Mask2FormerTransformerModule(in_features=width, config=config).eval()
    pixel_decoder.load_state_dict(model.pixel_decoder.state_dict(), assign=True)
    transformer_module.load_state_dict(model.transformer_module.state_dict(), assign=True)
    classify = model.class_predictor

    def run():
        pixels = pixel_decoder(maps)
        decoded = transformer_module(pixels.multi_scale_features, pixels.mask_features)
        classes = [classify(states.transpose(0, 1)) for states in decoded.intermediate_hidden_states]
        probabilities = classes[-1].softmax(-1)[..., :-1]
        logits = torch.einsum("bqk,bqhw->bkhw", probabilities, decoded.masks_queries_logits[-1].sigmoid())
        return torch.nn.functional.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)

    return run


def resident(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**20


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> dict[str, float]:
    run = build(arguments)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    times = []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        checksum = run().abs().mean().item()
        times.append(time.perf_counter() - started)
    return {"peak": resident("VmHWM") - before, "seconds": min(times), "checksum": checksum}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"size": 896, "width": 1024, "heads": 32, "queries": 200, "labels": 150, "repeats": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--implementation", choices=("ours", "transformers"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.implementation:
        print(json.dumps(measure(arguments)))
        return
    results = {}
    for implementation in ("ours", "transformers"):
        command = [sys.executable, __file__, *sys.argv[1:], "--implementation", implementation]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(f"{implementation:13s} peak over weights and maps {result['peak']:.2f} GiB", flush=True)
        results[implementation] = result
    ratio = {key: results["ours"][key] / results["transformers"][key] for key in results["ours"]}
    print(
        f"ours / transformers: memory {ratio['peak']:.2f}, time {ratio['seconds']:.2f}, output {ratio['checksum']:.6f}"
    )


if __name__ == "__main__":
    main()
