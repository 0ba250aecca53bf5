// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Products by AMX, the matrix unit of Intel's processors since Sapphire Rapids; the caller checks the processor first.
// It multiplies tiles of 16 by 32 and 32 by 16 bfloat16 numbers and adds to tiles of 16 by 16 float32 numbers.
#include "matrix.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#if defined(__clang__)
#pragma clang attribute push(                                                                             \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,amx-tile,amx-bf16")
#endif

#include <immintrin.h>

#define DEFORMABLE_OPS_ARCH amx
#define DEFORMABLE_OPS_VECTOR_BYTES 64
#define DEFORMABLE_OPS_F16C
#include "matrix_vectors.h"

namespace deformable_ops {
namespace amx {

constexpr int64_t kPackedBlock = 3 * kBlock * kBlock;  // numbers of 16 bits; rows are packed in blocks of 32, too
constexpr int64_t kRowBlocks = 9, kInnerBlocks = 16;   // of the rows that are packed at once: 768 KiB, for the L2 cache
constexpr int64_t kTileNumbers = kSide * kBlock;  // bfloat16 numbers
constexpr int64_t kPart = 2 * kTileNumbers;       // one of the three parts of a block
constexpr int64_t kGroup = 8;                     // blocks of columns whose weights stay in the L2 cache

struct TileShapes {
  uint8_t palette, first_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// The tile registers of a thread while this object lives: 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
struct Tiles {
  DEFORMABLE_OPS_INLINE Tiles() {
    alignas(64) TileShapes shapes = {};
    shapes.palette = 1;
    for (int i = 0; i < 8; ++i) {
      shapes.row_bytes[i] = 64;
      shapes.rows[i] = kSide;
    }
    _tile_loadconfig(&shapes);
  }
  DEFORMABLE_OPS_INLINE ~Tiles() { _tile_release(); }
};

// Split 16 numbers into three parts. Each is a bfloat16 number in the upper half of 32 bits, rounded to nearest.
DEFORMABLE_OPS_INLINE void split(__m512 numbers, __m512i parts[3]) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(0xffff0000);
  for (int part = 0; part < 3; ++part) {
    parts[part] = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(numbers), half), upper);
    numbers = _mm512_sub_ps(numbers, _mm512_castsi512_ps(parts[part]));
  }
}

// Store the parts of 32 neighbouring numbers of a row into its place in a tile of rows.
DEFORMABLE_OPS_INLINE void store_row(const __m512i first[3], const __m512i second[3], uint16_t* target) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(kUpper);
  for (int part = 0; part < 3; ++part) {
    _mm512_store_si512(target + part * kPart, _mm512_permutex2var_epi16(first[part], upper, second[part]));
  }
}

// Pack a block of up to 32 rows by up to 32 inner indices as rows; what is missing is zero.
DEFORMABLE_OPS_INLINE void pack_rows(const float* source, int64_t stride, int64_t rows, int64_t inner, float scale,
                                     uint16_t* target) {
  const __mmask16 low = mask_of(0, inner), high = mask_of(kSide, inner);
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t row = 0; row < kBlock; ++row, target += kBlock) {
    __m512i first[3], second[3];
    const float* const line = source + row * stride;
    split(row < rows ? _mm512_mul_ps(_mm512_maskz_loadu_ps(low, line), factor) : _mm512_setzero_ps(), first);
    split(row < rows ? _mm512_mul_ps(_mm512_maskz_loadu_ps(high, line + kSide), factor) : _mm512_setzero_ps(), second);
    store_row(first, second, target);
  }
}

// Pack a block of up to 32 columns, each `inner` neighbouring numbers, as columns: pairs of inner indices lie together.
DEFORMABLE_OPS_INLINE void pack_columns(const float* source, int64_t stride, int64_t columns, int64_t inner,
                                        uint16_t* target) {
  alignas(64) uint16_t rows[kPackedBlock];
  pack_rows(source, stride, columns, inner, 1.0f, rows);
  for (int64_t tile = 0; tile < 6; ++tile) {
    const uint32_t* const pairs = reinterpret_cast<const uint32_t*>(rows + tile * kTileNumbers);
    uint32_t* const transposed = reinterpret_cast<uint32_t*>(target + tile * kTileNumbers);
    for (int64_t i = 0; i < kSide; ++i) {
      for (int64_t k = 0; k < kSide; ++k) transposed[i * kSide + k] = pairs[k * kSide + i];
    }
  }
}

// Pack a block of up to 32 inner indices by up to 32 neighbouring columns as columns.
DEFORMABLE_OPS_INLINE void pack_transposed_columns(const float* source, int64_t stride, int64_t inner, int64_t columns,
                                                   uint16_t* target) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  for (int64_t tile = 0; tile < 2; ++tile) {
    const __mmask16 mask = mask_of(tile * kSide, columns);
    for (int64_t pair = 0; pair < kSide; ++pair) {
      __m512i even[3], odd[3];
      const float* const line = source + 2 * pair * stride + tile * kSide;
      split(2 * pair < inner ? _mm512_maskz_loadu_ps(mask, line) : _mm512_setzero_ps(), even);
      split(2 * pair + 1 < inner ? _mm512_maskz_loadu_ps(mask, line + stride) : _mm512_setzero_ps(), odd);
      for (int part = 0; part < 3; ++part) {
        const __m512i both = _mm512_or_si512(_mm512_srli_epi32(even[part], 16), _mm512_and_si512(odd[part], upper));
        _mm512_store_si512(target + part * kPart + tile * kTileNumbers + pair * kBlock, both);
      }
    }
  }
}

// Write a block of 32 by 32 sums over `count` blocks of inner indices.
DEFORMABLE_OPS_INLINE void multiply(const uint16_t* rows, const uint16_t* columns, int64_t count, float* sums,
                                    int64_t stride) {
#define DEFORMABLE_OPS_ROWS(part)                                  \
  _tile_loadd(4, rows + (part)*kPart, 2 * kBlock); \
  _tile_loadd(5, rows + (part)*kPart + kTileNumbers, 2 * kBlock);
#define DEFORMABLE_OPS_COLUMNS(part)                                  \
  _tile_loadd(6, columns + (part)*kPart, 2 * kBlock); \
  _tile_loadd(7, columns + (part)*kPart + kTileNumbers, 2 * kBlock);
#define DEFORMABLE_OPS_ADD   \
  _tile_dpbf16ps(0, 4, 6);   \
  _tile_dpbf16ps(1, 4, 7);   \
  _tile_dpbf16ps(2, 5, 6);   \
  _tile_dpbf16ps(3, 5, 7);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < count; ++i, rows += kPackedBlock, columns += kPackedBlock) {
    DEFORMABLE_OPS_ROWS(0) DEFORMABLE_OPS_COLUMNS(2) DEFORMABLE_OPS_ADD
    DEFORMABLE_OPS_COLUMNS(1) DEFORMABLE_OPS_ADD
    DEFORMABLE_OPS_ROWS(1) DEFORMABLE_OPS_ADD
    DEFORMABLE_OPS_COLUMNS(0) DEFORMABLE_OPS_ADD
    DEFORMABLE_OPS_ROWS(2) DEFORMABLE_OPS_ADD
    DEFORMABLE_OPS_ROWS(0) DEFORMABLE_OPS_ADD
  }
  _tile_stored(0, sums, 4 * stride);
  _tile_stored(1, sums + kSide, 4 * stride);
  _tile_stored(2, sums + kSide * stride, 4 * stride);
  _tile_stored(3, sums + kSide * stride + kSide, 4 * stride);
}

void pack_weight(const void* weight, int64_t columns, int64_t inner, void* packed) {
  uint16_t* target = static_cast<uint16_t*>(packed);
  for (int64_t k = 0; k < inner; k += kBlock, target += kPackedBlock) {
    pack_columns(static_cast<const float*>(weight) + k, inner, columns, smaller(inner - k, kBlock), target);
  }
}

// Write a block of sums. The bias is added to the first ones, and the activation follows the last ones.
DEFORMABLE_OPS_INLINE void add_block(const Product& task, const float* sums, int64_t row, int64_t column, bool is_first,
                                     Activation activation) {
  const int64_t rows = smaller(task.lines * task.width - row, kBlock);
  const bool adds = !is_first || task.accumulate;
  for (int64_t half = 0; half < kBlock; half += kSide) {
    const __mmask16 mask = mask_of(column + half, task.columns);
    if (mask == 0) return;
    const __m512 zero = _mm512_setzero_ps();
    const float* const biases = static_cast<const float*>(task.bias);
    const __m512 bias = biases == nullptr || !is_first ? zero : _mm512_maskz_loadu_ps(mask, biases + column + half);
    int64_t line = row / task.width, place = row % task.width;
    for (int64_t i = 0; i < rows; ++i) {
      float* const target =
          static_cast<float*>(task.output) + line * task.line_stride + place * task.output_stride + column + half;
      __m512 sum = _mm512_add_ps(_mm512_load_ps(sums + i * kBlock + half), bias);
      if (adds) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, target));
      if (activation == Activation::relu) sum = _mm512_max_ps(zero, sum);  // NaN, the second operand, stays
      if (activation == Activation::gelu) sum = gelu(sum);
      _mm512_mask_storeu_ps(target, mask, sum);
      if (++place == task.width) {
        place = 0;
        ++line;
      }
    }
  }
}

int64_t product_memory(const Product&) { return 2 * kRowBlocks * kInnerBlocks * kPackedBlock; }

// Rows begin and end at multiples of 32, except for the last one.
void product(const Product& task, int64_t first_row, int64_t last_row, int64_t first_column, int64_t last_column,
             void* memory) {
  const Tiles tiles;
  alignas(64) float sums[kBlock * kBlock];
  uint16_t* const packed = static_cast<uint16_t*>(memory);
  const float* const rows = static_cast<const float*>(task.rows);
  const uint16_t* const weights = static_cast<const uint16_t*>(task.weight);
  const int64_t first = first_row / kBlock, last = blocks_of(last_row);
  const int64_t inner = blocks_of(task.inner);
  const int64_t passes = (last - first + kRowBlocks - 1) / kRowBlocks;  // over the weights
  int64_t row_blocks = 0;
  for (int64_t row = first, pass = 0; pass < passes; ++pass, row += row_blocks) {
    row_blocks = (last - row) / (passes - pass);
    for (int64_t start = 0; start < inner; start += kInnerBlocks) {
      const int64_t count = smaller(inner - start, kInnerBlocks);
      for (int64_t i = 0; i < row_blocks; ++i) {
        for (int64_t k = 0; k < count; ++k) {
          const int64_t top = (row + i) * kBlock, left = (start + k) * kBlock;
          pack_rows(rows + top * task.row_stride + left, task.row_stride, smaller(task.lines * task.width - top, kBlock),
                    task.inner - left, 1.0f, packed + (i * count + k) * kPackedBlock);
        }
      }
      for (int64_t group = first_column; group < last_column; group += kGroup) {
        const int64_t end = smaller(group + kGroup, last_column);
        for (int64_t i = 0; i < row_blocks; ++i) {
          for (int64_t column = group; column < end; ++column) {
            const uint16_t* const weight = weights + (column * inner + start) * kPackedBlock;
            multiply(packed + i * count * kPackedBlock, weight, count, sums, kBlock);
            add_block(task, sums, (row + i) * kBlock, column * kBlock, start == 0,
                      start + count == inner ? task.activation : Activation::none);
          }
        }
      }
    }
  }
}

// Pack exp(logits - most) as a row, zeros behind them, and return the sum.
DEFORMABLE_OPS_INLINE float pack_exponentials(const float* logits, int64_t count, float most, uint16_t* target) {
  const __m512 shift = _mm512_set1_ps(most);
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < count; i += kBlock, target += kPackedBlock) {
    __m512i parts[2][3];
    for (int half = 0; half < 2; ++half) {
      const int64_t start = i + half * kSide;
      const __m512 number = (__m512)exponential((VectorOf<float>::type)_mm512_sub_ps(
          _mm512_maskz_loadu_ps(mask_of(start, count), logits + start), shift));
      const __m512 weight = _mm512_maskz_mov_ps(mask_of(start, count), number);
      sums[half] = _mm512_add_ps(sums[half], weight);
      split(weight, parts[half]);
    }
    store_row(parts[0], parts[1], target);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
}

int64_t attention_memory(int64_t keys, int64_t channels) {
  const int64_t inner = blocks_of(channels), count = blocks_of(keys);
  return 2 * kPackedBlock * (2 * inner * count + inner + count) + 4 * kBlock * (kBlock * count + kSide) +
         4 * kBlock * kBlock;
}

void attention(const Attention& task, int64_t image, int64_t head, int64_t first, int64_t last, void* memory) {
  const Tiles tiles;
  const int64_t inner = blocks_of(task.channels), key_blocks = blocks_of(task.keys);
  const int64_t line = key_blocks * kBlock + kSide;  // an odd number of cache lines apart
  uint16_t* const keys = static_cast<uint16_t*>(memory);
  uint16_t* const values = keys + inner * key_blocks * kPackedBlock;
  uint16_t* const queries = values + inner * key_blocks * kPackedBlock;
  uint16_t* const weights = queries + inner * kPackedBlock;
  float* const logits = reinterpret_cast<float*>(weights + key_blocks * kPackedBlock);
  float* const sums = logits + kBlock * line;
  const float* const query =
      static_cast<const float*>(task.query) + image * task.query_strides[0] + head * task.query_strides[1];
  const float* const key =
      static_cast<const float*>(task.key) + image * task.key_strides[0] + head * task.key_strides[1];
  const float* const value =
      static_cast<const float*>(task.value) + image * task.value_strides[0] + head * task.value_strides[1];
  for (int64_t block = 0; block < key_blocks; ++block) {
    const int64_t start = block * kBlock, count = smaller(task.keys - start, kBlock);
    for (int64_t k = 0; k < inner; ++k) {
      const int64_t channel = k * kBlock, left = smaller(task.channels - channel, kBlock);
      pack_columns(key + start * task.key_strides[2] + channel, task.key_strides[2], count, left,
                   keys + (block * inner + k) * kPackedBlock);
      pack_transposed_columns(value + start * task.value_strides[2] + channel, task.value_strides[2], count, left,
                              values + (k * key_blocks + block) * kPackedBlock);
    }
  }
  for (int64_t block = first; block < last; ++block) {
    const int64_t start = block * kBlock, rows = smaller(task.queries - start, kBlock);
    for (int64_t k = 0; k < inner; ++k) {
      pack_rows(query + start * task.query_strides[2] + k * kBlock, task.query_strides[2], rows,
                task.channels - k * kBlock, task.scale, queries + k * kPackedBlock);
    }
    for (int64_t key = 0; key < key_blocks; ++key) {
      multiply(queries, keys + key * inner * kPackedBlock, inner, logits + key * kBlock, line);
    }
    float factors[kBlock];
    for (int64_t row = 0; row < rows; ++row) {
      float* const numbers = logits + row * line;
      add_bias(task, head, start + row, numbers);
      factors[row] = 1 / pack_exponentials(numbers, task.keys, largest(numbers, task.keys), weights + row * kBlock);
    }
    for (int64_t k = 0; k < inner; ++k) {
      multiply(weights, values + k * key_blocks * kPackedBlock, key_blocks, sums, kBlock);
      for (int64_t row = 0; row < rows; ++row) {
        float* const target = static_cast<float*>(task.output) +
                              ((image * task.queries + start + row) * task.heads + head) * task.channels + k * kBlock;
        const __m512 factor = _mm512_set1_ps(factors[row]);
        for (int64_t half = 0; half < kBlock; half += kSide) {
          const __m512 sum = _mm512_loadu_ps(sums + row * kBlock + half);
          const __mmask16 mask = mask_of(k * kBlock + half, task.channels);
          if (mask != 0) _mm512_mask_storeu_ps(target + half, mask, _mm512_mul_ps(sum, factor));
        }
      }
    }
  }
}

}  // namespace amx

const MatrixLoops* amx_matrix() {
  static constexpr MatrixLoops table = {kBlock,
                                        amx::kPackedBlock,
                                        kBlock,
                                        &amx::pack_weight,
                                        &amx::product_memory,
                                        &amx::product,
                                        &amx::attention_memory,
                                        &amx::attention};
  return &table;
}

}  // namespace deformable_ops

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else

namespace deformable_ops {

const MatrixLoops* amx_matrix() { return nullptr; }

}  // namespace deformable_ops
#endif
