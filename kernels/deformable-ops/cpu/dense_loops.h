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

DEFORMABLE_OPS_INLINE Floats load(const float* source) { return load_vector<Floats>(source); }

DEFORMABLE_OPS_INLINE Floats load(const uint16_t* source) { return load_bfloat16<kLanes>(source); }

DEFORMABLE_OPS_INLINE void save(float* target, Floats numbers) { store_vector(target, numbers); }

// Round to nearest, ties to even. NaN stays NaN.
DEFORMABLE_OPS_INLINE void save(uint16_t* target, Floats numbers) {
#if defined(DEFORMABLE_OPS_BFLOAT16)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), (__m256i)_mm512_cvtneps_pbh((__m512)numbers));
#else
  store_bfloat16<kLanes>(target, numbers);
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

// Sum weighted rows of `channels` numbers, and pass each vector of the sum to `use` behind its first channel.
template <typename T, typename Use>
DEFORMABLE_OPS_INLINE void sum_rows(const T* const* rows, const float* weights, int64_t count, int64_t channels,
                                    const Use& use) {
  constexpr int64_t kTogether = 4;  // vectors, because an addition waits for the previous one
  int64_t channel = 0;
  for (; channel + kTogether * kLanes <= channels; channel += kTogether * kLanes) {
    Floats sums[kTogether] = {};
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kTogether; ++v) sums[v] += load(rows[i] + channel + v * kLanes) * weights[i];
    }
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTogether; ++v) use(channel + v * kLanes, sums[v]);
  }
  for (; channel < channels; channel += kLanes) {
    Floats sum{};
    for (int64_t i = 0; i < count; ++i) sum += load(rows[i] + channel) * weights[i];
    use(channel, sum);
  }
}

// Resize the products of a line of pixels with a row of the kernel along the columns, and sum them.
template <typename T>
void tap_line(const Resize& resize, int64_t line, int64_t tap_row, float* target) {
  const int64_t pixel = kKernel * kKernel * resize.channels;
  const T* const source =
      static_cast<const T*>(resize.source) + line * resize.width * pixel + tap_row * kKernel * resize.channels;
  for (int64_t column = 0; column < resize.new_width; ++column, target += resize.channels) {
    const T* products[2 * kKernel];
    float weights[2 * kKernel];
    int64_t count = 0;
    for (int64_t tap = 0; tap < kKernel; ++tap) {
      const int64_t position = column + tap - 1;
      if (position < 0 || position >= resize.new_width) continue;
      const Neighbours& x = resize.columns[position];
      products[count] = source + x.first * pixel + tap * resize.channels;
      weights[count++] = 1 - x.weight;
      products[count] = source + x.second * pixel + tap * resize.channels;
      weights[count++] = x.weight;
    }
    sum_rows(products, weights, count, resize.channels,
             [&](int64_t channel, Floats sum) { store_vector(target + channel, sum); });
  }
}

template <typename T>
void add_resized_taps(const ResizedTaps& task, int64_t begin, int64_t end, float* memory) {
  const Resize& first_map = task.resizes[0];  // for what all have in common
  const int64_t channels = first_map.channels, length = first_map.new_width * channels;
  TwoLines kept[kMostMaps * kKernel];
  const int64_t stride = line_stride(first_map);
  for (int64_t i = 0; i < task.maps * kKernel; ++i) kept[i] = {memory + 2 * i * stride, stride};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / first_map.new_height, y = row % first_map.new_height;
    const float* lines[kMostMaps * 2 * kKernel];
    float weights[kMostMaps * 2 * kKernel];
    int64_t count = 0;
    for (int64_t map = 0; map < task.maps; ++map) {
      const Resize& resize = task.resizes[map];
      for (int64_t tap = 0; tap < kKernel; ++tap) {
        const int64_t position = y + tap - 1;
        if (position < 0 || position >= resize.new_height) continue;
        const auto resize_columns = [&](int64_t line, float* target) { tap_line<T>(resize, line, tap, target); };
        const Neighbours& neighbours = resize.rows[position];
        const int64_t first = image * resize.height + neighbours.first;
        const int64_t second = image * resize.height + neighbours.second;
        TwoLines& own = kept[map * kKernel + tap];
        lines[count] = own.line(first, second, resize_columns);
        weights[count++] = 1 - neighbours.weight;
        lines[count] = own.line(second, first, resize_columns);
        weights[count++] = neighbours.weight;
      }
    }
    T* target = static_cast<T*>(first_map.target) + row * first_map.new_width * task.pixel_stride;
    for (int64_t start = 0; start < length; start += channels, target += task.pixel_stride) {
      sum_rows(lines, weights, count, channels, [&](int64_t channel, Floats sum) {
        sum += load(target + channel);
        if (task.relu) sum = sum < 0.0f ? Floats{} : sum;  // NaN stays
        save(target + channel, sum);
      });
      for (int64_t i = 0; i < count; ++i) lines[i] += channels;
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

// ---- layer norm ----------------------------------------------------------------------------------------------------

DEFORMABLE_OPS_INLINE float sum_of_lanes(Floats vector) {
  float lanes[kLanes];
  store_vector(lanes, vector);
  float sums[4] = {lanes[0], lanes[1], lanes[2], lanes[3]};
#pragma GCC unroll 4
  for (int64_t i = 4; i < kLanes; i += 4) {
    for (int64_t k = 0; k < 4; ++k) sums[k] += lanes[i + k];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Normalize `count` rows together, because the sums of one row wait for one another.
template <typename T, int64_t count>
DEFORMABLE_OPS_INLINE void normalize_rows(const LayerNorm& task, int64_t row) {
  const T* const weight = static_cast<const T*>(task.weight);
  const T* const bias = static_cast<const T*>(task.bias);
  const T* const source = static_cast<const T*>(task.rows) + row * task.size;
  T* const target = static_cast<T*>(task.output) + row * task.size;
  const float size = static_cast<float>(task.size);
  Floats sums[count] = {}, squares[count] = {};
  for (int64_t i = 0; i < task.size; i += kLanes) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; ++k) sums[k] += load(source + k * task.size + i);
  }
  float means[count], scales[count];
  for (int64_t k = 0; k < count; ++k) means[k] = sum_of_lanes(sums[k]) / size;
  for (int64_t i = 0; i < task.size; i += kLanes) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; ++k) {
      const Floats difference = load(source + k * task.size + i) - means[k];
      squares[k] += difference * difference;
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    scales[k] = 1 / __builtin_sqrtf(sum_of_lanes(squares[k]) / size + task.epsilon);
  }
  for (int64_t i = 0; i < task.size; i += kLanes) {
    const Floats own_weight = load(weight + i), own_bias = load(bias + i);
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; ++k) {
      const Floats normalized = (load(source + k * task.size + i) - means[k]) * scales[k];
      save(target + k * task.size + i, normalized * own_weight + own_bias);
    }
  }
}

template <typename T>
void layer_norm(const LayerNorm& task, int64_t begin, int64_t end) {
  constexpr int64_t kTogether = 4;
  int64_t row = begin;
  for (; row + kTogether <= end; row += kTogether) normalize_rows<T, kTogether>(task, row);
  for (; row < end; ++row) normalize_rows<T, 1>(task, row);
}

// ---- labels --------------------------------------------------------------------------------------------------------

typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

constexpr float kLeast = -__builtin_inff();

// Sum rows of logits (width, classes) into a row (width, pixel_stride).
template <typename T>
void sum_logits(const WindowLabels& task, const RowTap* taps, int64_t count, float* target) {
  const T* const logits = static_cast<const T*>(task.logits);
  const int64_t size = task.width * task.classes, last = task.classes - kLanes;
  for (int64_t column = 0; column < task.width; ++column, target += task.pixel_stride) {
    const T* const source = logits + column * task.classes;
    const auto sum_vector = [&](int64_t label) {
      Floats sum{};
      for (int64_t i = 0; i < count; ++i) {
        sum += load(source + (taps[i].window * task.height + taps[i].row) * size + label) * taps[i].weight;
      }
      store_vector(target + label, sum);
    };
    for (int64_t label = 0; label <= last; label += kLanes) sum_vector(label);
    if (last >= 0) {
      sum_vector(last);  // the last classes, some of them again
    } else {
      for (int64_t label = 0; label < task.classes; ++label) {
        float sum = 0;
        for (int64_t i = 0; i < count; ++i) {
          sum += number(source[(taps[i].window * task.height + taps[i].row) * size + label]) * taps[i].weight;
        }
        target[label] = sum;
      }
    }
  }
}

// Return the class with the largest number; of equal ones the first. Lane l of vector v is class v * kLanes + l.
DEFORMABLE_OPS_INLINE int64_t first_largest(Floats numbers, Integers vectors) {
  float values[kLanes];
  int32_t places[kLanes];
  store_vector(values, numbers);
  store_vector(places, vectors);
  for (int32_t lane = 0; lane < kLanes; ++lane) places[lane] = places[lane] * static_cast<int32_t>(kLanes) + lane;
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      const float own = values[lane], other = values[lane + half];
      const int32_t place = places[lane], other_place = places[lane + half];
      const bool is_better = (other > own) | ((other == own) & (other_place < place));
      values[lane] = is_better ? other : own;
      places[lane] = is_better ? other_place : place;
    }
  }
  return places[0];
}

// Return the class with the largest sum of taps. kCount is their number, 0 for any.
template <int64_t kCount>
DEFORMABLE_OPS_INLINE int64_t largest_sum(const float* memory, const ColumnTap* taps, int64_t count, int64_t stride) {
  Floats best = Floats{} + kLeast;
  Integers places{};
  for (int64_t label = 0, place = 0; label < stride; label += kLanes, ++place) {
    Floats sum = load(memory + taps[0].place + label) * taps[0].weight;
    for (int64_t i = 1; i < (kCount > 0 ? kCount : count); ++i) {
      sum += load(memory + taps[i].place + label) * taps[i].weight;
    }
    const auto is_larger = sum > best;  // never for NaN
    best = is_larger ? sum : best;
    places = is_larger ? Integers{} + static_cast<int32_t>(place) : places;
  }
  return first_largest(best, places);
}

template <typename T>
void label_windows(const WindowLabels& task, int64_t begin, int64_t end, float* memory) {
  const int64_t line = task.width * task.pixel_stride;
  for (int64_t i = 0; i < task.columns_of_windows * line; ++i) memory[i] = kLeast;  // stays behind the last class
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t windows = 0; windows < task.columns_of_windows; ++windows) {
      const int64_t* const starts = task.row_starts + row * task.columns_of_windows + windows;
      sum_logits<T>(task, task.row_taps + starts[0], starts[1] - starts[0], memory + windows * line);
    }
    for (int64_t column = 0; column < task.image_width; ++column) {
      const ColumnTap* const taps = task.column_taps + task.column_starts[column];
      const int64_t count = task.column_starts[column + 1] - task.column_starts[column], stride = task.pixel_stride;
      int64_t& label = task.labels[row * task.image_width + column];
      switch (count) {
        case 0: label = 0; break;
        case 1: label = largest_sum<1>(memory, taps, count, stride); break;
        case 2: label = largest_sum<2>(memory, taps, count, stride); break;
        case 3: label = largest_sum<3>(memory, taps, count, stride); break;
        case 4: label = largest_sum<4>(memory, taps, count, stride); break;
        default: label = largest_sum<0>(memory, taps, count, stride);
      }
    }
  }
}

template <typename T>
const DenseLoops& dense_loops() {
  static constexpr DenseLoops table = {&winograd_inputs<T>, &winograd_outputs<T>, &add_resized<T>, &resize_planes<T>,
                                       &add_resized_taps<T>, &softmax<T>, &layer_norm<T>, &label_windows<T>};
  return table;
}

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
