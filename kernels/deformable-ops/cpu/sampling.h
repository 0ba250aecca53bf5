// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Bilinear sampling of value rows and its gradients for one instruction set. One translation unit per instruction set
// includes this file, with its own namespace DEFORMABLE_OPS_ARCH: if two sets shared an inline function, the linker
// could choose the version that an old processor does not support. For the same reason the standard library is not used
// here.
//
// Points are computed in blocks of a hundred or more. First the coordinates of the block become memory offsets and
// bilinear weights, in loops that are vectorised over points. Then rows are gathered or scattered, vectorised over
// channels. The offset of a corner outside its level is that of a row of zeros. So memory outside the level is never
// read, a NaN stored there cannot spread, and the loops have no unpredictable branch. A location that is not finite
// makes its own query and head NaN, as in grid_sample.
#pragma once

#include "block.h"

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

// ---- rows ----------------------------------------------------------------------------------------------------------

// The loops over points and corners, for `Width` channels.
template <typename T, int Width>
struct Rows {
  // the longest vectors that fit, at least 32 bytes
  static constexpr int kLongest = kVectorBytes / sizeof(T), kShortest = 32 / sizeof(T);
  static constexpr int kLanes = Width >= kLongest ? kLongest : kShortest;
  typedef typename VectorOf<T, kLanes>::type Vector;
  static constexpr int kVectors = Width / kLanes > 0 ? Width / kLanes : 1;
  static constexpr bool kIsVectorized = Width >= kLanes;

  // Offsets and weights of the corners of the points from `first` on. These are copies of the block's pointers, because
  // the compiler has to assume that storing a row changes the block.
  struct Corners {
    const int64_t* offset[4];
    const T* factor[4];

    DEFORMABLE_OPS_INLINE Corners(const Block<T>& block, int64_t first) {
      for (int corner = 0; corner < 4; ++corner) {
        offset[corner] = block.corner_offset[corner] + first;
        factor[corner] = block.corner_weight[corner] + first;
      }
    }

    DEFORMABLE_OPS_INLINE void advance(int64_t points) {
      for (int corner = 0; corner < 4; ++corner) {
        offset[corner] += points;
        factor[corner] += points;
      }
    }

    template <typename Element>
    DEFORMABLE_OPS_INLINE Element* row(Element* rows, int corner, int64_t point) const {
      return reinterpret_cast<Element*>(reinterpret_cast<uintptr_t>(rows) + offset[corner][point]);
    }
  };

  // Compute `Width` channels, from `channel` on, of the output of `count` items, from `start` on.
  static void gather(const Problem& problem, const Part& part, const Block<T>& block, int64_t start, int64_t count,
                     const T* rows, int64_t channel) {
    const int64_t points = block.per_query, channels = problem.channels;
    const bool is_own = problem.output.type == compute_type<T>();
    T* const output = static_cast<T*>(problem.output.data);
    Items item(problem, part, start);
    Corners corners(block, 0);
    for (int64_t i = 0; i < count; ++i, item.next(), corners.advance(points)) {
      const T* source = rows + item.head * channels + channel;
      const int64_t offset = item.row * channels + channel;
      T* target = is_own ? output + offset : block.channels;
      if constexpr (kIsVectorized) {
        // several sums, because an addition waits for the previous one
        constexpr int kSums = kVectors >= 8 ? 1 : (kVectors >= 4 ? 2 : 4);
        Vector sums[kSums][kVectors] = {};
        for (int64_t point = 0; point < points; ++point) {
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner) {
            const T* row = corners.row(source, corner, point);
            const T factor = corners.factor[corner][point];
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) {
              sums[corner % kSums][v] += load_vector<Vector>(row + v * kLanes) * factor;
            }
          }
        }
        for (int v = 0; v < kVectors; ++v) {
          for (int s = 1; s < kSums; ++s) sums[0][v] += sums[s][v];
        }
        if constexpr (sizeof(T) == sizeof(float)) {
          if (problem.output.type == Scalar::bfloat16) {  // faster than by `store`, whose rows have any length
            uint16_t* const stored = static_cast<uint16_t*>(problem.output.data) + offset;
            for (int v = 0; v < kVectors; ++v) store_bfloat16<kLanes>(stored + v * kLanes, sums[0][v]);
            continue;
          }
        }
        for (int v = 0; v < kVectors; ++v) store_vector<Vector>(target + v * kLanes, sums[0][v]);
      } else {
        T sums[Width] = {};
        for (int64_t point = 0; point < points; ++point) {
          for (int corner = 0; corner < 4; ++corner) {
            const T* row = corners.row(source, corner, point);
            for (int c = 0; c < Width; ++c) sums[c] += row[c] * corners.factor[corner][point];
          }
        }
        for (int c = 0; c < Width; ++c) target[c] = sums[c];
      }
      if (!is_own) store(problem.output, offset, Width, target);
    }
  }

  // dot += row of the corner * gradient
  static DEFORMABLE_OPS_INLINE void dots(const Block<T>& block, int64_t first, const T* rows, const T* gradient) {
    const Corners corners(block, first);
    const int64_t points = block.per_query;
    T* dot = block.dot + 4 * first;
    if constexpr (kIsVectorized) {
      typedef typename VectorOf<T>::quad Quad;
      Vector own[kVectors];
      for (int v = 0; v < kVectors; ++v) own[v] = load_vector<Vector>(gradient + v * kLanes);
      for (int64_t i = 0; i < points; ++i) {
        Vector products[4];
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          const T* row = corners.row(rows, corner, i);
          products[corner] = load_vector<Vector>(row) * own[0];
#pragma GCC unroll 16
          for (int v = 1; v < kVectors; ++v) products[corner] += load_vector<Vector>(row + v * kLanes) * own[v];
        }
        store_vector<Quad>(dot + 4 * i, load_vector<Quad>(dot + 4 * i) + four_sums(products));
      }
    } else {
      for (int64_t i = 0; i < points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const T* row = corners.row(rows, corner, i);
          T sum = 0;
          for (int c = 0; c < Width; ++c) sum += row[c] * gradient[c];
          dot[4 * i + corner] += sum;
        }
      }
    }
  }

  // Return the sums over the lanes of four vectors.
  static DEFORMABLE_OPS_INLINE typename VectorOf<T>::quad four_sums(const Vector (&v)[4]) {
    typename VectorOf<T, kShortest>::type half[4];
    for (int i = 0; i < 4; ++i) {
      if constexpr (kLanes == kShortest) {
        half[i] = v[i];
      } else if constexpr (kShortest == 8) {
        half[i] = __builtin_shufflevector(v[i], v[i], 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v[i], v[i], 8, 9, 10, 11, 12, 13, 14, 15);
      } else {
        half[i] = __builtin_shufflevector(v[i], v[i], 0, 1, 2, 3) + __builtin_shufflevector(v[i], v[i], 4, 5, 6, 7);
      }
    }
    if constexpr (kShortest == 8) {
      const auto first = __builtin_shufflevector(half[0], half[1], 0, 8, 1, 9, 4, 12, 5, 13) +
                         __builtin_shufflevector(half[0], half[1], 2, 10, 3, 11, 6, 14, 7, 15);
      const auto second = __builtin_shufflevector(half[2], half[3], 0, 8, 1, 9, 4, 12, 5, 13) +
                          __builtin_shufflevector(half[2], half[3], 2, 10, 3, 11, 6, 14, 7, 15);
      const auto both = __builtin_shufflevector(first, second, 0, 1, 8, 9, 4, 5, 12, 13) +
                        __builtin_shufflevector(first, second, 2, 3, 10, 11, 6, 7, 14, 15);
      return __builtin_shufflevector(both, both, 0, 1, 2, 3) + __builtin_shufflevector(both, both, 4, 5, 6, 7);
    } else {
      const auto first = __builtin_shufflevector(half[0], half[1], 0, 4, 2, 6) +
                         __builtin_shufflevector(half[0], half[1], 1, 5, 3, 7);
      const auto second = __builtin_shufflevector(half[2], half[3], 0, 4, 2, 6) +
                          __builtin_shufflevector(half[2], half[3], 1, 5, 3, 7);
      return __builtin_shufflevector(first, second, 0, 1, 4, 5) + __builtin_shufflevector(first, second, 2, 3, 6, 7);
    }
  }

  // sums[token] += weight * gradient for `Width` channels
  static DEFORMABLE_OPS_INLINE void scatter(const Block<T>& block, int64_t first, T* sums, const T* gradient) {
    const Corners corners(block, first);
    const int64_t points = block.per_query;
    if constexpr (kIsVectorized) {
      Vector own[kVectors];
      for (int v = 0; v < kVectors; ++v) own[v] = load_vector<Vector>(gradient + v * kLanes);
      for (int64_t i = 0; i < points; ++i) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          T* row = corners.row(sums, corner, i);
          const T factor = corners.factor[corner][i];
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) {
            T* target = row + v * kLanes;
            store_vector<Vector>(target, load_vector<Vector>(target) + own[v] * factor);
          }
        }
      }
    } else {
      for (int64_t i = 0; i < points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          T* row = corners.row(sums, corner, i);
          for (int c = 0; c < Width; ++c) row[c] += gradient[c] * corners.factor[corner][i];
        }
      }
    }
  }
};

// Call `call` of the Rows with this width, one of kWidths.
#define DEFORMABLE_OPS_BY_WIDTH(T, width, call)                    \
  switch (width) {                                                 \
    case 64: Rows<T, 64>::call; break;                             \
    case 32: Rows<T, 32>::call; break;                             \
    case 16: Rows<T, 16>::call; break;                             \
    case 8: Rows<T, 8>::call; break;                               \
    case 4: Rows<T, 4>::call; break;                               \
    case 2: Rows<T, 2>::call; break;                               \
    default: Rows<T, 1>::call; break;                              \
  }

// ---- entry points --------------------------------------------------------------------------------------------------

template <typename T>
size_t scratch_bytes(const Problem& problem) {
  return Block<T>::bytes(problem);
}

template <typename T>
void pack(const Problem& problem, const Part& part, int64_t begin, int64_t end, void* packed) {
  const int64_t elements = part.heads * problem.channels;
  T* target = static_cast<T*>(packed) + begin * elements;
  for (int64_t token = begin; token < end; ++token, target += elements) {
    const int64_t row = (part.image * problem.tokens + token) * problem.heads + part.first_head;
    load_row(problem.value, row * problem.channels, elements, target);
  }
}

// If output pixels coincide with pixels of value, read the lines of value around these items in the order of memory:
// all lines at the start of a range, later only the new ones. Otherwise the samples, which are not in order, would wait
// for every cache line. By loads, because prefetch instructions were measured to have no effect here.
template <typename T>
void read_ahead(const Problem& problem, const Part& part, const Items& item, int64_t count, bool start) {
  constexpr int64_t kLines = 5;
  if (part.heads != problem.heads || problem.queries != problem.tokens) return;
  const int64_t line = problem.output_width * problem.heads, end = (part.image + 1) * problem.tokens * problem.heads;
  const int64_t from = item.row + (start ? 0 : kLines * line);
  const int64_t to = item.row + count + kLines * line;
  if (problem.value.type != compute_type<T>()) return;  // `pack` has just read it
  const T* first = static_cast<const T*>(problem.value.data) + from * problem.channels;
  const T* last = static_cast<const T*>(problem.value.data) + (to < end ? to : end) * problem.channels;
  constexpr int64_t kStep = 64 / sizeof(T);  // one load for each cache line
  for (; first < last; first += kStep) static_cast<void>(*static_cast<const volatile T*>(first));
}

template <typename T>
void forward(const Problem& problem, const Part& part, int64_t begin, int64_t end, const void* rows,
             int64_t row_stride, void* scratch) {
  Block<T> block(problem, scratch, rows, row_stride);
  for (int64_t start = begin; start < end; start += block.items) {
    const int64_t count = end - start < block.items ? end - start : block.items;
    block.load(problem, part, start, count);
    read_ahead<T>(problem, part, Items(problem, part, start), count, start == begin);
    for (int64_t channel = 0; channel < problem.channels;) {
      const int64_t width = largest_width(problem.channels - channel);
      DEFORMABLE_OPS_BY_WIDTH(T, width,
                              gather(problem, part, block, start, count, static_cast<const T*>(rows), channel));
      channel += width;
    }
  }
}

template <typename T>
void backward_points(const Problem& problem, const Part& part, int64_t begin, int64_t end, const void* rows,
                     int64_t row_stride, void* scratch) {
  Block<T> block(problem, scratch, rows, row_stride);
  const int64_t per_query = block.per_query;
  for (int64_t start = begin; start < end; start += block.items) {
    const int64_t count = end - start < block.items ? end - start : block.items;
    const int64_t used = count * per_query;
    block.load(problem, part, start, count);
    for (int64_t i = 0; i < 4 * used; ++i) block.dot[i] = 0;
    Items item(problem, part, start);
    read_ahead<T>(problem, part, item, count, start == begin);
    for (int64_t i = 0; i < count; ++i, item.next()) {
      prefetch(problem.grad_output, (item.row + kPrefetchQueries * problem.heads) * problem.channels, problem.channels);
      const T* gradient = view(problem.grad_output, item.row * problem.channels, problem.channels, block.channels);
      for (int64_t channel = 0; channel < problem.channels;) {
        const int64_t width = largest_width(problem.channels - channel);
        const T* source = static_cast<const T*>(rows) + item.head * problem.channels + channel;
        DEFORMABLE_OPS_BY_WIDTH(T, width, dots(block, i * per_query, source, gradient + channel));
        channel += width;
      }
    }
    block.differentiate(problem, used);
    item = Items(problem, part, start);
    for (int64_t i = 0; i < count; ++i, item.next()) {
      const int64_t first = i * per_query;
      if (problem.coordinates == Coordinates::offsets) {  // through the softmax
        T mean = 0;
        for (int64_t j = first; j < first + per_query; ++j) mean += block.factors[j] * block.gradient_weight[j];
        for (int64_t j = first; j < first + per_query; ++j) {
          block.gradient_weight[j] = block.factors[j] * (block.gradient_weight[j] - mean);
        }
      }
      store_row(problem.grad_weights, item.in(problem.weight_layout), per_query, block.gradient_weight + first);
      store_row(problem.grad_locations, item.in(problem.location_layout), 2 * per_query, block.buffer + 2 * first);
    }
  }
}

template <typename T>
void backward_value(const Problem& problem, const Part& part, int64_t first, int64_t count, void* sums,
                    int64_t row_stride, void* scratch) {
  Block<T> block(problem, scratch, sums, row_stride);
  const int64_t end = problem.queries * part.heads;
  for (int64_t start = 0; start < end; start += block.items) {
    const int64_t items = end - start < block.items ? end - start : block.items;
    block.load(problem, part, start, items);
    Items item(problem, part, start);
    for (int64_t i = 0; i < items; ++i, item.next()) {
      prefetch(problem.grad_output, (item.row + kPrefetchQueries * problem.heads) * problem.channels + first, count);
      const T* gradient = view(problem.grad_output, item.row * problem.channels + first, count, block.channels);
      for (int64_t channel = 0; channel < count;) {
        const int64_t width = largest_width(count - channel);
        T* target = static_cast<T*>(sums) + item.head * count + channel;
        DEFORMABLE_OPS_BY_WIDTH(T, width, scatter(block, i * block.per_query, target, gradient + channel));
        channel += width;
      }
    }
  }
}

template <typename T>
void unpack(const Problem& problem, const Part& part, int64_t first, int64_t count, const void* sums) {
  const T* source = static_cast<const T*>(sums);
  for (int64_t token = 0; token < problem.tokens; ++token) {
    for (int64_t head = part.first_head; head < part.first_head + part.heads; ++head, source += count) {
      const int64_t row = (part.image * problem.tokens + token) * problem.heads + head;
      store_row(problem.grad_value, row * problem.channels + first, count, source);
    }
  }
}

template <typename T>
const Kernels& kernels_of() {
  static constexpr Kernels table = {&scratch_bytes<T>, &pack<T>, &forward<T>, &backward_points<T>, &backward_value<T>,
                                    &unpack<T>};
  return table;
}

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
