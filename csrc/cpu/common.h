// What the CPU wrappers share beyond tensors.h.
#pragma once

#include <initializer_list>
#include <tuple>

#include "checks.h"
#include "cpu/kernels.h"
#include "tensors.h"

namespace axnet::cpu {

// One zero seen as a whole tensor: takes no memory.
inline Tensor zero_strided(const std::vector<int64_t>& sizes, ScalarType type) {
  Tensor zero = empty({1}, type);
  torch::stable::zero_(zero);
  return expanded(zero, sizes);
}

// t of any floating type and strides (its last axis dense or not) as the kernels read gates, weights and statistics:
// itself, or a copy of its few numbers in the accumulation type; `fresh` asks for a copy in any case.
Tensor packed(const Tensor& t, ScalarType acc, bool fresh = false);
inline std::optional<Tensor> packed(const std::optional<Tensor>& t, ScalarType acc) {
  return t ? std::optional<Tensor>(packed(*t, acc)) : std::nullopt;
}

// Asks for huge pages under a large new tensor: first touches of 4 KiB pages cost more than the kernels themselves.
void prefer_huge_pages(const Tensor& t);

inline Tensor empty_features(int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last, ScalarType type) {
  Tensor t = axnet::empty_features(N, C, H, W, channels_last, type);
  prefer_huge_pages(t);
  return t;
}

// Tasks per thread below which a second thread costs more than it brings.
inline int64_t grain_of(int64_t elements_per_task) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements_per_task));
}

template <class F>
void parallel(int64_t tasks, int64_t grain, const F& f) {
  if (tasks <= grain) {
    f(int64_t{0}, tasks);
    return;
  }
  torch::stable::parallel_for(0, tasks, grain, f);
}

// Channels of one channels_last task that reduces over the pixels: wide, as long as every thread has two tasks. The
// sums of a channel do not depend on it.
inline int64_t channel_block(int64_t N, int64_t C) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t block = kWideChannelBlock;
  while (block > kChannelBlock && N * ceil_div(C, block) < wanted)
    block /= 2;
  return block;
}

// The op of csrc/ops.cpp; gate_norm's backward pass calls it too.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_moments(Tensor x, Tensor mask, bool second,
                                                                          bool positions, int64_t blocks);

// Maps beyond this size are written past the caches.
bool stream_output(int64_t bytes);

}  // namespace axnet::cpu
