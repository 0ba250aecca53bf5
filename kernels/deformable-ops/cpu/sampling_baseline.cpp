// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// For every processor, with the compiler's default instruction set (SSE2 on x86-64, NEON on arm64).
#define DEFORMABLE_OPS_ARCH baseline
#define DEFORMABLE_OPS_VECTOR_BYTES 32
#include "dense_loops.h"
#include "sampling.h"

namespace deformable_ops {

const Kernels& baseline_kernels(bool float64) {
  return float64 ? baseline::kernels_of<double>() : baseline::kernels_of<float>();
}

const DenseLoops& baseline_dense(bool bfloat16) {
  return bfloat16 ? baseline::dense_loops<uint16_t>() : baseline::dense_loops<float>();
}

}  // namespace deformable_ops
