// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// The loops of the dense operators (dense.h) for one instruction set (sampling.h). Channels are multiples of
// kChannelMultiple, so rows of pixels consist of whole vectors.
#pragma once

#include "arithmetic.h"
#include "dense.h"

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

typedef VectorOf<float>::type Floats;
constexpr int64_t kLanes = kVectorBytes / sizeof(float);

// bfloat16 numbers are the upper halves of floats.
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

DEFORMABLE_OPS_INLINE Floats load(const float* source) { return load_vector<Floats>(source); }

DEFORMABLE_OPS_INLINE Floats load(const uint16_t* source) {
  return (Floats)(__builtin_convertvector(load_vector<Halves>(source), Words) << 16);
}

DEFORMABLE_OPS_INLINE void save(float* target, Floats numbers) { store_vector(target, numbers); }

// Round to nearest, ties to even. NaN stays NaN.
DEFORMABLE_OPS_INLINE void save(uint16_t* target, Floats numbers) {
#if defined(DEFORMABLE_OPS_BFLOAT16)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), (__m256i)_mm512_cvtneps_pbh((__m512)numbers));
#else
  const Words bits = (Words)numbers;
  const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Words is_nan = (Words)(numbers != numbers);
  store_vector(target, __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), Halves));
#endif
}

DEFORMABLE_OPS_INLINE float number(float value) { return value; }
DEFORMABLE_OPS_INLINE float number(uint16_t value) { return from_bfloat16(value); }
DEFORMABLE_OPS_INLINE void save_number(float* target, float value) { *target = value; }
DEFORMABLE_OPS_INLINE void save_number(uint16_t* target, float value) { *target = to_bfloat16(value); }

// ---- minimal filtering ---------------------------------------------------------------------------------------------

// The interpolation points of F(4, 3) are 0, -a, a, -b, b and infinity. With these a and b the largest error was half of
// that with 1 and 2 in random tests, and both are exact.
constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// Transform six input numbers, `stride` vectors apart.
DEFORMABLE_OPS_INLINE void transform_input(const Floats* in, int64_t stride, Floats (&out)[kTaps]) {
  const Floats d0 = in[0], d1 = in[stride], d2 = in[2 * stride], d3 = in[3 * stride], d4 = in[4 * stride],
               d5 = in[5 * stride];
  const Floats even_a = d4 - kB2 * d2, odd_a = kA * d3 - kA * kB2 * d1;
  const Floats even_b = d4 - kA2 * d2, odd_b = kB * d3 - kB * kA2 * d1;
  out[0] = kA2 * kB2 * d0 - (kA2 + kB2) * d2 + d4;
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = kA2 * kB2 * d1 - (kA2 + kB2) * d3 + d5;
}

// Transform six products, `stride` vectors apart, to four output numbers.
DEFORMABLE_OPS_INLINE void transform_output(const Floats* in, int64_t stride, Floats (&out)[kTile]) {
  const Floats m1 = in[stride], m2 = in[2 * stride], m3 = in[3 * stride], m4 = in[4 * stride];
  const Floats even_a = m1 + m2, odd_a = m1 - m2, even_b = m3 + m4, odd_b = m3 - m4;
  out[0] = in[0] + even_a + even_b;
  out[1] = kA * odd_a + kB * odd_b;
  out[2] = kA2 * even_a + kB2 * even_b;
  out[3] = kA * kA2 * odd_a + kB * kB2 * odd_b + in[5 * stride];
}

template <typename T>
void winograd_inputs(const Winograd& task, int64_t begin, int64_t end) {
  const T* const pixels = static_cast<const T*>(task.pixels);
  const T* const zeros = static_cast<const T*>(task.row);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t top = (task.first_row + tile / task.tile_columns) * kTile - 1;
    const int64_t left = tile % task.tile_columns * kTile - 1;
    const T* source[kTaps][kTaps];
    for (int64_t i = 0; i < kTaps; ++i) {
      for (int64_t k = 0; k < kTaps; ++k) {
        const int64_t y = top + i, x = left + k;
        const bool inside = y >= 0 && y < task.height && x >= 0 && x < task.width;
        source[i][k] = inside ? pixels + (y * task.width + x) * task.channels : zeros;
      }
    }
    for (int64_t channel = 0; channel < task.channels; channel += kLanes) {
      Floats columns[kTaps][kTaps];
      for (int64_t k = 0; k < kTaps; ++k) {
        Floats in[kTaps], out[kTaps];
        for (int64_t i = 0; i < kTaps; ++i) in[i] = load(source[i][k] + channel);
        transform_input(in, 1, out);
        for (int64_t i = 0; i < kTaps; ++i) columns[i][k] = out[i];
      }
      T* target = static_cast<T*>(task.planes) + tile * task.channels + channel;
      for (int64_t i = 0; i < kTaps; ++i) {
        Floats out[kTaps];
        transform_input(columns[i], 1, out);
        for (int64_t k = 0; k < kTaps; ++k) save(target + (i * kTaps + k) * task.plane_stride, out[k]);
      }
    }
  }
}

template <typename T>
void winograd_outputs(const Winograd& task, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t top = (task.first_row + tile / task.tile_columns) * kTile;
    const int64_t left = tile % task.tile_columns * kTile;
    const int64_t rows = task.height - top < kTile ? task.height - top : kTile;
    const int64_t columns = task.width - left < kTile ? task.width - left : kTile;
    for (int64_t channel = 0; channel < task.channels; channel += kLanes) {
      const float* source = static_cast<const float*>(task.planes) + tile * task.channels + channel;
      Floats lines[kTile][kTaps];
      for (int64_t k = 0; k < kTaps; ++k) {
        Floats in[kTaps], out[kTile];
        for (int64_t i = 0; i < kTaps; ++i) in[i] = load(source + (i * kTaps + k) * task.plane_stride);
        transform_output(in, 1, out);
        for (int64_t i = 0; i < kTile; ++i) lines[i][k] = out[i];
      }
      const Floats bias = load(static_cast<const T*>(task.row) + channel);
      for (int64_t i = 0; i < rows; ++i) {
        Floats out[kTile];
        transform_output(lines[i], 1, out);
        T* target = static_cast<T*>(task.pixels) + ((top + i) * task.width + left) * task.channels + channel;
        for (int64_t k = 0; k < columns; ++k) {
          Floats sum = out[k] + bias;
          if (task.relu) sum = sum < 0.0f ? Floats{} : sum;  // NaN stays
          save(target + k * task.channels, sum);
        }
      }
    }
  }
}

// ---- bilinear resizing ---------------------------------------------------------------------------------------------

template <typename T>
void add_resized(const Resize& task, int64_t begin, int64_t end) {
  const T* const source = static_cast<const T*>(task.source);
  const int64_t line = task.width * task.channels;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / task.new_height;
    const Neighbours& y = task.rows[row % task.new_height];
    const T* const upper = source + (image * task.height + y.first) * line;
    const T* const lower = source + (image * task.height + y.second) * line;
    T* target = static_cast<T*>(task.target) + row * task.new_width * task.channels;
    for (int64_t column = 0; column < task.new_width; ++column, target += task.channels) {
      const Neighbours& x = task.columns[column];
      const int64_t left = x.first * task.channels, right = x.second * task.channels;
      for (int64_t channel = 0; channel < task.channels; channel += kLanes) {
        const Floats first = load(upper + left + channel) * (1 - x.weight) + load(upper + right + channel) * x.weight;
        const Floats second = load(lower + left + channel) * (1 - x.weight) + load(lower + right + channel) * x.weight;
        save(target + channel, load(target + channel) + (first * (1 - y.weight) + second * y.weight));
      }
    }
  }
}

// The last two lines of a feature map that were resized along the columns, because neighbouring rows share them.
struct TwoLines {
  float* memory;
  int64_t width;
  int64_t present[2] = {-1, -1};

  // Return a line after `resize` has written it, unless it is present. The line `keep` stays.
  template <typename Resize>
  DEFORMABLE_OPS_INLINE float* line(int64_t index, int64_t keep, const Resize& resize) {
    for (int64_t i = 0; i < 2; ++i) {
      if (present[i] == index) return memory + i * width;
    }
    const int64_t place = present[0] == keep ? 1 : 0;
    present[place] = index;
    resize(index, memory + place * width);
    return memory + place * width;
  }
};

template <typename T>
void resize_planes(const Resize& task, int64_t begin, int64_t end, float* lines) {
  TwoLines kept = {lines, task.new_width};
  const auto resize_columns = [&](int64_t line, float* target) {
    const T* const source = static_cast<const T*>(task.source) + line * task.width;
    for (int64_t column = 0; column < task.new_width; ++column) {
      const Neighbours& x = task.columns[column];
      target[column] = number(source[x.first]) * (1 - x.weight) + number(source[x.second]) * x.weight;
    }
  };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first_line = row / task.new_height * task.height;
    const Neighbours& y = task.rows[row % task.new_height];
    const float* const upper = kept.line(first_line + y.first, first_line + y.second, resize_columns);
    const float* const lower = kept.line(first_line + y.second, first_line + y.first, resize_columns);
    T* const target = static_cast<T*>(task.target) + row * task.new_width;
    int64_t column = 0;
    for (; column + kLanes <= task.new_width; column += kLanes) {
      save(target + column, load(upper + column) * (1 - y.weight) + load(lower + column) * y.weight);
    }
    for (; column < task.new_width; ++column) {
      save_number(target + column, upper[column] * (1 - y.weight) + lower[column] * y.weight);
    }
  }
}

// ---- resized products of a 3x3 kernel ------------------------------------------------------------------------------

constexpr int64_t kKernel = 3;

// Resize the products of a line of pixels with a row of the kernel along the columns, and sum them.
template <typename T>
void tap_line(const ResizedTaps& task, int64_t line, int64_t tap_row, float* target) {
  const Resize& resize = task.resize;
  const int64_t pixel = kKernel * kKernel * resize.channels;
  const T* const source =
      static_cast<const T*>(resize.source) + line * resize.width * pixel + tap_row * kKernel * resize.channels;
  for (int64_t column = 0; column < resize.new_width; ++column, target += resize.channels) {
    const T* products[2 * kKernel];
    float weights[2 * kKernel];
    int count = 0;
    for (int64_t tap = 0; tap < kKernel; ++tap) {
      const int64_t position = column + tap - 1;
      if (position < 0 || position >= resize.new_width) continue;
      const Neighbours& x = resize.columns[position];
      products[count] = source + x.first * pixel + tap * resize.channels;
      weights[count++] = 1 - x.weight;
      products[count] = source + x.second * pixel + tap * resize.channels;
      weights[count++] = x.weight;
    }
    for (int64_t channel = 0; channel < resize.channels; channel += kLanes) {
      Floats sum{};
      for (int i = 0; i < count; ++i) sum += load(products[i] + channel) * weights[i];
      store_vector(target + channel, sum);
    }
  }
}

template <typename T>
void add_resized_taps(const ResizedTaps& task, int64_t begin, int64_t end, float* memory) {
  const Resize& resize = task.resize;
  const int64_t length = resize.new_width * resize.channels;
  TwoLines kept[kKernel];
  for (int64_t tap = 0; tap < kKernel; ++tap) kept[tap] = {memory + 2 * tap * length, length};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / resize.new_height, y = row % resize.new_height;
    const float* lines[2 * kKernel];
    float weights[2 * kKernel];
    int count = 0;
    for (int64_t tap = 0; tap < kKernel; ++tap) {
      const int64_t position = y + tap - 1;
      if (position < 0 || position >= resize.new_height) continue;
      const auto resize_columns = [&](int64_t line, float* target) { tap_line<T>(task, line, tap, target); };
      const Neighbours& neighbours = resize.rows[position];
      const int64_t first = image * resize.height + neighbours.first;
      const int64_t second = image * resize.height + neighbours.second;
      lines[count] = kept[tap].line(first, second, resize_columns);
      weights[count++] = 1 - neighbours.weight;
      lines[count] = kept[tap].line(second, first, resize_columns);
      weights[count++] = neighbours.weight;
    }
    T* target = static_cast<T*>(resize.target) + row * resize.new_width * task.pixel_stride;
    for (int64_t start = 0; start < length; start += resize.channels, target += task.pixel_stride) {
      for (int64_t channel = 0; channel < resize.channels; channel += kLanes) {
        Floats sum = load(target + channel);
        for (int i = 0; i < count; ++i) sum += load(lines[i] + start + channel) * weights[i];
        save(target + channel, sum);
      }
    }
  }
}

// ---- softmax -------------------------------------------------------------------------------------------------------

template <typename T>
void softmax(void* numbers, int64_t size, int64_t begin, int64_t end) {
  constexpr int64_t kBuffer = 1024;
  float buffer[kBuffer + kLanes];
  const int64_t rows_at_once = kBuffer / size;
  for (int64_t first = begin; first < end; first += rows_at_once) {
    const int64_t rows = end - first < rows_at_once ? end - first : rows_at_once, count = rows * size;
    T* const source = static_cast<T*>(numbers) + first * size;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) save(buffer + i, load(source + i));
    for (; i < count; ++i) buffer[i] = number(source[i]);
    for (float* line = buffer; line < buffer + count; line += size) {
      float most = line[0];
      for (int64_t k = 1; k < size; ++k) most = line[k] > most ? line[k] : most;
      for (int64_t k = 0; k < size; ++k) line[k] -= most;
    }
    exponential(buffer, count);
    for (float* line = buffer; line < buffer + count; line += size) {
      float sum = line[0];
      for (int64_t k = 1; k < size; ++k) sum += line[k];
      const float factor = 1 / sum;
      for (int64_t k = 0; k < size; ++k) line[k] *= factor;
    }
    for (i = 0; i + kLanes <= count; i += kLanes) save(source + i, load(buffer + i));
    for (; i < count; ++i) save_number(source + i, buffer[i]);
  }
}

// ---- labels --------------------------------------------------------------------------------------------------------

// Resize a line along its columns.
template <typename T>
DEFORMABLE_OPS_INLINE void resize_line(const T* __restrict source, const Columns& columns, int64_t count,
                                       float* __restrict target) {
  const int32_t* __restrict const first = columns.first;
  const int32_t* __restrict const second = columns.second;
  const float* __restrict const weights = columns.weights;
  for (int64_t i = 0; i < count; ++i) {
    target[i] = number(source[first[i]]) * (1 - weights[i]) + number(source[second[i]]) * weights[i];
  }
}

// Find the classes of up to kLabelRows rows, which share lines of the logits that are resized along the columns.
template <typename T>
DEFORMABLE_OPS_INLINE void label_rows(const WindowLabels& task, int64_t begin, int64_t end, float* memory) {
  const int64_t width = task.image_width, view_width = task.view_width, size = (end - begin) * width;
  float* __restrict const sums = memory;
  float* __restrict const view_line = sums + 2 * kLabelRows * view_width;
  float* __restrict const resized = view_line + view_width;
  float* __restrict const best = resized + kLabelRows * width;
  int32_t* __restrict const labels = reinterpret_cast<int32_t*>(best + kLabelRows * width);
  float* const lines = best + 2 * kLabelRows * width;  // two
  // rows of the view, and the places of those that the image's rows need
  int64_t rows[2 * kLabelRows], places[2 * kLabelRows], count = 0;
  for (int64_t row = begin; row < end; ++row) {
    const Neighbours own = {static_cast<int32_t>(task.first_row + row), static_cast<int32_t>(task.first_row + row), 0.0f};
    const Neighbours& y = task.image_rows == nullptr ? own : task.image_rows[task.first_row + row];
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t needed = i == 0 ? y.first : y.second;
      int64_t place = count;
      for (int64_t k = count > 2 ? count - 2 : 0; k < count; ++k) place = rows[k] == needed ? k : place;
      if (place == count) rows[count++] = needed;
      places[2 * (row - begin) + i] = place;
    }
  }
  for (int64_t label = 0; label < task.classes; ++label) {
    for (int64_t i = 0; i < count * view_width; ++i) sums[i] = 0;
    for (int64_t window = 0; window < task.windows; ++window) {
      const T* const logits =
          static_cast<const T*>(task.logits) + (window * task.classes + label) * task.height * task.width;
      const int64_t left = task.lefts[window], space = view_width - left;
      const int64_t length = task.window_width < space ? task.window_width : space;
      TwoLines kept = {lines, task.window_width};
      const auto resize_columns = [&](int64_t line, float* target) {
        resize_line(logits + line * task.width, task.columns, length, target);
      };
      for (int64_t i = 0; i < count; ++i) {
        const int64_t window_row = rows[i] - task.tops[window];
        if (window_row < 0 || window_row >= task.window_height) continue;
        const Neighbours& y = task.rows[window_row];
        const float* const upper = kept.line(y.first, y.second, resize_columns);
        const float* const lower = kept.line(y.second, y.first, resize_columns);
        float* __restrict const target = sums + i * view_width + left;
        const float weight = y.weight, other = 1 - y.weight;
        for (int64_t k = 0; k < length; ++k) target[k] += upper[k] * other + lower[k] * weight;
      }
    }
    const float* __restrict values = sums;
    if (task.image_rows != nullptr) {
      for (int64_t i = 0; i < count; ++i) {
        const float scale = task.row_scales[rows[i]];
        float* __restrict const line = sums + i * view_width;
        for (int64_t k = 0; k < view_width; ++k) line[k] *= scale * task.column_scales[k];
      }
      for (int64_t row = begin; row < end; ++row) {
        const float weight = task.image_rows[task.first_row + row].weight, other = 1 - weight;
        const float* const upper = sums + places[2 * (row - begin)] * view_width;
        const float* const lower = sums + places[2 * (row - begin) + 1] * view_width;
        for (int64_t k = 0; k < view_width; ++k) view_line[k] = upper[k] * other + lower[k] * weight;
        resize_line(view_line, task.image_columns, width, resized + (row - begin) * width);
      }
      values = resized;
    }
    if (label == 0) {
      for (int64_t i = 0; i < size; ++i) best[i] = values[i];
      for (int64_t i = 0; i < size; ++i) labels[i] = 0;
    } else {
      const int32_t value = static_cast<int32_t>(label);
      for (int64_t i = 0; i < size; ++i) {
        labels[i] = values[i] > best[i] ? value : labels[i];
        best[i] = values[i] > best[i] ? values[i] : best[i];
      }
    }
  }
  int64_t* const target = task.labels + begin * width;
  for (int64_t i = 0; i < size; ++i) target[i] = labels[i];
}

template <typename T>
void window_labels(const WindowLabels& task, int64_t begin, int64_t end, float* memory) {
  for (int64_t row = begin; row < end; row += kLabelRows) {
    label_rows<T>(task, row, row + kLabelRows < end ? row + kLabelRows : end, memory);
  }
}

template <typename T>
const DenseLoops& dense_loops() {
  static constexpr DenseLoops table = {&winograd_inputs<T>, &winograd_outputs<T>, &add_resized<T>, &resize_planes<T>,
                                       &add_resized_taps<T>, &softmax<T>, &window_labels<T>};
  return table;
}

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
