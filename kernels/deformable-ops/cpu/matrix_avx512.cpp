// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Products of float32 matrices for x86-64 processors with AVX-512; the caller checks the processor first.
#include <type_traits>

#include "matrix.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include <immintrin.h>

#define DEFORMABLE_OPS_ARCH avx512
#define DEFORMABLE_OPS_VECTOR_BYTES 64
#define DEFORMABLE_OPS_F16C
#include "matrix_loops.h"

namespace deformable_ops {

const MatrixLoops* avx512_matrix() { return avx512::matrix_loops<avx512::Float32>(); }

}  // namespace deformable_ops

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else

namespace deformable_ops {

const MatrixLoops* avx512_matrix() { return nullptr; }

}  // namespace deformable_ops
#endif
