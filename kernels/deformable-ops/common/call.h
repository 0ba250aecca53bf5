// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Check the arguments of an operator and build the Problem that a device computes. All devices share this code.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/problem.h"

namespace deformable_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

enum class DeviceKind { cpu, cuda };

// ---- checks --------------------------------------------------------------------------------------------------------

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

inline std::string join(const std::vector<int64_t>& numbers) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? ", " : "") << numbers[i];
  text << "]";
  return text.str();
}

inline Scalar scalar_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Scalar::float32;
    case ScalarType::Double: return Scalar::float64;
    case ScalarType::BFloat16: return Scalar::bfloat16;
    case ScalarType::Half: return Scalar::float16;
    default: fail(name, " must be float32, float64, bfloat16 or float16");
  }
}

// Return a contiguous tensor of `rank` dimensions, or fail; `dimensions` describes them in the message.
inline Tensor checked(DeviceKind kind, const char* name, const Tensor& tensor, int64_t rank, const char* dimensions) {
  if (kind == DeviceKind::cpu && !tensor.is_cpu()) fail(name, " must be on the CPU as the other tensors are");
  if (kind == DeviceKind::cuda && !tensor.is_cuda()) fail(name, " must be on a CUDA device as the other tensors are");
  scalar_of(name, tensor);
  if (tensor.dim() != rank) fail(name, " must be ", dimensions, ", got the shape ", shape_of(tensor));
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Array array_of(const char* name, const Tensor& tensor) { return {tensor.data_ptr(), scalar_of(name, tensor)}; }

inline bool same_shape(const Tensor& left, const Tensor& right, int64_t dimensions) {
  for (int64_t i = 0; i < dimensions; ++i) {
    if (left.size(i) != right.size(i)) return false;
  }
  return true;
}

inline Tensor empty_like_shape(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

inline void check_grad_output(const Tensor& grad_output, const std::vector<int64_t>& expected) {
  bool fits = grad_output.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i) fits = grad_output.size(i) == expected[i];
  if (!fits) fail("grad_output must have the shape of the output ", join(expected), ", got ", shape_of(grad_output));
}

// Numbers of tokens have 32 bits, offsets of elements have 64.
constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max() / 2;

inline std::vector<Level> levels_of(const std::vector<int64_t>& spatial_shapes, const Tensor& value) {
  if (spatial_shapes.size() % 2 != 0) {
    fail("spatial_shapes must be (height, width) of every level, flattened, got ", join(spatial_shapes));
  }
  std::vector<Level> levels;
  int64_t tokens = 0;
  for (size_t i = 0; i < spatial_shapes.size(); i += 2) {
    const int64_t height = spatial_shapes[i], width = spatial_shapes[i + 1];
    if (height < 0 || width < 0 || height > kMaxTokens || width > kMaxTokens || height * width > kMaxTokens ||
        tokens + height * width > kMaxTokens) {
      fail("spatial_shapes must be sizes with at most ", kMaxTokens, " tokens in total, got ", join(spatial_shapes));
    }
    levels.push_back({static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(tokens)});
    tokens += height * width;
  }
  if (tokens != value.size(1)) {
    fail("value has ", value.size(1), " tokens, but the levels ", join(spatial_shapes), " have ", tokens);
  }
  return levels;
}

// ---- multi-scale deformable attention ------------------------------------------------------------------------------

// A Problem without outputs and gradients, and the contiguous tensors that it points to.
struct Call {
  Problem problem{};
  std::vector<Level> levels;
  Tensor value, locations, weights;  // DCNv4: `locations` is the packed tensor, and `weights` is the same one
  bool packed = false;               // DCNv4
  std::optional<Tensor> references;  // Coordinates::offsets only
  std::vector<int64_t> output_shape;

  Call() = default;
  Call(Call&&) = default;  // no copies, because `problem` points to `levels`
};

inline Call attention_call(DeviceKind kind, const Tensor& value_, const std::vector<int64_t>& spatial_shapes,
                           const char* locations_name, const Tensor& locations_, const char* weights_name,
                           const Tensor& weights_) {
  const Tensor value = checked(kind, "value", value_, 4, "(batch, tokens, heads, channels)");
  const Tensor weights = checked(kind, weights_name, weights_, 5, "(batch, queries, heads, levels, points)");
  const Tensor locations = checked(kind, locations_name, locations_, 6, "(batch, queries, heads, levels, points, 2)");
  if (!same_shape(locations, weights, 5) || locations.size(5) != 2) {
    fail(locations_name, " must have the shape of ", weights_name, " and a last dimension (x, y), got ",
         shape_of(locations), " and ", shape_of(weights));
  }
  Call call;
  call.levels = levels_of(spatial_shapes, value);
  const int64_t levels = static_cast<int64_t>(call.levels.size());
  if (weights.size(0) != value.size(0) || weights.size(2) != value.size(2) || weights.size(3) != levels) {
    fail(weights_name, " ", shape_of(weights), " do not fit value ", shape_of(value), " with ", levels,
         " levels: batch, heads and levels must be equal");
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
  call.value = value;
  problem.value = array_of("value", value);
  call.locations = locations;
  problem.locations = array_of(locations_name, locations);
  call.weights = weights;
  problem.weights = array_of(weights_name, weights);
  set_contiguous(problem);
  call.output_shape = {problem.batch, problem.queries, problem.heads * problem.channels};
  return call;
}

inline Call plain_call(DeviceKind kind, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                       const Tensor& sampling_locations, const Tensor& attention_weights) {
  Call call = attention_call(kind, value, spatial_shapes, "sampling_locations", sampling_locations,
                             "attention_weights", attention_weights);
  call.problem.coordinates = Coordinates::normalised;
  return call;
}

inline Call fused_call(DeviceKind kind, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                       const Tensor& reference_points, const Tensor& sampling_offsets,
                       const Tensor& attention_logits) {
  Call call = attention_call(kind, value, spatial_shapes, "sampling_offsets", sampling_offsets, "attention_logits",
                             attention_logits);
  Problem& problem = call.problem;
  problem.coordinates = Coordinates::offsets;
  const Tensor references =
      checked(kind, "reference_points", reference_points, 4, "(batch or 1, queries, levels or 1, 2)");
  const bool fits = (references.size(0) == problem.batch || references.size(0) == 1) &&
                    references.size(1) == problem.queries &&
                    (references.size(2) == problem.levels || references.size(2) == 1) && references.size(3) == 2;
  if (!fits) {
    fail("reference_points must be (", problem.batch, " or 1, ", problem.queries, ", ", problem.levels,
         " or 1, 2), got ", shape_of(references));
  }
  call.references = references;
  problem.references = array_of("reference_points", references);
  problem.reference_batch_stride = references.size(0) == 1 ? 0 : references.size(1) * references.size(2);
  problem.reference_level_stride = references.size(2) == 1 ? 0 : 1;
  return call;
}

// ---- deformable convolutions ----------------------------------------------------------------------------------------

inline void check_pair(const char* name, const std::vector<int64_t>& pair, int64_t least) {
  constexpr int64_t kMax = 1 << 20;
  if (pair.size() != 2 || pair[0] < least || pair[1] < least || pair[0] > kMax || pair[1] > kMax) {
    fail(name, " must be (height, width), each at least ", least, ", got ", join(pair));
  }
}

// The settings of a deformable convolution.
struct Convolution {
  std::vector<int64_t> kernel_size, stride, padding, dilation;
  int64_t groups;
  double offset_scale;
  bool remove_center;
};

// Check everything but the tensors of offsets and weights, and return the Problem without them.
inline Call convolution_call(DeviceKind kind, const Tensor& value_, const Convolution& convolution) {
  const Tensor value = checked(kind, "value", value_, 4, "(batch, height, width, groups * channels)");
  const auto& [kernel_size, stride, padding, dilation, groups, offset_scale, remove_center] = convolution;
  check_pair("kernel_size", kernel_size, 1);
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  if (groups < 1 || groups > kMaxTokens || value.size(3) % groups != 0) {
    fail("groups must divide the ", value.size(3), " channels of value, got ", groups);
  }
  if (remove_center && (kernel_size[0] * kernel_size[1] % 2 == 0 || kernel_size[0] * kernel_size[1] == 1)) {
    fail("remove_center needs a kernel with odd sides, larger than 1x1, got ", join(kernel_size));
  }
  const int64_t height = value.size(1), width = value.size(2);
  const int64_t reach_y = dilation[0] * (kernel_size[0] - 1) + 1, reach_x = dilation[1] * (kernel_size[1] - 1) + 1;
  const int64_t room_y = height + 2 * padding[0] - reach_y, room_x = width + 2 * padding[1] - reach_x;
  if (room_y < 0 || room_x < 0) {
    fail("the kernel covers ", reach_y, " by ", reach_x, " pixels, which is more than the padded value has");
  }
  if (height > kMaxTokens || width > kMaxTokens || height * width > kMaxTokens) {
    fail("value may have at most ", kMaxTokens, " pixels, got ", shape_of(value));
  }
  const int64_t out_height = room_y / stride[0] + 1, out_width = room_x / stride[1] + 1;
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
  problem.points = kernel_size[0] * kernel_size[1] - (remove_center ? 1 : 0);
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
  call.value = value;
  problem.value = array_of("value", value);
  call.output_shape = {problem.batch, out_height, out_width, value.size(3)};
  return call;
}

// Fail unless a tensor has the output's height and width, and `channels`.
inline void check_output_pixels(const Call& call, const char* name, const Tensor& tensor, int64_t channels) {
  std::vector<int64_t> expected = call.output_shape;
  expected[3] = channels;
  for (int64_t i = 0; i < 4; ++i) {
    if (tensor.size(i) != expected[i]) {
      fail(name, " must have the shape ", join(expected), ", got ", shape_of(tensor));
    }
  }
}

inline Call dcnv3_call(DeviceKind kind, const Tensor& value, const Tensor& offset_, const Tensor& mask_,
                       const Convolution& convolution) {
  const Tensor offset = checked(kind, "offset", offset_, 4, "(batch, out_height, out_width, groups * points * 2)");
  const Tensor mask = checked(kind, "mask", mask_, 4, "(batch, out_height, out_width, groups * points)");
  Call call = convolution_call(kind, value, convolution);
  Problem& problem = call.problem;
  check_output_pixels(call, "offset", offset, problem.heads * problem.points * 2);
  check_output_pixels(call, "mask", mask, problem.heads * problem.points);
  set_contiguous(problem);
  call.locations = offset;
  problem.locations = array_of("offset", offset);
  call.weights = mask;
  problem.weights = array_of("mask", mask);
  return call;
}

// ---- DCNv4 ----------------------------------------------------------------------------------------------------------

// Return the location and the weight arrays inside a packed tensor: a group has its offsets, then its weights.
inline std::pair<Array, Array> unpacked(const Problem& problem, const Array& packed) {
  return {packed, advanced(packed, 2 * problem.points)};
}

inline Call dcnv4_call(DeviceKind kind, const Tensor& value, const Tensor& offset_mask_,
                       const Convolution& convolution) {
  constexpr int64_t kMultiple = 8;  // the width is rounded up to a multiple of this
  const Tensor offset_mask =
      checked(kind, "offset_mask", offset_mask_, 4, "(batch, out_height, out_width, groups * points * 3 rounded up)");
  Call call = convolution_call(kind, value, convolution);
  Problem& problem = call.problem;
  const int64_t used = problem.heads * problem.points * 3;
  const int64_t width = (used + kMultiple - 1) / kMultiple * kMultiple;
  check_output_pixels(call, "offset_mask", offset_mask, width);
  problem.location_layout = problem.weight_layout = {width, 3 * problem.points};
  call.packed = true;
  call.locations = call.weights = offset_mask;
  std::tie(problem.locations, problem.weights) = unpacked(problem, array_of("offset_mask", offset_mask));
  return call;
}

// Return the gradient of a packed tensor: not set, but for zeros at the end of each pixel, which no group uses.
inline Tensor empty_packed_gradient(const Problem& problem, const Tensor& packed) {
  Tensor gradient = empty_like_shape(packed);
  const int64_t used = problem.heads * problem.points * 3, width = packed.size(3);
  if (used < width && gradient.numel() > 0) {
    Tensor unused = torch::stable::narrow(gradient, 3, used, width - used);
    torch::stable::zero_(unused);
  }
  return gradient;
}

}  // namespace deformable_ops
