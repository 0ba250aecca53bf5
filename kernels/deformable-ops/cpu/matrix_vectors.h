// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// What products and attention by AMX and by AVX-512 share. Vectors have 16 float32 numbers.
#pragma once

#include "arithmetic.h"
#include "matrix.h"

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

constexpr int64_t kSide = 16;  // numbers of a vector; rows of a tile of AMX, and its columns of 32 bits

// Return the mask of the elements below `size` of the vector that starts at `start`.
DEFORMABLE_OPS_INLINE __mmask16 mask_of(int64_t start, int64_t size) {
  const int64_t left = size - start;
  return left >= kSide ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

DEFORMABLE_OPS_INLINE int64_t smaller(int64_t left, int64_t right) { return left < right ? left : right; }

// x * (1 + erf(x / sqrt(2))) / 2, with an absolute error below 1e-7 * |x|. Source of the approximation of erf: Abramowitz
// and Stegun, Handbook of Mathematical Functions, 7.1.26.
DEFORMABLE_OPS_INLINE __m512 gelu(__m512 x) {
  const __m512 size = _mm512_abs_ps(x), one = _mm512_set1_ps(1.0f);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f * 0.70710678f), one));
  __m512 series = _mm512_fmadd_ps(t, _mm512_set1_ps(1.061405429f), _mm512_set1_ps(-1.453152027f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(1.421413741f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(-0.284496736f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.254829592f));
  const __m512 power = (__m512)exponential(
      (VectorOf<float>::type)_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f)));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(series, t), power), _mm512_set1_ps(0.5f));
  return _mm512_fnmadd_ps(size, tail, _mm512_max_ps(_mm512_setzero_ps(), x));
}

// The same in half the time with an absolute error below 1.4e-4 * max(x, 1). For x > -2, rounding to bfloat16 has a larger
// one; below, results are smaller than 0.05. The distribution function of the normal distribution is 1/2 plus an odd
// polynomial for |x| <= 4, fitted for the smallest largest error, and zero below -4.
DEFORMABLE_OPS_INLINE __m512 rough_gelu(__m512 x) {
  const __m512 limit = _mm512_set1_ps(4.0f), zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
  // NaN, the second operand, stays
  const __m512 bounded = _mm512_max_ps(_mm512_sub_ps(zero, limit), _mm512_min_ps(limit, x));
  const __m512 t = _mm512_fmsub_ps(_mm512_mul_ps(bounded, bounded), _mm512_set1_ps(0.125f), one);
  __m512 series = _mm512_set1_ps(-0.0027293225f);
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.0082116649f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(-0.0132597592f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.0216213595f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(-0.0364953876f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.0560508817f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(-0.0843574777f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.1759477556f));
  const __mmask16 is_inside = _mm512_cmp_ps_mask(x, _mm512_sub_ps(zero, limit), _CMP_GT_OQ);
  return _mm512_mul_ps(x, _mm512_maskz_fmadd_ps(is_inside, bounded, series, _mm512_set1_ps(0.5f)));
}

// Add the bias of one query to its logits. Without a grid there is none.
DEFORMABLE_OPS_INLINE void add_bias(const Attention& task, int64_t head, int64_t query, float* logits) {
  if (task.keys_of_columns == nullptr) return;
  const int64_t count = task.height * task.width;
  if (task.has_prefix) {
    const float to_patch = task.prefix[head], from_patch = task.prefix[task.heads + head];
    if (query == 0) {
      logits[0] += task.prefix[2 * task.heads + head];
      for (int64_t i = 1; i <= count; ++i) logits[i] += to_patch;
      return;
    }
    logits[0] += from_patch;
    ++logits;
    --query;
  }
  const int64_t row = query / task.width, column = query % task.width;
  const float* const biases = task.keys_of_columns +
                              ((head * task.width + column) * (2 * task.height - 1) + task.height - 1 - row) * task.width;
  int64_t i = 0;
  for (; i + kSide <= count; i += kSide) {
    _mm512_storeu_ps(logits + i, _mm512_add_ps(_mm512_loadu_ps(logits + i), _mm512_loadu_ps(biases + i)));
  }
  for (; i < count; ++i) logits[i] += biases[i];
}

DEFORMABLE_OPS_INLINE float largest(const float* numbers, int64_t count) {
  const __m512 lowest = _mm512_set1_ps(-3.4e38f);
  __m512 first = lowest, second = lowest;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    first = _mm512_max_ps(first, _mm512_loadu_ps(numbers + i));
    second = _mm512_max_ps(second, _mm512_loadu_ps(numbers + i + kSide));
  }
  for (; i < count; i += kSide) {
    first = _mm512_max_ps(first, _mm512_mask_loadu_ps(lowest, mask_of(i, count), numbers + i));
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(first, second));
}

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
