// Parameters in whatever floating type they have: read as they are, converted in the register.
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

// f(pointer of their type)
template <class F>
__device__ inline void typed(const Numbers& numbers, const F& f) {
  if (numbers.type == Type::f32) f(static_cast<const float*>(numbers.at));
  else if (numbers.type == Type::f64) f(static_cast<const double*>(numbers.at));
  else if (numbers.type == Type::bf16) f(static_cast<const BFloat16*>(numbers.at));
  else f(static_cast<const Half*>(numbers.at));
}

__device__ inline double number(const Numbers& numbers, int64_t i) {
  if (numbers.type == Type::f32) return static_cast<const float*>(numbers.at)[i];
  if (numbers.type == Type::f64) return static_cast<const double*>(numbers.at)[i];
  if (numbers.type == Type::bf16) return static_cast<float>(static_cast<const BFloat16*>(numbers.at)[i]);
  return static_cast<float>(static_cast<const Half*>(numbers.at)[i]);
}

}  // namespace axnet::cuda
