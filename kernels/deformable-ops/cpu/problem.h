// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Description of one call as plain data. This file does not include torch, so that the translation units for particular
// instruction sets share no inline function with the rest of the library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace deformable_ops {

enum class Scalar : int { float32, float64, bfloat16, float16 };

// Conversion of a stored pair (x, y) into pixels of its level, with pixel centres at integers.
enum class Coordinates : int {
  normalised,   // x * width - 0.5
  offsets,      // reference_x * width - 0.5 + x; the weights are logits with a softmax over levels and points
  kernel_grid,  // DCNv3 and DCNv4: position of the convolution's kernel element, plus x
};

struct Array {
  void* data;
  Scalar type;
};

struct Level {
  int32_t height, width;
  int32_t start;  // first token
};

// Numbers of elements from one query to the next and from one head to the next. The elements of one query and head are
// contiguous, and an image follows the last query of the previous one.
struct Layout {
  int64_t query, head;
};

// Return the index of the first element of a head; `row` is image * queries + query. The functions of this file are
// static, so that each translation unit has a copy (see sampling.h).
#if defined(__CUDACC__)
__host__ __device__
#endif
static inline int64_t first_element(const Layout& layout, int64_t row, int64_t head) {
  return row * layout.query + head * layout.head;
}

// The arrays are contiguous:
//   value      (batch, tokens, heads, channels)
//   locations  (batch, queries, heads, levels, points, 2)
//   weights    (batch, queries, heads, levels, points)
//   references (batch or 1, queries, levels or 1, 2)
//   output     (batch, queries, heads, channels)
// A gradient has the shape and type of its tensor. DCNv4 has locations and weights in one tensor
// (batch, queries, width): each head has its locations and then its weights there, so their Layouts are not contiguous.
struct Problem {
  Coordinates coordinates;
  int64_t batch, tokens, heads, channels, queries, levels, points;
  const Level* level;
  Array value, locations, weights;
  Layout location_layout, weight_layout;
  Array references;                                          // Coordinates::offsets only
  int64_t reference_batch_stride, reference_level_stride;    // in pairs; 0 if the dimension is broadcast
  int64_t output_width;                                      // this and the following: Coordinates::kernel_grid only
  int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  int64_t dilation_height, dilation_width;
  double offset_scale;
  bool remove_center;
  Array output;                                              // forward
  Array grad_output, grad_value, grad_locations, grad_weights;  // backward
};

// Return an array that begins `elements` later.
static inline Array advanced(const Array& array, int64_t elements) {
  const int64_t size = array.type == Scalar::float64 ? 8 : (array.type == Scalar::float32 ? 4 : 2);
  return {static_cast<char*>(array.data) + elements * size, array.type};
}

// Set the layouts of contiguous locations and weights.
static inline void set_contiguous(Problem& problem) {
  const int64_t per_query = problem.levels * problem.points;
  problem.weight_layout = {problem.heads * per_query, per_query};
  problem.location_layout = {2 * problem.heads * per_query, 2 * per_query};
}

// Neighbouring heads of one image. An item is a query with one of these heads; its index is
// query * heads + (head - first_head).
struct Part {
  int64_t image, first_head, heads;
};

// The functions of one instruction set. `rows` points to the first value row of a part's first head; its other heads
// follow. `row_stride` is the number of elements between rows. `rows` and `sums` have the compute type, float or
// double.
struct Kernels {
  size_t (*scratch_bytes)(const Problem&);
  // Copy the value rows [begin, end) of a part to `packed` (tokens, heads, channels), converted to the compute type.
  void (*pack)(const Problem&, const Part&, int64_t begin, int64_t end, void* packed);
  // Compute the output of the items [begin, end) of a part.
  void (*forward)(const Problem&, const Part&, int64_t begin, int64_t end, const void* rows, int64_t row_stride,
                  void* scratch);
  // Compute the gradients of locations and weights for the items [begin, end) of a part.
  void (*backward_points)(const Problem&, const Part&, int64_t begin, int64_t end, const void* rows,
                          int64_t row_stride, void* scratch);
  // Add the gradient of the channels [first, first + count) of each head of a part to `sums` (tokens, heads, count),
  // with `row_stride` elements between tokens.
  void (*backward_value)(const Problem&, const Part&, int64_t first, int64_t count, void* sums, int64_t row_stride,
                         void* scratch);
  // Write these sums to the gradient of value.
  void (*unpack)(const Problem&, const Part&, int64_t first, int64_t count, const void* sums);
};

// The inner loops are compiled for these numbers of channels; any number is a sum of them.
static constexpr int64_t kWidths[] = {64, 32, 16, 8, 4, 2, 1};

static constexpr int64_t largest_width(int64_t channels) {
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
