// The gradient of X, element by element (docs/method.md, "A3 from moments"):
//
//   dX = sum_o (k1 D_o + k2 + k3 X G_o) G_o + delta_avg/S + sum_a delta_mavg,a m_a/S          G_o = b + sum_a w_a m_a
//      + [s = argmax] delta_max + sum_a [s = argmax_a] delta_mmax,a m_a
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

template <class Acc>
__device__ inline Acc blend_grad(Acc x, Acc d, Acc gate, Acc k1, Acc k2, Acc k3) {
  return (k1 * d + k2 + k3 * (x * gate)) * gate;
}

// One element. Rows of C numbers start at the element's channel.
template <class T>
struct ElementGrad {
  using Acc = acc_t<T>;
  const InputPlan& p;
  const Acc *mask, *coef, *delta;  // of the image
  const int32_t* at;

  __device__ ElementGrad(const InputPlan& plan, int64_t n) : p(plan) {
    mask = static_cast<const Acc*>(p.mask) + n * p.A * p.S;
    coef = static_cast<const Acc*>(p.coef) + n * p.blocks * coef_rows(p.members) * p.C;
    delta = static_cast<const Acc*>(p.delta) + n * (2 + 2 * p.A) * p.C;
    at = p.argmax + n * (1 + p.A) * p.C;
  }
  // d: D of block 0; d_step: to the next block
  __device__ Acc operator()(Acc x, const T* d, int64_t d_step, int64_t c, int64_t s) const {
    const int64_t C = p.C, S = p.S;
    const int A = p.A, blocks = p.blocks, members = p.members;
    const Acc inverse = Acc(1) / static_cast<Acc>(S);
    Acc total = delta[c] * inverse;
    for (int a = 0; a < A; ++a)
      total += delta[(2 + a) * C + c] * inverse * mask[a * S + s];
    for (int o = 0; o < blocks; ++o) {
      const Acc* q = coef + o * coef_rows(members) * C + c;
      Acc gate = q[3 * C];
      for (int a = 0; a < members; ++a)
        gate += q[(4 + a) * C] * mask[(o + a) * S + s];
      total += blend_grad(x, static_cast<Acc>(d[o * d_step]), gate, q[0], q[C], q[2 * C]);
    }
    if (at[c] == s) total += delta[C + c];
    for (int a = 0; a < A; ++a)
      if (at[(1 + a) * C + c] == s) total += delta[(2 + A + a) * C + c] * mask[a * S + s];
    return total;
  }
};

}  // namespace axnet::cuda
