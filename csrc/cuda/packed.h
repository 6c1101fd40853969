// Pairs of 16-bit numbers in a register, the first in the lower half (sm_80). tests/cuda_host has a header of this name
// that does the same on the CPU.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"

namespace axnet::cuda {

template <class T>
__device__ inline float first_of(uint32_t pair) {
  if constexpr (std::is_same_v<T, BFloat16>) return __uint_as_float(pair << 16);
  float v;
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, lo;}" : "=f"(v) : "r"(pair));
  return v;
}

template <class T>
__device__ inline float second_of(uint32_t pair) {
  if constexpr (std::is_same_v<T, BFloat16>) return __uint_as_float(pair & 0xffff0000u);
  float v;
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, hi;}" : "=f"(v) : "r"(pair));
  return v;
}

template <class T>
__device__ inline uint32_t pair_of(float first, float second) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// v as T has it.
template <class T>
__device__ inline float as_held(float v) {
  return first_of<T>(pair_of<T>(v, 0.f));
}

// Of bfloat16. A product has 16 significant bits: the rounded one and what rounding left out are both bfloat16.
__device__ inline uint32_t product(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u));
  return r;
}

__device__ inline uint32_t left_out(uint32_t a, uint32_t b, uint32_t rounded) {
  uint32_t r;
  // halves that are negated one by one become the sign of the operand; neg.bf16x2 is an instruction of its own
  asm("{.reg .b16 low, high; .reg .b32 less; mov.b32 {low, high}, %3; neg.bf16 low, low; neg.bf16 high, high; "
      "mov.b32 less, {low, high}; fma.rn.bf16x2 %0, %1, %2, less;}"
      : "=r"(r)
      : "r"(a), "r"(b), "r"(rounded));
  return r;
}

__device__ inline uint32_t greater_of(uint32_t a, uint32_t b) {  // NaN where one is
  uint32_t r;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// All bits of a half set where a > b (a >= b with EQUAL).
template <bool EQUAL>
__device__ inline uint32_t above(uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 900
  uint32_t r;
  if constexpr (EQUAL) asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  else asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
#else
  using T = BFloat16;
  const float a0 = first_of<T>(a), a1 = second_of<T>(a), b0 = first_of<T>(b), b1 = second_of<T>(b);
  const bool first = EQUAL ? a0 >= b0 : a0 > b0, second = EQUAL ? a1 >= b1 : a1 > b1;
  return (first ? 0xffffu : 0) | (second ? 0xffff0000u : 0);
#endif
}

// The first halves of two pairs, and their second halves.
__device__ inline uint32_t firsts(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ inline uint32_t seconds(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

}  // namespace axnet::cuda
