// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Emulation of the part of CUDA's language that the kernels use, for tests without a GPU. It is included before the
// kernels' sources, which a C++ compiler can compile unchanged then.
//
// The threads of a block are fibers of one CPU thread. A fiber runs until it waits at a barrier of its warp or in a
// shuffle, which all 32 threads have to reach; then the next fiber runs. The order of the fibers changes from block to
// block, to reveal results that depend on it. Blocks run one after the other. It is an error if the threads of a warp
// wait in different functions, or if only some have ended, because a GPU would hang or return wrong values.
#pragma once

#undef _FORTIFY_SOURCE  // it forbids jumps between stacks

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
using std::exp;
using std::floor;

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low);
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}

// Load a vector. As on a GPU, its address must be a multiple of its size, or the program is aborted.
template <typename T>
T __ldg(const T* source) {
  if (reinterpret_cast<uintptr_t>(source) % sizeof(T) != 0) {
    std::fprintf(stderr, "emulation: misaligned load\n");
    std::abort();
  }
  T words;
  std::memcpy(&words, source, sizeof(T));
  return words;
}

template <typename T>
inline void atomicAdd(T* target, T x) {
  *target += x;
}

inline float emulated_half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 0x1f, rest = half & 0x3ff;
  if (exponent == 0x1f) return __uint_as_float(sign | 0x7f800000 | rest << 13);
  if (exponent == 0) return std::copysign(std::ldexp(static_cast<float>(rest), -24), __uint_as_float(sign | 0x3f800000));
  return __uint_as_float(sign | (exponent + 112) << 23 | rest << 13);
}
inline uint16_t emulated_float_to_half(float x) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (!(size == size)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-05f) {  // subnormal: a multiple of 2 ** -24, ties to even
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  }
  const uint32_t bits = __float_as_uint(size);
  return sign | static_cast<uint16_t>((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}
inline uint16_t emulated_float_to_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (!(x == x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// ---- counts of accesses to global memory ---------------------------------------------------------------------------

namespace emulation {

// Counts what a GPU would do for the accesses of each warp, if DEFORMABLE_OPS_COUNTS names a file. A request is one
// instruction of a warp: accesses of its threads from the same site, the n-th since their last barrier. A GPU serves it
// by sectors of 32 bytes. A tensor is identified by the largest start address that is not above an access.
struct Tally {
  uint64_t requests = 0, sectors = 0, bytes = 0, threads = 0;
  std::set<uintptr_t> lines;  // distinct words of 4 bytes; two bytes of half precision count as their word
};

struct Access {
  const char* site;
  uintptr_t address;
  int bytes, thread;
};

inline const char* const counts_file = std::getenv("DEFORMABLE_OPS_COUNTS");
inline std::vector<std::pair<uintptr_t, int>> starts;  // of the tensors, ascending, with their index
inline std::map<int, Tally> tallies;
inline std::vector<Access> pending;  // of the warp, since its last barrier
inline char launch_name[64];

inline void count_launch(const std::vector<const void*>& tensors, bool backward, int bytes, int elements, int lanes) {
  if (counts_file == nullptr) return;
  starts.clear();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i] != nullptr) starts.emplace_back(reinterpret_cast<uintptr_t>(tensors[i]), static_cast<int>(i));
  }
  std::sort(starts.begin(), starts.end());
  tallies.clear();
  std::snprintf(launch_name, sizeof(launch_name), "%s %d %d %d", backward ? "backward" : "forward", bytes, elements, lanes);
}

inline void flush_accesses() {
  if (pending.empty()) return;
  std::map<std::pair<std::string, int>, int> seen;  // (site, thread) -> number
  std::map<std::pair<std::string, int>, std::vector<Access>> requests;
  for (const Access& access : pending) {
    requests[{access.site, seen[{access.site, access.thread}]++}].push_back(access);
  }
  pending.clear();
  for (const auto& [key, accesses] : requests) {
    std::map<int, std::set<uintptr_t>> sectors;
    std::map<int, int> threads;
    for (const Access& access : accesses) {
      if (access.address == 0) continue;
      auto next = std::upper_bound(starts.begin(), starts.end(), std::make_pair(access.address, 1 << 30));
      const int tensor = next == starts.begin() ? -1 : std::prev(next)->second;
      Tally& tally = tallies[tensor];
      tally.bytes += static_cast<uint64_t>(access.bytes);
      ++threads[tensor];
      for (uintptr_t at = access.address; at < access.address + static_cast<uintptr_t>(access.bytes); at += 2) {
        sectors[tensor].insert(at / 32);
        tally.lines.insert(at / 4);
      }
    }
    for (const auto& [tensor, distinct] : sectors) {
      ++tallies[tensor].requests;
      tallies[tensor].sectors += distinct.size();
      tallies[tensor].threads += static_cast<uint64_t>(threads[tensor]);
    }
  }
}

inline void write_counts(unsigned blocks, int threads) {
  if (counts_file == nullptr) return;
  std::FILE* file = std::fopen(counts_file, "a");
  for (const auto& [tensor, tally] : tallies) {
    std::fprintf(file, "%s %u %d %d %llu %llu %llu %llu %llu\n", launch_name, blocks, threads, tensor,
                 static_cast<unsigned long long>(tally.requests), static_cast<unsigned long long>(tally.sectors),
                 static_cast<unsigned long long>(tally.bytes), static_cast<unsigned long long>(tally.threads),
                 static_cast<unsigned long long>(4 * tally.lines.size()));
  }
  std::fclose(file);
}

void access(const char* site, const void* pointer, int bytes);

}  // namespace emulation

#define DEFORMABLE_OPS_ACCESS(site, pointer, bytes) emulation::access(site, pointer, static_cast<int>(bytes))

// ---- threads -------------------------------------------------------------------------------------------------------

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarpThreads = 32;
constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t start;
  jmp_buf context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool begun = false, ended = false, waiting = false;
  int function = 0;  // identifies the function that it waits in
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<char> exchanged;  // values of the threads in a shuffle
  jmp_buf scheduler;
  ucontext_t home;
  int current = 0;
  const std::function<void()>* work = nullptr;
};

inline Block block;

inline void access(const char* site, const void* pointer, int bytes) {
  if (counts_file == nullptr) return;
  pending.push_back({site, reinterpret_cast<uintptr_t>(pointer), bytes, block.current});
}

inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s (thread %d)\n", what, block.current);
  std::abort();
}

inline void begin() {
  (*block.work)();
  block.fibers[block.current].ended = true;
  _longjmp(block.scheduler, 1);
}

// Wait until all threads of the warp are in this function.
inline void meet(int function) {
  Fiber& fiber = block.fibers[block.current];
  fiber.waiting = true;
  fiber.function = function;
  if (_setjmp(fiber.context) == 0) _longjmp(block.scheduler, 1);
}

inline void resume(int index) {
  Fiber& fiber = block.fibers[index];
  block.current = index;
  threadIdx = dim3(index);
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.context, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, &begin, 0);
  setcontext(&fiber.start);
}

inline void run_warp(int first, unsigned order) {
  const unsigned step = 2 * (order % 16) + 1;  // odd: visits all 32
  for (;;) {
    int ended = 0;
    for (int i = 0; i < kWarpThreads; ++i) {
      const int index = first + static_cast<int>((order + i * step) % kWarpThreads);
      if (!block.fibers[index].ended) resume(index);
      ended += block.fibers[index].ended;
    }
    flush_accesses();
    if (ended == kWarpThreads) return;
    if (ended > 0) fail("some threads of a warp have ended, but others wait for them");
    for (int i = 0; i < kWarpThreads; ++i) {
      Fiber& fiber = block.fibers[first + i];
      if (!fiber.waiting || fiber.function != block.fibers[first].function) {
        fail("threads of a warp wait in different functions");
      }
      fiber.waiting = false;
    }
  }
}

template <typename T>
T exchange(T x, int source, int function) {
  std::memcpy(block.exchanged.data() + block.current * sizeof(double), &x, sizeof(T));
  meet(function);
  T other;
  const int lane = block.current / kWarpThreads * kWarpThreads + source;
  std::memcpy(&other, block.exchanged.data() + lane * sizeof(double), sizeof(T));
  meet(function);
  return other;
}

}  // namespace emulation

inline void __syncwarp() { emulation::meet(1); }

template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  return emulation::exchange(x, lane, 2);
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulation::exchange(x, emulation::block.current % emulation::kWarpThreads ^ mask, 2 + mask);
}

// Run `work` as every thread of every block.
inline void emulate(const dim3& blocks, int threads, const std::function<void()>& work) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  if (threads % emulation::kWarpThreads != 0) emulation::fail("blocks need a multiple of 32 threads");
  emulation::block.work = &work;
  emulation::block.fibers.resize(static_cast<size_t>(threads));
  emulation::block.exchanged.resize(static_cast<size_t>(threads) * sizeof(double));
  gridDim = blocks;
  blockDim = dim3(static_cast<unsigned>(threads));
  unsigned order = 0;
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = dim3(x, y, z);
        for (emulation::Fiber& fiber : emulation::block.fibers) fiber.begun = fiber.ended = fiber.waiting = false;
        for (int first = 0; first < threads; first += emulation::kWarpThreads) emulation::run_warp(first, order++);
      }
    }
  }
  emulation::write_counts(blocks.x * blocks.y * blocks.z, threads);
}

inline int multiprocessors_of(int) { return 4; }
