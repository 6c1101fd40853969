// csrc/cuda/packed.h on the CPU, from the definition of each instruction.
#pragma once

#include <cmath>

#include "cuda/launch.h"

namespace axnet::cuda {

template <class T>
float half_of(uint32_t pair, int half) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * half));
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return static_cast<float>(value);
}
template <class T>
float first_of(uint32_t pair) {
  return half_of<T>(pair, 0);
}
template <class T>
float second_of(uint32_t pair) {
  return half_of<T>(pair, 1);
}

template <class T>
uint32_t pair_of(float first, float second) {
  const T values[2] = {T(first), T(second)};
  uint32_t pair;
  std::memcpy(&pair, values, sizeof(pair));
  return pair;
}

// v as T has it.
template <class T>
float as_held(float v) {
  return first_of<T>(pair_of<T>(v, 0.f));
}

// f(a, b) of both halves, rounded to bfloat16; what f gives in double is exact before that
template <class F>
uint32_t of_halves(uint32_t a, uint32_t b, const F& f) {
  using T = BFloat16;
  return pair_of<T>(static_cast<float>(f(first_of<T>(a), first_of<T>(b), 0)),
                    static_cast<float>(f(second_of<T>(a), second_of<T>(b), 1)));
}

inline uint32_t product(uint32_t a, uint32_t b) {
  return of_halves(a, b, [](float x, float y, int) { return x * y; });
}
inline uint32_t left_out(uint32_t a, uint32_t b, uint32_t rounded) {
  return of_halves(a, b,
                   [&](float x, float y, int i) { return static_cast<double>(x) * y - half_of<BFloat16>(rounded, i); });
}
inline uint32_t greater_of(uint32_t a, uint32_t b) {
  return of_halves(a, b, [](float x, float y, int) { return std::isnan(x) || std::isnan(y) ? x + y : x > y ? x : y; });
}

template <bool EQUAL>
uint32_t above(uint32_t a, uint32_t b) {
  using T = BFloat16;
  const auto holds = [](float x, float y) { return EQUAL ? x >= y : x > y; };
  return (holds(first_of<T>(a), first_of<T>(b)) ? 0xffffu : 0) |
         (holds(second_of<T>(a), second_of<T>(b)) ? 0xffff0000u : 0);
}

inline uint32_t firsts(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
inline uint32_t seconds(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

}  // namespace axnet::cuda
