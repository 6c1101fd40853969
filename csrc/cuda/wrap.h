// What the wrappers of CUDA kernels share: layouts and types of tensors as plans.h has them.
#pragma once

#include <optional>
#include <tuple>

#include "cuda/plans.h"
#include "cuda/queue.h"

namespace axnet::cuda {

// The kernels walk an image in NCHW as one flat run: channels at other steps are copied first.
inline Tensor dense(const Tensor& x, std::optional<bool> like = std::nullopt) {
  const Tensor t = walkable(x, like);
  const int64_t S = t.size(2) * t.size(3);
  if (is_channels_last(t) || t.size(1) == 1 || t.stride(1) == S) return t;
  return torch::stable::contiguous(t);
}

inline Numbers numbers_of(const Tensor& t) { return {t.data_ptr(), type_of(t)}; }
// Whether typed<T> of a map's type reads t as it is.
inline bool reads(const Tensor& map, const Tensor& t) {
  return t.scalar_type() == ScalarType::Float || t.scalar_type() == map.scalar_type();
}
inline Numbers numbers_of(const std::optional<Tensor>& t) { return t ? numbers_of(*t) : Numbers{}; }

// b', w'_a, h' of one block of anatomies under given statistics: acc [N, 1, fold_rows(A), C] (gate_norm.cpp).
Tensor fold_given(const Queue& queue, const Tensor& x, const Tensor& gate, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var, double eps);

// The op of csrc/ops.cpp (masked_moments.cpp).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_moments(Tensor x, Tensor mask, bool second,
                                                                          bool positions, int64_t blocks);

}  // namespace axnet::cuda
