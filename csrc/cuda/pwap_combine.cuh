// What the tiles of a walk find, and the walks over an image merged: pooled = sum w X / sum w, relative to the image's
// largest logit.
#pragma once

#include "cuda/pooling.cuh"
#include "cuda/pwap_args.cuh"
#include "cuda/pwap_operands.cuh"
#include "cuda/pwap_tile.cuh"

namespace axnet::cuda {

// Of a block's M maps, in shared memory: largest logit so far, 1 + e^-|it|, denominator, what a larger top leaves of
// the sums, bias.
template <int M>
struct PooledMaps {
  float *tops, *factors, *masses, *falls, *biases;
  __device__ explicit PooledMaps(float* at)
      : tops(at), factors(tops + M), masses(factors + M), falls(masses + M), biases(falls + M) {}

  __device__ void begin(const PwapArgs& args, int k0, int maps) const {
    const int k = threadIdx.x;
    if (k >= M) return;
    tops[k] = -std::numeric_limits<float>::infinity(), masses[k] = 0, falls[k] = 1, factors[k] = 1;
    biases[k] = k < maps && args.bias.at ? static_cast<float>(number(args.bias, k0 + k)) : 0.f;
  }

  // A tile's logits, probabilities and shares, from the parts of all warps. All threads of the block.
  template <class T, int P>
  __device__ void weigh(unsigned lane, const MatrixPlan& p, const PwapArgs& args, int n, int k0, int maps, int s0,
                        const float* parts, const Shares<T, P>& shares) const {
#pragma unroll 1
    for (int index = threadIdx.x / kWarp * kWarp + lane; index < M * P; index += p.warps * kWarp) {
      const int k = index / P, s = index % P;
      if ((index - index % kWarp) / P >= maps) continue;  // all lanes of the warp
      const bool real = k < maps && s0 + s < p.S;
      float logit = biases[k];
#pragma unroll 4
      for (int w = 0; w < p.warps; ++w)
        logit += parts[w * M * P + part_at<P>(k, s)];
      const float before = tops[k];
      float top = warp_max<P>(real ? logit : -std::numeric_limits<float>::infinity()), factor = factors[k], fall = 1;
      if (!(top - top == 0)) top = 0;  // as in pwap_tile_kernel
      if (top > before) {
        const float next = 1 + std::exp(-std::abs(top));
        fall = std::exp(std::fmin(before, 0.f) - std::fmin(top, 0.f)) * next * reciprocal(factor), factor = next;
      } else {
        top = before;
      }
      // as probability(), of which `factor` is kept
      const float small = std::exp(-std::abs(logit)), inverse = reciprocal(1 + small);
      const float prob = logit < 0 ? small * inverse : inverse;
      float share = (top < 0 ? std::exp(logit - top) : logit < 0 ? small : 1.f) * factor * inverse;
      if (!real) share = 0;
      const float mass = warp_sum<P>(share);
      shares.set(k, s, share);
      if (s == 0) tops[k] = top, factors[k] = factor, masses[k] = masses[k] * fall + mass, falls[k] = fall;
      if (real) {
        const int64_t place = (static_cast<int64_t>(n) * p.K + k0 + k) * p.S + s0 + s;
        static_cast<float*>(args.logits)[place] = logit;
        static_cast<T*>(args.prob)[place] = narrowed<T>(prob);
      }
    }
  }

  // What the block has found: the pooled rows of an image, or the parts of a walk.
  template <class T, class Product>
  __device__ void end(const MatrixPlan& p, const PwapArgs& args, unsigned walk, int n, int k0, int maps, int c0,
                      const typename Product::Sums& sums) const {
    const int k = threadIdx.x, channels = p.C - c0;
    if (p.walks == 1) {  // nothing to merge
      T* pooled = static_cast<T*>(args.pooled) + (static_cast<int64_t>(n) * p.K + k0) * p.C + c0;
      Product::each_sum(sums, maps, channels, [&](int k, int c, float sum) {
        pooled[k * p.C + c] = narrowed<T>(sum * reciprocal(masses[k]));
      });
      float* norm = static_cast<float*>(args.norm) + static_cast<int64_t>(n) * 2 * p.K + k0;
      if (k < maps) norm[k] = tops[k], norm[p.K + k] = masses[k];
      return;
    }
    float* partial = static_cast<float*>(args.partial) + static_cast<int64_t>(walk) * (p.C + 2) * p.K;
    if (k < maps) partial[p.K * p.C + k0 + k] = tops[k], partial[p.K * (p.C + 1) + k0 + k] = masses[k];
    partial += k0 * p.C + c0;
    Product::each_sum(sums, maps, channels, [&](int k, int c, float sum) { partial[k * p.C + c] = sum; });
  }
};

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
