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

// The same in less time for results that are rounded to bfloat16, which has a relative error of 2e-3. That of the result
// is below 7e-4 for x > -4 and below 2e-3 for x > -5; further down, results are smaller than 2e-6.
DEFORMABLE_OPS_INLINE __m512 rough_gelu(__m512 x) {
  const __m512 size = _mm512_abs_ps(x), one = _mm512_set1_ps(1.0f);
  const __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f * 0.70710678f), one));
  __m512 series = _mm512_fmadd_ps(t, _mm512_set1_ps(0.5f * 1.061405429f), _mm512_set1_ps(0.5f * -1.453152027f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.5f * 1.421413741f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.5f * -0.284496736f));
  series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.5f * 0.254829592f));
  // exp(-x^2 / 2) = 2^y; NaN, the second operand, stays
  const __m512 y = _mm512_max_ps(_mm512_set1_ps(-150.0f),
                                 _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * 1.44269504f)));
  const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(y, whole);
  __m512 power = _mm512_fmadd_ps(rest, _mm512_set1_ps(0.0551716f), _mm512_set1_ps(0.2426111f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.6932610f));
  power = _mm512_scalef_ps(_mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.9999281f)), whole);
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(series, t), power);
  return _mm512_fnmadd_ps(size, tail, _mm512_max_ps(_mm512_setzero_ps(), x));
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
