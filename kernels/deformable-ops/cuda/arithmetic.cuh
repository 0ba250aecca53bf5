// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Element types, 16-byte loads, conversions, atomics, shuffles. Code under DEFORMABLE_OPS_EMULATED is for the emulation
// in the tests (tests/emulation.h); no other file of the kernels differs from a GPU's.
#pragma once

#include <cstdint>

#include "task.h"

namespace deformable_ops {

#define DEFORMABLE_OPS_DEVICE static __device__ __forceinline__

// Tells the emulation of an access to global memory, for benchmarks/cuda_accesses.py. `pointer` is null if this thread
// makes none while others of its warp do. `site` names instructions that a warp executes together.
#if !defined(DEFORMABLE_OPS_ACCESS)
#define DEFORMABLE_OPS_ACCESS(site, pointer, bytes)
#endif

// ---- element types -------------------------------------------------------------------------------------------------

// The type of sums, and the number of elements in 16 bytes.
template <typename V>
struct Element {
  typedef float Compute;
  static constexpr int kVector = 16 / sizeof(V);
};
template <>
struct Element<double> {
  typedef double Compute;
  static constexpr int kVector = 2;
};

DEFORMABLE_OPS_DEVICE float to_compute(float x) { return x; }
DEFORMABLE_OPS_DEVICE double to_compute(double x) { return x; }
DEFORMABLE_OPS_DEVICE float to_compute(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DEFORMABLE_OPS_DEVICE float to_compute(Half x) {
#if defined(DEFORMABLE_OPS_EMULATED)
  return emulated_half_to_float(x.bits);
#else
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#endif
}

DEFORMABLE_OPS_DEVICE void from_compute(float x, float& y) { y = x; }
DEFORMABLE_OPS_DEVICE void from_compute(double x, double& y) { y = x; }
DEFORMABLE_OPS_DEVICE void from_compute(float x, Half& y) {
#if defined(DEFORMABLE_OPS_EMULATED)
  y.bits = emulated_float_to_half(x);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
}
DEFORMABLE_OPS_DEVICE void from_compute(float x, BFloat16& y) {
#if defined(DEFORMABLE_OPS_EMULATED)
  y.bits = emulated_float_to_bfloat16(x);
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
}

// ---- rows of value -------------------------------------------------------------------------------------------------

// kElements neighbouring elements as stored: 16 bytes or one element.
template <typename V, int kElements>
struct Stored {
  static_assert(kElements * sizeof(V) == 16, "whole vectors or single elements");
  uint4 words;

  DEFORMABLE_OPS_DEVICE Stored zero() { return {make_uint4(0, 0, 0, 0)}; }

  // `source` is aligned to 16 bytes, and constant while the kernel runs
  DEFORMABLE_OPS_DEVICE Stored load(const V* source) {
    DEFORMABLE_OPS_ACCESS("row", source, 16);
    return {__ldg(reinterpret_cast<const uint4*>(source))};
  }

  // two halves of 8 bytes, each aligned to 8 bytes
  DEFORMABLE_OPS_DEVICE Stored load(const V* first, const V* second) {
    DEFORMABLE_OPS_ACCESS("row", first, 8);
    DEFORMABLE_OPS_ACCESS("row", second, 8);
    const uint2 one = __ldg(reinterpret_cast<const uint2*>(first)), two = __ldg(reinterpret_cast<const uint2*>(second));
    return {make_uint4(one.x, one.y, two.x, two.y)};
  }
};

template <typename V>
struct Stored<V, 1> {
  V element;

  DEFORMABLE_OPS_DEVICE Stored zero() { return {V{}}; }
  DEFORMABLE_OPS_DEVICE Stored load(const V* source) {
    DEFORMABLE_OPS_ACCESS("row", source, sizeof(V));
    return {*source};
  }
};

DEFORMABLE_OPS_DEVICE void unpack(const Stored<float, 4>& stored, float (&x)[4]) {
  x[0] = __uint_as_float(stored.words.x);
  x[1] = __uint_as_float(stored.words.y);
  x[2] = __uint_as_float(stored.words.z);
  x[3] = __uint_as_float(stored.words.w);
}
DEFORMABLE_OPS_DEVICE void unpack(const Stored<double, 2>& stored, double (&x)[2]) {
  x[0] = __hiloint2double(static_cast<int>(stored.words.y), static_cast<int>(stored.words.x));
  x[1] = __hiloint2double(static_cast<int>(stored.words.w), static_cast<int>(stored.words.z));
}
DEFORMABLE_OPS_DEVICE void unpack(const Stored<BFloat16, 8>& stored, float (&x)[8]) {
  const uint32_t words[4] = {stored.words.x, stored.words.y, stored.words.z, stored.words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
DEFORMABLE_OPS_DEVICE void unpack(const Stored<Half, 8>& stored, float (&x)[8]) {
  const uint32_t words[4] = {stored.words.x, stored.words.y, stored.words.z, stored.words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = to_compute(Half{static_cast<uint16_t>(words[i] & 0xffffu)});
    x[2 * i + 1] = to_compute(Half{static_cast<uint16_t>(words[i] >> 16)});
  }
}
template <typename V>
DEFORMABLE_OPS_DEVICE void unpack(const Stored<V, 1>& stored, typename Element<V>::Compute (&x)[1]) {
  x[0] = to_compute(stored.element);
}

// Store kElements sums; a whole vector in one store of 16 bytes.
template <typename V, int kElements>
DEFORMABLE_OPS_DEVICE void store(V* target, const typename Element<V>::Compute (&x)[kElements]) {
  struct alignas(kElements * sizeof(V)) Vector {
    V elements[kElements];
  } vector;
#pragma unroll
  for (int i = 0; i < kElements; ++i) from_compute(x[i], vector.elements[i]);
  DEFORMABLE_OPS_ACCESS("store", target, sizeof(Vector));
  *reinterpret_cast<Vector*>(target) = vector;
}

// ---- tensors whose type is known at run time only ------------------------------------------------------------------

// If one tensor is float64, all are (operators.cpp).
template <typename T>
constexpr bool kIsDouble = sizeof(T) == sizeof(double);

// Return the bytes of an element.
static __device__ constexpr int64_t size_of(const Array& array) {
  return array.type == Scalar::float64 ? 8 : array.type == Scalar::float32 ? 4 : 2;
}

template <typename V>
DEFORMABLE_OPS_DEVICE V element(const Array& array, int64_t index) {
  DEFORMABLE_OPS_ACCESS("element", static_cast<const V*>(array.data) + index, sizeof(V));
  return static_cast<const V*>(array.data)[index];
}

template <typename T>
DEFORMABLE_OPS_DEVICE T load_element(const Array& array, int64_t index) {
  if constexpr (kIsDouble<T>) {
    return element<double>(array, index);
  } else {
    switch (array.type) {
      case Scalar::float32: return element<float>(array, index);
      case Scalar::bfloat16: return to_compute(element<BFloat16>(array, index));
      default: return to_compute(element<Half>(array, index));
    }
  }
}

template <typename T>
DEFORMABLE_OPS_DEVICE void store_element(const Array& array, int64_t index, T x) {
  DEFORMABLE_OPS_ACCESS("store element", static_cast<const char*>(array.data) + index * size_of(array),
                        size_of(array));
  if constexpr (kIsDouble<T>) {
    static_cast<double*>(array.data)[index] = x;
  } else {
    switch (array.type) {
      case Scalar::float32: static_cast<float*>(array.data)[index] = x; break;
      case Scalar::bfloat16: from_compute(x, static_cast<BFloat16*>(array.data)[index]); break;
      default: from_compute(x, static_cast<Half*>(array.data)[index]);
    }
  }
}

// A pair (x, y) for one load or store.
template <typename V>
struct alignas(2 * sizeof(V)) Pair {
  V x, y;
};

template <typename V, typename T>
DEFORMABLE_OPS_DEVICE void pair_of(const Array& array, int64_t index, T& x, T& y) {
  DEFORMABLE_OPS_ACCESS("pair", static_cast<const V*>(array.data) + index, sizeof(Pair<V>));
  const Pair<V> pair = *reinterpret_cast<const Pair<V>*>(static_cast<const V*>(array.data) + index);
  x = to_compute(pair.x);
  y = to_compute(pair.y);
}

// Load x from element `index` and y from the next one; `aligned` says that this pair is aligned to its size.
template <typename T>
DEFORMABLE_OPS_DEVICE void load_pair(const Array& array, int64_t index, bool aligned, T& x, T& y) {
  if (!aligned) {
    x = load_element<T>(array, index);
    y = load_element<T>(array, index + 1);
    return;
  }
  if constexpr (kIsDouble<T>) {
    pair_of<double>(array, index, x, y);
  } else {
    switch (array.type) {
      case Scalar::float32: pair_of<float>(array, index, x, y); break;
      case Scalar::bfloat16: pair_of<BFloat16>(array, index, x, y); break;
      default: pair_of<Half>(array, index, x, y);
    }
  }
}

template <typename V, typename T>
DEFORMABLE_OPS_DEVICE void put_pair(const Array& array, int64_t index, T x, T y) {
  Pair<V> pair;
  from_compute(x, pair.x);
  from_compute(y, pair.y);
  DEFORMABLE_OPS_ACCESS("store pair", static_cast<const V*>(array.data) + index, sizeof(Pair<V>));
  *reinterpret_cast<Pair<V>*>(static_cast<V*>(array.data) + index) = pair;
}

// Inverse of load_pair.
template <typename T>
DEFORMABLE_OPS_DEVICE void store_pair(const Array& array, int64_t index, bool aligned, T x, T y) {
  if (!aligned) {
    store_element(array, index, x);
    store_element(array, index + 1, y);
    return;
  }
  if constexpr (kIsDouble<T>) {
    put_pair<double>(array, index, x, y);
  } else {
    switch (array.type) {
      case Scalar::float32: put_pair<float>(array, index, x, y); break;
      case Scalar::bfloat16: put_pair<BFloat16>(array, index, x, y); break;
      default: put_pair<Half>(array, index, x, y);
    }
  }
}

// ---- atomic sums ---------------------------------------------------------------------------------------------------

// target += x in global memory. By assembly, because for a plain pointer the compiler also adds a loop for shared
// memory.
DEFORMABLE_OPS_DEVICE void add_one(float* target, float x) {
#if defined(DEFORMABLE_OPS_EMULATED)
  atomicAdd(target, x);
#else
  asm volatile("red.global.add.f32 [%0], %1;" : : "l"(__cvta_generic_to_global(target)), "f"(x) : "memory");
#endif
}
DEFORMABLE_OPS_DEVICE void add_one(double* target, double x) {
#if defined(DEFORMABLE_OPS_EMULATED)
  atomicAdd(target, x);
#else
  asm volatile("red.global.add.f64 [%0], %1;" : : "l"(__cvta_generic_to_global(target)), "d"(x) : "memory");
#endif
}

// target[0..3] += x[0..3], in one instruction if the GPU has it
DEFORMABLE_OPS_DEVICE void add_four(float* target, const float* x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(target)), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) add_one(target + i, x[i]);
#endif
}

// target[i] += x[i]; with kApart, each four elements are kApart after those before
template <int kApart, typename T, int kElements>
DEFORMABLE_OPS_DEVICE void add(T* target, const T (&x)[kElements]) {
  if constexpr (kElements % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      T* const four = target + (kApart > 0 ? i / 4 * kApart : i);
      DEFORMABLE_OPS_ACCESS("add", four, 4 * sizeof(T));
      add_four(four, x + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      DEFORMABLE_OPS_ACCESS("add", target + i, sizeof(T));
      add_one(target + i, x[i]);
    }
  }
}

// ---- lanes of a warp -----------------------------------------------------------------------------------------------

constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
DEFORMABLE_OPS_DEVICE T from_lane(T x, int lane) {
  return __shfl_sync(kAllLanes, x, lane);
}

template <typename T>
DEFORMABLE_OPS_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}

// Return index / divisor for an index below kMaxPoints, from reciprocal_of(divisor).
DEFORMABLE_OPS_DEVICE int quotient(int index, uint32_t reciprocal) {
  return static_cast<int>((static_cast<uint64_t>(index) * reciprocal) >> 31);
}

static inline uint32_t reciprocal_of(int64_t divisor) {
  return divisor > 0 ? static_cast<uint32_t>((int64_t{1} << 31) / divisor + 1) : 0;
}

}  // namespace deformable_ops
