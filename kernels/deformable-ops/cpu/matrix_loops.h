// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Products and attention by AVX-512, of float32 numbers, or of pairs of bfloat16 numbers with AVX512-BF16. A few rows
// times 32 columns are summed in registers over all inner indices.
#pragma once

#include "matrix_vectors.h"

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

constexpr int64_t kRows = 14;               // with two vectors of sums each: 28 of 32 registers
constexpr int64_t kGroupBytes = 512 * 1024;  // of the weights that stay in the L2 cache
constexpr int64_t kInner = 768;  // most inner indices of float32 numbers before the sums are added to the output

// The numbers of matrices: what is broadcast from a row, how it is multiplied, and how vectors of 16 are read and written.
struct Float32 {
  typedef float Number;
  static constexpr int64_t kStep = 1;
  static DEFORMABLE_OPS_INLINE __m512 add_product(__m512 sum, const float* row, const float* columns) {
    return _mm512_fmadd_ps(_mm512_set1_ps(*row), _mm512_loadu_ps(columns), sum);
  }
  static DEFORMABLE_OPS_INLINE __m512 load(__mmask16 mask, const float* source) {
    return _mm512_maskz_loadu_ps(mask, source);
  }
  static DEFORMABLE_OPS_INLINE void save(float* target, __mmask16 mask, __m512 numbers) {
    _mm512_mask_storeu_ps(target, mask, numbers);
  }
  static DEFORMABLE_OPS_INLINE __m512 gelu_of(__m512 numbers) { return gelu(numbers); }
};

#if defined(DEFORMABLE_OPS_BFLOAT16)
struct Bfloat16 {
  typedef uint16_t Number;
  static constexpr int64_t kStep = 2;
  static DEFORMABLE_OPS_INLINE __m512 add_product(__m512 sum, const uint16_t* row, const uint16_t* columns) {
    int32_t pair;
    __builtin_memcpy(&pair, row, sizeof(pair));
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(columns));
  }
  static DEFORMABLE_OPS_INLINE __m512 load(__mmask16 mask, const uint16_t* source) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
  static DEFORMABLE_OPS_INLINE void save(uint16_t* target, __mmask16 mask, __m512 numbers) {
    _mm256_mask_storeu_epi16(target, mask, (__m256i)_mm512_cvtneps_pbh(numbers));
  }
  static DEFORMABLE_OPS_INLINE __m512 gelu_of(__m512 numbers) { return rough_gelu(numbers); }
};
#endif

template <typename Type>
struct Vectors {
  typedef typename Type::Number Number;
  static constexpr int64_t kStep = Type::kStep, kNumbers = kStep * kBlock;  // of a block of packed columns

  static DEFORMABLE_OPS_INLINE int64_t steps_of(int64_t inner) { return (inner + kStep - 1) / kStep; }

  // Sum the products of `count` rows with a block of columns.
  template <int64_t count>
  static DEFORMABLE_OPS_INLINE void multiply(const Number* rows, int64_t stride, const Number* columns, int64_t steps,
                                             __m512 (&sums)[count][2]) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < count; ++i) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
    // four rows are reached from one address, which needs few registers
    const Number* const second = rows + 4 * stride;
    const Number* const third = rows + 8 * stride;
    const Number* const fourth = rows + 12 * stride;
    for (int64_t k = 0; k < kStep * steps; k += kStep, columns += kNumbers) {
      const Number* const left = columns;
      const Number* const right = columns + kNumbers / 2;
#pragma GCC unroll 16
      for (int64_t i = 0; i < count; ++i) {
        const Number* const group = i < 4 ? rows : i < 8 ? second : i < 12 ? third : fourth;
        const Number* const row = group + i % 4 * stride + k;
        sums[i][0] = Type::add_product(sums[i][0], row, left);
        sums[i][1] = Type::add_product(sums[i][1], row, right);
      }
    }
  }

  static void pack_weight(const void* weight, int64_t columns, int64_t inner, void* packed) {
    pack_columns(static_cast<const Number*>(weight), inner, columns, inner, static_cast<Number*>(packed));
  }

  // Pack a block of up to 32 columns, each `inner` neighbouring numbers; what is missing is zero.
  static void pack_columns(const Number* source, int64_t stride, int64_t columns, int64_t inner, Number* target) {
    for (int64_t start = 0; start < inner; start += kStep) {
      for (int64_t column = 0; column < kBlock; ++column) {
        for (int64_t i = 0; i < kStep; ++i) {
          const bool is_inside = column < columns && start + i < inner;
          *target++ = is_inside ? source[column * stride + start + i] : Number{};
        }
      }
    }
  }

  // Pack up to 32 neighbouring columns of `inner` rows.
  static void pack_transposed_columns(const Number* source, int64_t stride, int64_t inner, int64_t columns,
                                      Number* target) {
    for (int64_t start = 0; start < inner; start += kStep, target += kNumbers) {
      for (int64_t i = 0; i < kStep; ++i) {
        const Number* const line = source + (start + i) * stride;
        for (int64_t column = 0; column < kBlock; ++column) {
          const bool is_inside = column < columns && start + i < inner;
          target[kStep * column + i] = is_inside ? line[column] : Number{};
        }
      }
    }
  }

  template <typename Output, int64_t count>
  static DEFORMABLE_OPS_INLINE void finish(const Product& task, int64_t first, int64_t column,
                                           const __m512 (&sums)[count][2]) {
    typedef typename Output::Number Saved;
    const Number* const biases = static_cast<const Number*>(task.bias);
    const __m512 zero = _mm512_setzero_ps();
    const __mmask16 masks[2] = {mask_of(column, task.columns), mask_of(column + kSide, task.columns)};
    __m512 bias[2] = {zero, zero};
    for (int half = 0; half < 2 && biases != nullptr && masks[half] != 0; ++half) {
      bias[half] = Type::load(masks[half], biases + column + half * kSide);
    }
    int64_t line = first / task.width, place = first % task.width;
#pragma GCC unroll 16
    for (int64_t i = 0; i < count; ++i) {
      Saved* const target = static_cast<Saved*>(task.output) + line * task.line_stride + place * task.output_stride +
                            column;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m512 sum = _mm512_add_ps(sums[i][half], bias[half]);
        if (half == 1 && masks[1] == 0) continue;
        if (task.accumulate) sum = _mm512_add_ps(sum, Output::load(masks[half], target + half * kSide));
        if (task.activation == Activation::relu) sum = _mm512_max_ps(zero, sum);  // NaN, the second operand, stays
        if (task.activation == Activation::gelu) sum = Output::gelu_of(sum);
        Output::save(target + half * kSide, masks[half], sum);
      }
      if (++place == task.width) {
        place = 0;
        ++line;
      }
    }
  }

  // Return whether rows are whole pages apart. The L1 cache has room for eight such rows, so they are copied first.
  static DEFORMABLE_OPS_INLINE bool are_pages_apart(const Product& task) {
    constexpr int64_t kPage = 4096;
    return task.row_stride * static_cast<int64_t>(sizeof(Number)) % kPage == 0;
  }

  static int64_t product_memory(const Product& task) {
    return are_pages_apart(task) ? kRows * (task.inner + kBlock) * static_cast<int64_t>(sizeof(Number)) : 0;
  }

  template <int64_t count>
  static void multiply_rows(const Product& task, int64_t row, int64_t first_column, int64_t last_column,
                            int64_t column_size, Number* memory) {
    const int64_t steps = steps_of(task.inner);
    const Number* rows = static_cast<const Number*>(task.rows) + row * task.row_stride;
    int64_t stride = task.row_stride;
    if (are_pages_apart(task)) {
      stride = task.inner + kBlock;
      for (int64_t i = 0; i < count; ++i) {
        __builtin_memcpy(memory + i * stride, rows + i * task.row_stride, task.inner * sizeof(Number));
      }
      rows = memory;
    }
    for (int64_t column = first_column; column < last_column; ++column) {
      __m512 sums[count][2];
      multiply<count>(rows, stride, static_cast<const Number*>(task.weight) + column * column_size, steps,
                      sums);
      if (task.wide_output) {
        finish<Float32, count>(task, row, column * kBlock, sums);
      } else {
        finish<Type, count>(task, row, column * kBlock, sums);
      }
    }
  }

  // Call `call` with a constant from 1 to kRows.
  template <int64_t count = kRows, typename Call>
  static DEFORMABLE_OPS_INLINE void with_constant(int64_t rows, const Call& call) {
    if constexpr (count > 1) {
      if (rows < count) return with_constant<count - 1>(rows, call);
    }
    call(std::integral_constant<int64_t, count>());
  }

  static void product(const Product& task, int64_t first, int64_t last, int64_t first_column, int64_t last_column,
                      void* memory) {
    // A bfloat16 output would be rounded between the parts, so there is one part.
    const int64_t parts = std::is_same<Number, float>::value ? (task.inner + kInner - 1) / kInner : 1;
    const int64_t most = parts > 0 ? (task.inner + parts - 1) / parts : 0;
    const int64_t column_size = steps_of(task.inner) * kNumbers;
    Product part = task;
    for (int64_t start = 0;; start += most) {
      const bool is_last = start + most >= task.inner;
      part.inner = is_last ? task.inner - start : most;
      part.rows = static_cast<const Number*>(task.rows) + start;
      part.weight = static_cast<const Number*>(task.weight) + start / kStep * kNumbers;
      part.bias = start == 0 ? task.bias : nullptr;
      part.accumulate = start > 0 || task.accumulate;
      part.activation = is_last ? task.activation : Activation::none;
      multiply_all(part, first, last, first_column, last_column, column_size, static_cast<Number*>(memory));
      if (is_last) return;
    }
  }

  static DEFORMABLE_OPS_INLINE void multiply_all(const Product& task, int64_t first, int64_t last, int64_t first_column,
                                                 int64_t last_column, int64_t column_size, Number* memory) {
    const int64_t bytes = steps_of(task.inner) * kNumbers * static_cast<int64_t>(sizeof(Number));
    const int64_t group = bytes < kGroupBytes ? kGroupBytes / (bytes + 1) : 1;
    const int64_t parts = (last - first + kRows - 1) / kRows;  // of about equal size
    for (int64_t column = first_column; column < last_column; column += group) {
      const int64_t end = smaller(column + group, last_column);
      for (int64_t row = first, part = 0; part < parts; ++part) {
        const int64_t rows = (last - row) / (parts - part);
        with_constant(rows, [&](auto count) {
          multiply_rows<count()>(task, row, column, end, column_size, memory);
        });
        row += rows;
      }
    }
  }

  // ---- attention ---------------------------------------------------------------------------------------------------

  static DEFORMABLE_OPS_INLINE int64_t line_of(int64_t keys) { return blocks_of(keys) * kBlock + kSide; }

  static int64_t attention_memory(int64_t keys, int64_t channels) {
    const int64_t packed_keys = blocks_of(keys) * steps_of(channels) * kNumbers;
    const int64_t packed_values = blocks_of(channels) * steps_of(keys) * kNumbers;
    return (packed_keys + packed_values) * static_cast<int64_t>(sizeof(Number)) + 2 * kRows * line_of(keys) * 4;
  }

  // Write exp(logits - most), with zeros behind them, and return the sum.
  static DEFORMABLE_OPS_INLINE float exponentiate(const float* logits, int64_t count, float most, Number* target) {
    const __m512 shift = _mm512_set1_ps(most);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += kSide) {
      const __mmask16 mask = mask_of(i, count);
      const __m512 number = (__m512)exponential(
          (VectorOf<float>::type)_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, logits + i), shift));
      const __m512 weight = _mm512_maskz_mov_ps(mask, number);
      sum = _mm512_add_ps(sum, weight);
      Type::save(target + i, 0xffff, weight);
    }
    return _mm512_reduce_add_ps(sum);
  }

  // Compute the attention of `count` queries to packed keys and values.
  template <int64_t count>
  static void attend(const Attention& task, int64_t image, int64_t head, int64_t first, const Number* keys,
                     const Number* values, float* logits, Number* weights) {
    const int64_t inner = steps_of(task.channels), key_steps = steps_of(task.keys), line = line_of(task.keys);
    const Number* const query = static_cast<const Number*>(task.query) + image * task.query_strides[0] +
                                head * task.query_strides[1] + first * task.query_strides[2];
    const __m512 scale = _mm512_set1_ps(task.scale);
    for (int64_t block = 0; block < blocks_of(task.keys); ++block) {
      __m512 sums[count][2];
      multiply<count>(query, task.query_strides[2], keys + block * inner * kNumbers, inner, sums);
#pragma GCC unroll 16
      for (int64_t i = 0; i < count; ++i) {
        float* const target = logits + i * line + block * kBlock;
        _mm512_storeu_ps(target, _mm512_mul_ps(sums[i][0], scale));
        _mm512_storeu_ps(target + kSide, _mm512_mul_ps(sums[i][1], scale));
      }
    }
    float factors[count];
    for (int64_t i = 0; i < count; ++i) {
      float* const numbers = logits + i * line;
      add_bias(task, head, first + i, numbers);
      factors[i] = 1 / exponentiate(numbers, task.keys, largest(numbers, task.keys), weights + i * line);
    }
    Number* const output = static_cast<Number*>(task.output) +
                           ((image * task.queries + first) * task.heads + head) * task.channels;
    for (int64_t column = 0; column < task.channels; column += kBlock) {
      __m512 sums[count][2];
      multiply<count>(weights, line, values + column * kStep * key_steps, key_steps, sums);
      const __mmask16 low = mask_of(column, task.channels), high = mask_of(column + kSide, task.channels);
#pragma GCC unroll 16
      for (int64_t i = 0; i < count; ++i) {
        Number* const target = output + i * task.heads * task.channels + column;
        const __m512 factor = _mm512_set1_ps(factors[i]);
        Type::save(target, low, _mm512_mul_ps(sums[i][0], factor));
        if (high != 0) Type::save(target + kSide, high, _mm512_mul_ps(sums[i][1], factor));
      }
    }
  }

  static void attention(const Attention& task, int64_t image, int64_t head, int64_t first, int64_t last, void* memory) {
    const int64_t inner = steps_of(task.channels), key_steps = steps_of(task.keys), line = line_of(task.keys);
    float* const logits = static_cast<float*>(memory);
    Number* const weights = reinterpret_cast<Number*>(logits + kRows * line);
    Number* const keys = reinterpret_cast<Number*>(logits + 2 * kRows * line);
    Number* const values = keys + blocks_of(task.keys) * inner * kNumbers;
    const Number* const key =
        static_cast<const Number*>(task.key) + image * task.key_strides[0] + head * task.key_strides[1];
    const Number* const value =
        static_cast<const Number*>(task.value) + image * task.value_strides[0] + head * task.value_strides[1];
    for (int64_t start = 0, block = 0; start < task.keys; start += kBlock, ++block) {
      pack_columns(key + start * task.key_strides[2], task.key_strides[2], smaller(task.keys - start, kBlock),
                   task.channels, keys + block * inner * kNumbers);
    }
    for (int64_t column = 0, block = 0; column < task.channels; column += kBlock, ++block) {
      pack_transposed_columns(value + column, task.value_strides[2], task.keys,
                              smaller(task.channels - column, kBlock), values + block * key_steps * kNumbers);
    }
    const int64_t end = smaller(last * kBlock, task.queries), start = first * kBlock;
    const int64_t parts = (end - start + kRows - 1) / kRows;
    for (int64_t row = start, part = 0; part < parts; ++part) {
      const int64_t rows = (end - row) / (parts - part);
      with_constant(rows, [&](auto count) {
        attend<count()>(task, image, head, row, keys, values, logits, weights);
      });
      row += rows;
    }
  }
};

template <typename Type>
const MatrixLoops* matrix_loops() {
  typedef Vectors<Type> Code;
  static constexpr MatrixLoops table = {Code::kStep,           Code::kNumbers,  kRows,
                                        &Code::pack_weight,    &Code::product_memory, &Code::product,
                                        &Code::attention_memory, &Code::attention};
  return &table;
}

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
