// What the wrappers of every device share: allocation, layouts and types of stable-ABI tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "rows.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11 has it under another name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace axnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The accumulation type: float32, or float64 for float64.
inline ScalarType accumulator(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    default: STD_TORCH_CHECK(false, "axnet: x must be float32, float64, bfloat16 or float16");
  }
}
inline Type type_of(const Tensor& x) { return type_of(x.scalar_type()); }

struct Device {
  int32_t type = aoti_torch_device_type_cpu(), index = 0;
};

inline Device device_of(const Tensor& x) {
  Device device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &device.index));
  return device;
}

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                            Device device = {}) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), static_cast<int32_t>(type), device.type,
                                                         device.index, &handle));
  return Tensor(handle);
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type, Device device = {}) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int i = static_cast<int>(sizes.size()) - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * std::max<int64_t>(sizes[i + 1], 1);
  return empty_strided(sizes, strides, type, device);
}

// One element seen as a whole tensor: takes no memory.
inline Tensor expanded(const Tensor& element, const std::vector<int64_t>& sizes) {
  const std::vector<int64_t> strides(sizes.size(), 0);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(element.get(), static_cast<int64_t>(sizes.size()),
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

inline Tensor empty_features(int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last, ScalarType type,
                             Device device = {}) {
  return channels_last ? empty_strided({N, C, H, W}, {C * H * W, 1, W * C, C}, type, device)
                       : empty({N, C, H, W}, type, device);
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

inline void* data(const Tensor& t) { return t.data_ptr(); }
inline void* data(const std::optional<Tensor>& t) { return t ? t->data_ptr() : nullptr; }

}  // namespace axnet
