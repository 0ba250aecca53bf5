# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Compile the deformable attention of mmcv from its source distribution, for a comparison in the same run."""

import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import torch

# The declarations are those of mmcv's ms_deform_attn_cuda.cu.
BINDING = """\
#include <ATen/ATen.h>
#include <torch/library.h>

at::Tensor ms_deform_attn_cuda_forward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                       const at::Tensor&, const int);
void ms_deform_attn_cuda_backward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&,
                                  const int);

static at::Tensor forward(const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts,
                          const at::Tensor& locations, const at::Tensor& weights, int64_t step) {
  return ms_deform_attn_cuda_forward(value, shapes, starts, locations, weights, static_cast<int>(step));
}

static std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts, const at::Tensor& locations,
    const at::Tensor& weights, const at::Tensor& gradient, int64_t step) {
  at::Tensor value_gradient = at::zeros_like(value), location_gradient = at::zeros_like(locations);
  at::Tensor weight_gradient = at::zeros_like(weights);
  ms_deform_attn_cuda_backward(value, shapes, starts, locations, weights, gradient, value_gradient, location_gradient,
                               weight_gradient, static_cast<int>(step));
  return {value_gradient, location_gradient, weight_gradient};
}

TORCH_LIBRARY(gpu_day_mmcv, library) {
  library.def("forward(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, int step) -> Tensor");
  library.def(
      "backward(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, int step) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(gpu_day_mmcv, CUDA, library) {
  library.impl("forward", &forward);
  library.impl("backward", &backward);
}
"""
# A header that mmcv includes, and that newer versions of torch lack.
ATOMICS = "#pragma once\n#include <ATen/cuda/Atomic.cuh>\n"
SOURCES = "mmcv/ops/csrc"


def compile_mmcv(archive: Path, folder: Path, script: ModuleType, dry: bool) -> None:
    """Unpack the sources into `folder` and compile them for this GPU, to mmcv_kernel.so.

    Args:
        archive: mmcv's source distribution.
        folder: for sources and library. Nothing of it becomes part of the repository.
        script: build.py of the kernel project, which finds the compilers.
        dry: unpack and write the sources only.

    Raises:
        ValueError: if the archive cannot be read or has no deformable attention.
        RuntimeError: if nvcc is missing or fails.
    """
    (folder / "THC").mkdir(parents=True, exist_ok=True)
    (folder / "binding.cpp").write_text(BINDING)
    (folder / "THC" / "THCAtomics.cuh").write_text(ATOMICS)
    try:
        with tarfile.open(archive) as opened:
            members = [member for member in opened.getmembers() if f"/{SOURCES}/" in member.name and member.isfile()]
            opened.extractall(folder, members=members, filter="data")
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no tar.gz file ({error}): pass mmcv's source distribution") from None
    found = sorted(folder.glob(f"*/{SOURCES}/pytorch/cuda/ms_deform_attn_cuda.cu"))
    if not found:
        raise ValueError(
            f"{archive} has no {SOURCES}/pytorch/cuda/ms_deform_attn_cuda.cu: pass mmcv's source distribution"
        )
    if dry:
        return
    nvcc = script.find_nvcc([".".join(map(str, torch.cuda.get_device_capability()))])
    common = found[0].parents[2] / "common"
    torch_folder = Path(torch.__file__).parent
    systems = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    systems += sorted(torch_folder.parent.glob("nvidia/cu*/include"))
    flags = [flag.replace("c++17", "c++20") for flag in nvcc.flags(script.find_compiler())]
    command = [nvcc.path, *flags, "-shared", f"-I{folder}", f"-I{common}", f"-I{common / 'cuda'}"]
    command += [part for path in systems for part in ("-isystem", str(path))]
    command += [str(found[0]), str(folder / "binding.cpp"), f"-L{torch_folder / 'lib'}"]
    command += ["-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-lc10_cuda", "-o", str(folder / "mmcv_kernel.so")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"mmcv's kernel does not compile: {result.stderr[:2000]}")
