// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// What one call has to compute, as plain data. Nothing here includes torch, so that the translation units compiled for
// a particular instruction set share no inline function with the rest of the library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace deformable_ops {

enum class Scalar : int { float32, float64, bfloat16, float16 };

// How a point's stored pair (x, y) becomes pixels of its level, pixel centres at integers.
enum class Coordinates : int {
  normalised,   // x * width - 0.5
  offsets,      // reference_x * width - 0.5 + x; the weights are logits, their softmax runs over levels and points
  kernel_grid,  // DCNv3: where the convolution's kernel element stands, moved by x
};

struct Array {
  void* data;
  Scalar type;
};

struct Level {
  int32_t height, width;
  int32_t start;  // first token
};

// The arrays are contiguous:
//   value      (batch, tokens, heads, channels)
//   locations  (batch, queries, heads, levels, points, 2)
//   weights    (batch, queries, heads, levels, points)
//   references (batch or 1, queries, levels or 1, 2)
//   output     (batch, queries, heads, channels)
// Gradients have the shapes and types of what they belong to.
struct Problem {
  Coordinates coordinates;
  int64_t batch, tokens, heads, channels, queries, levels, points;
  const Level* level;
  Array value, locations, weights;
  Array references;                                          // Coordinates::offsets only
  int64_t reference_batch_stride, reference_level_stride;    // in pairs; 0 where that dimension is broadcast
  int64_t output_width;                                      // the rest: Coordinates::kernel_grid only
  int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  int64_t dilation_height, dilation_width;
  double offset_scale;
  bool remove_center;
  Array output;                                              // forward
  Array grad_output, grad_value, grad_locations, grad_weights;  // backward
};

// Neighbouring heads of one image. What is computed of it is numbered query by query, and head by head in each: number
// query * heads + (head - first_head) is an item.
struct Part {
  int64_t image, first_head, heads;
};

// `rows` points at the first value row of a part's first head, the other heads lie behind it; `row_stride` counts
// elements between rows. Both are in the compute type (float, or double), as `sums` is.
struct Kernels {
  size_t (*scratch_bytes)(const Problem&);
  // Copy the value rows [begin, end) of a part to `packed` (tokens, heads, channels), converted to the compute type.
  void (*pack)(const Problem&, const Part&, int64_t begin, int64_t end, void* packed);
  // Output of the items [begin, end) of a part.
  void (*forward)(const Problem&, const Part&, int64_t begin, int64_t end, const void* rows, int64_t row_stride,
                  void* scratch);
  // Gradients of locations and weights, for the items [begin, end) of a part.
  void (*backward_points)(const Problem&, const Part&, int64_t begin, int64_t end, const void* rows,
                          int64_t row_stride, void* scratch);
  // Add the gradient of the channels [first, first + count) of each head of a part to `sums` (tokens, heads, count),
  // with `row_stride` elements between tokens.
  void (*backward_value)(const Problem&, const Part&, int64_t first, int64_t count, void* sums, int64_t row_stride,
                         void* scratch);
  // Write such sums to the gradient of value.
  void (*unpack)(const Problem&, const Part&, int64_t first, int64_t count, const void* sums);
};

// Widths that the inner loops are compiled for: any number of channels is a sum of these.
static constexpr int64_t kWidths[] = {64, 32, 16, 8, 4, 2, 1};

// static: a copy for each translation unit, see sampling.h
static constexpr int64_t widest(int64_t channels) {
  for (int64_t width : kWidths) {
    if (width <= channels) return width;
  }
  return 0;
}

const Kernels& baseline_kernels(bool float64);
#if defined(__x86_64__)
const Kernels& avx2_kernels(bool float64);
const Kernels& avx512_kernels(bool float64);
#endif

}  // namespace deformable_ops
