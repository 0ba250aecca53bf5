// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// What a CUDA kernel gets: a Problem with the geometry of its launch, by value. Plain C++, without CUDA's headers.
#pragma once

#include <cstdint>

#include "../cpu/problem.h"

namespace deformable_ops {

// Levels go to the device as a kernel parameter, which needs no copy and can be captured in a graph.
constexpr int64_t kMostLevels = 32;
constexpr int64_t kMostPoints = 32768;  // of a query and head, in all levels: what `quotient` divides exactly

struct Task {
  Problem problem;  // problem.level is of the host
  Level level[kMostLevels];
  uint32_t reciprocal;  // of the points of a level, or of kernel_height
  void* raw_weights;    // where gradients with respect to softmax weights lie until the softmax's own is known

  // The items (query and head) of a block: `heads_together` neighbouring heads of a tile of queries. Blocks run over
  // tiles (x), heads (y) and images (z).
  int32_t lanes;  // threads of an item
  int32_t heads_together, queries_together;
  int32_t tile_width, tile_columns;  // of tiles that are rectangles of output pixels; tile_width is 0 where they are not
  int32_t tiles;
};

struct Launch {
  void* stream;
  int32_t device;  // the current one
};

// 0, or the cudaError_t of the launch.
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
