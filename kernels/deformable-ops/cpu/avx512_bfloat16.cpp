// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// For x86-64 processors with AVX512-BF16; the caller checks the processor first: products of bfloat16 matrices, whose
// pairs are added up in float32, and the dense operators in bfloat16, which round with one instruction.
#include <type_traits>

#include "dense.h"
#include "matrix.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 10 : __GNUC__ >= 10)
#if defined(__clang__)
#pragma clang attribute push(                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

#include <immintrin.h>

#define DEFORMABLE_OPS_ARCH avx512_bfloat16
#define DEFORMABLE_OPS_VECTOR_BYTES 64
#define DEFORMABLE_OPS_F16C
#define DEFORMABLE_OPS_BFLOAT16
#include "dense_loops.h"
#include "matrix_loops.h"

namespace deformable_ops {

const MatrixLoops* avx512_bfloat16_matrix() { return avx512_bfloat16::matrix_loops<avx512_bfloat16::Bfloat16>(); }
const DenseLoops* avx512_bfloat16_dense() { return &avx512_bfloat16::dense_loops<uint16_t>(); }

}  // namespace deformable_ops

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else

namespace deformable_ops {

const MatrixLoops* avx512_bfloat16_matrix() { return nullptr; }
const DenseLoops* avx512_bfloat16_dense() { return nullptr; }

}  // namespace deformable_ops
#endif
