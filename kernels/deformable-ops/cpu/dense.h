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
// transformed tiles, (tiles, channels).
struct Winograd {
  float* pixels;  // (height, width, channels) of the image: read by the inputs, written by the outputs
  int64_t height, width, channels;
  int64_t first_row, tile_columns;  // in tiles
  float* planes;
  int64_t plane_stride;  // elements
  const float* row;      // inputs: `channels` zeros; outputs: the bias
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
  float* lines;  // (batch, height, 3, new_width, channels): resized along the columns, by the tap's row
  int64_t pixel_stride;  // elements between the target's pixels
};

// The arithmetic is float32. Resizes, their products and softmax read and write float32 or bfloat16.
struct DenseLoops {
  // Transform the tiles [begin, end), counted from the first one of `first_row`.
  void (*winograd_inputs)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_outputs)(const Winograd&, int64_t begin, int64_t end);
  // Add to the rows [begin, end) of all images.
  void (*add_resized)(const Resize&, int64_t begin, int64_t end);
  // Resize the rows [begin, end) of all planes (planes, height, width). `lines` has room for two lines.
  void (*resize_planes)(const Resize&, int64_t begin, int64_t end, float* lines);
  // Compute the lines [begin, end) of (batch, height, 3).
  void (*tap_lines)(const ResizedTaps&, int64_t begin, int64_t end);
  // Add the lines to the rows [begin, end) of all images.
  void (*add_tap_lines)(const ResizedTaps&, int64_t begin, int64_t end);
  // Replace the rows [begin, end) of `size` numbers by their softmax.
  void (*softmax)(void* numbers, int64_t size, int64_t begin, int64_t end);
};

const DenseLoops& baseline_dense(bool bfloat16);
#if defined(__x86_64__)
const DenseLoops& avx2_dense(bool bfloat16);
const DenseLoops& avx512_dense(bool bfloat16);
#endif

}  // namespace deformable_ops
