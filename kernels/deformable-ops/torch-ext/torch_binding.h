// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

using torch::stable::Tensor;

Tensor ms_deform_attn_cpu(Tensor value, std::vector<int64_t> spatial_shapes, Tensor sampling_locations,
                          Tensor attention_weights);
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward_cpu(Tensor grad_output, Tensor value,
                                                               std::vector<int64_t> spatial_shapes,
                                                               Tensor sampling_locations, Tensor attention_weights);

Tensor ms_deform_attn_fused_cpu(Tensor value, std::vector<int64_t> spatial_shapes, Tensor reference_points,
                                Tensor sampling_offsets, Tensor attention_logits);
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_fused_backward_cpu(Tensor grad_output, Tensor value,
                                                                     std::vector<int64_t> spatial_shapes,
                                                                     Tensor reference_points, Tensor sampling_offsets,
                                                                     Tensor attention_logits);

Tensor dcnv3_cpu(Tensor value, Tensor offset, Tensor mask, std::vector<int64_t> kernel_size,
                 std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                 int64_t groups, double offset_scale, bool remove_center);
std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_cpu(Tensor grad_output, Tensor value, Tensor offset, Tensor mask,
                                                      std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                                                      std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                                      int64_t groups, double offset_scale, bool remove_center);
