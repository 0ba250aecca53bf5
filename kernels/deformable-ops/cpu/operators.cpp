// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// The operators on a CPU: checks, memory and threads. The arithmetic is in sampling.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../torch-ext/torch_binding.h"
#include "problem.h"

namespace deformable_ops {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor>;
using torch::headeronly::ScalarType;

// ---- checks --------------------------------------------------------------------------------------------------------

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

std::string join(const std::vector<int64_t>& numbers) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? ", " : "") << numbers[i];
  text << "]";
  return text.str();
}

Scalar scalar_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Scalar::float32;
    case ScalarType::Double: return Scalar::float64;
    case ScalarType::BFloat16: return Scalar::bfloat16;
    case ScalarType::Half: return Scalar::float16;
    default: fail(name, " must be float32, float64, bfloat16 or float16");
  }
}

// A contiguous CPU tensor of `rank` dimensions; `dimensions` describes them.
Tensor checked(const char* name, const Tensor& tensor, int64_t rank, const char* dimensions) {
  if (!tensor.is_cpu()) fail(name, " must be on the CPU as the other tensors are");
  scalar_of(name, tensor);
  if (tensor.dim() != rank) fail(name, " must be ", dimensions, ", got the shape ", shape_of(tensor));
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Array array_of(const char* name, const Tensor& tensor) { return {tensor.data_ptr(), scalar_of(name, tensor)}; }

bool same_shape(const Tensor& left, const Tensor& right, int64_t dimensions) {
  for (int64_t i = 0; i < dimensions; ++i) {
    if (left.size(i) != right.size(i)) return false;
  }
  return true;
}

Tensor empty_like_shape(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

void check_grad_output(const Tensor& grad_output, const std::vector<int64_t>& expected) {
  bool fits = grad_output.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i) fits = grad_output.size(i) == expected[i];
  if (!fits) fail("grad_output must have the shape of the output ", join(expected), ", got ", shape_of(grad_output));
}

// Tokens fit into 32 bits (element offsets have 64).
constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max() / 2;

std::vector<Level> levels_of(const std::vector<int64_t>& spatial_shapes, const Tensor& value) {
  if (spatial_shapes.size() % 2 != 0) {
    fail("spatial_shapes must be (height, width) of every level, flattened, got ", join(spatial_shapes));
  }
  std::vector<Level> levels;
  int64_t tokens = 0;
  for (size_t i = 0; i < spatial_shapes.size(); i += 2) {
    const int64_t height = spatial_shapes[i], width = spatial_shapes[i + 1];
    if (height < 0 || width < 0 || height > kMostTokens || width > kMostTokens || height * width > kMostTokens ||
        tokens + height * width > kMostTokens) {
      fail("spatial_shapes must be sizes of at most ", kMostTokens, " tokens together, got ", join(spatial_shapes));
    }
    levels.push_back({static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(tokens)});
    tokens += height * width;
  }
  if (tokens != value.size(1)) {
    fail("value has ", value.size(1), " tokens, but the levels ", join(spatial_shapes), " add up to ", tokens);
  }
  return levels;
}

// ---- threads -------------------------------------------------------------------------------------------------------

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, FreeDeleter>;

Memory allocate(size_t bytes) {
  constexpr size_t kLine = 64;  // vectors that cross lines of the cache are slow
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
  // DEFORMABLE_OPS_INSTRUCTIONS=baseline or avx2 is for tests of those
  static const char* const most = std::getenv("DEFORMABLE_OPS_INSTRUCTIONS");
  static const bool baseline = most != nullptr && std::strcmp(most, "baseline") == 0;
  static const bool avx2 = !baseline && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c");
  static const bool avx512 = avx2 && (most == nullptr || std::strcmp(most, "avx2") != 0) &&
                             __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return avx512_kernels(float64);
  if (avx2) return avx2_kernels(float64);
#endif
  return baseline_kernels(float64);
}

// Runs `work(begin, end, scratch)` over parts of [0, count) on torch's threads. An exception may not leave a thread.
template <typename Work>
void in_parallel(int64_t count, size_t scratch_bytes, const Work& work) {
  bool out_of_memory = false;
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

// The parts that a problem is worked off in. DCNv3 samples near the output pixel, so all heads of an image go together
// and everything is read in the order of memory. Attention samples anywhere: there one head of value, which may fit the
// cache, comes after the other.
struct Parts {
  int64_t heads, each, count;  // heads of an image, heads of a part, parts

  explicit Parts(const Problem& problem)
      : heads(problem.heads), each(problem.coordinates == Coordinates::kernel_grid ? problem.heads : 1),
        count(problem.heads == 0 ? 0 : problem.batch * (problem.heads / each)) {}

  Part operator[](int64_t index) const {
    const int64_t first = index * each;
    return {first / heads, first % heads, each};
  }
};

// `work(part, begin, end, scratch)` for stretches of [0, length) of every part in [first, last).
template <typename Work>
void over_parts(int64_t first, int64_t last, int64_t length, size_t scratch_bytes, const Work& work) {
  in_parallel((last - first) * length, scratch_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    while (begin < end) {
      const int64_t part = begin / length, from = begin % length;
      const int64_t to = std::min(length, from + end - begin);
      work(first + part, from, to, scratch);
      begin += to - from;
    }
  });
}

// Calls `work(part, begin, end, rows, row_stride, scratch)` for all items of all parts.
//
// Where the rows of a part lie far apart and each is read often, or has another type than the arithmetic, the rows of
// as many parts as there are threads are first copied together: into the cache, and converted once.
template <typename Work>
void over_items(const Problem& problem, const Kernels& kernels, const Work& work) {
  const bool float64 = is_float64(problem);
  const size_t element = float64 ? sizeof(double) : sizeof(float);
  const size_t scratch_bytes = kernels.scratch_bytes(problem);
  const Parts parts(problem);
  const int64_t items = problem.queries * parts.each;
  const bool converted = problem.value.type != (float64 ? Scalar::float64 : Scalar::float32);
  const int64_t reads = 4 * problem.queries * problem.levels * problem.points;
  if (!converted && (problem.heads == parts.each || reads < 4 * problem.tokens)) {
    over_parts(0, parts.count, items, scratch_bytes, [&](int64_t index, int64_t begin, int64_t end, void* scratch) {
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
    over_parts(first, last, problem.tokens, 0, [&](int64_t index, int64_t begin, int64_t end, void*) {
      kernels.pack(problem, parts[index], begin, end, rows_of(index));
    });
    over_parts(first, last, items, scratch_bytes, [&](int64_t index, int64_t begin, int64_t end, void* scratch) {
      work(parts[index], begin, end, rows_of(index), row, scratch);
    });
  }
}

void run_forward(const Problem& problem) {
  if (problem.batch * problem.queries * problem.heads * problem.channels == 0) return;
  const Kernels& kernels = kernels_for(is_float64(problem));
  over_items(problem, kernels,
             [&](const Part& part, int64_t begin, int64_t end, const void* rows, int64_t stride, void* scratch) {
               kernels.forward(problem, part, begin, end, rows, stride, scratch);
             });
}

// What one thread sums of the gradient of value: the channels [first, first + count) of each head.
struct Share {
  Part part;
  int64_t first, count;
};

std::vector<Share> shares_of(const Problem& problem, int64_t threads) {
  std::vector<Share> shares;
  const int64_t wanted = (threads + problem.batch - 1) / problem.batch;  // for each image
  if (problem.coordinates == Coordinates::kernel_grid && wanted < problem.heads) {
    for (int64_t image = 0; image < problem.batch; ++image) {
      for (int64_t i = 0; i < wanted; ++i) {
        const int64_t head = problem.heads * i / wanted, next = problem.heads * (i + 1) / wanted;
        shares.push_back({{image, head, next - head}, 0, problem.channels});
      }
    }
    return shares;
  }
  // With more threads than heads the channels are shared out too, down to 8 at a time.
  int64_t width = 64;
  while (width > 8 && problem.heads * ((problem.channels + width - 1) / width) < wanted) width /= 2;
  for (int64_t image = 0; image < problem.batch; ++image) {
    for (int64_t head = 0; head < problem.heads; ++head) {
      for (int64_t first = 0; first < problem.channels;) {
        const int64_t count = std::min(width, widest(problem.channels - first));
        shares.push_back({{image, head, 1}, first, count});
        first += count;
      }
    }
  }
  return shares;
}

// Every gradient row has one thread that sums it, always in the order of the queries: the result is the same bit by
// bit in every run and with any number of threads.
void run_backward(const Problem& problem) {
  if (problem.batch * problem.heads == 0) return;
  const bool float64 = is_float64(problem);
  const Kernels& kernels = kernels_for(float64);
  if (problem.queries * problem.levels * problem.points > 0) {
    over_items(problem, kernels,
               [&](const Part& part, int64_t begin, int64_t end, const void* rows, int64_t stride, void* scratch) {
                 kernels.backward_points(problem, part, begin, end, rows, stride, scratch);
               });
  }
  if (problem.tokens * problem.channels == 0) return;
  const size_t element = float64 ? sizeof(double) : sizeof(float);
  const int64_t stride = problem.heads * problem.channels;
  // Where heads go together, and have the right type, the sums are made in place.
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

// ---- multi-scale deformable attention ------------------------------------------------------------------------------

// Owns what a Problem points at.
struct Call {
  Problem problem{};
  std::vector<Level> levels;
  std::vector<Tensor> tensors;
  std::vector<int64_t> output_shape;

  Array keep(const char* name, const Tensor& tensor) {
    tensors.push_back(tensor);
    return array_of(name, tensor);
  }

  Tensor forward(const Tensor& value) {
    Tensor output = torch::stable::new_empty(value, output_shape);
    problem.output = keep("output", output);
    run_forward(problem);
    return output;
  }

  Gradients backward(const Tensor& grad_output, const Tensor& value, const Tensor& locations, const Tensor& weights) {
    check_grad_output(grad_output, output_shape);
    const Tensor gradient = checked("grad_output", grad_output, static_cast<int64_t>(output_shape.size()), "");
    Tensor grad_value = empty_like_shape(value), grad_locations = empty_like_shape(locations),
           grad_weights = empty_like_shape(weights);
    problem.grad_output = keep("grad_output", gradient);
    problem.grad_value = keep("grad_value", grad_value);
    problem.grad_locations = keep("grad_locations", grad_locations);
    problem.grad_weights = keep("grad_weights", grad_weights);
    run_backward(problem);
    return {grad_value, grad_locations, grad_weights};
  }
};

Call attention_call(const Tensor& value_, const std::vector<int64_t>& spatial_shapes, const char* locations_name,
                    const Tensor& locations_, const char* weights_name, const Tensor& weights_) {
  const Tensor value = checked("value", value_, 4, "(batch, tokens, heads, channels)");
  const Tensor weights = checked(weights_name, weights_, 5, "(batch, queries, heads, levels, points)");
  const Tensor locations = checked(locations_name, locations_, 6, "(batch, queries, heads, levels, points, 2)");
  if (!same_shape(locations, weights, 5) || locations.size(5) != 2) {
    fail(locations_name, " must have the shape of ", weights_name, " with (x, y) behind it, got ",
         shape_of(locations), " and ", shape_of(weights));
  }
  Call call;
  call.levels = levels_of(spatial_shapes, value);
  const int64_t levels = static_cast<int64_t>(call.levels.size());
  if (weights.size(0) != value.size(0) || weights.size(2) != value.size(2) || weights.size(3) != levels) {
    fail(weights_name, " ", shape_of(weights), " do not fit value ", shape_of(value), " with ", levels,
         " levels: batch, heads and levels must agree");
  }
  Problem& problem = call.problem;
  problem.batch = value.size(0);
  problem.tokens = value.size(1);
  problem.heads = value.size(2);
  problem.channels = value.size(3);
  problem.queries = weights.size(1);
  problem.levels = levels;
  problem.points = weights.size(4);
  problem.level = call.levels.data();
  problem.value = call.keep("value", value);
  problem.locations = call.keep(locations_name, locations);
  problem.weights = call.keep(weights_name, weights);
  call.output_shape = {problem.batch, problem.queries, problem.heads * problem.channels};
  return call;
}

Call plain_call(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& sampling_locations,
                const Tensor& attention_weights) {
  Call call = attention_call(value, spatial_shapes, "sampling_locations", sampling_locations, "attention_weights",
                             attention_weights);
  call.problem.coordinates = Coordinates::normalised;
  return call;
}

Call fused_call(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& reference_points,
                const Tensor& sampling_offsets, const Tensor& attention_logits) {
  Call call = attention_call(value, spatial_shapes, "sampling_offsets", sampling_offsets, "attention_logits",
                             attention_logits);
  Problem& problem = call.problem;
  problem.coordinates = Coordinates::offsets;
  const Tensor references = checked("reference_points", reference_points, 4, "(batch or 1, queries, levels or 1, 2)");
  const bool fits = (references.size(0) == problem.batch || references.size(0) == 1) &&
                    references.size(1) == problem.queries &&
                    (references.size(2) == problem.levels || references.size(2) == 1) && references.size(3) == 2;
  if (!fits) {
    fail("reference_points must be (", problem.batch, " or 1, ", problem.queries, ", ", problem.levels,
         " or 1, 2), got ", shape_of(references));
  }
  problem.references = call.keep("reference_points", references);
  problem.reference_batch_stride = references.size(0) == 1 ? 0 : references.size(1) * references.size(2);
  problem.reference_level_stride = references.size(2) == 1 ? 0 : 1;
  return call;
}

// ---- DCNv3 ---------------------------------------------------------------------------------------------------------

void check_pair(const char* name, const std::vector<int64_t>& pair, int64_t least) {
  constexpr int64_t kMost = 1 << 20;
  if (pair.size() != 2 || pair[0] < least || pair[1] < least || pair[0] > kMost || pair[1] > kMost) {
    fail(name, " must be (height, width) of at least ", least, ", got ", join(pair));
  }
}

Call dcnv3_call(const Tensor& value_, const Tensor& offset_, const Tensor& mask_,
                const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                double offset_scale, bool remove_center) {
  const Tensor value = checked("value", value_, 4, "(batch, height, width, groups * channels)");
  const Tensor offset = checked("offset", offset_, 4, "(batch, out_height, out_width, groups * points * 2)");
  const Tensor mask = checked("mask", mask_, 4, "(batch, out_height, out_width, groups * points)");
  check_pair("kernel_size", kernel_size, 1);
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  if (groups < 1 || value.size(3) % groups != 0) {
    fail("groups must divide the ", value.size(3), " channels of value, got ", groups);
  }
  if (remove_center && (kernel_size[0] != kernel_size[1] || kernel_size[0] % 2 == 0)) {
    fail("remove_center needs a square kernel with an odd side, got ", join(kernel_size));
  }
  const int64_t height = value.size(1), width = value.size(2);
  const int64_t reach_y = dilation[0] * (kernel_size[0] - 1) + 1, reach_x = dilation[1] * (kernel_size[1] - 1) + 1;
  const int64_t room_y = height + 2 * padding[0] - reach_y, room_x = width + 2 * padding[1] - reach_x;
  if (room_y < 0 || room_x < 0) {
    fail("the kernel reaches over ", reach_y, " by ", reach_x, " pixels, more than the padded value has");
  }
  const int64_t out_height = room_y / stride[0] + 1, out_width = room_x / stride[1] + 1;
  const int64_t points = kernel_size[0] * kernel_size[1] - (remove_center ? 1 : 0);
  const auto expected = [&](int64_t per_point) {
    return std::vector<int64_t>{value.size(0), out_height, out_width, groups * points * per_point};
  };
  const auto check = [&](const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) {
    for (int64_t i = 0; i < 4; ++i) {
      if (tensor.size(i) != shape[i]) fail(name, " must have the shape ", join(shape), ", got ", shape_of(tensor));
    }
  };
  check("offset", offset, expected(2));
  check("mask", mask, expected(1));
  if (height > kMostTokens || width > kMostTokens || height * width > kMostTokens) {
    fail("value may have at most ", kMostTokens, " pixels, got ", shape_of(value));
  }
  Call call;
  call.levels = {{static_cast<int32_t>(height), static_cast<int32_t>(width), 0}};
  Problem& problem = call.problem;
  problem.coordinates = Coordinates::kernel_grid;
  problem.batch = value.size(0);
  problem.tokens = height * width;
  problem.heads = groups;
  problem.channels = value.size(3) / groups;
  problem.queries = out_height * out_width;
  problem.levels = 1;
  problem.points = points;
  problem.level = call.levels.data();
  problem.output_width = out_width;
  problem.kernel_height = kernel_size[0];
  problem.kernel_width = kernel_size[1];
  problem.stride_height = stride[0];
  problem.stride_width = stride[1];
  problem.padding_height = padding[0];
  problem.padding_width = padding[1];
  problem.dilation_height = dilation[0];
  problem.dilation_width = dilation[1];
  problem.offset_scale = offset_scale;
  problem.remove_center = remove_center;
  problem.value = call.keep("value", value);
  problem.locations = call.keep("offset", offset);
  problem.weights = call.keep("mask", mask);
  call.output_shape = {problem.batch, out_height, out_width, value.size(3)};
  return call;
}

}  // namespace
}  // namespace deformable_ops

using namespace deformable_ops;

Tensor ms_deform_attn_cpu(Tensor value, std::vector<int64_t> spatial_shapes, Tensor sampling_locations,
                          Tensor attention_weights) {
  return plain_call(value, spatial_shapes, sampling_locations, attention_weights).forward(value);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward_cpu(Tensor grad_output, Tensor value,
                                                               std::vector<int64_t> spatial_shapes,
                                                               Tensor sampling_locations, Tensor attention_weights) {
  return plain_call(value, spatial_shapes, sampling_locations, attention_weights)
      .backward(grad_output, value, sampling_locations, attention_weights);
}

Tensor ms_deform_attn_fused_cpu(Tensor value, std::vector<int64_t> spatial_shapes, Tensor reference_points,
                                Tensor sampling_offsets, Tensor attention_logits) {
  return fused_call(value, spatial_shapes, reference_points, sampling_offsets, attention_logits).forward(value);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_fused_backward_cpu(Tensor grad_output, Tensor value,
                                                                     std::vector<int64_t> spatial_shapes,
                                                                     Tensor reference_points, Tensor sampling_offsets,
                                                                     Tensor attention_logits) {
  return fused_call(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
      .backward(grad_output, value, sampling_offsets, attention_logits);
}

Tensor dcnv3_cpu(Tensor value, Tensor offset, Tensor mask, std::vector<int64_t> kernel_size,
                 std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                 int64_t groups, double offset_scale, bool remove_center) {
  return dcnv3_call(value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
      .forward(value);
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_cpu(Tensor grad_output, Tensor value, Tensor offset, Tensor mask,
                                                      std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                                                      std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                                      int64_t groups, double offset_scale, bool remove_center) {
  return dcnv3_call(value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
      .backward(grad_output, value, offset, mask);
}
