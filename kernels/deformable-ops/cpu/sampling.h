// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Bilinear sampling of value rows and its gradients, for one instruction set. Included by one translation unit per
// instruction set, each with its own DEFORMABLE_OPS_ARCH namespace: two sets may never share an inline function,
// or the linker could hand the wide one to an old processor. For the same reason nothing of the standard library is
// used here.
//
// Points are handled in blocks of a few hundred: first the coordinates of the whole block become tokens and bilinear
// weights (loops that the compiler vectorises over points), then rows are gathered or scattered (vectorised over
// channels). A corner outside its level has token -1 and reads a row of zeros, so nothing outside is ever read, and a
// NaN stored there cannot spread. A location that is not finite makes its own query and head NaN, as grid_sample does.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "problem.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed to inlined functions only
#endif

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

#define DEFORMABLE_OPS_INLINE inline __attribute__((always_inline))

constexpr int64_t kBlock = 256;   // points handled together, at least those of one query
constexpr int64_t kWidest = 64;

// 32 bytes of T, as many 32-bit integers, and what comparisons of Ts give. Plain vector extensions: where registers are
// shorter, the compiler uses several.
template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(32)));
  typedef float quad __attribute__((vector_size(16)));
  typedef int32_t integers __attribute__((vector_size(32)));
  typedef int32_t mask __attribute__((vector_size(32)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(32)));
  typedef double quad __attribute__((vector_size(32)));
  typedef int32_t integers __attribute__((vector_size(16)));
  typedef int64_t mask __attribute__((vector_size(32)));
};

template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE Vector load_vector(const T* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(Vector));  // not aligned
  return vector;
}

template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void store_vector(T* target, Vector vector) {
  __builtin_memcpy(target, &vector, sizeof(Vector));
}

// Writes a[0] b[0] c[0] d[0] a[1] b[1] c[1] d[1] ...
template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void store_interleaved(T* target, Vector a, Vector b, Vector c, Vector d) {
  constexpr int kLanes = sizeof(Vector) / sizeof(T);
  if constexpr (kLanes == 8) {
    const Vector ab0 = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    const Vector ab1 = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    const Vector cd0 = __builtin_shufflevector(c, d, 0, 8, 1, 9, 2, 10, 3, 11);
    const Vector cd1 = __builtin_shufflevector(c, d, 4, 12, 5, 13, 6, 14, 7, 15);
    store_vector<Vector>(target, __builtin_shufflevector(ab0, cd0, 0, 1, 8, 9, 2, 3, 10, 11));
    store_vector<Vector>(target + 8, __builtin_shufflevector(ab0, cd0, 4, 5, 12, 13, 6, 7, 14, 15));
    store_vector<Vector>(target + 16, __builtin_shufflevector(ab1, cd1, 0, 1, 8, 9, 2, 3, 10, 11));
    store_vector<Vector>(target + 24, __builtin_shufflevector(ab1, cd1, 4, 5, 12, 13, 6, 7, 14, 15));
  } else {
    const Vector ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Vector cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    store_vector<Vector>(target, __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5));
    store_vector<Vector>(target + 4, __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7));
    store_vector<Vector>(target + 8, __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5));
    store_vector<Vector>(target + 12, __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7));
  }
}

// ---- element types -------------------------------------------------------------------------------------------------

union Bits {
  float value;
  uint32_t bits;
};

DEFORMABLE_OPS_INLINE float from_bfloat16(uint16_t stored) {
  Bits number;
  number.bits = static_cast<uint32_t>(stored) << 16;
  return number.value;
}

DEFORMABLE_OPS_INLINE uint16_t to_bfloat16(float value) {
  Bits number;
  number.value = value;
  const uint32_t rounded = (number.bits + 0x7fffu + ((number.bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return value != value ? 0x7fc0 : static_cast<uint16_t>(rounded);
}

DEFORMABLE_OPS_INLINE float from_float16(uint16_t stored) {
#if defined(__F16C__)
  return _cvtsh_ss(stored);
#else
  const uint32_t sign = static_cast<uint32_t>(stored & 0x8000u) << 16;
  const uint32_t magnitude = stored & 0x7fffu;
  Bits number;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    number.bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x0400u) {
    number.bits = sign | ((magnitude + 0x1c000u) << 13);
  } else {  // zero, subnormal: a multiple of 2^-24
    number.value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    number.bits |= sign;
  }
  return number.value;
#endif
}

DEFORMABLE_OPS_INLINE uint16_t to_float16(float value) {
#if defined(__F16C__)
  return static_cast<uint16_t>(_cvtss_sh(value, 0));
#else
  Bits number;
  number.value = value;
  const uint32_t sign = (number.bits >> 16) & 0x8000u;
  number.bits &= 0x7fffffffu;
  uint32_t magnitude;
  if (number.bits > 0x7f800000u) {
    magnitude = 0x7e00u;
  } else if (number.bits >= 0x47800000u) {  // 65536 and more
    magnitude = 0x7c00u;
  } else if (number.bits < 0x38800000u) {  // less than 2^-14: adding 0.5 leaves the multiple of 2^-24 in the last bits
    number.value += 0.5f;
    magnitude = number.bits - 0x3f000000u;
  } else {
    magnitude = (number.bits - 0x38000000u + 0x0fffu + ((number.bits >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | magnitude);
#endif
}

template <typename T>
void load_converted(const Array& array, int64_t offset, int64_t count, T* target) {
  switch (array.type) {
    case Scalar::float32: {
      const float* source = static_cast<const float*>(array.data) + offset;
      for (int64_t i = 0; i < count; ++i) target[i] = static_cast<T>(source[i]);
      return;
    }
    case Scalar::float64: {
      const double* source = static_cast<const double*>(array.data) + offset;
      for (int64_t i = 0; i < count; ++i) target[i] = static_cast<T>(source[i]);
      return;
    }
    case Scalar::bfloat16: {
      const uint16_t* source = static_cast<const uint16_t*>(array.data) + offset;
      for (int64_t i = 0; i < count; ++i) target[i] = static_cast<T>(from_bfloat16(source[i]));
      return;
    }
    case Scalar::float16: {
      const uint16_t* source = static_cast<const uint16_t*>(array.data) + offset;
      int64_t i = 0;
#if defined(__F16C__)
      if (sizeof(T) == sizeof(float)) {
        for (; i + 8 <= count; i += 8) {
          const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
          _mm256_storeu_ps(reinterpret_cast<float*>(target + i), _mm256_cvtph_ps(eight));
        }
      }
#endif
      for (; i < count; ++i) target[i] = static_cast<T>(from_float16(source[i]));
      return;
    }
  }
}

template <typename T>
DEFORMABLE_OPS_INLINE Scalar own_type() {
  return sizeof(T) == sizeof(float) ? Scalar::float32 : Scalar::float64;
}

// `count` elements in the compute type: the array itself where it has that type, else `buffer`.
template <typename T>
DEFORMABLE_OPS_INLINE const T* view(const Array& array, int64_t offset, int64_t count, T* buffer) {
  if (array.type == own_type<T>()) return static_cast<const T*>(array.data) + offset;
  load_converted(array, offset, count, buffer);
  return buffer;
}

// `count` elements, in the compute type, to `target`. For rows too short for a call of memcpy.
template <typename T>
DEFORMABLE_OPS_INLINE void load_row(const Array& array, int64_t offset, int64_t count, T* target) {
  typedef typename VectorOf<T>::type Vector;
  typedef typename VectorOf<T>::quad Quad;
  constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
  if (array.type != own_type<T>()) {
    load_converted(array, offset, count, target);
    return;
  }
  const T* source = static_cast<const T*>(array.data) + offset;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_vector<Vector>(target + i, load_vector<Vector>(source + i));
  if (i + 4 <= count) {
    store_vector<Quad>(target + i, load_vector<Quad>(source + i));
    i += 4;
  }
  for (; i < count; ++i) target[i] = source[i];
}

template <typename T>
void store(const Array& array, int64_t offset, int64_t count, const T* source) {
  switch (array.type) {
    case Scalar::float32: {
      float* target = static_cast<float*>(array.data) + offset;
      for (int64_t i = 0; i < count; ++i) target[i] = static_cast<float>(source[i]);
      return;
    }
    case Scalar::float64: {
      double* target = static_cast<double*>(array.data) + offset;
      for (int64_t i = 0; i < count; ++i) target[i] = static_cast<double>(source[i]);
      return;
    }
    case Scalar::bfloat16: {
      uint16_t* target = static_cast<uint16_t*>(array.data) + offset;
      for (int64_t i = 0; i < count; ++i) target[i] = to_bfloat16(static_cast<float>(source[i]));
      return;
    }
    case Scalar::float16: {
      uint16_t* target = static_cast<uint16_t*>(array.data) + offset;
      for (int64_t i = 0; i < count; ++i) target[i] = to_float16(static_cast<float>(source[i]));
      return;
    }
  }
}

// ---- softmax -------------------------------------------------------------------------------------------------------

// exp for x <= 0, relative error below 2e-7 (of a double: the library's). NaN stays NaN.
DEFORMABLE_OPS_INLINE void exponential(float* numbers, int64_t count) {
  typedef VectorOf<float>::type Vector;
  typedef VectorOf<float>::integers Integers;
  const Vector zero = {};
  for (int64_t i = 0; i < count; i += 8) {
    const Vector x = load_vector<Vector>(numbers + i);
    const Vector bounded = x < -87.0f ? zero - 87.0f : x;       // below that the result is zero, not a subnormal
    const Vector shifted = bounded * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const Vector power = shifted - 12582912.0f;
    const Vector rest = (bounded - power * 0.693359375f) + power * 2.12194440e-4f;
    Vector series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = (series * rest) * rest + rest + 1.0f;
    Integers bits;
    __builtin_memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits << 23) + 0x3f800000;  // the integer as an exponent
    Vector scale;
    __builtin_memcpy(&scale, &bits, sizeof(scale));
    store_vector<Vector>(numbers + i, x < -87.0f ? zero : series * scale);
  }
}

DEFORMABLE_OPS_INLINE void exponential(double* numbers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) numbers[i] = __builtin_exp(numbers[i]);
}

// ---- a block of points ---------------------------------------------------------------------------------------------

// Arrays of `capacity` entries each, in the scratch memory of one thread.
template <typename T>
struct Block {
  int64_t per_query;  // points of one query: levels * points
  int64_t queries;    // at most this many queries
  int64_t capacity;
  T *x, *y, *weight;              // pixels; attention weights after the softmax
  T *lateral, *vertical;          // fractions to the right and the lower neighbour
  T *width, *height;              // of the point's level
  T *grid_x, *grid_y;             // kernel_grid: the kernel element relative to the middle
  T *gradient_x, *gradient_y, *gradient_weight;
  T* buffer;                      // 2 * capacity
  // Four for each point: upper left, upper right, lower left, lower right
  T* corner;                      // bilinear times attention weight
  T* dot;                         // the row times the gradient of the output (backward)
  int32_t* token;
  int32_t *columns, *rows, *start;
  T* zeros;                       // kWidest zeros, what lies outside
  T* nowhere;                     // kWidest, takes the gradient of what lies outside
  T* channels;                    // output or gradient of one query and head

  static int64_t points_of(const Problem& problem) { return problem.levels * problem.points; }

  static int64_t queries_of(const Problem& problem) {
    const int64_t per_query = points_of(problem);
    return per_query == 0 || per_query > kBlock ? 1 : kBlock / per_query;
  }

  // Whole vectors are computed, so the arrays end at a multiple of 8 points.
  static int64_t padded(int64_t points) { return (points + 7) / 8 * 8; }

  static size_t bytes(const Problem& problem) {
    const int64_t each = padded(queries_of(problem) * points_of(problem));
    return static_cast<size_t>((22 * each + 2 * kWidest + problem.channels) * sizeof(T) + 7 * each * sizeof(int32_t));
  }

  Block(const Problem& problem, void* scratch) {
    per_query = points_of(problem);
    queries = queries_of(problem);
    capacity = queries * per_query;
    const int64_t each = padded(capacity);
    T* next = static_cast<T*>(scratch);
    T** const arrays[] = {&x,      &y,      &weight,     &lateral,    &vertical,        &width,
                          &height, &grid_x, &grid_y,     &gradient_x, &gradient_y,      &gradient_weight};
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

  // Pixels and attention weights of the queries [begin, begin + count) of a unit.
  void load(const Problem& problem, int64_t unit, int64_t begin, int64_t count) {
    const int64_t image = unit / problem.heads, head = unit % problem.heads;
    for (int64_t query = 0; query < count; ++query) {
      const int64_t row = ((image * problem.queries + begin + query) * problem.heads + head) * per_query;
      const int64_t first = query * per_query;
      load_row(problem.locations, 2 * row, 2 * per_query, buffer + 2 * first);
      load_row(problem.weights, row, per_query, weight + first);
      if (problem.coordinates == Coordinates::offsets) {
        subtract_largest(weight + first);
        set_reference(problem, image, begin + query, first);
      } else if (problem.coordinates == Coordinates::kernel_grid) {
        set_middle(problem, begin + query, first);
      }
    }
    const int64_t used = count * per_query;
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

  void set_middle(const Problem& problem, int64_t query, int64_t first) {
    const int64_t column = query % problem.output_width, line = query / problem.output_width;
    const T middle_x = static_cast<T>(column * problem.stride_width - problem.padding_width + half_width(problem));
    const T middle_y = static_cast<T>(line * problem.stride_height - problem.padding_height + half_height(problem));
    for (int64_t i = first; i < first + per_query; ++i) {
      lateral[i] = middle_x;
      vertical[i] = middle_y;
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
};

// ---- rows ----------------------------------------------------------------------------------------------------------

// sum over points and corners of weight times row, for `Width` channels
template <typename T, int Width>
struct Rows {
  typedef typename VectorOf<T>::type Vector;
  static constexpr int kLanes = sizeof(Vector) / sizeof(T);
  static constexpr int kVectors = Width / kLanes > 0 ? Width / kLanes : 1;
  static constexpr bool kWide = Width >= kLanes;

  static DEFORMABLE_OPS_INLINE const T* row(const T* rows, int64_t stride, int32_t token, const T* outside) {
    return token < 0 ? outside : rows + token * stride;
  }

  static DEFORMABLE_OPS_INLINE void gather(const Block<T>& block, int64_t first, const T* rows, int64_t stride,
                                           T* result) {
    if constexpr (kWide) {
      // separate sums, because an addition has to wait for the one before it
      constexpr int kSums = kVectors >= 8 ? 1 : (kVectors >= 4 ? 2 : 4);
      Vector sums[kSums][kVectors] = {};
      for (int64_t i = first; i < first + block.per_query; ++i) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          const T* source = row(rows, stride, block.token[4 * i + corner], block.zeros);
          const T factor = block.corner[4 * i + corner];
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) {
            sums[corner % kSums][v] += load_vector<Vector>(source + v * kLanes) * factor;
          }
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        for (int s = 1; s < kSums; ++s) sums[0][v] += sums[s][v];
        store_vector<Vector>(result + v * kLanes, sums[0][v]);
      }
    } else {
      T sums[Width] = {};
      for (int64_t i = first; i < first + block.per_query; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const T* source = row(rows, stride, block.token[4 * i + corner], block.zeros);
          const T factor = block.corner[4 * i + corner];
          for (int c = 0; c < Width; ++c) sums[c] += source[c] * factor;
        }
      }
      for (int c = 0; c < Width; ++c) result[c] = sums[c];
    }
  }

  // dot += row of the corner times gradient
  static DEFORMABLE_OPS_INLINE void dots(const Block<T>& block, int64_t first, const T* rows, int64_t stride,
                                         const T* gradient) {
    if constexpr (kWide) {
      Vector own[kVectors];
      for (int v = 0; v < kVectors; ++v) own[v] = load_vector<Vector>(gradient + v * kLanes);
      for (int64_t i = first; i < first + block.per_query; ++i) {
        Vector products[4];
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          const T* source = row(rows, stride, block.token[4 * i + corner], block.zeros);
          products[corner] = load_vector<Vector>(source) * own[0];
#pragma GCC unroll 16
          for (int v = 1; v < kVectors; ++v) {
            products[corner] += load_vector<Vector>(source + v * kLanes) * own[v];
          }
        }
        typedef typename VectorOf<T>::quad Quad;
        store_vector<Quad>(block.dot + 4 * i, load_vector<Quad>(block.dot + 4 * i) + four_sums(products));
      }
    } else {
      for (int64_t i = first; i < first + block.per_query; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const T* source = row(rows, stride, block.token[4 * i + corner], block.zeros);
          T sum = 0;
          for (int c = 0; c < Width; ++c) sum += source[c] * gradient[c];
          block.dot[4 * i + corner] += sum;
        }
      }
    }
  }

  // The sums over the lanes of four vectors.
  static DEFORMABLE_OPS_INLINE typename VectorOf<T>::quad four_sums(const Vector (&v)[4]) {
    if constexpr (kLanes == 8) {
      const Vector first = __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 8, 9, 10, 11) +
                           __builtin_shufflevector(v[0], v[1], 4, 5, 6, 7, 12, 13, 14, 15);
      const Vector second = __builtin_shufflevector(v[2], v[3], 0, 1, 2, 3, 8, 9, 10, 11) +
                            __builtin_shufflevector(v[2], v[3], 4, 5, 6, 7, 12, 13, 14, 15);
      const Vector halves = __builtin_shufflevector(first, second, 0, 1, 4, 5, 8, 9, 12, 13) +
                            __builtin_shufflevector(first, second, 2, 3, 6, 7, 10, 11, 14, 15);
      return __builtin_shufflevector(halves, halves, 0, 2, 4, 6) + __builtin_shufflevector(halves, halves, 1, 3, 5, 7);
    } else {
      const Vector first = __builtin_shufflevector(v[0], v[1], 0, 1, 4, 5) +
                           __builtin_shufflevector(v[0], v[1], 2, 3, 6, 7);
      const Vector second = __builtin_shufflevector(v[2], v[3], 0, 1, 4, 5) +
                            __builtin_shufflevector(v[2], v[3], 2, 3, 6, 7);
      return __builtin_shufflevector(first, second, 0, 2, 4, 6) + __builtin_shufflevector(first, second, 1, 3, 5, 7);
    }
  }

  // sums[token] += weight * gradient, for rows of exactly `Width` channels
  static DEFORMABLE_OPS_INLINE void scatter(const Block<T>& block, int64_t first, T* sums, const T* gradient) {
    if constexpr (kWide) {
      Vector own[kVectors];
      for (int v = 0; v < kVectors; ++v) own[v] = load_vector<Vector>(gradient + v * kLanes);
      for (int64_t i = first; i < first + block.per_query; ++i) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t token = block.token[4 * i + corner];
          T* target = token < 0 ? block.nowhere : sums + static_cast<int64_t>(token) * Width;
          const T factor = block.corner[4 * i + corner];
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) {
            store_vector<Vector>(target + v * kLanes, load_vector<Vector>(target + v * kLanes) + own[v] * factor);
          }
        }
      }
    } else {
      for (int64_t i = first; i < first + block.per_query; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t token = block.token[4 * i + corner];
          T* target = token < 0 ? block.nowhere : sums + static_cast<int64_t>(token) * Width;
          for (int c = 0; c < Width; ++c) target[c] += gradient[c] * block.corner[4 * i + corner];
        }
      }
    }
  }
};

// `call` of the Rows whose width equals `width`, one of kWidths.
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
void pack(const Problem& problem, int64_t unit, int64_t begin, int64_t end, void* packed) {
  const int64_t image = unit / problem.heads, head = unit % problem.heads;
  T* target = static_cast<T*>(packed) + begin * problem.channels;
  for (int64_t token = begin; token < end; ++token, target += problem.channels) {
    const int64_t row = (image * problem.tokens + token) * problem.heads + head;
    load_row(problem.value, row * problem.channels, problem.channels, target);
  }
}

template <typename T>
void forward(const Problem& problem, int64_t unit, int64_t begin, int64_t end, const void* rows, int64_t row_stride,
             void* scratch) {
  Block<T> block(problem, scratch);
  const bool is_own = problem.output.type == own_type<T>();
  const int64_t image = unit / problem.heads, head = unit % problem.heads;
  for (int64_t query = begin; query < end; query += block.queries) {
    const int64_t count = end - query < block.queries ? end - query : block.queries;
    block.load(problem, unit, query, count);
    block.find_corners(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t offset = ((image * problem.queries + query + i) * problem.heads + head) * problem.channels;
      T* target = is_own ? static_cast<T*>(problem.output.data) + offset : block.channels;
      for (int64_t channel = 0; channel < problem.channels;) {
        const int64_t width = widest(problem.channels - channel);
        const T* source = static_cast<const T*>(rows) + channel;
        DEFORMABLE_OPS_BY_WIDTH(T, width, gather(block, i * block.per_query, source, row_stride, target + channel));
        channel += width;
      }
      if (!is_own) store(problem.output, offset, problem.channels, target);
    }
  }
}

template <typename T>
void backward_points(const Problem& problem, int64_t unit, int64_t begin, int64_t end, const void* rows,
                     int64_t row_stride, void* scratch) {
  Block<T> block(problem, scratch);
  const int64_t image = unit / problem.heads, head = unit % problem.heads;
  const int64_t per_query = block.per_query;
  for (int64_t query = begin; query < end; query += block.queries) {
    const int64_t count = end - query < block.queries ? end - query : block.queries;
    const int64_t used = count * per_query;
    block.load(problem, unit, query, count);
    block.find_corners(count);
    for (int64_t i = 0; i < 4 * used; ++i) block.dot[i] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (image * problem.queries + query + i) * problem.heads + head;
      const T* gradient = view(problem.grad_output, row * problem.channels, problem.channels, block.channels);
      for (int64_t channel = 0; channel < problem.channels;) {
        const int64_t width = widest(problem.channels - channel);
        const T* source = static_cast<const T*>(rows) + channel;
        DEFORMABLE_OPS_BY_WIDTH(T, width, dots(block, i * per_query, source, row_stride, gradient + channel));
        channel += width;
      }
    }
    T *__restrict gradient_x = block.gradient_x, *__restrict gradient_y = block.gradient_y;
    T* __restrict gradient_weight = block.gradient_weight;
    for (int64_t i = 0; i < used; ++i) {
      const T right = block.lateral[i], lower = block.vertical[i];
      const T dot0 = block.dot[4 * i], dot1 = block.dot[4 * i + 1], dot2 = block.dot[4 * i + 2],
              dot3 = block.dot[4 * i + 3];
      gradient_x[i] = block.weight[i] * ((1 - lower) * (dot1 - dot0) + lower * (dot3 - dot2));
      gradient_y[i] = block.weight[i] * ((1 - right) * (dot2 - dot0) + right * (dot3 - dot1));
      gradient_weight[i] =
          (1 - lower) * ((1 - right) * dot0 + right * dot1) + lower * ((1 - right) * dot2 + right * dot3);
    }
    if (problem.coordinates == Coordinates::normalised) {
      for (int64_t i = 0; i < used; ++i) {
        gradient_x[i] *= block.width[i];
        gradient_y[i] *= block.height[i];
      }
    } else if (problem.coordinates == Coordinates::kernel_grid) {
      const T scale = static_cast<T>(problem.offset_scale);
      for (int64_t i = 0; i < used; ++i) {
        gradient_x[i] *= scale;
        gradient_y[i] *= scale;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = i * per_query;
      if (problem.coordinates == Coordinates::offsets) {  // through the softmax
        T mean = 0;
        for (int64_t j = first; j < first + per_query; ++j) mean += block.weight[j] * block.gradient_weight[j];
        for (int64_t j = first; j < first + per_query; ++j) {
          block.gradient_weight[j] = block.weight[j] * (block.gradient_weight[j] - mean);
        }
      }
      const int64_t row = ((image * problem.queries + query + i) * problem.heads + head) * per_query;
      store(problem.grad_weights, row, per_query, block.gradient_weight + first);
      for (int64_t j = 0; j < per_query; ++j) {
        block.buffer[2 * j] = block.gradient_x[first + j];
        block.buffer[2 * j + 1] = block.gradient_y[first + j];
      }
      store(problem.grad_locations, 2 * row, 2 * per_query, block.buffer);
    }
  }
}

template <typename T>
void backward_value(const Problem& problem, int64_t unit, int64_t first, int64_t width, void* sums, void* scratch) {
  Block<T> block(problem, scratch);
  const int64_t image = unit / problem.heads, head = unit % problem.heads;
  for (int64_t query = 0; query < problem.queries; query += block.queries) {
    const int64_t left = problem.queries - query;
    const int64_t count = left < block.queries ? left : block.queries;
    block.load(problem, unit, query, count);
    block.find_corners(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (image * problem.queries + query + i) * problem.heads + head;
      const T* gradient = view(problem.grad_output, row * problem.channels + first, width, block.channels);
      DEFORMABLE_OPS_BY_WIDTH(T, width, scatter(block, i * block.per_query, static_cast<T*>(sums), gradient));
    }
  }
  const T* source = static_cast<const T*>(sums);
  for (int64_t token = 0; token < problem.tokens; ++token, source += width) {
    const int64_t row = (image * problem.tokens + token) * problem.heads + head;
    store(problem.grad_value, row * problem.channels + first, width, source);
  }
}

template <typename T>
const Kernels& kernels_of() {
  static constexpr Kernels table = {&scratch_bytes<T>, &pack<T>, &forward<T>, &backward_points<T>, &backward_value<T>};
  return table;
}

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
