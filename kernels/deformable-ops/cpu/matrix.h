// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Products of matrices and attention, by a processor's matrix unit for bfloat16 (AMX) or by vectors (AVX-512).
//
// AMX multiplies float32 matrices: a float32 number is the sum of three bfloat16 numbers x = x0 + x1 + x2, each about
// 2^8 times smaller than the one before. The six largest of the nine products of two such sums, x0 y0 + x0 y1 + x1 y0 +
// x1 y1 + x0 y2 + x2 y0, are added up in float32. What they leave out is smaller than the rounding of a float32 product.
//
// Packed weights consist of blocks of 32 columns. For AMX, blocks have 32 inner indices: three parts (x0, x1, x2) of two
// tiles of 16 columns, 1 KiB each. For vectors, they have one inner index in float32, or two in bfloat16: the two numbers
// of a column lie together.
#pragma once

#include <cstdint>

namespace deformable_ops {

constexpr int64_t kBlock = 32;  // columns of a block of packed weights

static inline int64_t blocks_of(int64_t size) { return (size + kBlock - 1) / kBlock; }

enum class Activation : int { none, relu, gelu };

// output = activation(rows * weight^T + bias), where `accumulate` adds the previous output to the sum. Rows, bias and
// output have one type; `wide_output` stands for float32 output of bfloat16 rows.
struct Product {
  const void* rows;  // (lines * width, inner)
  int64_t row_stride, lines, width, inner;
  const void* weight;  // packed (columns, inner)
  int64_t columns;
  const void* bias;  // (columns,) or null
  Activation activation;
  bool accumulate, wide_output;
  void* output;  // (lines, width, columns)
  int64_t line_stride, output_stride;
};

// softmax(scale * query * key^T + bias) * value for each image and head. Strides are in elements: image, head, token.
struct Attention {
  const void *query, *key, *value;
  int64_t query_strides[3], key_strides[3], value_strides[3];
  int64_t heads, queries, keys, channels;
  float scale;
  void* output;  // (batch, queries, heads, channels)
  // Bias by the offset between the positions of a query and a key on a grid, see matrix.py. Null for none.
  const float* keys_of_columns;  // (heads, width, (2 * height - 1) * width)
  const float* prefix;           // (3, heads), if there is a prefix token
  int64_t height, width;
  bool has_prefix;
};

struct MatrixLoops {
  int64_t step, numbers;  // inner indices of a block of packed weights, and its numbers
  int64_t rows;           // that one thread should compute at once, at least
  // Pack up to kBlock columns (columns, inner) of the right operand.
  void (*pack_weight)(const void* weight, int64_t columns, int64_t inner, void* packed);
  // The bytes that a product of rows needs.
  int64_t (*product_memory)(const Product&);
  // Compute rows [first, last) and the blocks of columns [first_column, last_column).
  void (*product)(const Product&, int64_t first, int64_t last, int64_t first_column, int64_t last_column, void* memory);
  // The bytes that the attention of a head needs: packed keys and values, and the logits and weights of some queries.
  int64_t (*attention_memory)(int64_t keys, int64_t channels);
  // Compute the blocks of queries [first, last) of one image and head.
  void (*attention)(const Attention&, int64_t image, int64_t head, int64_t first, int64_t last, void* memory);
};

// The loops for float32 matrices on a processor with AMX, or null if the compiler does not know it.
const MatrixLoops* amx_matrix();
// The loops for float32 matrices on a processor with AVX-512.
const MatrixLoops* avx512_matrix();
// The loops for bfloat16 matrices on a processor with AVX512-BF16, or null if the compiler does not know it.
const MatrixLoops* avx512_bfloat16_matrix();

}  // namespace deformable_ops
