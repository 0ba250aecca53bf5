// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// The parameter of a CUDA kernel: a Problem with the geometry of the launch. Plain C++, without CUDA's headers.
#pragma once

#include <cstdint>

#include "../cpu/problem.h"

namespace deformable_ops {

// The levels are part of the kernel's parameter, which needs no copy and can be captured in a graph.
constexpr int64_t kMaxLevels = 32;
constexpr int64_t kMaxPoints = 32768;  // points of a query and head in all levels; `quotient` is exact below

struct Task {
  Problem problem;  // problem.level is null, see `level`
  Level level[kMaxLevels];
  uint32_t reciprocal;  // of the number of points of a level, or of kernel_height
  bool aligned_pairs;   // every pair (x, y) of the locations is aligned to its size
  void* raw_weights;    // gradients with respect to the softmax's output, until its backward is computed

  // The items (query and head) of a block: `heads_together` neighbouring heads of a tile of queries. Blocks run over
  // tiles (x), heads (y) and images (z).
  int32_t lanes;  // threads of an item
  int32_t heads_together, queries_together;
  int32_t tile_width, tile_columns;  // for tiles that are rectangles of output pixels; tile_width is 0 for other tiles
  int32_t tiles;
};

struct Launch {
  void* stream;
  int32_t device;  // the current device
};

// Launch the kernel; return 0 or the cudaError_t.
template <typename Value>
int launch(Task task, bool backward, const Launch& launch);

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

extern template int launch<float>(Task, bool, const Launch&);
extern template int launch<double>(Task, bool, const Launch&);
extern template int launch<Half>(Task, bool, const Launch&);
extern template int launch<BFloat16>(Task, bool, const Launch&);

}  // namespace deformable_ops
