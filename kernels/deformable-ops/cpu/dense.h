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

// The sum over the nine taps of a 3x3 kernel of their products, resized and shifted, see functions.py.
struct ResizedTaps {
  Resize resize;         // source: (batch, height, width, 9, channels); target: (batch, new_height, new_width, ...)
  int64_t pixel_stride;  // elements between the target's pixels
};

// A bilinear resize along one side, with the fields of Neighbours in arrays of their own.
struct Columns {
  const int32_t *first, *second;
  const float* weights;
};

// The class with the largest logit at each pixel of an image. The logits of a window (classes, height, width) are resized
// to the window's size. The logits of a view are the means over the windows that cover a pixel. They are resized to the
// image, unless `image_rows` is null: then the view is the image, and sums are compared instead of means.
struct WindowLabels {
  const void* logits;  // (windows, classes, height, width)
  int64_t windows, classes, height, width;
  const int64_t *tops, *lefts;  // of the windows in the view
  int64_t window_height, window_width;
  const Neighbours* rows;
  Columns columns;
  int64_t view_width;
  const Neighbours* image_rows;
  Columns image_columns;
  const float *row_scales, *column_scales;  // 1 / number of windows at a row or column of the view
  int64_t first_row, image_width;
  int64_t* labels;  // (rows, image_width), from first_row on
};

constexpr int64_t kLabelRows = 8;

static inline int64_t label_memory(int64_t view_width, int64_t image_width, int64_t window_width) {
  return (2 * kLabelRows + 1) * view_width + 3 * kLabelRows * image_width + 2 * window_width;
}

// The arithmetic is float32. Resizes, their products and softmax read and write float32 or bfloat16.
struct DenseLoops {
  // Transform the tiles [begin, end), counted from the first one of `first_row`.
  void (*winograd_inputs)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_outputs)(const Winograd&, int64_t begin, int64_t end);
  // Add to the rows [begin, end) of all images.
  void (*add_resized)(const Resize&, int64_t begin, int64_t end);
  // Resize the rows [begin, end) of all planes (planes, height, width). `lines` has room for two lines.
  void (*resize_planes)(const Resize&, int64_t begin, int64_t end, float* lines);
  // Add to the rows [begin, end) of all images. `lines` has room for six lines of `new_width` pixels.
  void (*add_resized_taps)(const ResizedTaps&, int64_t begin, int64_t end, float* lines);
  // Replace the rows [begin, end) of `size` numbers by their softmax.
  void (*softmax)(void* numbers, int64_t size, int64_t begin, int64_t end);
  // Compute the rows [begin, end) of the labels. `memory` has room for label_memory(...) numbers.
  void (*window_labels)(const WindowLabels&, int64_t begin, int64_t end, float* memory);
};

const DenseLoops& baseline_dense(bool bfloat16);
#if defined(__x86_64__)
const DenseLoops& avx2_dense(bool bfloat16);
const DenseLoops& avx512_dense(bool bfloat16);
#endif
// For a processor with AVX512-BF16, or null if the compiler does not know it.
const DenseLoops* avx512_bfloat16_dense();

}  // namespace deformable_ops
