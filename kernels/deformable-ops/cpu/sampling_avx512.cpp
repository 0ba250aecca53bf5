// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// For x86-64 processors with AVX-512; the caller checks the processor first. The pragmas make compiler flags
// unnecessary, so that one list of sources serves every machine. On other machines this file is empty.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define DEFORMABLE_OPS_ARCH avx512
#define DEFORMABLE_OPS_VECTOR_BYTES 64
#define DEFORMABLE_OPS_F16C  // GCC does not define its own macros after a pragma
#include "dense_loops.h"
#include "sampling.h"

namespace deformable_ops {

const Kernels& avx512_kernels(bool float64) {
  return float64 ? avx512::kernels_of<double>() : avx512::kernels_of<float>();
}

const DenseLoops& avx512_dense(bool bfloat16) {
  return bfloat16 ? avx512::dense_loops<uint16_t>() : avx512::dense_loops<float>();
}

}  // namespace deformable_ops

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
