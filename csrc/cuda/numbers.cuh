// Parameters in whatever floating type they have: read as they are, converted in the register.
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

struct Numbers {
  const void* at = nullptr;
  ScalarType type = ScalarType::Float;

  Numbers() = default;
  explicit Numbers(const Tensor& t) : at(t.data_ptr()), type(t.scalar_type()) {}
  explicit Numbers(const std::optional<Tensor>& t) {
    if (t) *this = Numbers(*t);
  }
  // f(pointer of their type)
  template <class F>
  __device__ void typed(const F& f) const {
    if (type == ScalarType::Float) f(static_cast<const float*>(at));
    else if (type == ScalarType::Double) f(static_cast<const double*>(at));
    else if (type == ScalarType::BFloat16) f(static_cast<const BFloat16*>(at));
    else f(static_cast<const Half*>(at));
  }
  __device__ double operator()(int64_t i) const {
    if (type == ScalarType::Float) return static_cast<const float*>(at)[i];
    if (type == ScalarType::Double) return static_cast<const double*>(at)[i];
    if (type == ScalarType::BFloat16) return static_cast<float>(static_cast<const BFloat16*>(at)[i]);
    return static_cast<float>(static_cast<const Half*>(at)[i]);
  }
};

}  // namespace axnet::cuda
