// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Checks and threads of the products of matrices. matrix.py describes their arguments.
#include "matrix_operators.h"

#include <cstdlib>
#include <memory>
#include <vector>

#include "../common/call.h"
#include "instructions.h"
#include "matrix.h"

namespace deformable_ops {
namespace {

// Return the loops for a type of numbers, or null.
const MatrixLoops* find_loops(bool bfloat16) {
  if (bfloat16) return has_bfloat16_vectors() ? avx512_bfloat16_matrix() : nullptr;
  const MatrixLoops* const unit = has_matrix_unit() ? amx_matrix() : nullptr;
  return unit != nullptr || instructions() != Instructions::avx512 ? unit : avx512_matrix();
}

const MatrixLoops& loops(ScalarType type) {
  const MatrixLoops* const found = find_loops(type == ScalarType::BFloat16);
  if (found == nullptr) {
    fail("this processor has no products of ", type == ScalarType::BFloat16 ? "bfloat16" : "float32",
         " matrices: see PRODUCTS");
  }
  return *found;
}

// The type of packed weights: float32 numbers that are split for AMX are stored as their bits.
ScalarType packed_type(ScalarType type, const MatrixLoops& code) {
  return type == ScalarType::Float && code.step > 1 ? ScalarType::Short : type;
}

int64_t steps_of(int64_t inner, const MatrixLoops& code) { return (inner + code.step - 1) / code.step; }

int64_t size_of(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }

const char* offset(const void* numbers, int64_t count, ScalarType type) {
  return static_cast<const char*>(numbers) + count * size_of(type);
}

char* offset(void* numbers, int64_t count, ScalarType type) {
  return static_cast<char*>(numbers) + count * size_of(type);
}

// Return the type of a tensor, float32 or bfloat16, or fail.
ScalarType type_of(const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::BFloat16) fail(name, " must be float32 or bfloat16");
  return type;
}

// Fail unless a tensor is on the CPU, has the type and rank, and has neighbouring numbers in its last dimension.
void* numbers_of(const char* name, const Tensor& tensor, int64_t rank, ScalarType type) {
  if (!tensor.is_cpu() || tensor.scalar_type() != type) {
    fail(name, " must be ", type == ScalarType::Float ? "float32" : "bfloat16", " on the CPU");
  }
  if (tensor.dim() != rank) fail(name, " must have ", rank, " dimensions, got the shape ", shape_of(tensor));
  if (tensor.size(rank - 1) > 1 && tensor.stride(rank - 1) != 1) fail(name, " must be contiguous in its last dimension");
  return tensor.data_ptr();
}

void* contiguous_numbers_of(const char* name, const Tensor& tensor, int64_t rank, ScalarType type) {
  void* const numbers = numbers_of(name, tensor, rank, type);
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

int64_t MatrixOperators::matrix_products(bool bfloat16) {
  const MatrixLoops* const found = find_loops(bfloat16);
  return found == nullptr ? 0 : found == amx_matrix() ? 2 : 1;
}

Tensor MatrixOperators::pack_weight(Tensor weight) {
  const ScalarType type = type_of("weight", weight);
  const void* const numbers = contiguous_numbers_of("weight", weight, 3, type);
  const MatrixLoops& code = loops(type);
  const ScalarType packed_numbers = packed_type(type, code);
  const int64_t count = weight.size(0), columns = weight.size(1), inner = weight.size(2);
  const int64_t blocks = blocks_of(columns), steps = steps_of(inner, code);
  const Tensor packed = torch::stable::new_empty(weight, {count, blocks, steps, code.numbers}, packed_numbers);
  void* const target = packed.data_ptr();
  torch::stable::parallel_for(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % blocks * kBlock, left = columns - column;
      code.pack_weight(offset(numbers, (i / blocks * columns + column) * inner, type), left < kBlock ? left : kBlock,
                       inner, offset(target, i * steps * code.numbers, packed_numbers));
    }
  });
  return packed;
}

void MatrixOperators::product(Tensor rows, Tensor weight, std::optional<Tensor> bias, int64_t activation,
                              bool accumulate, Tensor output) {
  const ScalarType type = type_of("rows", rows), output_type = type_of("output", output);
  const void* const numbers = numbers_of("rows", rows, 3, type);
  if (type == ScalarType::Float && output_type != type) fail("output must be float32, as rows");
  void* const target = numbers_of("output", output, 4, output_type);
  const MatrixLoops& code = loops(type);
  const int64_t count = rows.size(0), inner = rows.size(2), columns = output.size(3);
  if (inner < 1) fail("rows must have inner indices, got the shape ", shape_of(rows));
  if (inner % 2 != 0 && type == ScalarType::BFloat16) fail("rows must have an even number of inner indices, got ", inner);
  if (!weight.is_cpu() || weight.scalar_type() != packed_type(type, code) || weight.dim() != 4 ||
      !weight.is_contiguous() || weight.size(0) != count || weight.size(1) != blocks_of(columns) ||
      weight.size(2) != steps_of(inner, code) || weight.size(3) != code.numbers) {
    fail("weight must be packed for ", count, " products of ", inner, " numbers by ", columns, ", got the shape ",
         shape_of(weight));
  }
  if (output.size(0) != count || output.size(1) * output.size(2) != rows.size(1)) {
    fail("output ", shape_of(output), " must have the rows of ", shape_of(rows));
  }
  if (activation < 0 || activation > 2) fail("activation must be 0, 1 or 2, got ", activation);
  if (output.numel() == 0) return;
  const void* shared = nullptr;
  if (bias.has_value()) {
    shared = contiguous_numbers_of("bias", *bias, 1, type);
    if (bias->size(0) != columns) fail("bias must have ", columns, " numbers, got the shape ", shape_of(*bias));
  }
  const int64_t height = rows.size(1), row_blocks = (height + code.rows - 1) / code.rows;
  const int64_t column_blocks = blocks_of(columns), size = column_blocks * steps_of(inner, code) * code.numbers;
  const int64_t row_step = rows.stride(0), output_step = output.stride(0);
  Product first = {};
  first.row_stride = rows.stride(1);
  first.lines = output.size(1);
  first.width = output.size(2);
  first.inner = inner;
  first.columns = columns;
  first.bias = shared;
  first.activation = static_cast<Activation>(activation);
  first.accumulate = accumulate;
  first.wide_output = output_type != type;
  first.line_stride = output.stride(1);
  first.output_stride = output.stride(2);
  const auto compute = [&](int64_t i, int64_t row, int64_t last_row, int64_t column, int64_t last_column) {
    Product task = first;
    task.rows = offset(numbers, i * row_step, type);
    task.weight = offset(weight.data_ptr(), i * size, weight.scalar_type());
    task.output = offset(target, i * output_step, output_type);
    const int64_t last = last_row * code.rows;
    code.product(task, row * code.rows, last < height ? last : height, column, last_column,
                 thread_memory(code.product_memory(task)));
  };
  // few rows: the threads share the columns
  constexpr int64_t kFewRows = 256;
  const bool by_columns = count * height < kFewRows;
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
  const ScalarType type = type_of("query", query);
  task.query = numbers_of("query", query, 4, type);
  task.key = numbers_of("key", key, 4, type);
  task.value = numbers_of("value", value, 4, type);
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
  if (task.channels % 2 != 0 && type == ScalarType::BFloat16) {
    fail("query must have an even number of channels, got ", task.channels);
  }
  strides_of(query, task.query_strides);
  strides_of(key, task.key_strides);
  strides_of(value, task.value_strides);
  task.scale = static_cast<float>(scale);
  if (keys_of_columns.has_value()) {
    task.keys_of_columns = static_cast<float*>(
        contiguous_numbers_of("keys_of_columns", *keys_of_columns, 3, ScalarType::Float));
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
      task.prefix = static_cast<float*>(contiguous_numbers_of("prefix", *prefix, 2, ScalarType::Float));
      if (prefix->size(0) != 3 || prefix->size(1) != task.heads) {
        fail("prefix must be (3, ", task.heads, "), got the shape ", shape_of(*prefix));
      }
    }
  }
  const Tensor output = torch::stable::new_empty(query, {batch, task.queries, task.heads, task.channels});
  task.output = output.data_ptr();
  const MatrixLoops& code = loops(type);
  const int64_t blocks = blocks_of(task.queries);
  torch::stable::parallel_for(0, batch * task.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    void* const memory = thread_memory(code.attention_memory(task.keys, task.channels));
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
