# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Whole models side by side: time of a forward pass or a training step, and peak memory.

    python benchmarks/models.py                                    # CPU, float32, 512x512, one image, two threads
    python benchmarks/models.py --training --models vit-adapter-t-upernet
    python benchmarks/models.py --device cuda --dtype bfloat16 --batch 8 --size 640 --models vit-adapter-l-mask2former
    python benchmarks/models.py --ablate                           # the optimized model without each optimization
    python benchmarks/models.py --keep-memory --batch 8            # with `keep_freed_memory`, as in the commands
    python benchmarks/models.py --no-peers --models swin-t-upernet convnext-t-upernet swin-t-mask2former
    python benchmarks/models.py --compile --json results.json
    python benchmarks/compare.py old.json new.json                 # two such files

"plain" is the model as it is loaded, "optimized" the result of `optimize_for_inference`, and "optimized, bf16" that in
bfloat16, on a CPU with instructions for it. "transformers" is its own UperNet or Mask2Former with the same weights
around the same backbone, with the operators that run without a compiler; models without such a twin have peers only.
All logits are compared before anything is timed. Then every round runs each implementation once, so that other load on
the machine hits all of them alike. The table has medians of wall-clock time and of time summed over the cores. Memory
is measured in a process for each implementation: the peak of a forward pass over the loaded model (Linux, or a GPU).
Peers have random weights and other outputs; they show what else the time buys.
A training step is forward with labels and backward, without an optimizer.
"""

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from results import commit, keep_memory, machine_name, operators, today
from torch import nn
from twins import Ours, OursBfloat16, OursChannelsLast, Runner, eomt, has_twin, segformer, smp_upernet, twin_of

from segtransformers.conversion.convert import empty_model
from segtransformers.inference.precision import has_fast_bfloat16
from segtransformers.models.optimize import OPTIMIZATIONS, optimize_for_inference
from segtransformers.published import published_rows

MIB = 2**20


@dataclass(frozen=True)
class Model:
    """A published model, and peers of about its size.

    Attributes:
        family, row: where [`published_rows`] has it.
        peers: from names to what makes them of an image's side and a number of labels.
    """

    family: str
    row: str
    peers: dict[str, Callable[[int, int], Runner]] = field(default_factory=dict)


def eomt_base(size: int, labels: int) -> Runner:
    return eomt(768, 12, 12, size, labels)


MODELS = {
    "vit-adapter-t-upernet": Model(
        "vit_adapter",
        "upernet_augreg_adapter_tiny_512_160k_ade20k",
        {"smp UPerNet, ResNet-50": lambda size, labels: smp_upernet("resnet50", labels)},
    ),
    "internimage-t-upernet": Model(
        "internimage",
        "upernet_internimage_t_512_160k_ade20k",
        {"smp UPerNet, ConvNeXt-T": lambda size, labels: smp_upernet("tu-convnext_tiny", labels)},
    ),
    "vit-comer-t-upernet": Model("vit_comer", "upernet_vit_comer_tiny_512_160k_ade20k"),
    # the sizes of openmmlab/upernet-swin-tiny, openmmlab/upernet-convnext-tiny and
    # facebook/mask2former-swin-tiny-ade-semantic
    "swin-t-upernet": Model("mmseg_zoo", "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K"),
    "convnext-t-upernet": Model("mmseg_zoo", "upernet_convnext_tiny_fp16_512x512_160k_ade20k"),
    "swin-t-mask2former": Model("mmseg_zoo", "mask2former_swin-t_8xb2-160k_ade20k-512x512"),
    "segmenter-b-mask": Model(
        "segmenter",
        "segmenter_vit-b_mask_8x1_512x512_160k_ade20k",
        {"Segformer-B5": lambda size, labels: segformer(labels), "EoMT-B": eomt_base},
    ),
    "dinov2-b-linear": Model(
        "dinov2",
        "dinov2_vitb14_ade20k_linear",
        {"Segformer-B5": lambda size, labels: segformer(labels), "EoMT-B": eomt_base},
    ),
    "vit-adapter-b-mask2former": Model(
        "vit_adapter",
        "mask2former_beit_adapter_base_512_40k_cocostuff10k_ss",
        {"EoMT-B": eomt_base},
    ),
    "vit-adapter-l-mask2former": Model(
        "vit_adapter",
        "mask2former_beit_adapter_large_640_160k_ade20k_ss",
        {"EoMT-L": lambda size, labels: eomt(1024, 24, 16, size, labels)},
    ),
}
BFLOAT16 = "optimized, bf16"
OURS = ("optimized", BFLOAT16)
SETTINGS = ("device", "dtype", "batch", "size", "compile", "training", "keep_memory")
DEFAULT = ("vit-adapter-t-upernet", "internimage-t-upernet", "vit-adapter-b-mask2former")


def randomised(model: nn.Module) -> None:
    """Move what starts constant, so that every branch matters."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and (tensor.dim() <= 1 or not tensor.any()):
                tensor.add_(0.1 * torch.rand_like(tensor))


def our_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = empty_model(published_rows(MODELS[name].family)[MODELS[name].row]["model"])[0].to_empty(device="cpu")
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    randomised(model)
    model.config.inference_mode = "whole"
    return model


def implementations(name: str, options: argparse.Namespace, only: str | None = None) -> dict[str, Runner]:
    """Build our model, transformers' and the peers', on the device and in the dtype, for evaluation or training.

    Args:
        only: the one to build; None builds all.
    """
    makers: dict[str, Callable[[], Runner]] = {}
    ours: list[nn.Module] = []

    def model() -> nn.Module:
        if not ours:
            ours.append(our_model(name).to(options.device, getattr(torch, options.dtype)))
        return ours[0]

    makers["plain"] = lambda: Ours(model())
    if options.training and options.device == "cpu":  # what SegmentationTrainer does
        makers["channels last"] = lambda: OursChannelsLast(copy.deepcopy(model()).to(memory_format=torch.channels_last))
    if not options.training:
        makers["optimized"] = lambda: Ours(optimize_for_inference(model()))
    is_float32_on_cpu = options.device == "cpu" and options.dtype == "float32"
    if is_float32_on_cpu and not (options.training or options.ablate) and has_fast_bfloat16(torch.device("cpu")):
        makers[BFLOAT16] = lambda: OursBfloat16(optimize_for_inference(model(), dtype=torch.bfloat16))
    if options.ablate:
        for left_out in OPTIMIZATIONS:
            makers[f"without {left_out}"] = lambda left_out=left_out: Ours(
                optimize_for_inference(model(), without=[left_out])
            )
    elif has_twin(model()):
        makers["transformers"] = lambda: twin_of(model())
    for peer, make in {} if options.no_peers or options.ablate else MODELS[name].peers.items():
        makers[peer] = lambda make=make: make(options.size, 150).to(options.device, getattr(torch, options.dtype))
    return {key: _in_mode(make(), options.training) for key, make in makers.items() if only in (None, key)}


def _in_mode(runner: Runner, training: bool) -> Runner:
    return runner.train() if training else runner.eval()


def inputs(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (options.batch, 3, options.size, options.size)
    images = torch.randn(shape, generator=generator).to(options.device, getattr(torch, options.dtype))
    if not options.training:
        return {"pixel_values": images}
    side = options.size // 8  # eight pixels to a label: images have a few dozen of them, not all
    labels = torch.randint(150, (options.batch, 1, side, side), generator=generator) % 40
    labels = torch.nn.functional.interpolate(labels.float(), size=shape[2:], mode="nearest")[:, 0].long()
    return {"pixel_values": images, "labels": labels.to(options.device)}


def step(runner: Callable, arguments: dict[str, torch.Tensor], options: argparse.Namespace) -> torch.Tensor:
    if not options.training:
        with torch.no_grad():
            output = runner(**arguments)
    else:
        output = runner(**arguments)
        output.backward()
        for parameter in runner.parameters():  # type: ignore[attr-defined]
            parameter.grad = None
        output = output.detach()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return output


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    difference = (ours.double() - theirs.double()).norm() / theirs.double().norm()
    found = {"relative_error": difference.item()}
    if ours.dim() == 4:
        found["argmax_agreement"] = (ours.argmax(1) == theirs.argmax(1)).double().mean().item()
    return found


def agreement(name: str, runners: dict[str, Runner], arguments: dict, options: argparse.Namespace) -> dict[str, float]:
    """Compare the logits of all variants of a model with the plain model's, in evaluation mode.

    Returns:
        the largest error found.

    Raises:
        SystemExit: if they differ by more than rounding.
    """
    outputs = {}
    for key, runner in runners.items():
        if key in (*MODELS[name].peers, BFLOAT16):
            continue
        runner.eval()
        with torch.no_grad():
            outputs[key] = runner(arguments["pixel_values"])
        _in_mode(runner, options.training)
    # rounding flips single pixels of the thresholded masks that decide where queries attend to
    bound = (2e-3 if "mask2former" in name else 1e-4) if options.dtype in ("float32", "float64") else 0.1
    worst = {"relative_error": 0.0, "argmax_agreement": 1.0}
    for key, output in outputs.items():
        found = compare(output, outputs["plain"])
        if not found["relative_error"] < bound:
            raise SystemExit(f"{name}: {key} and plain differ by {found['relative_error']:.2g}, allowed is {bound}")
        if found["relative_error"] > worst["relative_error"]:
            worst = found
    return worst


def interleaved(runs: dict[str, Callable[[], object]], seconds: float, least: int) -> dict[str, list[tuple]]:
    """Seconds of each run, on the clock and on this process's cores, in as many rounds as fit into `seconds`, at least
    `least`, after one that does not count."""
    times: dict[str, list[tuple]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < least or (time.perf_counter() < end and rounds < 500):
        for name, run in runs.items():
            began, worked = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - began, time.process_time() - worked))
        rounds += 1
    return times


def resident(what: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {what}: measure memory on Linux, or leave it out with --no-memory")


def peak(name: str, implementation: str, options: argparse.Namespace) -> dict[str, float]:
    """MiB of the loaded model, and the peak over it of the second pass in this process, with what the first kept."""
    (runner,) = implementations(name, options, only=implementation).values()
    arguments = inputs(options)
    run = torch.compile(runner) if options.compile else runner
    gc.collect()
    before = torch.cuda.memory_allocated() if options.device == "cuda" else resident("VmRSS")
    step(run, arguments, options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step(run, arguments, options)
    after = torch.cuda.max_memory_allocated() if options.device == "cuda" else resident("VmHWM")
    weights = sum(tensor.nbytes for tensor in (*runner.parameters(), *runner.buffers()))
    return {"loaded_mib": before / MIB, "peak_over_loaded_mib": (after - before) / MIB, "weights_mib": weights / MIB}


def measure_memory(name: str, keys: list[str]) -> dict[str, dict[str, float]]:
    found = {}
    for key in keys:
        command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name, key]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"memory of {key} in {name}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
        found[key] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, options: argparse.Namespace) -> dict:
    """Everything about one model, printed as a table."""
    runners, arguments = implementations(name, options), inputs(options)
    agrees = agreement(name, runners, arguments, options)
    runs: dict[str, Callable[[], object]] = {}
    for key, runner in runners.items():
        compiled = torch.compile(runner) if options.compile else runner
        runs[key] = lambda run=compiled: step(run, arguments, options)
    times = interleaved(runs, options.seconds, options.rounds)
    parameters = {  # optimized layers hold their weights in other forms
        key: sum(tensor.numel() for tensor in runners["plain" if key in OURS else key].parameters()) for key in runners
    }
    del runners, runs
    # a process that keeps freed memory holds that of its loading, too
    memory = {} if options.no_memory or options.keep_memory else measure_memory(name, list(times))

    what = "training step" if options.training else "forward"
    error = f"logits differ by {agrees['relative_error']:.1e}, same class at {agrees['argmax_agreement']:.3%}"
    print(f"{name}, {what}, batch {options.batch}, {options.size}x{options.size}: {error}")
    print(f"    {'':28}{'params':>8}{'median':>12}{'speed':>8}{'core time':>13}{'peak':>11}")
    medians = {
        key: [statistics.median(column) for column in zip(*rounds, strict=True)] for key, rounds in times.items()
    }
    reference = "optimized" if options.ablate else "transformers" if "transformers" in medians else "plain"
    base = medians[reference][0]
    rows = {}
    for key, (median, cores) in medians.items():
        rows[key] = {
            "parameters": parameters[key],
            "median_ms": 1000 * median,
            "quartiles_ms": _quartiles([1000 * one for one, _ in times[key]]),
            "core_ms": 1000 * cores,
            "rounds": len(times[key]),
            "images_per_second": options.batch / median,
            f"speed_over_{reference}": base / median,
            **memory.get(key, {}),
        }
        held = f"{memory[key]['peak_over_loaded_mib']:.0f} MiB" if key in memory else "-"
        print(
            f"    {key:28}{parameters[key] / 1e6:7.1f}M{1000 * median:9.1f} ms"
            f"{base / median:7.2f}x{1000 * cores:10.1f} ms{held:>11}",
            flush=True,
        )
    return {"model": name, "row": MODELS[name].row, "agreement": agrees, "implementations": rows}


def _quartiles(milliseconds: list[float]) -> list[float]:
    found = statistics.quantiles(milliseconds) if len(milliseconds) > 1 else milliseconds * 3
    return [found[0], found[2]]


def machine(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else f"{machine_name()}, {options.threads} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--batch", type=int, help="images at once: 1, or 2 for a training step")
    parser.add_argument("--size", type=int, default=512, help="side of the images, a multiple of 32")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--compile", action="store_true", help="all implementations with torch.compile")
    parser.add_argument("--ablate", action="store_true", help="leave out one optimization after another")
    parser.add_argument("--training", action="store_true", help="forward with labels and backward")
    parser.add_argument("--seconds", type=float, default=30, help="for each model, at least")
    parser.add_argument("--rounds", type=int, default=5, help="for each model, at least")
    parser.add_argument("--keep-memory", action="store_true", help="keep_freed_memory for all, without their peaks")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="where the results are written, too")
    parser.add_argument("--peak-of", nargs=2, metavar=("MODEL", "IMPLEMENTATION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size % 32 or options.size < 64:
        parser.error("--size must be a multiple of 32 and at least 64: transformers' models pad nothing")
    if options.ablate and options.training:
        parser.error("--ablate is about inference: leave out --training")
    options.batch = options.batch or (2 if options.training else 1)  # batch norm over one value is refused
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    torch.set_num_threads(options.threads)
    if options.keep_memory:
        keep_memory()
    transformers.logging.set_verbosity_error()
    if options.peak_of:
        print(json.dumps(peak(*options.peak_of, options)))
        return
    setting = {
        "date": today(),
        "commit": commit(),
        "machine": machine(options),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "operators": operators(),
        **{name: getattr(options, name) for name in SETTINGS},
    }
    how = ", torch.compile" if options.compile else ""
    print(f"{setting['machine']}, {options.dtype}{how}, torch {torch.__version__}\n{setting['operators']}", flush=True)
    results = [measure(name, options) for name in options.models]
    if options.json:
        options.json.write_text(json.dumps({**setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
