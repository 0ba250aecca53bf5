// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Tasks of the dense operators for inference, and the functions that compute parts of them. dense_loops.h has
// the loops, compiled once for each instruction set. Pixels are stored with channels last, (batch, height, width,
// channels), unless stated otherwise. No part of the standard library with code in headers may be used here, because
// the linker could take the copy that was compiled for the longest vectors.
#pragma once

#include <cstdint>

namespace deformable_ops {

constexpr int64_t kTile = 4, kTaps = 6;  // F(4x4, 3x3): 6x6 input pixels give 4x4 output pixels
constexpr int64_t kChannelMultiple = 16;  // of the pixels' channels: the longest vector

// Minimal filtering of some rows of tiles of one image. Plane i * 6 + k of `planes` has row i and column k of all
// transformed tiles, (tiles, channels). Pixels, inputs' planes and rows have one type; products are float32 always.
struct Winograd {
  void* pixels;  // (height, width, channels) of the image: read by the inputs, written by the outputs
  int64_t height, width, channels;
  int64_t first_row, tile_columns;  // in tiles
  void* planes;
  int64_t plane_stride;  // elements
  const void* row;       // inputs: `channels` zeros; outputs: the bias
  bool relu;
};

// The two source pixels of a target pixel of a bilinear resize, and the weight of the second.
struct Neighbours {
  int32_t first, second;
  float weight;
};

struct Resize {
  const void* source;
  void* target;
  int64_t height, width, new_height, new_width, channels;
  const Neighbours *rows, *columns;
};

// The sum over feature maps and the nine taps of a 3x3 kernel of their products, resized and shifted, see dense.py.
struct ResizedTaps {
  // Sources: (batch, height, width, 9, channels). The target and the new sizes of the first one are those of all.
  const Resize* resizes;
  int64_t maps;
  int64_t pixel_stride;   // elements between the target's pixels
  bool relu;
};

constexpr int64_t kMostMaps = 8;

// Numbers between the lines that are summed: their pixels and some more, because lines that are a power of two apart
// would take each other's place in a cache.
static inline int64_t line_stride(const Resize& resize) { return resize.new_width * resize.channels + 80; }

// Rows of `size` numbers minus their mean, divided by their standard deviation, times `weight` plus `bias`.
struct LayerNorm {
  const void *rows, *weight, *bias;
  void* output;
  int64_t size;
  float epsilon;  // added to the variance
};

// A summand of a row of the image: a row of a window's logits, and its weight.
struct RowTap {
  int64_t window, row;
  float weight;
};

// A summand of a column of the image: the place of a pixel's logits in the memory, and its weight.
struct ColumnTap {
  int64_t place;
  float weight;
};

// The class with the largest logit at each pixel of an image that was run in windows. Resizing to the windows, the mean
// over them and resizing to the image are linear and treat rows and columns alike. So the logits of a pixel are a sum
// over few rows and columns of the windows' logits.
struct WindowLabels {
  const void* logits;  // (windows, height, width, classes)
  int64_t classes, height, width;
  int64_t columns_of_windows;
  int64_t pixel_stride;  // numbers of memory for a pixel: classes, up to the next multiple of kChannelMultiple
  // Taps of row r and column of windows c: from row_starts[r * columns_of_windows + c] to the next one.
  const int64_t* row_starts;
  const RowTap* row_taps;
  // Taps of column x: from column_starts[x] to the next one.
  const int64_t* column_starts;
  const ColumnTap* column_taps;
  int64_t image_width;
  int64_t* labels;  // (rows, image_width)
};

// The arithmetic is float32. All but `planes` of minimal filtering may be float32 or bfloat16.
struct DenseLoops {
  // Transform the tiles [begin, end), counted from the first one of `first_row`.
  void (*winograd_inputs)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_outputs)(const Winograd&, int64_t begin, int64_t end);
  // Add to the rows [begin, end) of all images.
  void (*add_resized)(const Resize&, int64_t begin, int64_t end);
  // Resize the rows [begin, end) of all planes (planes, height, width). `lines` has room for two lines.
  void (*resize_planes)(const Resize&, int64_t begin, int64_t end, float* lines);
  // Add to the rows [begin, end) of all images. `lines` has room for six lines (line_stride) for each map.
  void (*add_resized_taps)(const ResizedTaps&, int64_t begin, int64_t end, float* lines);
  // Replace the rows [begin, end) of `size` numbers by their softmax.
  void (*softmax)(void* numbers, int64_t size, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNorm&, int64_t begin, int64_t end);
  // Compute the rows [begin, end) of the labels. `memory` has room for a row of
  // (columns_of_windows, width, pixel_stride).
  void (*label_windows)(const WindowLabels&, int64_t begin, int64_t end, float* memory);
};

const DenseLoops& baseline_dense(bool bfloat16);
#if defined(__x86_64__)
const DenseLoops& avx2_dense(bool bfloat16);
const DenseLoops& avx512_dense(bool bfloat16);
#endif
// For a processor with AVX512-BF16, or null if the compiler does not know it.
const DenseLoops* avx512_bfloat16_dense();

}  // namespace deformable_ops
