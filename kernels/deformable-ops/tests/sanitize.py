# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Check the CUDA kernels with compute-sanitizer on a machine with a GPU: `python sanitize.py [--quick]`.

The script runs every operator, forward and backward, in every dtype and kind of kernel, under each tool (memcheck,
racecheck, initcheck, synccheck). Only the kernels of this project are checked. The exit status is 1 if a tool finds an
error. --quick runs memcheck with few cases, in about a minute.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def load():
    """Import the CUDA variant of the build as `kernels` does, which may be missing on the machine."""
    folder = Path(os.environ.get("DEFORMABLE_OPS_FOLDER") or Path(__file__).parents[1])
    (path,) = folder.glob("build/*-cu*/__init__.py")
    spec = importlib.util.spec_from_file_location("sanitized_operators", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(quick: bool) -> None:
    import torch
    from cases import attention, convolution, flat, fused, packed

    ops = load()
    torch.manual_seed(0)
    for dtype in (
        (torch.float32, torch.float16) if quick else (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    ):
        for channels in (32, 7) if quick else (7, 8, 16, 32, 64, 96, 65):
            options = {"dtype": dtype, "device": "cuda", "channels": channels}
            plain = attention(shapes=((9, 11), (4, 5)), queries=37, **options)
            image = convolution(height=9, width=13, groups=4, **options)
            together = packed(image)
            calls = {
                "ms_deform_attn": plain,
                "ms_deform_attn_fused": fused(plain),
                "dcnv3": image,
                "dcnv4": together,
            }
            for name, arguments in calls.items():
                output = getattr(ops.ops, name)(*flat(arguments))
                gradients = getattr(ops.ops, f"{name}_backward")(torch.ones_like(output), *flat(arguments))
                assert all(tensor.isfinite().all() for tensor in (output, *gradients))
    torch.cuda.synchronize()


def main() -> None:
    if shutil.which("compute-sanitizer") is None:
        sys.exit("error: compute-sanitizer is not on the path: install CUDA's toolkit")
    failed, quick = [], ["--quick"] * ("--quick" in sys.argv)
    for tool in TOOLS[:1] if quick else TOOLS:
        options = ["--tool", tool, "--error-exitcode", "1", "--kernel-name", "kernel_substring=deformable_ops"]
        command = ["compute-sanitizer", *options, sys.executable, __file__, "--program", *quick]
        # separate allocations, so that reading outside of a tensor is an error
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        print(" ".join(command), flush=True)
        if subprocess.run(command, env=environment).returncode != 0:
            failed.append(tool)
    print(f"errors: {' '.join(failed)}" if failed else "no errors")
    sys.exit(bool(failed))


if __name__ == "__main__":
    program("--quick" in sys.argv) if "--program" in sys.argv else main()
