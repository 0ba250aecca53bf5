// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Convert the stored coordinates of a block of points to memory offsets and bilinear weights (see sampling.h).
#pragma once

#include <limits>

#include "arithmetic.h"

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

constexpr int64_t kBlock = 144;  // points of a block; more if one query has more

// Iterator over the items of a part.
struct Items {
  int64_t heads, all_heads;
  int64_t query, head;       // the head relative to the first one of the part
  int64_t row;               // index of (image, query, head)
  int64_t first_row, first;  // index of (image, query 0), and the first head of the part

  Items(const Problem& problem, const Part& part, int64_t begin)
      : heads(part.heads), all_heads(problem.heads), query(begin / part.heads), head(begin % part.heads),
        row((part.image * problem.queries + query) * problem.heads + part.first_head + head),
        first_row(part.image * problem.queries), first(part.first_head) {}

  DEFORMABLE_OPS_INLINE int64_t in(const Layout& layout) const {
    return first_element(layout, first_row + query, first + head);
  }

  DEFORMABLE_OPS_INLINE void next() {
    ++row;
    if (++head == heads) {
      head = 0;
      ++query;
      row += all_heads - heads;
    }
  }
};

// Arrays with `capacity` entries each, in the scratch memory of one thread.
template <typename T>
struct Block {
  typedef typename VectorOf<T>::quad Quad;
  static constexpr int64_t kQuad = 4;

  int64_t per_query;  // points of one query and head: levels * points
  int64_t items;      // largest number of items in the block
  int64_t capacity;
  T* weight;                      // attention weights after the softmax
  T *lateral, *vertical;          // fractions of a pixel, from the left and the upper neighbour
  T *width, *height;              // size of the point's level
  T *reach_x, *reach_y;           // offsets: the largest reference point whose product with the size is finite
  T *grid_x, *grid_y;             // kernel_grid: position of the kernel element relative to the middle
  T* gradient_weight;
  T* buffer;                      // pairs (x, y) as stored, or their gradients
  // one array for each corner: upper left, upper right, lower left, lower right
  T* corner_weight[4];            // bilinear weight times attention weight
  int64_t* corner_offset[4];      // bytes from the first row of value to the corner's row, or to `outside`
  T* dot;                         // backward: for each point and corner, the row times the gradient of the output
  int32_t *columns, *rows, *start;
  int64_t* line;                  // bytes from a row of value to that of the pixel below
  int64_t row_bytes, to_outside;  // bytes from a row to the next, and from the first row to `outside`
  const T *pairs, *factors;       // of the current points: in `buffer` and `weight`, or in the tensors
  T* outside;                     // row for corners outside of a level: zeros, or their unused gradient
  T* channels;                    // output or gradient of one query and head

  static int64_t row_of(const Problem& problem) { return problem.heads * problem.channels; }
  static int64_t points_of(const Problem& problem) { return problem.levels * problem.points; }

  static int64_t items_of(const Problem& problem) {
    const int64_t per_query = points_of(problem);
    int64_t items = per_query == 0 || per_query > kBlock ? 1 : kBlock / per_query;
    while (items > 1 && items * per_query % kPadding != 0) --items;  // `load` reads whole vectors
    return items;
  }

  // Arrays end at a multiple of the longest vector, because whole vectors are computed.
  static constexpr int64_t kPadding = 16;
  static int64_t padded(int64_t points) { return (points + kPadding - 1) / kPadding * kPadding; }

  static size_t bytes(const Problem& problem) {
    const int64_t each = padded(items_of(problem) * points_of(problem));
    return static_cast<size_t>((22 * each + row_of(problem) + problem.channels) * sizeof(T) +
                               5 * each * sizeof(int64_t) + 3 * each * sizeof(int32_t));
  }

  // `value_rows` and `row_stride` as in Kernels.
  Block(const Problem& problem, void* scratch, const void* value_rows, int64_t row_stride) {
    per_query = points_of(problem);
    items = items_of(problem);
    capacity = items * per_query;
    const int64_t each = padded(capacity);
    int64_t* wide = static_cast<int64_t*>(scratch);
    for (int64_t*& array : corner_offset) {
      array = wide;
      wide += each;
    }
    line = wide;
    T* next = reinterpret_cast<T*>(wide + each);
    T** const arrays[] = {&weight,           &lateral,          &vertical,         &width,
                          &height,           &reach_x,          &reach_y,          &grid_x,
                          &grid_y,           &gradient_weight,
                          &corner_weight[0], &corner_weight[1], &corner_weight[2], &corner_weight[3]};
    for (T** array : arrays) {
      *array = next;
      next += each;
    }
    buffer = next;
    dot = buffer + 2 * each;
    outside = dot + 4 * each;
    channels = outside + row_of(problem);
    row_bytes = row_stride * static_cast<int64_t>(sizeof(T));
    to_outside = reinterpret_cast<intptr_t>(outside) - reinterpret_cast<intptr_t>(value_rows);
    int32_t* integer = reinterpret_cast<int32_t*>(channels + problem.channels);
    int32_t** const integers[] = {&columns, &rows, &start};
    for (int32_t** array : integers) {
      *array = integer;
      integer += each;
    }
    for (int64_t i = capacity; i < each; ++i) {
      weight[i] = width[i] = height[i] = reach_x[i] = reach_y[i] = lateral[i] = vertical[i] = grid_x[i] = grid_y[i] = 0;
      buffer[2 * i] = buffer[2 * i + 1] = 0;
      columns[i] = rows[i] = start[i] = 0;
      line[i] = 0;
    }
    for (int64_t i = 0; i < row_of(problem); ++i) outside[i] = 0;
    for (int64_t i = 0; i < capacity; ++i) {
      const int64_t point = i % per_query;
      const Level& level = problem.level[point / problem.points];
      columns[i] = level.width;
      rows[i] = level.height;
      start[i] = level.start;
      line[i] = level.width * row_bytes;
      width[i] = static_cast<T>(level.width);
      height[i] = static_cast<T>(level.height);
      reach_x[i] = std::numeric_limits<T>::max() / 4 / width[i];
      reach_y[i] = std::numeric_limits<T>::max() / 4 / height[i];
    }
    if (problem.coordinates == Coordinates::kernel_grid) {
      const int64_t middle = per_query / 2;  // used if kernel_height * kernel_width = per_query + 1, which is odd
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

  // Compute the corners and their weights for the items [begin, begin + count) of a part.
  void load(const Problem& problem, const Part& part, int64_t begin, int64_t count) {
    const int64_t used = count * per_query;
    // the coordinates of all items are contiguous then
    const bool together = part.heads == problem.heads && problem.weight_layout.query == problem.heads * per_query;
    Items item(problem, part, begin);
    pairs = buffer;
    factors = weight;
    if (together && used % kPadding == 0 && problem.coordinates != Coordinates::offsets) {
      pairs = view(problem.locations, item.in(problem.location_layout), 2 * used, buffer);
      factors = view(problem.weights, item.in(problem.weight_layout), used, weight);
    } else if (together) {
      load_row(problem.locations, item.in(problem.location_layout), 2 * used, buffer);
      load_row(problem.weights, item.in(problem.weight_layout), used, weight);
    }
    const bool is_grid = problem.coordinates == Coordinates::kernel_grid;
    const bool copied = !together && is_grid && copy_items(problem, item, count);
    const bool is_loaded = together || copied;
    for (int64_t first = 0; first < used && !(is_loaded && problem.coordinates != Coordinates::offsets);
         first += per_query, item.next()) {
      if (!is_loaded) {
        const int64_t location = item.in(problem.location_layout), factor = item.in(problem.weight_layout);
        if (part.heads != problem.heads) {  // may exceed the array: only a hint
          prefetch(problem.locations, location + kPrefetchQueries * problem.location_layout.query, 2 * per_query);
          prefetch(problem.weights, factor + kPrefetchQueries * problem.weight_layout.query, per_query);
        }
        load_row(problem.locations, location, 2 * per_query, buffer + 2 * first);
        load_row(problem.weights, factor, per_query, weight + first);
      }
      if (problem.coordinates == Coordinates::offsets) {
        subtract_largest(weight + first);
        set_reference(problem, part.image, item.query, first);
      }
    }
    if (problem.coordinates == Coordinates::offsets) {
      exponential(weight, used);
      for (int64_t first = 0; first < used; first += per_query) {
        T* const own = weight + first;
        if (per_query % kQuad == 0) {
          Quad sums = load_vector<Quad>(own);
          for (int64_t i = kQuad; i < per_query; i += kQuad) sums += load_vector<Quad>(own + i);
          const T sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
          for (int64_t i = 0; i < per_query; i += kQuad) store_vector<Quad>(own + i, load_vector<Quad>(own + i) / sum);
        } else {
          T sum = 0;
          for (int64_t i = 0; i < per_query; ++i) sum += own[i];
          for (int64_t i = 0; i < per_query; ++i) own[i] /= sum;
        }
      }
    }
    switch (problem.coordinates) {
      case Coordinates::normalised: find_corners<Coordinates::normalised>(problem, used); break;
      case Coordinates::offsets: find_corners<Coordinates::offsets>(problem, used); break;
      case Coordinates::kernel_grid:
        set_middles(problem, part, begin, used);
        find_corners<Coordinates::kernel_grid>(problem, used);
    }
  }

  // Copy the locations and weights of `count` items if they have the compute type, and return whether they have it.
  bool copy_items(const Problem& problem, const Items& item, int64_t count) {
    if (problem.locations.type != compute_type<T>() || problem.weights.type != compute_type<T>()) return false;
    if (per_query == 9) {  // 3 x 3: the compiler knows the number of vectors
      copy_points(problem, item, count, 9);
    } else {
      copy_points(problem, item, count, per_query);
    }
    return true;
  }

  DEFORMABLE_OPS_INLINE void copy_points(const Problem& problem, const Items& item, int64_t count, int64_t points) {
    const Layout locations = problem.location_layout, weights = problem.weight_layout;
    const T* location = static_cast<const T*>(problem.locations.data) + item.in(locations);
    const T* factor = static_cast<const T*>(problem.weights.data) + item.in(weights);
    T *to_pairs = buffer, *to_weights = weight;
    const int64_t heads = item.heads;
    for (int64_t head = item.head, i = 0; i < count; ++i, to_pairs += 2 * points, to_weights += points) {
      copy_row(location, 2 * points, to_pairs);
      copy_row(factor, points, to_weights);
      location += locations.head;
      factor += weights.head;
      if (++head == heads) {
        head = 0;
        location += locations.query - heads * locations.head;
        factor += weights.query - heads * weights.head;
      }
    }
  }

  void subtract_largest(T* logits) const {
    if (per_query % kQuad == 0 && per_query > 0) {
      Quad most = load_vector<Quad>(logits);
      for (int64_t i = kQuad; i < per_query; i += kQuad) {
        const Quad other = load_vector<Quad>(logits + i);
        most = other > most ? other : most;
      }
      const T first = most[0] > most[1] ? most[0] : most[1], second = most[2] > most[3] ? most[2] : most[3];
      const T largest = first > second ? first : second;
      for (int64_t i = 0; i < per_query; i += kQuad) {
        store_vector<Quad>(logits + i, load_vector<Quad>(logits + i) - largest);
      }
      return;
    }
    T largest = 0;
    for (int64_t i = 0; i < per_query; ++i) largest = i == 0 || logits[i] > largest ? logits[i] : largest;
    for (int64_t i = 0; i < per_query; ++i) logits[i] -= largest;
  }

  // `lateral` and `vertical` hold the origin of the pairs until find_corners overwrites them.
  void set_reference(const Problem& problem, int64_t image, int64_t query, int64_t first) {
    const int64_t stored_levels = problem.reference_level_stride == 0 ? 1 : problem.levels;
    const int64_t row = image * problem.reference_batch_stride + query * stored_levels;
    T pair[2] = {};
    for (int64_t level = 0; level < problem.levels; ++level) {
      if (level == 0 || stored_levels > 1) {
        load_row(problem.references, 2 * (row + level * problem.reference_level_stride), 2, pair);
      }
      int64_t i = first + level * problem.points;
      const int64_t end = i + problem.points;
      for (; i + kQuad <= end; i += kQuad) {
        const Quad zero = {};
        store_vector<Quad>(lateral + i, origin_of(zero + pair[0], load_vector<Quad>(width + i),
                                                  load_vector<Quad>(reach_x + i)));
        store_vector<Quad>(vertical + i, origin_of(zero + pair[1], load_vector<Quad>(height + i),
                                                   load_vector<Quad>(reach_y + i)));
      }
      for (; i < end; ++i) {
        lateral[i] = origin_of(pair[0], width[i], reach_x[i]);
        vertical[i] = origin_of(pair[1], height[i], reach_y[i]);
      }
    }
  }

  // Return reference points in pixels. A finite one whose product would overflow becomes one that is outside, too.
  template <typename Number>
  static DEFORMABLE_OPS_INLINE Number origin_of(Number reference, Number side, Number reach) {
    const Number low = reference < -reach ? -reach : reference;
    const Number bounded = low > reach ? reach : low;
    return bounded * side - T(0.5) + (reference - reference);
  }

  void set_middles(const Problem& problem, const Part& part, int64_t begin, int64_t used) {
    int64_t column = begin / part.heads % problem.output_width, line = begin / part.heads / problem.output_width;
    const int64_t to_x = half_width(problem) - problem.padding_width;
    const int64_t to_y = half_height(problem) - problem.padding_height;
    int64_t points = (part.heads - begin % part.heads) * per_query;  // remaining points of this output pixel
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

  // Compute the offsets and weights of the four neighbours of each point.
  template <Coordinates coordinates>
  void find_corners(const Problem& problem, int64_t used) {
    typedef typename VectorOf<T>::type Vector;
    typedef typename VectorOf<T>::integers Integers;
    typedef typename VectorOf<T>::mask Mask;
    constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
    const Vector zero = {}, one = zero + T(1);
    const T scale = static_cast<T>(problem.offset_scale);
    const int64_t next_row = row_bytes, outside_row = to_outside;  // stay in registers
    for (int64_t i = 0; i < used; i += kLanes) {
      Vector x_, y_;
      load_pairs<Vector>(pairs + 2 * i, x_, y_);
      // 0, or NaN where a number is not finite; a finite number whose position overflows is outside
      Vector defect_x = x_ - x_, defect_y = y_ - y_;
      const Vector width_ = load_vector<Vector>(width + i), height_ = load_vector<Vector>(height + i);
      if constexpr (coordinates == Coordinates::normalised) {
        x_ = x_ * width_ - T(0.5);
        y_ = y_ * height_ - T(0.5);
      } else if constexpr (coordinates == Coordinates::offsets) {
        const Vector origin_x = load_vector<Vector>(lateral + i), origin_y = load_vector<Vector>(vertical + i);
        x_ += origin_x;
        y_ += origin_y;
        defect_x += origin_x - origin_x;
        defect_y += origin_y - origin_y;
      } else {
        x_ = (load_vector<Vector>(grid_x + i) + x_) * scale + load_vector<Vector>(lateral + i);
        y_ = (load_vector<Vector>(grid_y + i) + y_) * scale + load_vector<Vector>(vertical + i);
      }
      const Mask inside = (x_ > -one) & (x_ < width_) & (y_ > -one) & (y_ < height_);
      const Vector near_x = inside ? x_ : zero, near_y = inside ? y_ : zero;
      Integers column = __builtin_convertvector(near_x, Integers);  // rounds towards zero: too large by one below zero
      Integers row = __builtin_convertvector(near_y, Integers);
      column += __builtin_convertvector(__builtin_convertvector(column, Vector) > near_x, Integers);
      row += __builtin_convertvector(__builtin_convertvector(row, Vector) > near_y, Integers);
      const Vector right = (near_x - __builtin_convertvector(column, Vector)) + defect_x;
      const Vector lower = (near_y - __builtin_convertvector(row, Vector)) + defect_y;
      store_vector<Vector>(lateral + i, right);
      store_vector<Vector>(vertical + i, lower);
      const Vector attention = load_vector<Vector>(factors + i);
      const Vector lower_weight = lower * attention, upper_weight = (one - lower) * attention;
      store_vector<Vector>(corner_weight[0] + i, upper_weight * (one - right));
      store_vector<Vector>(corner_weight[1] + i, upper_weight * right);
      store_vector<Vector>(corner_weight[2] + i, lower_weight * (one - right));
      store_vector<Vector>(corner_weight[3] + i, lower_weight * right);

      const Integers columns_ = load_vector<Integers>(columns + i), rows_ = load_vector<Integers>(rows + i);
      const Integers off_level = ~__builtin_convertvector(inside, Integers);
      const Integers left = off_level | (column < 0), beyond = off_level | (column + 1 >= columns_);
      const Integers above = row < 0, below = row + 1 >= rows_;
      const Integers first = load_vector<Integers>(start + i) + row * columns_ + column;
      const Integers hidden[4] = {left | above, beyond | above, left | below, beyond | below};
      store_offsets<0, kLanes>(i, first, hidden, next_row, outside_row);
      store_offsets<1, kLanes>(i, first, hidden, next_row, outside_row);
    }
  }

  // Store the offsets of half of the lanes, because offsets have 64 bits.
  template <int half, int lanes, typename Integers>
  DEFORMABLE_OPS_INLINE void store_offsets(int64_t i, Integers first, const Integers (&hidden)[4], int64_t next_row,
                                           int64_t outside_row) {
    typedef typename VectorOf<double, lanes / 2>::mask Wide;
    i += half * lanes / 2;
    const Wide upper = widened<lanes, half>(first) * next_row, lower = upper + load_vector<Wide>(line + i);
    const Wide bytes[4] = {upper, upper + next_row, lower, lower + next_row};
    const Wide everywhere_outside = Wide{} + outside_row;
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
      const Wide offsets = replaced<lanes, half>(bytes[corner], everywhere_outside, hidden[corner]);
      store_vector<Wide>(corner_offset[corner] + i, offsets);
    }
  }

  // Compute the gradients of the weights after the softmax, and those of the stored x and y, from `dot`.
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
      const Vector attention = load_vector<Vector>(factors + i);
      Vector x_ = attention * ((one - lower) * (dots[1] - dots[0]) + lower * (dots[3] - dots[2]));
      Vector y_ = attention * ((one - right) * (dots[2] - dots[0]) + right * (dots[3] - dots[1]));
      x_ *= normalised ? load_vector<Vector>(width + i) : scale;
      y_ *= normalised ? load_vector<Vector>(height + i) : scale;
      store_pairs<Vector>(buffer + 2 * i, x_, y_);
    }
  }
};

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
