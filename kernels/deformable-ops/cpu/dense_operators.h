// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace deformable_ops {

// Dense operators for inference on a CPU; the schemas in torch_binding.cpp say which tensors they write.
struct DenseOperators {
  using Tensor = torch::stable::Tensor;
  static void winograd_inputs(Tensor pixels, Tensor zeros, int64_t image, int64_t first_row, Tensor planes);
  static void winograd_outputs(Tensor planes, Tensor bias, int64_t image, int64_t first_row, bool relu, Tensor pixels);
  static void add_resized(Tensor pixels, Tensor target);
  static Tensor resize_planes(Tensor planes, int64_t height, int64_t width);
  static void add_resized_taps(std::vector<Tensor> products, int64_t first_channel, bool relu, Tensor target);
  static void softmax_rows(Tensor logits);
  static Tensor layer_norm_rows(Tensor rows, Tensor weight, Tensor bias, double epsilon);
  static Tensor label_windows(Tensor logits, std::vector<int64_t> tops, std::vector<int64_t> lefts,
                              std::vector<int64_t> window, std::vector<int64_t> rows, std::vector<int64_t> view,
                              std::vector<int64_t> image);
};

}  // namespace deformable_ops
