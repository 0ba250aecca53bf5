// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>

#include "../cpu/dense_operators.h"
#include "../cpu/matrix_operators.h"
#include "registration.h"

// spatial_shapes is SymInt[], because with int[] torch.compile would recompile for every size. The arguments are
// described in torch-ext/deformable_ops/functions.py.
STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  // dense operators for inference on a CPU
  ops.def(
      "winograd_inputs(Tensor pixels, Tensor zeros, int image, int first_row, Tensor(a!) planes) -> ()");
  ops.def(
      "winograd_outputs(Tensor planes, Tensor bias, int image, int first_row, bool relu, Tensor(a!) pixels) -> ()");
  ops.def("add_resized(Tensor pixels, Tensor(a!) target) -> ()");
  ops.def("resize_planes(Tensor planes, SymInt height, SymInt width) -> Tensor");
  ops.def("add_resized_taps(Tensor[] products, int first_channel, bool relu, Tensor(a!) target) -> ()");
  ops.def("softmax_rows(Tensor(a!) logits) -> ()");
  ops.def("layer_norm_rows(Tensor rows, Tensor weight, Tensor bias, float epsilon) -> Tensor");
  ops.def(
      "label_windows(Tensor logits, int[] tops, int[] lefts, int[] window, int[] rows, int[] view, int[] image) "
      "-> Tensor");
  ops.def("matrix_products(bool bfloat16) -> int");
  ops.def("pack_weight(Tensor weight) -> Tensor");
  ops.def(
      "product(Tensor rows, Tensor weight, Tensor? bias, int activation, bool accumulate, Tensor(a!) output) -> ()");
  ops.def(
      "attention(Tensor query, Tensor key, Tensor value, float scale, Tensor? keys_of_columns, Tensor? prefix) "
      "-> Tensor");

  ops.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
      "-> Tensor");
  ops.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  ops.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, "
      "Tensor attention_logits) -> Tensor");
  ops.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits) -> (Tensor, Tensor, Tensor)");
  ops.def(
      "dcnv3(Tensor value, Tensor offset, Tensor mask, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int groups, float offset_scale, bool remove_center) -> Tensor");
  ops.def(
      "dcnv3_backward(Tensor grad_output, Tensor value, Tensor offset, Tensor mask, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, int groups, float offset_scale, bool remove_center) "
      "-> (Tensor, Tensor, Tensor)");
  ops.def(
      "dcnv4(Tensor value, Tensor offset_mask, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
      "int groups, float offset_scale, bool remove_center) -> Tensor");
  ops.def(
      "dcnv4_backward(Tensor grad_output, Tensor value, Tensor offset_mask, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, int groups, float offset_scale, bool remove_center) -> (Tensor, Tensor)");
}

#define DEFORMABLE_OPS_ONE(name) ops.impl(#name, &deformable_ops::guarded<TORCH_BOX(&Code::name)>);
#define DEFORMABLE_OPS_IMPLEMENT(Device)                          \
  using Code = deformable_ops::Operators<deformable_ops::Device>; \
  DEFORMABLE_OPS_ONE(ms_deform_attn)                              \
  DEFORMABLE_OPS_ONE(ms_deform_attn_backward)                     \
  DEFORMABLE_OPS_ONE(ms_deform_attn_fused)                        \
  DEFORMABLE_OPS_ONE(ms_deform_attn_fused_backward)               \
  DEFORMABLE_OPS_ONE(dcnv3)                                       \
  DEFORMABLE_OPS_ONE(dcnv3_backward)                              \
  DEFORMABLE_OPS_ONE(dcnv4)                                       \
  DEFORMABLE_OPS_ONE(dcnv4_backward)

#define DEFORMABLE_OPS_IMPLEMENT_DENSE          \
  using Code = deformable_ops::DenseOperators;  \
  DEFORMABLE_OPS_ONE(winograd_inputs)           \
  DEFORMABLE_OPS_ONE(winograd_outputs)          \
  DEFORMABLE_OPS_ONE(add_resized)               \
  DEFORMABLE_OPS_ONE(resize_planes)             \
  DEFORMABLE_OPS_ONE(add_resized_taps)          \
  DEFORMABLE_OPS_ONE(softmax_rows)              \
  DEFORMABLE_OPS_ONE(layer_norm_rows)           \
  DEFORMABLE_OPS_ONE(label_windows)

#define DEFORMABLE_OPS_IMPLEMENT_MATRIX         \
  using Code = deformable_ops::MatrixOperators; \
  DEFORMABLE_OPS_ONE(pack_weight)               \
  DEFORMABLE_OPS_ONE(product)                   \
  DEFORMABLE_OPS_ONE(attention)

// Every variant has the CPU code, because a model may run on the CPU also if torch was built for CUDA.
#if defined(DEFORMABLE_OPS_EMULATED)  // tests of the CUDA code, see tests/emulation.h
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { DEFORMABLE_OPS_IMPLEMENT(Cuda) }
#else
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
  { DEFORMABLE_OPS_IMPLEMENT(Cpu) }
  { DEFORMABLE_OPS_IMPLEMENT_DENSE }
  { DEFORMABLE_OPS_IMPLEMENT_MATRIX }
}
#endif

#if defined(DEFORMABLE_OPS_EMULATED)  // without the CPU's sources
int64_t deformable_ops::MatrixOperators::matrix_products(bool) { return 0; }
#endif
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CompositeExplicitAutograd, ops) {
  using Code = deformable_ops::MatrixOperators;
  DEFORMABLE_OPS_ONE(matrix_products)
}

#if defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) { DEFORMABLE_OPS_IMPLEMENT(Cuda) }
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
