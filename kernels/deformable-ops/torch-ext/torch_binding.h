// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "../common/call.h"

namespace deformable_ops {

// The implementations of a call, one struct for each kind of device.
struct Cpu {
  static constexpr DeviceKind kind = DeviceKind::cpu;
  static Tensor forward(Call call);
  static Gradients backward(Call call, const Tensor& grad_output);
};

struct Cuda {
#if defined(DEFORMABLE_OPS_EMULATED)
  static constexpr DeviceKind kind = DeviceKind::cpu;
#else
  static constexpr DeviceKind kind = DeviceKind::cuda;
#endif
  static Tensor forward(Call call);
  static Gradients backward(Call call, const Tensor& grad_output);
};

using Numbers = std::vector<int64_t>;

// The operators of the schemas for one kind of device.
template <typename Device>
struct Operators {
  static Tensor ms_deform_attn(Tensor value, Numbers spatial_shapes, Tensor sampling_locations,
                               Tensor attention_weights) {
    return Device::forward(
        plain_call(Device::kind, value, spatial_shapes, sampling_locations, attention_weights));
  }

  static Gradients ms_deform_attn_backward(Tensor grad_output, Tensor value, Numbers spatial_shapes,
                                           Tensor sampling_locations, Tensor attention_weights) {
    return Device::backward(plain_call(Device::kind, value, spatial_shapes, sampling_locations, attention_weights),
                            grad_output);
  }

  static Tensor ms_deform_attn_fused(Tensor value, Numbers spatial_shapes, Tensor reference_points,
                                     Tensor sampling_offsets, Tensor attention_logits) {
    return Device::forward(fused_call(Device::kind, value, spatial_shapes, reference_points, sampling_offsets,
                                      attention_logits));
  }

  static Gradients ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, Numbers spatial_shapes,
                                                 Tensor reference_points, Tensor sampling_offsets,
                                                 Tensor attention_logits) {
    return Device::backward(fused_call(Device::kind, value, spatial_shapes, reference_points, sampling_offsets,
                                       attention_logits),
                            grad_output);
  }

  static Tensor dcnv3(Tensor value, Tensor offset, Tensor mask, Numbers kernel_size, Numbers stride, Numbers padding,
                      Numbers dilation, int64_t groups, double offset_scale, bool remove_center) {
    return Device::forward(dcnv3_call(Device::kind, value, offset, mask,
                                      {kernel_size, stride, padding, dilation, groups, offset_scale, remove_center}));
  }

  static Gradients dcnv3_backward(Tensor grad_output, Tensor value, Tensor offset, Tensor mask, Numbers kernel_size,
                                  Numbers stride, Numbers padding, Numbers dilation, int64_t groups,
                                  double offset_scale, bool remove_center) {
    return Device::backward(dcnv3_call(Device::kind, value, offset, mask,
                                       {kernel_size, stride, padding, dilation, groups, offset_scale, remove_center}),
                            grad_output);
  }

  static Tensor dcnv4(Tensor value, Tensor offset_mask, Numbers kernel_size, Numbers stride, Numbers padding,
                      Numbers dilation, int64_t groups, double offset_scale, bool remove_center) {
    return Device::forward(dcnv4_call(Device::kind, value, offset_mask,
                                      {kernel_size, stride, padding, dilation, groups, offset_scale, remove_center}));
  }

  static std::tuple<Tensor, Tensor> dcnv4_backward(Tensor grad_output, Tensor value, Tensor offset_mask,
                                                   Numbers kernel_size, Numbers stride, Numbers padding,
                                                   Numbers dilation, int64_t groups, double offset_scale,
                                                   bool remove_center) {
    const auto [grad_value, grad_offset_mask, same] = Device::backward(
        dcnv4_call(Device::kind, value, offset_mask,
                   {kernel_size, stride, padding, dilation, groups, offset_scale, remove_center}),
        grad_output);
    return {grad_value, grad_offset_mask};
  }
};

// ---- errors --------------------------------------------------------------------------------------------------------

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
constexpr size_t kMessage = 2048;

template <Boxed boxed>
__attribute__((noinline)) bool succeeds(StableIValue* stack, uint64_t inputs, uint64_t outputs, char* message) {
  try {
    boxed(stack, inputs, outputs);
    return true;
  } catch (const std::exception& error) {
    std::snprintf(message, kMessage, "%s", error.what());
  } catch (...) {
    std::snprintf(message, kMessage, "deformable_ops: unknown error");
  }
  return false;
}

// Run a boxed operator; torch raises its error. An exception of this library must not reach torch, because a library
// with a C++ runtime of its own (build.py) throws exceptions that torch cannot read. Torch's exception passes through
// this function, which therefore has nothing to destroy.
template <Boxed boxed>
void guarded(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  char message[kMessage];
  if (!succeeds<boxed>(stack, inputs, outputs, message)) aoti_torch_check(false, "deformable_ops", "", 0, message);
}

}  // namespace deformable_ops
