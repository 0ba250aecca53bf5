# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Parts d to g: whole models, a training step, labels of the packaged model, and TensorRT.

They need the dependencies of segtransformers. The libraries are imported by the items, because a machine may lack them.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from day import Day, Item, Skipped, bound, table
from day_operators import library

# name in benchmarks/models.py -> side of the image
MODELS = {
    "vit-adapter-l-mask2former": 640,
    "vit-adapter-t-upernet": 512,
    "vit-adapter-b-mask2former": 640,
    "internimage-t-upernet": 512,
}
TRIED = ("vit-adapter-t-upernet", 1)  # the item that a dry run runs, on a small image
SCENES = 200
AGREEMENT = 0.999  # smallest share of equal labels


def items(day: Day) -> list[Item]:
    found = [
        Item("f", f"labels of {SCENES} scenes", 40, partial(labels, day)),
        Item("e", "training step, ViT-Adapter-T, bfloat16", 30, partial(training_step, day)),
    ]
    for batch in (1, 8):
        for name in MODELS:
            found.append(Item("d", f"{name}, eager and graph, batch {batch}", 30, partial(eager, day, name, batch)))
    for name in MODELS:
        found.append(Item("d", f"{name}, torch.compile, batch 1", 120, partial(compiled, day, name, 1)))
    for name in MODELS:
        found.append(Item("d", f"{name}, torch.compile, batch 8", 120, partial(compiled, day, name, 8)))
    found.append(Item("g", "TensorRT engine of the packaged model", 60, partial(tensorrt, day)))
    return found


def require(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"this needs {' and '.join(missing)}")


def use_build(day: Day) -> None:
    """Let segtransformers take the build of part a."""
    require("transformers", "kernels", "timm", "scipy")
    os.environ["LOCAL_KERNELS"] = f"segtransformers/deformable-ops={library(day)}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from segtransformers.operators import dispatcher
    except ImportError as error:
        raise Skipped(f"segtransformers does not work with the versions installed here: {error}") from None
    kernel = dispatcher.find_kernel()
    if kernel is None or day.device not in kernel.devices:
        raise Skipped(f"no build for {day.device} in {library(day)}: run part a")


# ---- part d ----------------------------------------------------------------------------------------------------------


def options_of(day: Day, name: str, batch: int, training: bool = False) -> argparse.Namespace:
    """Return the options of benchmarks/models.py."""
    return argparse.Namespace(
        device=day.device,
        dtype="float32" if day.dry else "bfloat16",
        batch=batch,
        size=64 if day.dry else MODELS[name],
        training=training,
        ablate=False,
        no_peers=True,
    )


def runners(day: Day, name: str, batch: int) -> tuple[dict[str, Callable], dict, argparse.Namespace]:
    """Return our model and transformers' head around the same backbone, and their input."""
    use_build(day)
    import models

    options = options_of(day, name, batch)
    if day.dry and (name, batch) != TRIED:  # the shapes of all weights, on no device
        from segtransformers.conversion.convert import empty_model
        from segtransformers.published import published_rows

        spec = models.MODELS[name]
        made = empty_model(published_rows(spec.family)[spec.row]["model"])[0]
        millions = sum(parameter.numel() for parameter in made.parameters()) / 1e6
        raise Skipped(f"a dry run launches nothing; {name} has {millions:.0f} million parameters")
    found = models.implementations(name, options)
    return {key: found[key] for key in ("optimized", "transformers")}, models.inputs(options), options


def eager(day: Day, name: str, batch: int) -> dict:
    found, arguments, _ = runners(day, name, batch)
    rows, data = [], {}
    with torch.inference_mode():
        for key, runner in found.items():
            measured = {"eager": timed(lambda runner=runner: runner(**arguments), day)}
            graph = None if day.dry else captured(lambda runner=runner: runner(**arguments))
            if graph is not None:
                measured["graph"] = timed(graph.replay, day) | {"mib": None}  # its memory is allocated before
            for kind, result in measured.items():
                rows.append([key, kind, result["ms"], 1000 * batch / result["ms"], result["mib"]])
                data[f"{key}, {kind}"] = result
    table(["model", "mode", "ms", "images/s", "MiB over weights"], rows)
    speedup = data["transformers, eager"]["ms"] / data["optimized, eager"]["ms"]
    return {"times": data, "bounds": [bound("times as fast as transformers' head", None if day.dry else speedup, 1.0)]}


def compiled(day: Day, name: str, batch: int) -> dict:
    found, arguments, _ = runners(day, name, batch)
    rows, data = [], {}
    with torch.inference_mode():
        for key, runner in found.items():
            if day.dry:
                raise Skipped("a dry run compiles nothing")
            faster = torch.compile(runner, dynamic=False)
            result = timed(lambda faster=faster: faster(**arguments), day)
            rows.append([key, result["ms"], 1000 * batch / result["ms"], result["mib"]])
            data[key] = result
    torch.compiler.reset()
    table(["model", "ms", "images/s", "MiB over weights"], rows)
    return {"times": data}


def timed(call: Callable[[], object], day: Day, rounds: int = 15) -> dict[str, float]:
    """Return the median milliseconds of a call, and its peak of memory in MiB over what is allocated before."""
    times: list[float] = []
    before = 0
    call()
    if day.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for _ in range(1 if day.dry else rounds):
        if day.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if day.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if day.device == "cuda" else 0.0
    return {"ms": 1000 * statistics.median(times), "mib": peak}


def captured(call: Callable[[], object]):
    """Return a CUDA graph of the call, or None with the reason printed if it cannot be captured."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print(f"no graph: {' '.join(str(error).split())[:200]}")
        torch.cuda.synchronize()
        return None
    return graph


# ---- part e ----------------------------------------------------------------------------------------------------------


def training_step(day: Day) -> dict:
    """Time forward, backward and AdamW of the recipe under autocast, with the operators and without."""
    use_build(day)
    from segtransformers.operators import compiled_operators
    from segtransformers.training import create_optimizer, get_recipe
    from segtransformers.training.starting_points import starting_model

    size, batch, classes = (64, 2, 5) if day.dry else (512, 2, 150)
    torch.manual_seed(0)
    recipe = get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k")
    model, _ = starting_model(None, recipe, {index: str(index) for index in range(classes)})
    model = model.to(day.device).train()
    optimizer = create_optimizer(model, recipe)
    pixel_values = torch.randn(batch, 3, size, size, device=day.device)
    targets = torch.randint(classes, (batch, size, size), device=day.device)
    losses: dict[str, float] = {}

    def step(mode: str) -> None:
        with torch.autocast(day.device, torch.bfloat16):
            loss = model(pixel_values, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[mode] = loss.item()

    rows, data = [], {}
    for mode in ("force", "off"):
        with compiled_operators(mode):
            result = timed(partial(step, mode), day, rounds=8)
        rows.append(["compiled" if mode == "force" else "plain PyTorch", result["ms"], result["mib"], losses[mode]])
        data[rows[-1][0]] = {**result, "loss": losses[mode]}
    table(["operators", "ms", "MiB over weights", "loss"], rows)
    if not all(loss == loss and abs(loss) < 1e4 for loss in losses.values()):
        raise RuntimeError(f"the losses are not finite: {losses}")
    return {"times": data}


# ---- part f ----------------------------------------------------------------------------------------------------------


def scenes(day: Day) -> torch.Tensor:
    from segtransformers.datasets.scenes import draw_scene, normalized

    return torch.stack([normalized(draw_scene(seed)[0]) for seed in range(5000, 5000 + (4 if day.dry else SCENES))])


def packaged_model():
    from transformers import AutoModelForSemanticSegmentation

    import segtransformers

    return AutoModelForSemanticSegmentation.from_pretrained(segtransformers.packaged_model_path()).eval()


def labels(day: Day) -> dict:
    """Compare the labels of the packaged model on the device with those of the CPU without compiled operators."""
    use_build(day)
    from segtransformers.operators import compiled_operators

    images, model = scenes(day), packaged_model()
    with torch.no_grad(), compiled_operators("off"):
        expected = torch.cat([model(pixel_values=part).logits.argmax(1) for part in images.split(20)])
    model, rows, data = model.to(day.device), [], {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        with torch.no_grad(), compiled_operators("force"):
            parts = [model(pixel_values=part.to(day.device, dtype)).logits.argmax(1).cpu() for part in images.split(20)]
        share = (torch.cat(parts) == expected).double().mean().item()
        kind = str(dtype).removeprefix("torch.")
        rows.append([kind, share])
        data[kind] = share
    table(["values", "equal labels"], [[kind, f"{share:.4%}"] for kind, share in rows])
    if data["float32"] < AGREEMENT:
        raise RuntimeError(f"{data['float32']:.2%} of the labels are equal in float32, not {AGREEMENT:.1%}")
    bounds = [bound("float32, share of equal labels", data["float32"], AGREEMENT)]
    return {"equal": data, "scenes": len(images), "bounds": bounds}


# ---- part g ----------------------------------------------------------------------------------------------------------


def tensorrt(day: Day) -> dict:
    """Build an engine of the packaged model's ONNX file, and state its layers and size."""
    require("tensorrt", "onnx", "onnxscript")
    use_build(day)
    import tensorrt as trt
    from transformers import AutoImageProcessor

    import segtransformers
    from segtransformers.export import export_model

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.onnx"
        processor = AutoImageProcessor.from_pretrained(segtransformers.packaged_model_path())
        export_model(packaged_model(), processor, path)
        logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            raise RuntimeError(f"TensorRT does not read the file: {parser.get_error(0)}")
        if day.dry:
            raise Skipped(f"a dry run builds no engine; TensorRT reads {network.num_layers} layers")
        engine = builder.build_serialized_network(network, builder.create_builder_config())
        if engine is None:
            raise RuntimeError("TensorRT built no engine")
        data = {"layers": network.num_layers, "engine_mib": engine.nbytes / 2**20}
    table(["layers", "engine MiB"], [[data["layers"], data["engine_mib"]]])
    return data
