# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory and time of one forward pass of a published ViT-Adapter on the CPU, beside a plain implementation.

    python benchmarks/memory.py mask2former_beit_adapter_large_896_80k_ade20k_ss

"Plain" is the same model with the same weights, but every layer of BEiT keeps an index of (h * w + 1)^2 and gathers
its biases with it, as the original does, and the head is transformers' own pixel decoder and transformer module. Each
runs in a process of its own, on the whole window, float32. The peak is that of the process minus what it holds before
the pass. Linux only: it reads /proc.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.published import published_rows
from segtransformers.models.trunk import blocks

GIB = 2**30


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def indexed_bias(table: torch.Tensor, table_grid, grid, num_prefix_tokens: int) -> torch.Tensor:
    """A bias gathered by an index that is kept for every table."""
    kept = indexed_bias.__dict__.setdefault("kept", {})
    if table.data_ptr() not in kept:
        kept[table.data_ptr()] = blocks_index(grid)
    index = kept[table.data_ptr()]
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()[None]


def blocks_index(grid) -> torch.Tensor:
    from timm.models.beit import gen_relative_position_index

    return gen_relative_position_index(grid)


class PlainMask2Former(torch.nn.Module):
    """The same weights in transformers' modules, and the semantic map as the original makes it."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        config = model.config
        theirs = Mask2FormerConfig(
            feature_size=config.hidden_dim,
            mask_feature_size=config.mask_feature_size,
            hidden_dim=config.hidden_dim,
            encoder_feedforward_dim=config.encoder_feedforward_dim,
            dim_feedforward=config.dim_feedforward,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            num_attention_heads=config.num_attention_heads,
            num_queries=config.num_queries,
            dropout=0.0,
        )
        self.backbone, self.class_predictor = model.backbone, model.class_predictor
        with torch.device("meta"):
            self.pixel_decoder = Mask2FormerPixelDecoder(theirs, model.backbone.channels)
            self.transformer_module = Mask2FormerTransformerModule(config.hidden_dim, theirs)
        self.pixel_decoder.load_state_dict(model.pixel_decoder.state_dict(), assign=True)
        self.transformer_module.load_state_dict(model.transformer_module.state_dict(), assign=True)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        decoded = self.pixel_decoder(self.backbone(pixel_values).feature_maps, return_dict=True)
        queries = self.transformer_module(
            multi_scale_features=list(decoded.multi_scale_features),
            mask_features=decoded.mask_features,
            output_hidden_states=True,
        )
        masks = queries.masks_queries_logits[-1]
        classes = [self.class_predictor(state.transpose(0, 1)) for state in queries.intermediate_hidden_states]
        semantic = torch.einsum("bqk,bqhw->bkhw", classes[-1].softmax(-1)[..., :-1], masks.sigmoid())
        size = pixel_values.shape[2:]
        return torch.nn.functional.interpolate(semantic, size=size, mode="bilinear", align_corners=False)


def measure(row: str, plain: bool) -> dict[str, float]:
    torch.manual_seed(0)
    config = published_rows("vit_adapter")[row]
    model = empty_model(config["model"])[0].to_empty(device="cpu").eval()
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    model.config.inference_mode = "whole"
    run = model
    if plain:
        blocks.relative_position_bias = indexed_bias
        if hasattr(model, "pixel_decoder"):
            run = PlainMask2Former(model).eval()
            del model.pixel_decoder, model.transformer_module
    images = torch.randn(1, 3, config["crop_size"], config["crop_size"])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    with torch.no_grad():
        outputs = run(images)
    seconds = time.perf_counter() - started
    logits = outputs if plain and run is not model else outputs.logits
    return {
        "weights_gib": before / GIB,
        "peak_over_weights_gib": (resident("VmHWM") - before) / GIB,
        "seconds": seconds,
        "checksum": logits.double().abs().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", default="mask2former_beit_adapter_large_896_80k_ade20k_ss")
    parser.add_argument("--only", choices=("ours", "plain"), help="measure in this process and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.row, options.only == "plain")))
        return
    print(f"{options.row}, 1 image, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':<8}{'loaded GiB':>12}{'peak over it':>14}{'seconds':>10}{'mean |logit|':>14}")
    for kind in ("plain", "ours"):
        done = subprocess.run(
            [sys.executable, __file__, options.row, "--only", kind], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{kind:<8}failed: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{kind:<8}{found['weights_gib']:>12.2f}{found['peak_over_weights_gib']:>14.2f}{found['seconds']:>10.1f}"
            f"{found['checksum']:>14.6f}"
        )


if __name__ == "__main__":
    main()
