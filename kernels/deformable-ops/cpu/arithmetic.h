// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Vectors, element types and the exponential function for one instruction set (see sampling.h).
#pragma once

#if defined(DEFORMABLE_OPS_F16C)
#include <immintrin.h>
#endif

#include "problem.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed to inlined functions only
#endif

namespace deformable_ops {
namespace DEFORMABLE_OPS_ARCH {

#define DEFORMABLE_OPS_INLINE inline __attribute__((always_inline))

constexpr int kVectorBytes = DEFORMABLE_OPS_VECTOR_BYTES;

// type: a vector with `lanes` elements of T; quad: with four; integers: with `lanes` 32-bit integers; mask: the result
// of comparing two vectors; words and halves: with `lanes` unsigned integers of 32 or 16 bits. These are
// vector extensions: if registers are shorter, the compiler uses several.
template <typename T, int lanes = kVectorBytes / sizeof(T)>
struct VectorOf;
template <int lanes>
struct VectorOf<float, lanes> {
  typedef float type __attribute__((vector_size(4 * lanes)));
  typedef float quad __attribute__((vector_size(16)));
  typedef int32_t integers __attribute__((vector_size(4 * lanes)));
  typedef int32_t mask __attribute__((vector_size(4 * lanes)));
  typedef uint32_t words __attribute__((vector_size(4 * lanes)));
  typedef uint16_t halves __attribute__((vector_size(2 * lanes)));
};
template <int lanes>
struct VectorOf<double, lanes> {
  typedef double type __attribute__((vector_size(8 * lanes)));
  typedef double quad __attribute__((vector_size(32)));
  typedef int32_t integers __attribute__((vector_size(4 * lanes)));
  typedef int64_t mask __attribute__((vector_size(8 * lanes)));
};

template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE Vector load_vector(const T* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(Vector));  // source may be unaligned
  return vector;
}

template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void store_vector(T* target, Vector vector) {
  __builtin_memcpy(target, &vector, sizeof(Vector));
}

// Convert the first or second half of `lanes` 32-bit integers to 64 bits. By intrinsics, because GCC compiles the
// conversion of a vector to a dozen shuffles.
template <int lanes, int half, typename Integers>
DEFORMABLE_OPS_INLINE typename VectorOf<double, lanes / 2>::mask widened(Integers vector) {
  typedef typename VectorOf<double, lanes / 2>::mask Wide;
  constexpr int i = half * lanes / 2;
  if constexpr (lanes == 16) {
    const auto part = __builtin_shufflevector(vector, vector, i, i + 1, i + 2, i + 3, i + 4, i + 5, i + 6, i + 7);
#if DEFORMABLE_OPS_VECTOR_BYTES == 64
    return (Wide)_mm512_cvtepi32_epi64((__m256i)part);
#else
    return __builtin_convertvector(part, Wide);
#endif
  } else if constexpr (lanes == 8) {
    const auto part = __builtin_shufflevector(vector, vector, i, i + 1, i + 2, i + 3);
#if defined(DEFORMABLE_OPS_F16C)
    return (Wide)_mm256_cvtepi32_epi64((__m128i)part);
#else
    return __builtin_convertvector(part, Wide);
#endif
  } else {
    return __builtin_convertvector(__builtin_shufflevector(vector, vector, i, i + 1), Wide);
  }
}

// Replace lanes of `offsets` by `outside` where this half of `hidden` is -1. `outside` has the same number in all lanes.
template <int lanes, int half, typename Wide, typename Integers>
DEFORMABLE_OPS_INLINE Wide replaced(Wide offsets, Wide outside, Integers hidden) {
#if DEFORMABLE_OPS_VECTOR_BYTES == 64
  if constexpr (lanes == 16) {  // by a mask register, because widening and combining took three instructions
    const __mmask16 mask = _mm512_movepi32_mask((__m512i)hidden);
    const __mmask8 own = static_cast<__mmask8>(mask >> (half * 8));
    return (Wide)_mm512_mask_mov_epi64((__m512i)offsets, own, (__m512i)outside);
  }
#endif
  const Wide hide = widened<lanes, half>(hidden);
  return (offsets & ~hide) | (hide & outside);
}

// Split x[0] y[0] x[1] y[1] ... in two vectors into x and y.
template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void split_pairs(Vector first, Vector second, Vector& x, Vector& y) {
  constexpr int kLanes = sizeof(Vector) / sizeof(T);
  if constexpr (kLanes == 16) {
    x = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    y = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (kLanes == 8) {
    x = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14);
    y = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15);
  } else {
    x = __builtin_shufflevector(first, second, 0, 2, 4, 6);
    y = __builtin_shufflevector(first, second, 1, 3, 5, 7);
  }
}

template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void load_pairs(const T* source, Vector& x, Vector& y) {
  split_pairs<Vector, T>(load_vector<Vector>(source), load_vector<Vector>(source + sizeof(Vector) / sizeof(T)), x, y);
}

// Inverse of load_pairs.
template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void store_pairs(T* target, Vector x, Vector y) {
  constexpr int kLanes = sizeof(Vector) / sizeof(T);
  Vector first, second;
  if constexpr (kLanes == 16) {
    first = __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    second = __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (kLanes == 8) {
    first = __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
    second = __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    first = __builtin_shufflevector(x, y, 0, 4, 1, 5);
    second = __builtin_shufflevector(x, y, 2, 6, 3, 7);
  }
  store_vector<Vector>(target, first);
  store_vector<Vector>(target + kLanes, second);
}

// Load a[0] b[0] c[0] d[0] a[1] ... as four vectors, by splitting pairs twice.
template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void load_interleaved(const T* source, Vector (&vectors)[4]) {
  constexpr int kLanes = sizeof(Vector) / sizeof(T);
  Vector ac[2], bd[2];
  for (int half = 0; half < 2; ++half) load_pairs<Vector>(source + 2 * half * kLanes, ac[half], bd[half]);
  split_pairs<Vector, T>(ac[0], ac[1], vectors[0], vectors[2]);
  split_pairs<Vector, T>(bd[0], bd[1], vectors[1], vectors[3]);
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

template <int lanes>
DEFORMABLE_OPS_INLINE typename VectorOf<float, lanes>::type load_bfloat16(const uint16_t* source) {
  typedef typename VectorOf<float, lanes>::words Words;
  const auto halves = load_vector<typename VectorOf<float, lanes>::halves>(source);
  return (typename VectorOf<float, lanes>::type)(__builtin_convertvector(halves, Words) << 16);
}

// Store a vector of floats as bfloat16, which is the upper half of a float.
template <int lanes>
DEFORMABLE_OPS_INLINE void store_bfloat16(uint16_t* target, typename VectorOf<float, lanes>::type numbers) {
  typedef typename VectorOf<float, lanes>::words Words;
  typedef typename VectorOf<float, lanes>::halves Halves;
  const Words bits = (Words)numbers;
  const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  const Words is_nan = (Words)(numbers != numbers);
  store_vector(target, __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), Halves));
}

DEFORMABLE_OPS_INLINE float from_float16(uint16_t stored) {
#if defined(DEFORMABLE_OPS_F16C)
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
#if defined(DEFORMABLE_OPS_F16C)
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
  } else if (number.bits < 0x38800000u) {  // less than 2^-14: after adding 0.5 the last bits are the multiple of 2^-24
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
#if defined(DEFORMABLE_OPS_F16C)
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
DEFORMABLE_OPS_INLINE Scalar compute_type() {
  return sizeof(T) == sizeof(float) ? Scalar::float32 : Scalar::float64;
}

// Return `count` elements in the compute type: a pointer into the array if it has this type, else `buffer`.
template <typename T>
DEFORMABLE_OPS_INLINE const T* view(const Array& array, int64_t offset, int64_t count, T* buffer) {
  if (array.type == compute_type<T>()) return static_cast<const T*>(array.data) + offset;
  load_converted(array, offset, count, buffer);
  return buffer;
}

// Copy `count` >= `lanes` elements by vectors. The last vector may overlap the one before it, because single elements
// after whole vectors were measured to cost as much as the vectors.
template <typename Vector, typename T>
DEFORMABLE_OPS_INLINE void copy_by_vectors(const T* source, int64_t count, T* target) {
  constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
  for (int64_t i = 0; i < count - kLanes; i += kLanes) store_vector<Vector>(target + i, load_vector<Vector>(source + i));
  store_vector<Vector>(target + count - kLanes, load_vector<Vector>(source + count - kLanes));
}

// Copy a row that is too short for a call of memcpy.
template <typename T>
DEFORMABLE_OPS_INLINE void copy_row(const T* source, int64_t count, T* target) {
  typedef typename VectorOf<T>::type Longest;
  typedef typename VectorOf<T, 32 / sizeof(T)>::type Half;
  typedef typename VectorOf<T, 16 / sizeof(T)>::type Quarter;
  if (count * sizeof(T) >= sizeof(Longest)) {
    copy_by_vectors<Longest>(source, count, target);
  } else if (count * sizeof(T) >= sizeof(Half)) {
    copy_by_vectors<Half>(source, count, target);
  } else if (count * sizeof(T) >= sizeof(Quarter)) {
    copy_by_vectors<Quarter>(source, count, target);
  } else {
    for (int64_t i = 0; i < count; ++i) target[i] = source[i];
  }
}

// Copy `count` elements to `target` in the compute type.
template <typename T>
DEFORMABLE_OPS_INLINE void load_row(const Array& array, int64_t offset, int64_t count, T* target) {
  if (array.type == compute_type<T>()) {
    copy_row(static_cast<const T*>(array.data) + offset, count, target);
    return;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (array.type == Scalar::bfloat16 && count % 4 == 0) {  // the rows of a query, for which a call would take longer
      const uint16_t* const source = static_cast<const uint16_t*>(array.data) + offset;
      int64_t i = 0;
      for (; i + 8 <= count; i += 8) store_vector(target + i, load_bfloat16<8>(source + i));
      if (i < count) store_vector(target + i, load_bfloat16<4>(source + i));
      return;
    }
  }
  load_converted(array, offset, count, target);
}

// The rows of one head are too far apart for the prefetching of the processor.
constexpr int64_t kPrefetchQueries = 8;

DEFORMABLE_OPS_INLINE void prefetch(const Array& array, int64_t offset, int64_t count) {
  const int64_t size = array.type == Scalar::float64 ? 8 : (array.type == Scalar::float32 ? 4 : 2);
  const char* source = static_cast<const char*>(array.data) + offset * size;
  for (int64_t byte = 0; byte < count * size; byte += 64) __builtin_prefetch(source + byte);
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

template <typename T>
DEFORMABLE_OPS_INLINE void store_row(const Array& array, int64_t offset, int64_t count, const T* source) {
  if (array.type == compute_type<T>()) {
    copy_row(source, count, static_cast<T*>(array.data) + offset);
  } else {
    store(array, offset, count, source);
  }
}

// ---- softmax -------------------------------------------------------------------------------------------------------

// exp for x <= 0, with a relative error below 2e-7. NaN stays NaN.
DEFORMABLE_OPS_INLINE VectorOf<float>::type exponential(VectorOf<float>::type x) {
  typedef VectorOf<float>::type Vector;
  const Vector zero = {};
  const Vector bounded = x < -87.0f ? zero - 87.0f : x;       // smaller x give zero, not a subnormal number
  const Vector shifted = bounded * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Vector power = shifted - 12582912.0f;
  const Vector rest = (bounded - power * 0.693359375f) + power * 2.12194440e-4f;
  Vector series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  series = series * rest + 8.3334519073e-3f;
  series = series * rest + 4.1665795894e-2f;
  series = series * rest + 1.6666665459e-1f;
  series = series * rest + 5.0000001201e-1f;
  series = (series * rest) * rest + rest + 1.0f;
  VectorOf<float>::integers bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + 0x3f800000;  // the integer as an exponent
  Vector scale;
  __builtin_memcpy(&scale, &bits, sizeof(scale));
  return x < -87.0f ? zero : series * scale;
}

// The same for an array, and with the precision of the library for double.
DEFORMABLE_OPS_INLINE void exponential(float* numbers, int64_t count) {
  typedef VectorOf<float>::type Vector;
  for (int64_t i = 0; i < count; i += kVectorBytes / sizeof(float)) {
    store_vector<Vector>(numbers + i, exponential(load_vector<Vector>(numbers + i)));
  }
}

DEFORMABLE_OPS_INLINE void exponential(double* numbers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) numbers[i] = __builtin_exp(numbers[i]);
}

}  // namespace DEFORMABLE_OPS_ARCH
}  // namespace deformable_ops
