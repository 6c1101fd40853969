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

  __device__ ElementGrad(const InputPlan& plan, int64_t n)
      : ElementGrad(plan, n * plan.S, n * plan.C, plan.A, plan.blocks * coef_rows(plan.members)) {}
  // pixels, channels: of the images before; rows: of coef
  __device__ ElementGrad(const InputPlan& plan, int64_t pixels, int64_t channels, int anatomies, int rows) : p(plan) {
    mask = static_cast<const Acc*>(p.mask) + pixels * anatomies;
    coef = static_cast<const Acc*>(p.coef) + channels * rows;
    delta = static_cast<const Acc*>(p.delta) + channels * (2 + 2 * anatomies);
    at = p.argmax + channels * (1 + anatomies);
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

// What an element needs of its channel, for a single block of Z (or none) with B anatomies, in float.
template <int B>
struct ChannelTerms {
  static constexpr int means = 4 + B,
                       count = means + 1 + B;  // k1, k2, k3, b, w_a; of means over the map: flat, slope_a

  // f(k, at): where number k of channel c lies; of the means before they are divided by S
  template <class T, class F>
  __device__ static void rows(const ElementGrad<T>& element, int C, int c, const F& f) {
    const float *coef = element.coef + c, *delta = element.delta + c;
    if (element.p.blocks)
#pragma unroll
      for (int k = 0; k < means; ++k)
        f(k, coef + k * C);
#pragma unroll
    for (int k = means; k < count; ++k)
      f(k, delta + (k > means ? k - means + 1 : 0) * C);
  }
  // of(k): the number k
  template <bool BLEND, class F>
  __device__ static float grad(float x, float d, const float (&m)[B], const F& of) {
    float total = of(means), gate = BLEND ? of(3) : 0.f;
#pragma unroll
    for (int a = 0; a < B; ++a) {
      total += of(means + 1 + a) * m[a];
      if constexpr (BLEND) gate += of(4 + a) * m[a];
    }
    if constexpr (BLEND) total += (of(0) * d + (of(2) * (x * gate) + of(1))) * gate;
    return total;
  }
};

// Of one image, whose elements have 32-bit offsets.
template <class T, int B>
__device__ inline ElementGrad<T> of_image(const InputPlan& p, int n) {
  return {p, int64_t{n} * static_cast<int>(p.S), int64_t{n} * static_cast<int>(p.C), B, ChannelTerms<B>::means};
}

// An element where maxima stand: bit k of kinds says that maximum k does; more: what each adds.
template <bool BLEND, class T, int B, class F>
__device__ inline T grad_of_maximum(unsigned kinds, T x, T d, const float (&m)[B], const float (&more)[1 + B],
                                    const F& of) {
  float v = ChannelTerms<B>::template grad<BLEND>(static_cast<float>(x), static_cast<float>(d), m, of);
#pragma unroll
  for (int k = 0; k <= B; ++k)
    if (kinds >> k & 1) v += k ? more[k] * m[k - 1] : more[0];
  return T(v);
}

}  // namespace axnet::cuda
