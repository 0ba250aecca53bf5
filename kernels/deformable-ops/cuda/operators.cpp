// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Memory and launches of the operators on a CUDA device. The arithmetic is in sampling.cuh.
#if !defined(USE_CUDA)
#define USE_CUDA  // declares the CUDA part of torch's stable interface
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "../common/call.h"
#include "../torch-ext/torch_binding.h"
#include "task.h"

namespace deformable_ops {
namespace {

#if defined(DEFORMABLE_OPS_EMULATED)  // for the tests without a GPU, see tests/emulation.h
struct Device {
  explicit Device(const Call&) {}
  Launch launch() const { return {nullptr, 0}; }
  static void check(int error) {
    if (error != 0) fail("the emulation failed");
  }
};
#else
// Makes the device of a call's tensors the current one while it exists.
struct Device {
  int32_t index;
  torch::stable::accelerator::DeviceGuard guard;

  explicit Device(const Call& call) : index(call.value.get_device_index()), guard(index) {}

  Launch launch() const {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    return {stream, index};
  }

  static void check(int error) {
    if (error == 0) return;
    char* text = nullptr;
    torch_c10_cuda_check_msg(error, __FILE__, "launch", 0, true, &text);
    const std::string message = text == nullptr ? "CUDA error " + std::to_string(error) : text;
    if (text != nullptr) torch_c10_cuda_free_error_msg(text);
    fail("deformable_ops could not start its kernel: ", message);
  }
};
#endif

// Return the tensor, or a copy if it is not aligned to the 16 bytes of a vector, as a view may be.
Tensor aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0 ? tensor : torch::stable::clone(tensor);
}

Tensor converted(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// The inputs of a kernel: aligned tensors, all in double if any is.
struct Inputs {
  Tensor value, locations, weights;
  std::optional<Tensor> references;
  bool float64;

  explicit Inputs(const Call& call)
      : value(call.value), locations(call.locations), weights(call.weights), references(call.references) {
    float64 = is_float64(value) || is_float64(locations) || is_float64(weights) ||
              (references.has_value() && is_float64(*references));
    value = prepared(value);
    locations = prepared(locations);
    weights = call.packed ? locations : prepared(weights);
    if (references.has_value()) references = prepared(*references);
  }

  static bool is_float64(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

  Tensor prepared(const Tensor& tensor) const {
    return aligned(float64 ? converted(tensor, ScalarType::Double) : tensor);
  }
};

void check_device(const Call& call, const Tensor& tensor) {
  const int32_t first = call.value.get_device_index(), second = tensor.get_device_index();
  if (first != second) fail("all tensors must be on one device, got cuda:", first, " and cuda:", second);
}

// Return the task of a call, without its outputs.
Task task_of(const Call& call, const Inputs& inputs) {
  check_device(call, call.locations);
  check_device(call, call.weights);
  if (call.references.has_value()) check_device(call, *call.references);
  Task task{};
  Problem& problem = task.problem;
  problem = call.problem;
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max() / 2;
  if (problem.levels > kMaxLevels || problem.levels * problem.points > kMaxPoints) {
    fail("on a CUDA device the limits are ", kMaxLevels, " levels with ", kMaxPoints, " points in total, got ",
         problem.levels, " levels with ", problem.points, " points each");
  }
  if (problem.queries > kMax || problem.heads * problem.channels * 8 > kMax) {
    fail("on a CUDA device the limits are ", kMax, " queries and ", kMax / 8, " channels of all heads, got ",
         problem.queries, " and ", problem.heads * problem.channels);
  }
  std::copy(call.levels.begin(), call.levels.end(), task.level);
  problem.level = nullptr;
  problem.value = array_of("value", inputs.value);
  problem.locations = array_of("locations", inputs.locations);
  problem.weights = array_of("weights", inputs.weights);
  if (call.packed) std::tie(problem.locations, problem.weights) = unpacked(problem, problem.locations);
  task.aligned_pairs = problem.location_layout.query % 2 == 0 && problem.location_layout.head % 2 == 0;
  if (inputs.references.has_value()) problem.references = array_of("references", *inputs.references);
  return task;
}

void run(const Device& device, const Task& task, bool backward) {
  const Launch where = device.launch();
  switch (task.problem.value.type) {
    case Scalar::float32: Device::check(launch<float>(task, backward, where)); break;
    case Scalar::float64: Device::check(launch<double>(task, backward, where)); break;
    case Scalar::bfloat16: Device::check(launch<BFloat16>(task, backward, where)); break;
    case Scalar::float16: Device::check(launch<Half>(task, backward, where)); break;
  }
}

}  // namespace

Tensor Cuda::forward(Call call) {
  const Device device(call);
  const Inputs inputs(call);
  Task task = task_of(call, inputs);
  Tensor output = torch::stable::new_empty(inputs.value, call.output_shape);
  task.problem.output = array_of("output", output);
  if (output.numel() > 0) run(device, task, false);
  return converted(output, call.value.scalar_type());
}

// The gradient of value is a sum of atomic additions in float or double, so its last bits differ from run to run.
// functions.py refuses it in torch's deterministic mode.
Gradients Cuda::backward(Call call, const Tensor& grad_output) {
  check_grad_output(grad_output, call.output_shape);
  const int64_t rank = static_cast<int64_t>(call.output_shape.size());
  const Tensor gradient = checked(kind, "grad_output", grad_output, rank, "");
  check_device(call, gradient);
  const Device device(call);
  const Inputs inputs(call);
  Task task = task_of(call, inputs);
  Problem& problem = task.problem;
  const ScalarType sums = inputs.float64 ? ScalarType::Double : ScalarType::Float;
  const Tensor converted_gradient = aligned(converted(gradient, inputs.value.scalar_type()));
  Tensor grad_value = torch::stable::new_zeros(inputs.value, inputs.value.sizes(), sums);
  Tensor grad_locations =
      call.packed ? empty_packed_gradient(problem, inputs.locations) : empty_like_shape(inputs.locations);
  Tensor grad_weights = call.packed ? grad_locations : empty_like_shape(inputs.weights);
  std::optional<Tensor> raw_weights;
  if (problem.coordinates == Coordinates::offsets) {
    raw_weights = grad_weights.scalar_type() == sums
                      ? grad_weights
                      : torch::stable::new_empty(inputs.weights, inputs.weights.sizes(), sums);
    task.raw_weights = raw_weights->data_ptr();
  }
  problem.grad_output = array_of("grad_output", converted_gradient);
  problem.grad_value = array_of("grad_value", grad_value);
  problem.grad_locations = array_of("grad_locations", grad_locations);
  problem.grad_weights = array_of("grad_weights", grad_weights);
  if (call.packed) std::tie(problem.grad_locations, problem.grad_weights) = unpacked(problem, problem.grad_locations);
  if (inputs.weights.numel() > 0) run(device, task, true);
  return {converted(grad_value, call.value.scalar_type()), converted(grad_locations, call.locations.scalar_type()),
          converted(grad_weights, call.weights.scalar_type())};
}

}  // namespace deformable_ops
