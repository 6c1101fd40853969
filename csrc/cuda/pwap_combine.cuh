// What the walks over an image found, merged: pooled = sum w X / sum w, relative to the image's largest logit.
#pragma once

#include "cuda/pooling.cuh"
#include "cuda/pwap_args.cuh"

namespace axnet::cuda {

constexpr int kMerging = 128;       // threads of a block that merges
constexpr int kMergedChannels = 8;  // of a thread, which share what a map needs

//   block   kMergedChannels x kMerging channels (blockIdx.y) of one map of one image
//   shared  the shares of 32 walks, 1 / mass: the first warp makes them while the others' numbers are on their way
template <class T>
__global__ void __launch_bounds__(kMerging)
    pwap_combine_kernel(const PwapArgs args, int C, int K, int walks, const Divider of_maps) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  Acc *shares = reinterpret_cast<Acc*>(shared), *inverse = shares + kWarp;
  const int map = static_cast<int>(blockIdx.x), n = of_maps.quotient(map), k = map - n * K, size = (C + 2) * K;
  const int thread = static_cast<int>(threadIdx.x),
            c0 = static_cast<int>(blockIdx.y) * kMergedChannels * kMerging + thread;
  const int own = (C - c0 + kMerging - 1) / kMerging;  // channels of the thread, if fewer than kMergedChannels
  const Acc* from = static_cast<const Acc*>(args.partial) + static_cast<int64_t>(n * walks) * size;
  const Acc* it = from + (K * C + k) + static_cast<int64_t>(thread) * size;  // its largest logit, K behind it its mass
  from += k * C + c0;
  Acc own_top = -std::numeric_limits<Acc>::infinity(), own_mass = 0, top = own_top, total[kMergedChannels] = {};
  if (thread < kWarp) {
    if (thread < walks) own_top = it[0], own_mass = it[K];
    top = own_top;
    for (int i = kWarp; i + thread < walks; i += kWarp) {
      const Acc other = it[static_cast<int64_t>(i) * size];
      top = other > top ? other : top;
    }
  }
  Acc next[2][kMergedChannels] = {};
  const auto load = [&](int i) {  // of walk i and the one behind it, on their way together
    const Acc* other = i + 1 < walks ? from + size : from;
#pragma unroll
    for (int j = 0; j < kMergedChannels; ++j)
      if (j < own) next[0][j] = from[j * kMerging], next[1][j] = other[j * kMerging];
  };
  load(0);
  double mass = 0;
  for (int first = 0; first < walks; first += kWarp) {
    if (first > 0) __syncthreads();
    if (thread < kWarp) {
      if (first == 0) top = warp_max(top);
      else if (it += kWarp* static_cast<int64_t>(size); first + thread < walks) own_top = it[0], own_mass = it[K];
      const Acc share = std::exp(log_sigmoid(own_top) - log_sigmoid(top));
      if (first + thread < walks) mass += static_cast<double>(share) * own_mass;
      shares[thread] = share;
      const Acc sum = static_cast<Acc>(warp_sum(mass));
      if (thread == 0) {
        Acc* norm = static_cast<Acc*>(args.norm) + (static_cast<int64_t>(n) * 2 * K + k);
        *inverse = Acc(1) / sum;
        if (blockIdx.y == 0) norm[0] = top, norm[K] = sum;
      }
    }
    __syncthreads();
    const int last = walks - first < kWarp ? walks : first + kWarp;
#pragma unroll 1
    for (int i = first; i < last; i += 2) {
      const Acc share = shares[i - first], other = shares[i - first + 1];
#pragma unroll
      for (int j = 0; j < kMergedChannels; ++j)
        total[j] += share * next[0][j];
      if (i + 1 < last)
#pragma unroll
        for (int j = 0; j < kMergedChannels; ++j)
          total[j] += other * next[1][j];
      from += 2 * size;
      if (i + 2 < walks) load(i + 2);
    }
  }
  T* pooled = static_cast<T*>(args.pooled) + (static_cast<int64_t>(map) * C + c0);
  const Acc scale = *inverse;
#pragma unroll
  for (int j = 0; j < kMergedChannels; ++j)
    if (j < own) pooled[j * kMerging] = T(total[j] * scale);
}

}  // namespace axnet::cuda
