// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Memory and threads of the operators on a CPU. The arithmetic is in sampling.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "../common/call.h"
#include "../torch-ext/torch_binding.h"
#include "instructions.h"
#include "problem.h"

namespace deformable_ops {
namespace {

// ---- threads -------------------------------------------------------------------------------------------------------

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, FreeDeleter>;

Memory allocate(size_t bytes) {
  constexpr size_t kLine = 64;  // vectors across two cache lines are slow
  void* memory = std::aligned_alloc(kLine, std::max<size_t>((bytes + kLine - 1) / kLine, 1) * kLine);
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(memory);
}

bool is_float64(const Problem& problem) {
  return problem.value.type == Scalar::float64 || problem.locations.type == Scalar::float64 ||
         problem.weights.type == Scalar::float64 ||
         (problem.coordinates == Coordinates::offsets && problem.references.type == Scalar::float64);
}

const Kernels& kernels_for(bool float64) {
#if defined(__x86_64__)
  if (instructions() == Instructions::avx512) return avx512_kernels(float64);
  if (instructions() == Instructions::avx2) return avx2_kernels(float64);
#endif
  return baseline_kernels(float64);
}

// Run `work(begin, end, scratch)` for ranges of [0, count) on torch's threads. No exception may leave a thread.
template <typename Work>
void in_parallel(int64_t count, size_t scratch_bytes, const Work& work) {
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      const Memory scratch = allocate(scratch_bytes);
      work(begin, end, scratch.get());
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  if (out_of_memory) throw std::runtime_error("deformable_ops: out of memory");
}

// The order in which a problem is computed. DCNv3 samples near the output pixel, so a part has all heads of an image
// and reads memory in order. Attention samples anywhere, so a part has one head, whose values may fit into the cache.
struct Parts {
  int64_t heads, each, count;  // number of heads of an image, of heads of a part, and of parts

  explicit Parts(const Problem& problem)
      : heads(problem.heads), each(problem.coordinates == Coordinates::kernel_grid ? problem.heads : 1),
        count(problem.heads == 0 ? 0 : problem.batch * (problem.heads / each)) {}

  Part operator[](int64_t index) const {
    const int64_t first = index * each;
    return {first / heads, first % heads, each};
  }
};

// Call `work(part, begin, end, scratch)` for ranges of [0, length) of every part in [first, last).
template <typename Work>
void for_each_part(int64_t first, int64_t last, int64_t length, size_t scratch_bytes, const Work& work) {
  in_parallel((last - first) * length, scratch_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    while (begin < end) {
      const int64_t part = begin / length, from = begin % length;
      const int64_t to = std::min(length, from + end - begin);
      work(first + part, from, to, scratch);
      begin += to - from;
    }
  });
}

// Call `work(part, begin, end, rows, row_stride, scratch)` for all items of all parts.
//
// If the rows of a part are far apart and each is read often, or if they need a conversion, the rows of one part per
// thread are first copied into a contiguous buffer, which is in the cache then, and converted once.
template <typename Work>
void for_each_item(const Problem& problem, const Kernels& kernels, const Work& work) {
  const bool float64 = is_float64(problem);
  const size_t element = float64 ? sizeof(double) : sizeof(float);
  const size_t scratch_bytes = kernels.scratch_bytes(problem);
  const Parts parts(problem);
  const int64_t items = problem.queries * parts.each;
  const bool converted = problem.value.type != (float64 ? Scalar::float64 : Scalar::float32);
  const int64_t reads = 4 * problem.queries * problem.levels * problem.points;
  if (!converted && (problem.heads == parts.each || reads < 4 * problem.tokens)) {
    for_each_part(0, parts.count, items, scratch_bytes, [&](int64_t index, int64_t begin, int64_t end, void* scratch) {
      const Part part = parts[index];
      const char* rows =
          static_cast<const char*>(problem.value.data) +
          (part.image * problem.tokens * problem.heads + part.first_head) * problem.channels * element;
      work(part, begin, end, rows, problem.heads * problem.channels, scratch);
    });
    return;
  }
  const int64_t together = std::min<int64_t>(parts.count, torch::stable::get_num_threads());
  const int64_t row = parts.each * problem.channels;
  const Memory packed = allocate(together * problem.tokens * row * element);
  for (int64_t first = 0; first < parts.count; first += together) {
    const int64_t last = std::min(parts.count, first + together);
    const auto rows_of = [&](int64_t index) {
      return static_cast<char*>(packed.get()) + (index - first) * problem.tokens * row * element;
    };
    for_each_part(first, last, problem.tokens, 0, [&](int64_t index, int64_t begin, int64_t end, void*) {
      kernels.pack(problem, parts[index], begin, end, rows_of(index));
    });
    for_each_part(first, last, items, scratch_bytes, [&](int64_t index, int64_t begin, int64_t end, void* scratch) {
      work(parts[index], begin, end, rows_of(index), row, scratch);
    });
  }
}

void run_forward(const Problem& problem) {
  if (problem.batch * problem.queries * problem.heads * problem.channels == 0) return;
  const Kernels& kernels = kernels_for(is_float64(problem));
  for_each_item(problem, kernels,
             [&](const Part& part, int64_t begin, int64_t end, const void* rows, int64_t stride, void* scratch) {
               kernels.forward(problem, part, begin, end, rows, stride, scratch);
             });
}

// The part of the gradient of value that one thread sums: channels [first, first + count) of each head.
struct Share {
  Part part;
  int64_t first, count;
};

std::vector<Share> shares_of(const Problem& problem, int64_t threads) {
  std::vector<Share> shares;
  const int64_t wanted = (threads + problem.batch - 1) / problem.batch;  // shares of an image
  if (problem.coordinates == Coordinates::kernel_grid && wanted < problem.heads) {
    for (int64_t image = 0; image < problem.batch; ++image) {
      for (int64_t i = 0; i < wanted; ++i) {
        const int64_t head = problem.heads * i / wanted, next = problem.heads * (i + 1) / wanted;
        shares.push_back({{image, head, next - head}, 0, problem.channels});
      }
    }
    return shares;
  }
  // If threads outnumber heads, channels are split too, into at least 8.
  int64_t width = 64;
  while (width > 8 && problem.heads * ((problem.channels + width - 1) / width) < wanted) width /= 2;
  for (int64_t image = 0; image < problem.batch; ++image) {
    for (int64_t head = 0; head < problem.heads; ++head) {
      for (int64_t first = 0; first < problem.channels;) {
        const int64_t count = std::min(width, largest_width(problem.channels - first));
        shares.push_back({{image, head, 1}, first, count});
        first += count;
      }
    }
  }
  return shares;
}

// One thread sums a row of the gradient, in the order of the queries. So the result is bitwise equal in every run and
// with any number of threads.
void run_backward(const Problem& problem) {
  if (problem.batch * problem.heads == 0) return;
  const bool float64 = is_float64(problem);
  const Kernels& kernels = kernels_for(float64);
  if (problem.queries * problem.levels * problem.points > 0) {
    for_each_item(problem, kernels,
               [&](const Part& part, int64_t begin, int64_t end, const void* rows, int64_t stride, void* scratch) {
                 kernels.backward_points(problem, part, begin, end, rows, stride, scratch);
               });
  }
  if (problem.tokens * problem.channels == 0) return;
  const size_t element = float64 ? sizeof(double) : sizeof(float);
  const int64_t stride = problem.heads * problem.channels;
  // If a part has all heads and the gradient has the compute type, sum in place.
  const bool in_place = problem.coordinates == Coordinates::kernel_grid &&
                        problem.grad_value.type == (float64 ? Scalar::float64 : Scalar::float32);
  char* grad_value = static_cast<char*>(problem.grad_value.data);
  if (in_place) std::memset(grad_value, 0, problem.batch * problem.tokens * stride * element);
  const std::vector<Share> shares = shares_of(problem, torch::stable::get_num_threads());
  const int64_t count = static_cast<int64_t>(shares.size());
  in_parallel(count, kernels.scratch_bytes(problem), [&](int64_t begin, int64_t end, void* scratch) {
    size_t most = 0;
    for (int64_t i = begin; i < end; ++i) {
      most = std::max<size_t>(most, problem.tokens * shares[i].part.heads * shares[i].count * element);
    }
    const Memory sums = allocate(in_place ? 0 : most);
    for (int64_t i = begin; i < end; ++i) {
      const auto& [part, first, width] = shares[i];
      if (in_place) {
        const int64_t start = part.image * problem.tokens * stride + part.first_head * problem.channels + first;
        kernels.backward_value(problem, part, first, width, grad_value + start * element, stride, scratch);
      } else {
        std::memset(sums.get(), 0, problem.tokens * part.heads * width * element);
        kernels.backward_value(problem, part, first, width, sums.get(), part.heads * width, scratch);
        kernels.unpack(problem, part, first, width, sums.get());
      }
    }
  });
}

}  // namespace

// ---- calls ---------------------------------------------------------------------------------------------------------

Tensor Cpu::forward(Call call) {
  Tensor output = torch::stable::new_empty(call.value, call.output_shape);
  call.problem.output = array_of("output", output);
  run_forward(call.problem);
  return output;
}

Gradients Cpu::backward(Call call, const Tensor& grad_output) {
  check_grad_output(grad_output, call.output_shape);
  const int64_t rank = static_cast<int64_t>(call.output_shape.size());
  const Tensor gradient = checked(DeviceKind::cpu, "grad_output", grad_output, rank, "");
  Problem& problem = call.problem;
  Tensor grad_value = empty_like_shape(call.value);
  Tensor grad_locations =
      call.packed ? empty_packed_gradient(problem, call.locations) : empty_like_shape(call.locations);
  Tensor grad_weights = call.packed ? grad_locations : empty_like_shape(call.weights);
  problem.grad_output = array_of("grad_output", gradient);
  problem.grad_value = array_of("grad_value", grad_value);
  problem.grad_locations = array_of("grad_locations", grad_locations);
  problem.grad_weights = array_of("grad_weights", grad_weights);
  if (call.packed) std::tie(problem.grad_locations, problem.grad_weights) = unpacked(problem, problem.grad_locations);
  run_backward(problem);
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace deformable_ops
