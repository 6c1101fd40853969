// Parameters in whatever floating type they have: read as they are, converted in the register.
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

struct Numbers {
  const void* data = nullptr;
  ScalarType type = ScalarType::Float;

  Numbers() = default;
  explicit Numbers(const Tensor& t) : data(axnet::data(t)), type(t.scalar_type()) {}
  explicit Numbers(const std::optional<Tensor>& t) {
    if (t) *this = Numbers(*t);
  }

  template <class Acc>
  __device__ Acc at(int64_t i) const {
    Acc v = 0;
    typed([&](auto from) { v = static_cast<Acc>(as_number(from[i])); });
    return v;
  }
  // f(pointer of the numbers' type)
  template <class F>
  __device__ void typed(const F& f) const {
    if (type == ScalarType::Float) f(static_cast<const float*>(data));
    else if (type == ScalarType::Double) f(static_cast<const double*>(data));
    else if (type == ScalarType::BFloat16) f(static_cast<const BFloat16*>(data));
    else f(static_cast<const Half*>(data));
  }
  __device__ static double as_number(double v) { return v; }
  __device__ static float as_number(float v) { return v; }
};

}  // namespace axnet::cuda
