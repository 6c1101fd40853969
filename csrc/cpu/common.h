// What the CPU wrappers share: allocation, layouts and types of stable-ABI tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"

namespace axnet::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    default: STD_TORCH_CHECK(false, "axnet: x must be float32, float64, bfloat16 or float16");
  }
}

// The accumulation type: float32, or float64 for float64.
inline ScalarType accumulator(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                         static_cast<int32_t>(type), aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  return Tensor(handle);
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int i = static_cast<int>(sizes.size()) - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * std::max<int64_t>(sizes[i + 1], 1);
  return empty_strided(sizes, strides, type);
}

// One zero seen as a whole tensor: takes no memory.
inline Tensor zero_strided(const std::vector<int64_t>& sizes, ScalarType type) {
  Tensor zero = empty({1}, type);
  torch::stable::zero_(zero);
  const std::vector<int64_t> strides(sizes.size(), 0);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(zero.get(), static_cast<int64_t>(sizes.size()),
                                                               sizes.data(), strides.data(), 0, &handle));
  return Tensor(handle);
}

// The step between pixels, or 0 where the pixels of an image do not lie at equal steps.
inline int64_t pixel_step(const Tensor& x) {
  const int64_t H = x.size(2), W = x.size(3);
  if (H > 1 && W > 1 && x.stride(2) != W * x.stride(3)) return 0;
  return W > 1 ? x.stride(3) : H > 1 ? x.stride(2) : 1;
}

// Layout of [N, C, H, W] that the kernels walk; `axnet.ops.layouts.channels_last` is its twin for shape inference.
inline bool is_channels_last(const Tensor& x) {
  const int64_t step = pixel_step(x);
  return x.size(1) > 1 && x.size(2) * x.size(3) > 1 && step != 0 && step != 1 && x.stride(1) == 1;
}

// Asks for huge pages under a large new tensor: first touches of 4 KiB pages cost more than the kernels themselves.
void prefer_huge_pages(const Tensor& t);

inline Tensor empty_features(int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last, ScalarType type) {
  Tensor t = channels_last ? empty_strided({N, C, H, W}, {C * H * W, 1, W * C, C}, type) : empty({N, C, H, W}, type);
  prefer_huge_pages(t);
  return t;
}

// x itself where the kernels can walk it, else a copy; `like` asks for that layout.
inline Tensor walkable(const Tensor& x, std::optional<bool> like = std::nullopt) {
  const bool last = is_channels_last(x);
  const bool rows = pixel_step(x) == 1 && (x.size(2) * x.size(3) > 1 || x.stride(1) == 1);
  if ((last || rows) && (!like || *like == last)) return x;
  return torch::stable::contiguous(x, like.value_or(false) ? torch::headeronly::MemoryFormat::ChannelsLast
                                                           : torch::headeronly::MemoryFormat::Contiguous);
}

// A map of one pixel is walked along its channels.
inline View view_of(const Tensor& x) {
  const int64_t S = x.size(2) * x.size(3);
  const bool last = is_channels_last(x) || S == 1;
  return {x.stride(0), last ? 1 : x.stride(1), last ? (S == 1 ? x.size(1) : pixel_step(x)) : 1, last};
}

// Tasks per thread below which a second thread costs more than it brings.
inline int64_t grain_of(int64_t elements_per_task) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements_per_task)); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class F>
void parallel(int64_t tasks, int64_t grain, const F& f) {
  if (tasks <= grain) {
    f(int64_t{0}, tasks);
    return;
  }
  torch::stable::parallel_for(0, tasks, grain, f);
}

// Channels of one channels_last task that reduces over the pixels: wide, as long as every thread has two tasks. The sums
// of a channel do not depend on it.
inline int64_t channel_block(int64_t N, int64_t C) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t block = kWideChannelBlock;
  while (block > kChannelBlock && N * ceil_div(C, block) < wanted) block /= 2;
  return block;
}

inline void* data(const Tensor& t) { return t.data_ptr(); }
inline void* data(const std::optional<Tensor>& t) { return t ? t->data_ptr() : nullptr; }

// Maps beyond this size are written past the caches.
bool stream_output(int64_t bytes);

}  // namespace axnet::cpu
