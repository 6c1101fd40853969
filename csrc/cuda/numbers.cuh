// Parameters in whatever floating type they have: read as they are, converted in the register.
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

// f(pointer of their type), which is float or that of a map (wrap.h, reads)
template <class T, class F>
__device__ inline void typed(const Numbers& numbers, const F& f) {
  if constexpr (!std::is_same_v<T, float>)
    if (numbers.type != Type::f32) return f(static_cast<const T*>(numbers.at));
  f(static_cast<const float*>(numbers.at));
}

__device__ inline double number(const Numbers& numbers, int64_t i) {
  if (numbers.type == Type::f32) return static_cast<const float*>(numbers.at)[i];
  if (numbers.type == Type::f64) return static_cast<const double*>(numbers.at)[i];
  if (numbers.type == Type::bf16) return static_cast<float>(static_cast<const BFloat16*>(numbers.at)[i]);
  return static_cast<float>(static_cast<const Half*>(numbers.at)[i]);
}

// A number that is wanted later: a float is on its way meanwhile.
struct EarlyNumber {
  const Numbers& numbers;
  int64_t i;
  float early = 0;

  __device__ EarlyNumber(const Numbers& numbers, int64_t i, bool wanted) : numbers(numbers), i(i) {
    if (wanted && numbers.at && numbers.type == Type::f32) early = static_cast<const float*>(numbers.at)[i];
  }
  __device__ double operator()() const { return numbers.type == Type::f32 ? early : number(numbers, i); }
};

constexpr int kTogether = 2;  // floats of neighbouring channels that a thread reads and writes at once

template <class Number>
struct alignas(kTogether * sizeof(Number)) Together {
  Number at[kTogether];
};

__device__ inline Together<float> load_together(const float* p) {
  const uint2 bits = __ldg(reinterpret_cast<const uint2*>(p));
  Together<float> v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

__device__ inline void store_together(float* p, const Together<float>& v) {
  uint2 bits;
  memcpy(&bits, &v, sizeof(bits));
  __stwb(reinterpret_cast<uint2*>(p), bits);
}

// Neighbouring numbers from i on; floats are aligned as Together is.
__device__ inline void numbers_at(const Numbers& numbers, int64_t i, double (&out)[kTogether]) {
  if (numbers.type == Type::f32) {
    const Together<float> v = load_together(static_cast<const float*>(numbers.at) + i);
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      out[j] = v.at[j];
    return;
  }
#pragma unroll
  for (int j = 0; j < kTogether; ++j)
    out[j] = number(numbers, i + j);
}

}  // namespace axnet::cuda
