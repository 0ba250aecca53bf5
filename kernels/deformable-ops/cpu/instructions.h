// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// The instruction set whose code runs on this processor.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace deformable_ops {

enum class Instructions { baseline, avx2, avx512 };

// Return what the processor has and the operating system saves. By cpuid, because __builtin_cpu_supports needs a part of
// the compiler's runtime library that some compilers lack.
inline Instructions find_instructions() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Instructions::baseline;
  const bool fma = c >> 12 & 1, xsave = c >> 27 & 1, f16c = c >> 29 & 1;
  if (!xsave || !fma || !f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Instructions::baseline;
  unsigned saved, high;  // the registers that the system saves, by bits
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  constexpr unsigned kYmm = 0x6, kZmm = 0xe6;
  if ((saved & kYmm) != kYmm || !(b >> 5 & 1)) return Instructions::baseline;
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  constexpr unsigned kAll = kF | kDq | kBw | kVl;
  return (saved & kZmm) == kZmm && (b & kAll) == kAll ? Instructions::avx512 : Instructions::avx2;
#else
  return Instructions::baseline;
#endif
}

// The tests set DEFORMABLE_OPS_INSTRUCTIONS to baseline, avx2 or avx512, which has neither bfloat16 vectors nor AMX.
inline const char* most_instructions() { return std::getenv("DEFORMABLE_OPS_INSTRUCTIONS"); }

// Return the instruction set to use.
inline Instructions instructions() {
  static const Instructions chosen = [] {
    const char* const most = most_instructions();
    const Instructions found = find_instructions();
    if (most != nullptr && std::strcmp(most, "baseline") == 0) return Instructions::baseline;
    if (most != nullptr && std::strcmp(most, "avx2") == 0 && found == Instructions::avx512) return Instructions::avx2;
    return found;
  }();
  return chosen;
}

// Return whether vectors of bfloat16 numbers can be multiplied.
inline bool has_bfloat16_vectors() {
#if defined(__x86_64__)
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (instructions() != Instructions::avx512 || most_instructions() != nullptr) return false;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  }();
  return has;
#else
  return false;
#endif
}

// Return whether AMX can multiply bfloat16 numbers in this process. Linux gives a process the registers on request.
inline bool has_matrix_unit() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0, saved, high;
    if (instructions() != Instructions::avx512 || most_instructions() != nullptr) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24, kTileRegisters = 3u << 17;
    if (!(d & kBfloat16) || !(d & kTiles) || (saved & kTileRegisters) != kTileRegisters) return false;
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return has;
#else
  return false;
#endif
}

}  // namespace deformable_ops
