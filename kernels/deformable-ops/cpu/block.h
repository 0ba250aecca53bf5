// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// A block of points: from stored pairs to pixels, tokens and bilinear weights (see sampling.h).
#pragma once

#include "arithmetic.h"

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

constexpr int64_t kBlock = 256;   // points handled together, at least those of one query
constexpr int64_t kWidest = 64;

// Walks over the items of a part.
struct Items {
  int64_t heads, all_heads;
  int64_t query, head;  // head counts from the part's first
  int64_t row;          // (image, query, head) as one number

  Items(const Problem& problem, const Part& part, int64_t begin)
      : heads(part.heads), all_heads(problem.heads), query(begin / part.heads), head(begin % part.heads),
        row((part.image * problem.queries + query) * problem.heads + part.first_head + head) {}

  DEFORMABLE_OPS_INLINE void next() {
    ++row;
    if (++head == heads) {
      head = 0;
      ++query;
      row += all_heads - heads;
    }
  }
};

// Arrays of `capacity` entries each, in the scratch memory of one thread.
template <typename T>
struct Block {
  int64_t per_query;  // points of one query: levels * points
  int64_t items;      // at most this many
  int64_t capacity;
  T *x, *y, *weight;              // pixels; attention weights after the softmax
  T *lateral, *vertical;          // fractions to the right and the lower neighbour
  T *width, *height;              // of the point's level
  T *grid_x, *grid_y;             // kernel_grid: the kernel element relative to the middle
  T* gradient_weight;
  T* buffer;                      // pairs (x, y): as stored, or their gradients
  // Four for each point: upper left, upper right, lower left, lower right
  T* corner;                      // bilinear times attention weight
  T* dot;                         // the row times the gradient of the output (backward)
  int32_t* token;
  int32_t *columns, *rows, *start;
  T* zeros;                       // kWidest zeros, what lies outside
  T* nowhere;                     // kWidest, takes the gradient of what lies outside
  T* channels;                    // output or gradient of one query and head

  static int64_t points_of(const Problem& problem) { return problem.levels * problem.points; }

  static int64_t items_of(const Problem& problem) {
    const int64_t per_query = points_of(problem);
    return per_query == 0 || per_query > kBlock ? 1 : kBlock / per_query;
  }

  // Whole vectors are computed, so the arrays end at a multiple of 8 points.
  static int64_t padded(int64_t points) { return (points + 7) / 8 * 8; }

  static size_t bytes(const Problem& problem) {
    const int64_t each = padded(items_of(problem) * points_of(problem));
    return static_cast<size_t>((22 * each + 2 * kWidest + problem.channels) * sizeof(T) + 7 * each * sizeof(int32_t));
  }

  Block(const Problem& problem, void* scratch) {
    per_query = points_of(problem);
    items = items_of(problem);
    capacity = items * per_query;
    const int64_t each = padded(capacity);
    T* next = static_cast<T*>(scratch);
    T** const arrays[] = {&x,      &y,      &weight,     &lateral,    &vertical,        &width,
                          &height, &grid_x, &grid_y,     &gradient_weight};
    for (T** array : arrays) {
      *array = next;
      next += each;
    }
    buffer = next;
    corner = buffer + 2 * each;
    dot = corner + 4 * each;
    zeros = dot + 4 * each;
    nowhere = zeros + kWidest;
    channels = nowhere + kWidest;
    token = reinterpret_cast<int32_t*>(channels + problem.channels);
    columns = token + 4 * each;
    rows = columns + each;
    start = rows + each;
    for (int64_t i = capacity; i < each; ++i) {
      x[i] = y[i] = weight[i] = width[i] = height[i] = lateral[i] = vertical[i] = grid_x[i] = grid_y[i] = 0;
      buffer[2 * i] = buffer[2 * i + 1] = 0;
      columns[i] = rows[i] = start[i] = 0;
    }
    for (int64_t i = 0; i < kWidest; ++i) zeros[i] = nowhere[i] = 0;
    for (int64_t i = 0; i < capacity; ++i) {
      const int64_t point = i % per_query;
      const Level& level = problem.level[point / problem.points];
      columns[i] = level.width;
      rows[i] = level.height;
      start[i] = level.start;
      width[i] = static_cast<T>(level.width);
      height[i] = static_cast<T>(level.height);
    }
    if (problem.coordinates == Coordinates::kernel_grid) {
      const int64_t middle = per_query / 2;  // of kernel_height * kernel_width = per_query + 1 elements, both odd
      for (int64_t i = 0; i < capacity; ++i) {
        int64_t element = i % per_query;
        if (problem.remove_center && element >= middle) ++element;
        const int64_t column = element / problem.kernel_height, row = element % problem.kernel_height;
        grid_x[i] = static_cast<T>(column * problem.dilation_width - half_width(problem));
        grid_y[i] = static_cast<T>(row * problem.dilation_height - half_height(problem));
      }
    }
  }

  static int64_t half_width(const Problem& problem) { return problem.dilation_width * (problem.kernel_width - 1) / 2; }
  static int64_t half_height(const Problem& problem) {
    return problem.dilation_height * (problem.kernel_height - 1) / 2;
  }

  // Pixels and attention weights of the items [begin, begin + count) of a part.
  void load(const Problem& problem, const Part& part, int64_t begin, int64_t count) {
    const int64_t used = count * per_query;
    const bool together = part.heads == problem.heads;  // then all that is read lies together
    Items item(problem, part, begin);
    if (together) {
      load_row(problem.locations, 2 * item.row * per_query, 2 * used, buffer);
      load_row(problem.weights, item.row * per_query, used, weight);
    }
    for (int64_t first = 0; first < used; first += per_query, item.next()) {
      if (!together) {
        const int64_t row = item.row * per_query;
        const int64_t ahead = row + kAhead * problem.heads * per_query;  // past the end at the end: only a hint
        prefetch(problem.locations, 2 * ahead, 2 * per_query);
        prefetch(problem.weights, ahead, per_query);
        load_row(problem.locations, 2 * row, 2 * per_query, buffer + 2 * first);
        load_row(problem.weights, row, per_query, weight + first);
      }
      if (problem.coordinates == Coordinates::offsets) {
        subtract_largest(weight + first);
        set_reference(problem, part.image, item.query, first);
      }
    }
    if (problem.coordinates == Coordinates::kernel_grid) set_middles(problem, part, begin, used);
    if (problem.coordinates == Coordinates::offsets) {
      exponential(weight, used);
      for (int64_t first = 0; first < used; first += per_query) {
        T sum = 0;
        for (int64_t i = first; i < first + per_query; ++i) sum += weight[i];
        for (int64_t i = first; i < first + per_query; ++i) weight[i] /= sum;
      }
    }
    place(problem, used);
  }

  void subtract_largest(T* logits) const {
    T largest = 0;
    for (int64_t i = 0; i < per_query; ++i) largest = i == 0 || logits[i] > largest ? logits[i] : largest;
    for (int64_t i = 0; i < per_query; ++i) logits[i] -= largest;
  }

  // Until find_corners overwrites them, `lateral` and `vertical` hold what the stored pairs are relative to.
  void set_reference(const Problem& problem, int64_t image, int64_t query, int64_t first) {
    const int64_t stored_levels = problem.reference_level_stride == 0 ? 1 : problem.levels;
    const int64_t row = image * problem.reference_batch_stride + query * stored_levels;
    for (int64_t level = 0; level < problem.levels; ++level) {
      T pair[2];
      load_row(problem.references, 2 * (row + level * problem.reference_level_stride), 2, pair);
      const int64_t from = first + level * problem.points;
      for (int64_t i = from; i < from + problem.points; ++i) {
        lateral[i] = pair[0] * width[i] - T(0.5);
        vertical[i] = pair[1] * height[i] - T(0.5);
      }
    }
  }

  void set_middles(const Problem& problem, const Part& part, int64_t begin, int64_t used) {
    int64_t column = begin / part.heads % problem.output_width, line = begin / part.heads / problem.output_width;
    const int64_t to_x = half_width(problem) - problem.padding_width;
    const int64_t to_y = half_height(problem) - problem.padding_height;
    int64_t points = (part.heads - begin % part.heads) * per_query;  // left of this output pixel
    for (int64_t i = 0; i < used;) {
      const T middle_x = static_cast<T>(column * problem.stride_width + to_x);
      const T middle_y = static_cast<T>(line * problem.stride_height + to_y);
      const int64_t end = points < used - i ? i + points : used;
      for (int64_t j = i; j < end; ++j) {
        lateral[j] = middle_x;
        vertical[j] = middle_y;
      }
      i = end;
      points = part.heads * per_query;
      if (++column == problem.output_width) {
        column = 0;
        ++line;
      }
    }
  }

  // x and y of the pairs in `buffer`.
  void place(const Problem& problem, int64_t used) {
    typedef typename VectorOf<T>::type Vector;
    constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
    const T scale = static_cast<T>(problem.offset_scale);
    for (int64_t i = 0; i < used; i += kLanes) {
      const Vector first = load_vector<Vector>(buffer + 2 * i), second = load_vector<Vector>(buffer + 2 * i + kLanes);
      Vector x_, y_;
      if constexpr (kLanes == 8) {
        x_ = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14);
        y_ = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15);
      } else {
        x_ = __builtin_shufflevector(first, second, 0, 2, 4, 6);
        y_ = __builtin_shufflevector(first, second, 1, 3, 5, 7);
      }
      if (problem.coordinates == Coordinates::normalised) {
        x_ = x_ * load_vector<Vector>(width + i) - T(0.5);
        y_ = y_ * load_vector<Vector>(height + i) - T(0.5);
      } else {
        if (problem.coordinates == Coordinates::kernel_grid) {
          x_ = (load_vector<Vector>(grid_x + i) + x_) * scale;
          y_ = (load_vector<Vector>(grid_y + i) + y_) * scale;
        }
        x_ += load_vector<Vector>(lateral + i);
        y_ += load_vector<Vector>(vertical + i);
      }
      store_vector<Vector>(x + i, x_);
      store_vector<Vector>(y + i, y_);
    }
  }

  // Tokens of the four neighbours and their weights.
  void find_corners(int64_t count) {
    typedef typename VectorOf<T>::type Vector;
    typedef typename VectorOf<T>::integers Integers;
    typedef typename VectorOf<T>::mask Mask;
    constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
    const Vector zero = {}, one = zero + T(1);
    for (int64_t i = 0; i < count * per_query; i += kLanes) {
      const Vector x_ = load_vector<Vector>(x + i), y_ = load_vector<Vector>(y + i);
      const Mask inside = (x_ > -one) & (x_ < load_vector<Vector>(width + i)) & (y_ > -one) &
                          (y_ < load_vector<Vector>(height + i));
      const Vector near_x = inside ? x_ : zero, near_y = inside ? y_ : zero;
      Integers column = __builtin_convertvector(near_x, Integers);  // towards zero: one too large below zero
      Integers row = __builtin_convertvector(near_y, Integers);
      column += __builtin_convertvector(__builtin_convertvector(column, Vector) > near_x, Integers);
      row += __builtin_convertvector(__builtin_convertvector(row, Vector) > near_y, Integers);
      // x - x is 0, or NaN where x is not finite
      const Vector right = (near_x - __builtin_convertvector(column, Vector)) + (x_ - x_);
      const Vector lower = (near_y - __builtin_convertvector(row, Vector)) + (y_ - y_);
      store_vector<Vector>(lateral + i, right);
      store_vector<Vector>(vertical + i, lower);
      const Vector upper_weight = (one - lower) * load_vector<Vector>(weight + i);
      const Vector lower_weight = lower * load_vector<Vector>(weight + i);
      store_interleaved<Vector>(corner + 4 * i, upper_weight * (one - right), upper_weight * right,
                                lower_weight * (one - right), lower_weight * right);

      const Integers width_ = load_vector<Integers>(columns + i), height_ = load_vector<Integers>(rows + i);
      const Integers within = __builtin_convertvector(inside, Integers);
      const Integers left_in = within & (column >= 0), right_in = within & (column + 1 < width_);
      const Integers upper_in = row >= 0, lower_in = row + 1 < height_;
      const Integers first = load_vector<Integers>(start + i) + row * width_ + column;
      // all bits set is -1: what lies outside
      store_interleaved<Integers>(token + 4 * i, first | ~(left_in & upper_in), (first + 1) | ~(right_in & upper_in),
                                  (first + width_) | ~(left_in & lower_in),
                                  (first + width_ + 1) | ~(right_in & lower_in));
    }
  }

  // From `dot` the gradients of weights and of the pairs in `buffer` (before the softmax, of the stored x and y).
  void differentiate(const Problem& problem, int64_t used) {
    typedef typename VectorOf<T>::type Vector;
    constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
    const Vector zero = {}, one = zero + T(1);
    const Vector scale =
        zero + (problem.coordinates == Coordinates::kernel_grid ? static_cast<T>(problem.offset_scale) : T(1));
    const bool normalised = problem.coordinates == Coordinates::normalised;
    for (int64_t i = 0; i < used; i += kLanes) {
      Vector dots[4];
      load_interleaved<Vector>(dot + 4 * i, dots);
      const Vector right = load_vector<Vector>(lateral + i), lower = load_vector<Vector>(vertical + i);
      const Vector upper_row = (one - right) * dots[0] + right * dots[1];
      const Vector lower_row = (one - right) * dots[2] + right * dots[3];
      store_vector<Vector>(gradient_weight + i, (one - lower) * upper_row + lower * lower_row);
      const Vector attention = load_vector<Vector>(weight + i);
      Vector x_ = attention * ((one - lower) * (dots[1] - dots[0]) + lower * (dots[3] - dots[2]));
      Vector y_ = attention * ((one - right) * (dots[2] - dots[0]) + right * (dots[3] - dots[1]));
      x_ *= normalised ? load_vector<Vector>(width + i) : scale;
      y_ *= normalised ? load_vector<Vector>(height + i) : scale;
      if constexpr (kLanes == 8) {
        store_vector<Vector>(buffer + 2 * i, __builtin_shufflevector(x_, y_, 0, 8, 1, 9, 2, 10, 3, 11));
        store_vector<Vector>(buffer + 2 * i + 8, __builtin_shufflevector(x_, y_, 4, 12, 5, 13, 6, 14, 7, 15));
      } else {
        store_vector<Vector>(buffer + 2 * i, __builtin_shufflevector(x_, y_, 0, 4, 1, 5));
        store_vector<Vector>(buffer + 2 * i + 4, __builtin_shufflevector(x_, y_, 2, 6, 3, 7));
      }
    }
  }
};

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
