// The numbers between A3's passes, per (image, channel) in double (docs/method.md, "A3 from moments"):
//
//   G = b + sum_a w_a m_a,  Y = X G,  x' = x - c
//   sum G   = b S + sum w_a M_a            sum G^2 = b^2 S + 2b sum w_a M_a + sum w_a w_b M_ab
//   sum Gx' = b s1 + sum w_a t_a = Q_0     sum Y   = c sum G + Q_0
//   sum Y^2 = c^2 sum G^2 + 2c (b^2 s1 + 2b sum w t + sum ww q1) + (b^2 s2 + 2b sum w t2 + sum ww q2)
//   Q_a = b t_a + sum_b w_b q1_ab          E_0 = sum Y x' = c Q_0 + b s2 + sum w t2
//   E_a = sum Y m_a x' = c Q_a + b t2_a + sum_b w_b q2_ab
//
//   block   32 channels of one output block; warps take the images in turn, their sums are added in order
//   thread  channel = lane; rows of C numbers are read as they are needed, so any number of anatomies fits in registers
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

struct GateShape {
  int64_t N, C, S;
  int A, blocks, members;  // output blocks of `members` anatomies each
  bool concat, batch_statistics;
  double eps;
  const void* gate;    // acc [N, A, C]
  const double* mass;  // [N, A + pairs(A)]
};

// The gate of one (image, block, channel).
template <class Acc>
struct Gate {
  const Acc* gate;  // of the block's first anatomy
  const double* mass;
  int64_t C;
  int A, first, members;
  double share, b;

  __device__ Gate(const GateShape& g, int64_t n, int o, int64_t c)
      : mass(g.mass + n * (g.A + pairs(g.A))), C(g.C), A(g.A), first(g.concat ? o : 0), members(g.members) {
    gate = static_cast<const Acc*>(g.gate) + (n * g.A + first) * C + c;
    share = g.concat ? 1.0 : 1.0 / members;
    b = 1;
    for (int a = 0; a < members; ++a)
      b -= w(a);
  }
  __device__ double w(int a) const { return gate[a * C] * share; }
  __device__ double mass_of(int a) const { return mass[first + a]; }
  __device__ int pair(int a, int b) const {
    return a < b ? pair_row(A, first + a, first + b) : pair_row(A, first + b, first + a);
  }
  __device__ double mass_of(int a, int b) const { return mass[A + pair(a, b)]; }
};

// Sums of one number per thread over the warps, in order; every warp gets the sum of its lane's channel.
__device__ inline double sum_over_warps(double v, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = v;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kWarps; ++w)
    total += shared[w * kWarp + threadIdx.x % kWarp];
  return total;
}

// b', w'_a, h' of one block of anatomies under given statistics: acc [N, 1, fold_rows(A), C] (gate_norm.cu).
Tensor fold_given(const Queue& queue, const Tensor& x, const Tensor& gate, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var, double eps);

// The rows that gate_norm saves, from X, mask and gate alone: one more read of X (gate_norm.cu).
Tensor rows_again(const Queue& queue, const Tensor& x, const Tensor& mask, const Tensor& gate, const Tensor& mass,
                  bool concat);

// The op of csrc/ops.cpp (masked_moments.cu).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_moments(Tensor x, Tensor mask, bool second,
                                                                          bool positions, int64_t blocks);

}  // namespace axnet::cuda
