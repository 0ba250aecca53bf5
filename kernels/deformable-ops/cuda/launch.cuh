// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Kernels for one type of value, and their launch. One file per type includes this one, so that they compile in
// parallel.
#pragma once

#include <algorithm>

#include "sampling.cuh"

namespace deformable_ops {

// Smallest number of blocks on a multiprocessor. It bounds the registers so that several warps hide each other's
// latency, and is low enough that no register is spilled (benchmarks/cuda_registers.md).
template <bool kBackward, typename V>
constexpr int kBlocks = (kBackward ? 2 : 3) - (sizeof(V) == sizeof(double) ? 1 : 0);

template <bool kBackward, typename V, int kElements, int kLanes>
__global__ void __launch_bounds__(kMaxThreads, (kBlocks<kBackward, V>)) kernel(const __grid_constant__ Task task) {
  __shared__ Slots<typename Element<V>::Compute, kLanes> slots[kMaxThreads / kWarp];
  auto& own = slots[threadIdx.x / kWarp];
  const int32_t blocks = static_cast<int32_t>(task.problem.heads) / task.heads_together;
  for (int64_t image = blockIdx.z; image < task.problem.batch; image += gridDim.z) {
    for (int32_t block = blockIdx.y; block < blocks; block += gridDim.y) {
      const int32_t tile = static_cast<int32_t>(blockIdx.x), first_head = block * task.heads_together;
      if constexpr (kBackward) {
        backward_items<V, kElements, kLanes>(task, image, tile, first_head, own);
      } else {
        forward_items<V, kElements, kLanes>(task, image, tile, first_head, own);
      }
    }
  }
}

#if !defined(DEFORMABLE_OPS_EMULATED)
static inline int multiprocessors_of(int device) {
  int count = 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}
#endif

static inline int64_t divide_up(int64_t number, int64_t divisor) { return (number + divisor - 1) / divisor; }

// Assign items to blocks of `threads` threads, and return the number of blocks.
static inline int64_t assign_items(Task& task, int64_t item_bytes, int threads) {
  constexpr int64_t kLine = 128;  // bytes of a cache line
  const Problem& problem = task.problem;
  const int64_t items = threads / task.lanes;
  int64_t heads = 1;
  while (2 * heads <= items && 2 * heads * item_bytes <= kLine && problem.heads % (2 * heads) == 0) heads *= 2;
  task.heads_together = static_cast<int32_t>(heads);
  const int64_t queries = items / heads;
  task.queries_together = static_cast<int32_t>(queries);
  task.tile_width = 0;
  task.tile_columns = 0;
  int64_t tiles = divide_up(problem.queries, queries);
  if (problem.coordinates == Coordinates::kernel_grid && queries >= 16) {
    task.tile_width = 8;
    task.tile_columns = static_cast<int32_t>(divide_up(problem.output_width, 8));
    tiles = task.tile_columns * divide_up(problem.queries / problem.output_width, queries / 8);
  }
  task.tiles = static_cast<int32_t>(tiles);
  return tiles * (problem.heads / heads) * problem.batch;
}

template <typename V, int kElements, int kLanes>
int launch_kernel(Task task, bool backward, const Launch& launch) {
  constexpr int64_t kMaxBlocks = 65535;  // limit of y and z
  const Problem& problem = task.problem;
  if (kLanes > 0) {
    task.lanes = kLanes;
  } else {
    task.lanes = 1;
    while (task.lanes < kWarp && task.lanes * kElements < problem.channels) task.lanes *= 2;
  }
  const int64_t divisor = problem.coordinates == Coordinates::kernel_grid ? problem.kernel_height : problem.points;
  task.reciprocal = reciprocal_of(divisor);
  // large blocks, in which neighbouring items read the same rows, but enough blocks for all multiprocessors
  const int64_t enough = 2 * multiprocessors_of(launch.device);
  int threads = kMaxThreads;
  while (assign_items(task, problem.channels * static_cast<int64_t>(sizeof(V)), threads) < enough &&
         threads > 64) {
    threads /= 2;
  }
  const dim3 blocks(static_cast<unsigned>(task.tiles),
                    static_cast<unsigned>(std::min(problem.heads / task.heads_together, kMaxBlocks)),
                    static_cast<unsigned>(std::min(problem.batch, kMaxBlocks)));
#if defined(DEFORMABLE_OPS_EMULATED)
  emulation::count_launch({problem.value.data, problem.locations.data, problem.weights.data, problem.references.data,
                           problem.output.data, problem.grad_output.data, problem.grad_value.data,
                           problem.grad_locations.data, problem.grad_weights.data, task.raw_weights},
                          backward, static_cast<int>(sizeof(V)), kElements, kLanes);
  emulate(blocks, threads, [&] {
    backward ? kernel<true, V, kElements, kLanes>(task) : kernel<false, V, kElements, kLanes>(task);
  });
  return 0;
#else
  cudaStream_t stream = static_cast<cudaStream_t>(launch.stream);
  if (backward) {
    kernel<true, V, kElements, kLanes><<<blocks, threads, 0, stream>>>(task);
  } else {
    kernel<false, V, kElements, kLanes><<<blocks, threads, 0, stream>>>(task);
  }
  return static_cast<int>(cudaGetLastError());
#endif
}

template <typename V>
int launch(Task task, bool backward, const Launch& launch) {
  constexpr int kVector = Element<V>::kVector;
  const int64_t channels = task.problem.channels;
  if (channels % kVector != 0) return launch_kernel<V, 1, 0>(task, backward, launch);
  if constexpr (sizeof(V) < sizeof(double)) {
    switch (channels) {
      case 16: return launch_kernel<V, kVector, 16 / kVector>(task, backward, launch);
      case 32: return launch_kernel<V, kVector, 32 / kVector>(task, backward, launch);
      case 64: return launch_kernel<V, kVector, 64 / kVector>(task, backward, launch);
    }
  }
  return launch_kernel<V, kVector, 0>(task, backward, launch);
}

}  // namespace deformable_ops
