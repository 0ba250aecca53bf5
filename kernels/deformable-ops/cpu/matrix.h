// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Products of float32 matrices by a processor's matrix unit for bfloat16. A float32 number is the sum of three
// bfloat16 numbers x = x0 + x1 + x2, each about 2^8 times smaller than the one before. The six largest of the nine
// products of two such sums, x0 y0 + x0 y1 + x1 y0 + x1 y1 + x0 y2 + x2 y0, are added up in float32. What they leave
// out is smaller than the rounding of a float32 product.
//
// Packed operands consist of blocks of 32 rows or columns by 32 inner indices: three parts (x0, x1, x2) of two tiles
// of 16 rows or columns, 1 KiB each.
#pragma once

#include <cstdint>

namespace deformable_ops {

constexpr int64_t kBlock = 32;            // rows, columns and inner indices of a block
constexpr int64_t kPackedBlock = 3 * kBlock * kBlock;  // numbers of 16 bits
constexpr int64_t kRowBlocks = 9, kInnerBlocks = 16;   // of the rows that are packed at once: 768 KiB, for the L2 cache

static inline int64_t blocks_of(int64_t size) { return (size + kBlock - 1) / kBlock; }

enum class Activation : int { none, relu, gelu };

// output = activation(rows * weight^T + bias), where `accumulate` adds the previous output to the sum
struct Product {
  const float* rows;  // (lines * width, inner)
  int64_t row_stride, lines, width, inner;
  const uint16_t* weight;  // packed (columns, inner)
  int64_t columns;
  const float* bias;  // (columns,) or null
  Activation activation;
  bool accumulate;
  float* output;  // (lines, width, columns)
  int64_t line_stride, output_stride;
};

// softmax(scale * query * key^T + bias) * value for each image and head. Strides are in elements: image, head, token.
struct Attention {
  const float *query, *key, *value;
  int64_t query_strides[3], key_strides[3], value_strides[3];
  int64_t heads, queries, keys, channels;
  float scale;
  float* output;  // (batch, queries, heads, channels)
  // Bias by the offset between the positions of a query and a key on a grid, see matrix.py. Null for none.
  const float* keys_of_columns;  // (heads, width, (2 * height - 1) * width)
  const float* prefix;           // (3, heads), if there is a prefix token
  int64_t height, width;
  bool has_prefix;
};

struct MatrixLoops {
  // Pack up to kBlock columns (columns, inner) of the right operand.
  void (*pack_weight)(const float* weight, int64_t columns, int64_t inner, uint16_t* packed);
  // Compute the blocks of rows [first, last) and of columns [first_column, last_column). `memory` has room for
  // kRowBlocks * kInnerBlocks blocks.
  void (*product)(const Product&, int64_t first, int64_t last, int64_t first_column, int64_t last_column,
                  uint16_t* memory);
  // Compute the blocks of queries [first, last) of one image and head. `memory` has attention_memory(...) bytes.
  void (*attention)(const Attention&, int64_t image, int64_t head, int64_t first, int64_t last, void* memory);
};

// The bytes that the attention of a head needs: packed keys and values, packed queries, logits and packed weights.
static inline int64_t attention_memory(int64_t keys, int64_t channels) {
  const int64_t inner = blocks_of(channels), count = blocks_of(keys);
  return 2 * kPackedBlock * (2 * inner * count + inner + count) + 4 * kBlock * (kBlock * count + 16) +
         4 * kBlock * kBlock;
}

// The loops for a processor with AMX, or null if the compiler does not know it.
const MatrixLoops* amx_matrix();

}  // namespace deformable_ops
