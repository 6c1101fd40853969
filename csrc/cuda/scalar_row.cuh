// The sums and maxima of a row of X in one thread, in float, element by element.
#pragma once

#include "cuda/eight.cuh"
#include "cuda/moments.cuh"

namespace axnet::cuda {

struct None {
  template <class... Args>
  __device__ void operator()(const Args&...) const {}
};

template <int B, bool FULL>
struct Row {
  using Sums = RowSums<B, FULL>;
  float sum[Sums::count] = {}, top[1 + B];
  int at[1 + B] = {};  // of the granule in which the maximum stands

  __device__ Row() {
#pragma unroll
    for (int k = 0; k <= B; ++k)
      top[k] = -std::numeric_limits<float>::infinity();
  }
  // Whether no maximum is below zero, so that later ones can be found among the bits.
  __device__ bool risen() const {
    int signs = 0;
#pragma unroll
    for (int k = 0; k <= B; ++k)
      signs |= __float_as_int(top[k]);
    return signs >= 0;
  }
  // mask(a, i): of pixel i; keep(k, here, y, best): where a maximum rises, of X, of m_a X; best: up to each pair.
  // RISEN: no maximum is below zero. The bits of what is not are ordered as integers are, of which three are compared
  // in one instruction.
  template <bool RISEN = false, int P, class F, class G = None>
  __device__ void add(const float (&x)[P], const F& mask, int here, const G& keep = G()) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      sum[0] += x[i];
      if constexpr (FULL) sum[Sums::s2] += x[i] * x[i];
    }
    rise<RISEN>(0, x, here, keep);
    float weighted[FULL ? B : 1][P];
#pragma unroll
    for (int a = 0; a < B; ++a) {
      float (&y)[P] = weighted[FULL ? a : 0];
#pragma unroll
      for (int i = 0; i < P; ++i) {
        y[i] = mask(a, i) * x[i];
        sum[Sums::t(a)] += y[i];
        if constexpr (FULL) sum[Sums::t2(a)] += y[i] * x[i];
      }
      rise<RISEN>(1 + a, y, here, keep);
      if constexpr (FULL)
#pragma unroll
        for (int b = 0; b <= a; ++b)
#pragma unroll
          for (int i = 0; i < P; ++i)
            sum[Sums::q2(pair_row(B, b, a))] += y[i] * weighted[b][i];
    }
  }

 private:
  template <bool RISEN, int P, class G>
  __device__ void rise(int k, const float (&y)[P], int here, const G& keep) {
    float best[(P + 1) / 2];  // up to each pair of pixels
#pragma unroll
    for (int i = 0; i < P; ++i)
      best[i / 2] = larger<RISEN>(i ? best[(i - 1) / 2] : top[k], y[i]);
    const float most = best[(P - 1) / 2];
    const bool rose = RISEN ? __float_as_int(most) != __float_as_int(top[k]) : most > top[k];
    top[k] = most;
    if constexpr (FULL)
      if (rose) at[k] = here, keep(k, here, y, best);
  }
  template <bool RISEN>
  __device__ static float larger(float a, float b) {
    return RISEN ? __float_as_int(a) > __float_as_int(b) ? a : b : fmaxf(a, b);
  }
};

// f(T, B, FULL) where there is such a kernel: float32 and float16, and what the matrix units do not take of bfloat16.
template <class F>
bool with_scalar_kernel(Type of_x, int A, bool full, const F& f) {
  return with_type(of_x, [&](auto type) {
    using T = decltype(type);
    constexpr bool wide = std::is_same_v<T, float> || std::is_same_v<T, Half>;
    auto either = [&](auto anatomies) {
      full ? f(type, anatomies, std::true_type{}) : f(type, anatomies, std::false_type{});
      return true;
    };
    if constexpr (wide) {
      if (A == 1) return either(std::integral_constant<int, 1>{});
      if (A == 2) return either(std::integral_constant<int, 2>{});
      if (A == 3) return either(std::integral_constant<int, 3>{});
      if (!full) return f(type, std::integral_constant<int, kMaxAnatomies>{}, std::false_type{}), true;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      if (full && A == 3) return f(type, std::integral_constant<int, 3>{}, std::true_type{}), true;
    }
    return false;
  });
}

// The part of scalar_moments in channels_last (masked_moments_channels.cu).
bool scalar_moments_across(cudaStream_t stream, const MomentsPlan& plan, Type of_x, bool full);

}  // namespace axnet::cuda
