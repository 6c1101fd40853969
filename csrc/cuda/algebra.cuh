// The numbers between A3's passes, per (image, channel) in double (docs/method.md, "A3 from moments"):
//
//   G = b + sum_a w_a m_a,  Y = X G,  x' = x - c
//   sum G   = b S + sum w_a M_a            sum G^2 = b^2 S + 2b sum w_a M_a + sum w_a w_b M_ab
//   sum Gx' = b s1 + sum w_a t_a = Q_0     sum Y   = c sum G + Q_0
//   sum Y^2 = c^2 sum G^2 + 2c (b^2 s1 + 2b sum w t + sum ww q1) + (b^2 s2 + 2b sum w t2 + sum ww q2)
//   Q_a = b t_a + sum_b w_b q1_ab          E_0 = sum Y x' = c Q_0 + b s2 + sum w t2
//   E_a = sum Y m_a x' = c Q_a + b t2_a + sum_b w_b q2_ab
//
//   thread  one channel of one output block and one image (or every 64th); all it needs of it is on the way before the
//           first use
//   block   8 channels and 64 images, whose sums are added in order
#pragma once

#include "cuda/numbers.cuh"

namespace axnet::cuda {

constexpr int kAlgebraThreads = 512, kAlgebraChannels = 8, kAlgebraImages = kAlgebraThreads / kAlgebraChannels;

// Numbers [K] that are read at once where K is known, else one by one.
template <int K>
struct Kept {
  double at[K > 0 ? K : 1];

  template <class F>
  __device__ void load(const F& f) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      at[k] = f(k);
  }
};

// The gate of one (image, block, channel). B: members of a block, or 0 for any number.
template <int B>
struct Gate {
  const GateShape& shape;
  const double* mass;
  int64_t row;  // of the block's first anatomy, at the channel
  int first, members;
  double share, b = 1;
  Kept<B> weights, masses;
  Kept<pairs(B)> pair_masses;

  __device__ Gate(const GateShape& g, int64_t n, int o, int64_t c)
      : shape(g), mass(g.mass + n * (g.A + pairs(g.A))), first(g.concat ? o : 0), members(B ? B : g.members) {
    row = (n * g.A + first) * g.C + c;
    share = g.concat ? 1.0 : 1.0 / members;
    weights.load([&](int a) { return number(g.gate, row + a * g.C) * share; });
#pragma unroll
    for (int a = 0; a < members; ++a)
      b -= w(a);
  }
  __device__ void load_masses() {
    masses.load([&](int a) { return mass[first + a]; });
#pragma unroll
    for (int a = 0; a < B; ++a)
#pragma unroll
      for (int k = a; k < B; ++k)
        pair_masses.at[pair_row(B, a, k)] = mass[shape.A + pair(a, k)];
  }
  __device__ double w(int a) const {
    if constexpr (B > 0) return weights.at[a];
    return number(shape.gate, row + a * shape.C) * share;
  }
  // Row of a pair of members among all pairs.
  __device__ int pair(int a, int k) const {
    return a < k ? pair_row(shape.A, first + a, first + k) : pair_row(shape.A, first + k, first + a);
  }
  __device__ double mass_of(int a) const {
    if constexpr (B > 0) return masses.at[a];
    return mass[first + a];
  }
  __device__ double mass_of(int a, int k) const {
    if constexpr (B > 0) return pair_masses.at[a < k ? pair_row(B, a, k) : pair_row(B, k, a)];
    return mass[shape.A + pair(a, k)];
  }
};

// Where a thread stands: its channel, and the first of its images.
struct AlgebraPlace {
  int64_t c, at;  // at: of the channel among those of all blocks
  int n, o;
  bool inside;

  __device__ explicit AlgebraPlace(const GateShape& g)
      : c(static_cast<int64_t>(blockIdx.x) * kAlgebraChannels + threadIdx.x % kAlgebraChannels),
        n(threadIdx.x / kAlgebraChannels),
        o(static_cast<int>(blockIdx.y)) {
    at = o * g.C + c, inside = c < g.C;
  }
};

// Sums of two numbers of a thread over the images, in order; every thread gets those of its channel.
__device__ inline void add_images(double& first, double& second, double* shared) {
  constexpr int warps = kAlgebraThreads / kWarp;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, channel = lane % kAlgebraChannels;
#pragma unroll
  for (int step = kAlgebraChannels; step < kWarp; step *= 2) {
    first += __shfl_xor_sync(0xffffffffu, first, step);
    second += __shfl_xor_sync(0xffffffffu, second, step);
  }
  if (lane < kAlgebraChannels)
    shared[warp * kAlgebraChannels + lane] = first, shared[(warps + warp) * kAlgebraChannels + lane] = second;
  __syncthreads();
  first = second = 0;
#pragma unroll 4
  for (int w = 0; w < warps; ++w)
    first += shared[w * kAlgebraChannels + channel], second += shared[(warps + w) * kAlgebraChannels + channel];
}

constexpr size_t kAlgebraShared = 2 * kAlgebraThreads / kWarp * kAlgebraChannels * sizeof(double);

// f(integral_constant): the members of a block for which the algebra has kernels of its own, else 0.
template <class F>
void with_members(Type acc, int members, const F& f) {
  if (acc == Type::f64) return f(double{}, std::integral_constant<int, 0>{});
  if (members == 1) return f(float{}, std::integral_constant<int, 1>{});
  if (members == 2) return f(float{}, std::integral_constant<int, 2>{});
  f(float{}, std::integral_constant<int, 0>{});
}

}  // namespace axnet::cuda
