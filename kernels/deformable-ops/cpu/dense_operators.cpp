// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Checks and threads of the dense operators. dense.py describes their arguments.
#include "dense_operators.h"

#include <algorithm>
#include <deque>
#include <vector>

#include "../common/call.h"
#include "dense.h"
#include "instructions.h"

namespace deformable_ops {
namespace {

const DenseLoops& loops(ScalarType type = ScalarType::Float) {
  const bool bfloat16 = type == ScalarType::BFloat16;
#if defined(__x86_64__)
  const DenseLoops* const own = bfloat16 && has_bfloat16_vectors() ? avx512_bfloat16_dense() : nullptr;
  if (own != nullptr) return *own;
  if (instructions() == Instructions::avx512) return avx512_dense(bfloat16);
  if (instructions() == Instructions::avx2) return avx2_dense(bfloat16);
#endif
  return baseline_dense(bfloat16);
}

// Return the memory of a contiguous tensor on the CPU, or fail.
void* memory_of(const char* name, const Tensor& tensor, int64_t rank, ScalarType type) {
  if (!tensor.is_cpu() || tensor.scalar_type() != type) {
    fail(name, " must be ", type == ScalarType::Float ? "float32" : "bfloat16", " on the CPU");
  }
  if (tensor.dim() != rank) fail(name, " must have ", rank, " dimensions, got the shape ", shape_of(tensor));
  if (!tensor.is_contiguous()) fail(name, " must be contiguous");
  return tensor.data_ptr();
}

float* numbers_of(const char* name, const Tensor& tensor, int64_t rank) {
  return static_cast<float*>(memory_of(name, tensor, rank, ScalarType::Float));
}

// Return the type of a tensor, float32 or bfloat16, or fail.
ScalarType type_of(const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::BFloat16) fail(name, " must be float32 or bfloat16");
  return type;
}

void check_channels(const char* name, int64_t channels) {
  if (channels % kChannelMultiple != 0) {
    fail(name, " must have a multiple of ", kChannelMultiple, " channels, got ", channels);
  }
}

constexpr int64_t kGrain = 1;

// Bilinear, with align_corners False, in the arithmetic of torch's interpolate.
std::vector<Neighbours> neighbours(int64_t size, int64_t new_size) {
  std::vector<Neighbours> found(new_size);
  const float scale = static_cast<float>(size) / static_cast<float>(new_size);
  for (int64_t i = 0; i < new_size; ++i) {
    const float source = std::max(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
    const int64_t first = std::min(static_cast<int64_t>(source), size - 1);
    const float weight = std::min(std::max(source - static_cast<float>(first), 0.0f), 1.0f);
    found[i] = {static_cast<int32_t>(first), static_cast<int32_t>(std::min(first + 1, size - 1)), weight};
  }
  return found;
}

// A resize and what it points to.
struct ResizeCall {
  std::vector<Neighbours> rows, columns;
  Resize task;

  ResizeCall(const void* source, void* target, int64_t height, int64_t width, int64_t new_height, int64_t new_width,
             int64_t channels) {
    if (height < 1 || width < 1 || new_height < 1 || new_width < 1 || height > kMaxTokens || width > kMaxTokens) {
      fail("cannot resize ", height, " by ", width, " pixels to ", new_height, " by ", new_width);
    }
    rows = neighbours(height, new_height);
    columns = neighbours(width, new_width);
    task = {source, target, height, width, new_height, new_width, channels, rows.data(), columns.data()};
  }
  ResizeCall(const ResizeCall&) = delete;  // `task` points to the vectors
};

Winograd winograd_of(const char* row_name, const Tensor& pixels, const Tensor& row, int64_t image, int64_t first_row,
                     const Tensor& planes, ScalarType planes_type) {
  const ScalarType type = type_of("pixels", pixels);
  void* const numbers = memory_of("pixels", pixels, 4, type);
  const int64_t height = pixels.size(1), width = pixels.size(2), channels = pixels.size(3);
  check_channels("pixels", channels);
  if (image < 0 || image >= pixels.size(0)) fail("image must be below ", pixels.size(0), ", got ", image);
  if (!planes.is_cpu() || planes.scalar_type() != planes_type || planes.dim() != 3 ||
      planes.size(0) != kTaps * kTaps || planes.size(2) != channels || planes.stride(2) != 1 ||
      planes.stride(1) != channels) {
    fail("planes must be ", planes_type == ScalarType::Float ? "float32" : "bfloat16", " (36, tiles, ", channels,
         ") with contiguous planes, got the shape ", shape_of(planes));
  }
  const int64_t tile_columns = (width + kTile - 1) / kTile, rows = (height + kTile - 1) / kTile;
  if (first_row < 0 || tile_columns == 0 || planes.size(1) % tile_columns != 0 ||
      first_row + planes.size(1) / tile_columns > rows) {
    fail("planes have ", planes.size(1), " tiles from row ", first_row, ", which are not whole rows of ", rows, " by ",
         tile_columns, " tiles");
  }
  const void* const shared = memory_of(row_name, row, 1, type);
  if (row.size(0) != channels) fail(row_name, " must have ", channels, " numbers, got the shape ", shape_of(row));
  const int64_t first = image * height * width * channels * (type == ScalarType::Float ? 4 : 2);
  return {static_cast<char*>(numbers) + first,
          height,
          width,
          channels,
          first_row,
          tile_columns,
          planes.data_ptr(),
          planes.stride(0),
          shared,
          false};
}

}  // namespace

void DenseOperators::winograd_inputs(Tensor pixels, Tensor zeros, int64_t image, int64_t first_row, Tensor planes) {
  const ScalarType type = type_of("pixels", pixels);
  const Winograd task = winograd_of("zeros", pixels, zeros, image, first_row, planes, type);
  torch::stable::parallel_for(0, planes.size(1), kGrain, [&](int64_t begin, int64_t end) {
    loops(type).winograd_inputs(task, begin, end);
  });
}

void DenseOperators::winograd_outputs(Tensor planes, Tensor bias, int64_t image, int64_t first_row, bool relu,
                                      Tensor pixels) {
  const ScalarType type = type_of("pixels", pixels);
  Winograd task = winograd_of("bias", pixels, bias, image, first_row, planes, ScalarType::Float);
  task.relu = relu;
  torch::stable::parallel_for(0, planes.size(1), kGrain, [&](int64_t begin, int64_t end) {
    loops(type).winograd_outputs(task, begin, end);
  });
}

void DenseOperators::add_resized(Tensor pixels, Tensor target) {
  const ScalarType type = type_of("pixels", pixels);
  const void* const source = memory_of("pixels", pixels, 4, type);
  void* const sums = memory_of("target", target, 4, type);
  check_channels("pixels", pixels.size(3));
  if (target.size(0) != pixels.size(0) || target.size(3) != pixels.size(3)) {
    fail("target ", shape_of(target), " must have the batch size and channels of pixels ", shape_of(pixels));
  }
  const ResizeCall call(source, sums, pixels.size(1), pixels.size(2), target.size(1), target.size(2), pixels.size(3));
  torch::stable::parallel_for(0, target.size(0) * target.size(1), kGrain, [&](int64_t begin, int64_t end) {
    loops(type).add_resized(call.task, begin, end);
  });
}

Tensor DenseOperators::resize_planes(Tensor planes, int64_t height, int64_t width) {
  const ScalarType type = type_of("planes", planes);
  const void* const source = memory_of("planes", planes, 4, type);
  if (height < 1 || width < 1) fail("cannot resize planes ", shape_of(planes), " to ", height, " by ", width);
  const Tensor output = torch::stable::new_empty(planes, {planes.size(0), planes.size(1), height, width});
  const ResizeCall call(source, output.data_ptr(), planes.size(2), planes.size(3), height, width, planes.size(1));
  const int64_t rows = planes.size(0) * planes.size(1) * height;
  torch::stable::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> lines(2 * width);
    loops(type).resize_planes(call.task, begin, end, lines.data());
  });
  return output;
}

void DenseOperators::add_resized_taps(std::vector<Tensor> products, int64_t first_channel, bool relu, Tensor target) {
  if (products.empty() || products.size() > kMostMaps) fail("there must be products of 1 to ", kMostMaps, " maps");
  const ScalarType type = type_of("products", products[0]);
  char* const sums = static_cast<char*>(memory_of("target", target, 4, type));
  const int64_t channels = products[0].dim() == 5 ? products[0].size(4) : 0;
  std::deque<ResizeCall> calls;
  std::vector<Resize> resizes;
  for (const Tensor& one : products) {
    const void* const source = memory_of("products", one, 5, type);
    if (one.size(3) != 9) fail("products must be (batch, height, width, 9, channels), got ", shape_of(one));
    check_channels("products", one.size(4));
    if (target.size(0) != one.size(0) || one.size(4) != channels || first_channel < 0 ||
        first_channel + channels > target.size(3)) {
      fail("target ", shape_of(target), " has no place for products ", shape_of(one), " at channel ", first_channel);
    }
    calls.emplace_back(source, sums + first_channel * target.element_size(), one.size(1), one.size(2), target.size(1),
                       target.size(2), channels);
    resizes.push_back(calls.back().task);
  }
  const int64_t maps = static_cast<int64_t>(resizes.size());
  const ResizedTaps task = {resizes.data(), maps, target.size(3), relu};
  torch::stable::parallel_for(0, target.size(0) * target.size(1), kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> lines(maps * 6 * line_stride(resizes[0]));
    loops(type).add_resized_taps(task, begin, end, lines.data());
  });
}

void DenseOperators::softmax_rows(Tensor logits) {
  const ScalarType type = type_of("logits", logits);
  void* const numbers = memory_of("logits", logits, 2, type);
  constexpr int64_t kMost = 1024;
  const int64_t size = logits.size(1);
  if (size < 1 || size > kMost) fail("logits must have 1 to ", kMost, " columns, got the shape ", shape_of(logits));
  constexpr int64_t kRows = 256;
  torch::stable::parallel_for(0, logits.size(0), kRows, [&](int64_t begin, int64_t end) {
    loops(type).softmax(numbers, size, begin, end);
  });
}

Tensor DenseOperators::layer_norm_rows(Tensor rows, Tensor weight, Tensor bias, double epsilon) {
  const ScalarType type = type_of("rows", rows);
  const void* const numbers = memory_of("rows", rows, 2, type);
  const int64_t size = rows.size(1);
  check_channels("rows", size);
  LayerNorm task = {numbers, memory_of("weight", weight, 1, type), memory_of("bias", bias, 1, type), nullptr, size,
                    static_cast<float>(epsilon)};
  if (size < 1 || weight.size(0) != size || bias.size(0) != size) {
    fail("rows, weight and bias must have equally many numbers, got the shapes ", shape_of(rows), ", ",
         shape_of(weight), " and ", shape_of(bias));
  }
  const Tensor output = torch::stable::new_empty(rows, {rows.size(0), size});
  task.output = output.data_ptr();
  constexpr int64_t kRows = 64;
  torch::stable::parallel_for(0, rows.size(0), kRows, [&](int64_t begin, int64_t end) {
    loops(type).layer_norm(task, begin, end);
  });
  return output;
}

namespace {

// Return 1 / the number of windows at each position of a side of `size`; windows that start alike count once.
std::vector<float> scales_of(std::vector<int64_t> origins, int64_t window, int64_t size) {
  std::sort(origins.begin(), origins.end());
  origins.erase(std::unique(origins.begin(), origins.end()), origins.end());
  std::vector<float> scales(size, 0.0f);
  for (const int64_t origin : origins) {
    for (int64_t i = std::max<int64_t>(origin, 0); i < std::min(origin + window, size); ++i) scales[i] += 1;
  }
  for (float& scale : scales) scale = scale > 0 ? 1 / scale : 0;
  return scales;
}

// The positions of the logits along one side whose weighted sum is a position of the image.
struct Tap {
  int64_t window, position;
  float weight;
};

// Return the taps of each position [begin, end) of the image along one side.
//
// Neighbours resize the view to the image (`outside`) and logits to a window (`inside`). Windows are numbered as their
// origins, and taps are in the order of the windows.
std::vector<std::vector<Tap>> taps_of(const std::vector<int64_t>& origins, int64_t window, int64_t view,
                                      const std::vector<Neighbours>& inside, const std::vector<Neighbours>& outside,
                                      int64_t begin, int64_t end) {
  const std::vector<float> scales = scales_of(origins, window, view);
  std::vector<std::vector<Tap>> found(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    std::vector<Tap>& taps = found[i - begin];
    for (size_t own = 0; own < origins.size(); ++own) {
      const size_t first = taps.size();
      const auto add = [&](int64_t position, float weight) {
        if (weight == 0) return;
        for (size_t k = first; k < taps.size(); ++k) {
          if (taps[k].position != position) continue;
          taps[k].weight += weight;
          return;
        }
        taps.push_back({static_cast<int64_t>(own), position, weight});
      };
      const auto add_view = [&](int64_t position, float weight) {
        const int64_t inner = position - origins[own];
        if (inner < 0 || inner >= window) return;
        const Neighbours& pair = inside[inner];
        add(pair.first, weight * scales[position] * (1 - pair.weight));
        add(pair.second, weight * scales[position] * pair.weight);
      };
      add_view(outside[i].first, 1 - outside[i].weight);
      add_view(outside[i].second, outside[i].weight);
    }
  }
  return found;
}

// Check that a weighted mean is one: a window that is missing or there twice changes the sum of the weights.
template <typename Taps>
void check_mean(const Taps& first, const Taps& last, const char* side, int64_t position) {
  float sum = 0;
  for (Taps tap = first; tap != last; ++tap) sum += tap->weight;
  if (!(sum > 0.999f && sum < 1.001f)) {
    fail("the windows must be a grid that covers each wanted pixel, but ", side, " ", position,
         " of the image lacks windows or has some twice");
  }
}

}  // namespace

Tensor DenseOperators::label_windows(Tensor logits, std::vector<int64_t> tops, std::vector<int64_t> lefts,
                                     std::vector<int64_t> window, std::vector<int64_t> rows, std::vector<int64_t> view,
                                     std::vector<int64_t> image) {
  const ScalarType type = type_of("logits", logits);
  const void* const numbers = memory_of("logits", logits, 4, type);
  const size_t windows = static_cast<size_t>(logits.size(0));
  if (tops.size() != windows || lefts.size() != windows) fail("there must be ", windows, " origins of windows");
  for (const auto* pair : {&window, &rows, &view, &image}) {
    if (pair->size() != 2) fail("window, rows, view and image must have two numbers, got ", join(*pair));
  }
  if (logits.size(3) < 1 || rows[0] < 0 || rows[1] < rows[0] || rows[1] > image[0]) {
    fail("cannot label the rows ", join(rows), " of an image ", join(image), " with logits ", shape_of(logits));
  }
  const ResizeCall inside(numbers, nullptr, logits.size(1), logits.size(2), window[0], window[1], logits.size(3));
  const ResizeCall outside(numbers, nullptr, view[0], view[1], image[0], image[1], logits.size(3));
  for (const int64_t left : lefts) {
    if (left < 0 || left >= view[1]) fail("windows must start at columns 0 to ", view[1] - 1, ", got ", left);
  }
  std::vector<int64_t> columns_of_windows(lefts);
  std::sort(columns_of_windows.begin(), columns_of_windows.end());
  columns_of_windows.erase(std::unique(columns_of_windows.begin(), columns_of_windows.end()), columns_of_windows.end());
  const int64_t columns = static_cast<int64_t>(columns_of_windows.size());
  WindowLabels task = {};
  task.logits = numbers;
  task.height = logits.size(1);
  task.width = logits.size(2);
  task.classes = logits.size(3);
  task.columns_of_windows = columns;
  task.pixel_stride = (task.classes + kChannelMultiple - 1) / kChannelMultiple * kChannelMultiple;

  std::vector<ColumnTap> column_taps;
  std::vector<int64_t> column_starts = {0};
  const auto taps_of_columns =
      taps_of(columns_of_windows, window[1], view[1], inside.columns, outside.columns, 0, image[1]);
  for (const auto& taps : taps_of_columns) {
    for (const Tap& tap : taps) {
      column_taps.push_back({(tap.window * task.width + tap.position) * task.pixel_stride, tap.weight});
    }
    check_mean(taps.begin(), taps.end(), "column", static_cast<int64_t>(column_starts.size()) - 1);
    column_starts.push_back(static_cast<int64_t>(column_taps.size()));
  }
  std::vector<RowTap> row_taps;
  std::vector<int64_t> row_starts = {0};
  for (const auto& taps : taps_of(tops, window[0], view[0], inside.rows, outside.rows, rows[0], rows[1])) {
    for (int64_t column = 0; column < columns; ++column) {
      for (const Tap& tap : taps) {
        if (lefts[tap.window] == columns_of_windows[column]) row_taps.push_back({tap.window, tap.position, tap.weight});
      }
      const int64_t row = rows[0] + (static_cast<int64_t>(row_starts.size()) - 1) / columns;
      check_mean(row_taps.begin() + row_starts.back(), row_taps.end(), "row", row);
      row_starts.push_back(static_cast<int64_t>(row_taps.size()));
    }
  }
  task.row_starts = row_starts.data();
  task.row_taps = row_taps.data();
  task.column_starts = column_starts.data();
  task.column_taps = column_taps.data();
  task.image_width = image[1];
  const Tensor labels = torch::stable::new_empty(logits, {rows[1] - rows[0], image[1]}, ScalarType::Long);
  task.labels = static_cast<int64_t*>(labels.data_ptr());
  constexpr int64_t kRows = 8;
  torch::stable::parallel_for(0, rows[1] - rows[0], kRows, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(columns * task.width * task.pixel_stride);
    loops(type).label_windows(task, begin, end, memory.data());
  });
  return labels;
}

}  // namespace deformable_ops
