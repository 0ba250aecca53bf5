// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace deformable_ops {

// Products of matrices, see matrix.h; matrix.py describes the arguments.
struct MatrixOperators {
  using Tensor = torch::stable::Tensor;
  static int64_t matrix_products(bool bfloat16);
  static Tensor pack_weight(Tensor weight);
  static void product(Tensor rows, Tensor weight, std::optional<Tensor> bias, int64_t activation, bool accumulate,
                      Tensor output);
  static Tensor attention(Tensor query, Tensor key, Tensor value, double scale, std::optional<Tensor> keys_of_columns,
                          std::optional<Tensor> prefix);
};

}  // namespace deformable_ops
