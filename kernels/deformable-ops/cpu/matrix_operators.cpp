// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Checks and threads of the products by a matrix unit. matrix.py describes their arguments.
#include "matrix_operators.h"

#include <cstdlib>
#include <memory>
#include <vector>

#include "../common/call.h"
#include "instructions.h"
#include "matrix.h"

namespace deformable_ops {
namespace {

const MatrixLoops& loops() {
  const MatrixLoops* const found = has_matrix_unit() ? amx_matrix() : nullptr;
  if (found == nullptr) fail("this processor has no AMX: see HAS_MATRIX_UNIT");
  return *found;
}

// Fail unless a tensor is float32 on the CPU, has the rank, and has neighbouring numbers in its last dimension.
const float* numbers_of(const char* name, const Tensor& tensor, int64_t rank) {
  if (!tensor.is_cpu() || tensor.scalar_type() != ScalarType::Float) fail(name, " must be float32 on the CPU");
  if (tensor.dim() != rank) fail(name, " must have ", rank, " dimensions, got the shape ", shape_of(tensor));
  if (tensor.size(rank - 1) > 1 && tensor.stride(rank - 1) != 1) fail(name, " must be contiguous in its last dimension");
  return static_cast<const float*>(tensor.data_ptr());
}

const float* contiguous_numbers_of(const char* name, const Tensor& tensor, int64_t rank) {
  const float* const numbers = numbers_of(name, tensor, rank);
  if (!tensor.is_contiguous()) fail(name, " must be contiguous");
  return numbers;
}

// Memory of a thread that stays from call to call, because the system clears fresh memory page by page.
void* thread_memory(int64_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local int64_t size = 0;
  if (size < bytes) {
    constexpr int64_t kPage = 4096;
    size = 0;
    memory.reset();
    memory.reset(std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage));
    if (memory == nullptr) fail("out of memory: cannot allocate ", bytes, " bytes");
    size = bytes;
  }
  return memory.get();
}

void strides_of(const Tensor& tensor, int64_t* strides) {
  for (int64_t i = 0; i < 3; ++i) strides[i] = tensor.stride(i);
}

}  // namespace

bool MatrixOperators::has_matrix_unit() { return deformable_ops::has_matrix_unit() && amx_matrix() != nullptr; }

Tensor MatrixOperators::pack_weight(Tensor weight) {
  const float* const numbers = contiguous_numbers_of("weight", weight, 3);
  const int64_t count = weight.size(0), columns = weight.size(1), inner = weight.size(2);
  const int64_t blocks = blocks_of(columns), size = blocks_of(inner) * kPackedBlock;
  const Tensor packed = torch::stable::new_empty(
      weight, {count, blocks, blocks_of(inner), kPackedBlock}, ScalarType::Short);
  uint16_t* const target = static_cast<uint16_t*>(packed.data_ptr());
  const MatrixLoops& code = loops();
  torch::stable::parallel_for(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % blocks * kBlock, left = columns - column;
      const float* const source = numbers + (i / blocks * columns + column) * inner;
      code.pack_weight(source, left < kBlock ? left : kBlock, inner, target + i * size);
    }
  });
  return packed;
}

void MatrixOperators::product(Tensor rows, Tensor weight, std::optional<Tensor> bias, int64_t activation,
                              bool accumulate, Tensor output) {
  const float* const numbers = numbers_of("rows", rows, 3);
  const float* const target = numbers_of("output", output, 4);
  const int64_t count = rows.size(0), inner = rows.size(2), columns = output.size(3);
  if (!weight.is_cpu() || weight.scalar_type() != ScalarType::Short || weight.dim() != 4 || !weight.is_contiguous() ||
      weight.size(0) != count || weight.size(1) != blocks_of(columns) || weight.size(2) != blocks_of(inner) ||
      weight.size(3) != kPackedBlock) {
    fail("weight must be packed for ", count, " products of ", inner, " numbers by ", columns, ", got the shape ",
         shape_of(weight));
  }
  if (output.size(0) != count || output.size(1) * output.size(2) != rows.size(1)) {
    fail("output ", shape_of(output), " must have the rows of ", shape_of(rows));
  }
  if (activation < 0 || activation > 2) fail("activation must be 0, 1 or 2, got ", activation);
  if (output.numel() == 0) return;
  const float* shared = nullptr;
  if (bias.has_value()) {
    shared = contiguous_numbers_of("bias", *bias, 1);
    if (bias->size(0) != columns) fail("bias must have ", columns, " numbers, got the shape ", shape_of(*bias));
  }
  const MatrixLoops& code = loops();
  const int64_t row_blocks = blocks_of(rows.size(1)), column_blocks = blocks_of(columns);
  const int64_t size = column_blocks * blocks_of(inner) * kPackedBlock;
  const int64_t row_step = rows.stride(0), output_step = output.stride(0);
  const uint16_t* const packed = static_cast<const uint16_t*>(weight.data_ptr());
  Product first = {};
  first.rows = numbers;
  first.row_stride = rows.stride(1);
  first.lines = output.size(1);
  first.width = output.size(2);
  first.inner = inner;
  first.weight = packed;
  first.columns = columns;
  first.bias = shared;
  first.activation = static_cast<Activation>(activation);
  first.accumulate = accumulate;
  first.output = const_cast<float*>(target);
  first.line_stride = output.stride(1);
  first.output_stride = output.stride(2);
  const auto compute = [&](int64_t i, int64_t row, int64_t last_row, int64_t column, int64_t last_column) {
    Product task = first;
    task.rows += i * row_step;
    task.weight += i * size;
    task.output += i * output_step;
    constexpr int64_t kMemory = 2 * kRowBlocks * kInnerBlocks * kPackedBlock;
    code.product(task, row, last_row, column, last_column, static_cast<uint16_t*>(thread_memory(kMemory)));
  };
  // few rows: the threads share the columns, and each packs all rows
  constexpr int64_t kFewRows = 8;
  const bool by_columns = count * row_blocks < kFewRows;
  const int64_t parts = by_columns ? column_blocks : row_blocks;
  torch::stable::parallel_for(0, count * parts, 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t i = begin / parts, part = begin % parts;
      const int64_t last = part + (end - begin) < parts ? part + (end - begin) : parts;
      if (by_columns) {
        compute(i, 0, row_blocks, part, last);
      } else {
        compute(i, part, last, 0, column_blocks);
      }
      begin += last - part;
    }
  });
}

Tensor MatrixOperators::attention(Tensor query, Tensor key, Tensor value, double scale,
                                  std::optional<Tensor> keys_of_columns, std::optional<Tensor> prefix) {
  Attention task = {};
  task.query = numbers_of("query", query, 4);
  task.key = numbers_of("key", key, 4);
  task.value = numbers_of("value", value, 4);
  const int64_t batch = query.size(0);
  task.heads = query.size(1);
  task.queries = query.size(2);
  task.keys = key.size(2);
  task.channels = query.size(3);
  if (!same_shape(key, value, 4) || key.size(0) != batch || key.size(1) != task.heads ||
      key.size(3) != task.channels || task.keys < 1) {
    fail("query ", shape_of(query), ", key ", shape_of(key), " and value ", shape_of(value),
         " must have equal batch sizes, heads and channels");
  }
  strides_of(query, task.query_strides);
  strides_of(key, task.key_strides);
  strides_of(value, task.value_strides);
  task.scale = static_cast<float>(scale);
  if (keys_of_columns.has_value()) {
    task.keys_of_columns = contiguous_numbers_of("keys_of_columns", *keys_of_columns, 3);
    task.width = keys_of_columns->size(1);
    const int64_t rows = task.width > 0 ? keys_of_columns->size(2) / task.width : 0;
    task.height = (rows + 1) / 2;
    task.has_prefix = prefix.has_value();
    const int64_t tokens = task.height * task.width + task.has_prefix;
    if (keys_of_columns->size(0) != task.heads || task.width < 1 ||
        keys_of_columns->size(2) != (2 * task.height - 1) * task.width || tokens != task.keys ||
        tokens != task.queries) {
      fail("keys_of_columns must be (", task.heads, ", width, (2 * height - 1) * width) for ", task.queries, " by ",
           task.keys, " tokens, got the shape ", shape_of(*keys_of_columns));
    }
    if (task.has_prefix) {
      task.prefix = contiguous_numbers_of("prefix", *prefix, 2);
      if (prefix->size(0) != 3 || prefix->size(1) != task.heads) {
        fail("prefix must be (3, ", task.heads, "), got the shape ", shape_of(*prefix));
      }
    }
  }
  const Tensor output = torch::stable::new_empty(query, {batch, task.queries, task.heads, task.channels});
  task.output = static_cast<float*>(output.data_ptr());
  const MatrixLoops& code = loops();
  const int64_t blocks = blocks_of(task.queries);
  torch::stable::parallel_for(0, batch * task.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    void* const memory = thread_memory(attention_memory(task.keys, task.channels));
    while (begin < end) {
      const int64_t head = begin / blocks, block = begin % blocks;
      const int64_t last = block + (end - begin) < blocks ? block + (end - begin) : blocks;
      code.attention(task, head / task.heads, head % task.heads, block, last, memory);
      begin += last - block;
    }
  });
  return output;
}

}  // namespace deformable_ops
