// What the kernels of the sums of gate_norm's gradient on the matrix units share (bfloat16).
//
// A product has D, or D X as two bfloat16, of 16 channels and 16 pixels, times eight columns of the basis: 1, 0, then
// of each mask the rounded numbers and what rounding left out. A lane gets two neighbours of these sums, which it adds.
#pragma once

#include "cuda/basis.cuh"
#include "cuda/sums.cuh"

namespace axnet::cuda {

using T = BFloat16;

// Column k as a row of shared memory that fill_columns wrote.
template <int B>
__device__ inline int row_of(int k) {
  return k < 2 + 2 * B ? k : 1;
}

// The columns as rows of shared memory, of the pixels [s0, s0 + stage) of masks [B, S], zero beyond the map. In STEP
// pixels lane t of four has its own side by side: 2 t and the next, 8 + 2 t and the next, and so on.
template <int B, int STEP>
__device__ inline void fill_columns(uint16_t* columns, int pitch, const float* masks, int S, int s0, int stage) {
  const bool vectors = S % 4 == 0 && is_aligned(masks);
#pragma unroll 1
  for (int s = 4 * static_cast<int>(threadIdx.x); s < stage; s += 4 * kThreads) {
    const int there = S - s0 - s;
    uint16_t* to = columns + ((s & ~(STEP - 2)) | (s & 6) * (STEP / 8) | (s & (STEP - 8)) / 4);
    auto put = [&](int k, uint32_t first, uint32_t second) {
      auto* words = reinterpret_cast<uint32_t*>(to + k * pitch);
      words[0] = first, words[STEP / 8] = second;
    };
    auto ones = [&](int i) { return (there > i ? 0x3f80u : 0u) | (there > i + 1 ? 0x3f800000u : 0u); };
    float m[B][4];
#pragma unroll
    for (int a = 0; a < B; ++a) {
      const float* from = masks + a * S + s0 + s;
      if (vectors && there > 0) {
        const float4 v = *reinterpret_cast<const float4*>(from);
        m[a][0] = v.x, m[a][1] = v.y, m[a][2] = v.z, m[a][3] = v.w;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          m[a][i] = i < there ? from[i] : 0.f;
      }
    }
    put(0, ones(0), ones(2)), put(1, 0, 0);
#pragma unroll
    for (int a = 0; a < B; ++a) {
      const uint32_t first = pair_of<T>(m[a][0], m[a][1]), second = pair_of<T>(m[a][2], m[a][3]);
      put(2 + 2 * a, first, second);
      put(3 + 2 * a, pair_of<T>(m[a][0] - first_of<T>(first), m[a][1] - second_of<T>(first)),
          pair_of<T>(m[a][2] - first_of<T>(second), m[a][3] - second_of<T>(second)));
    }
  }
}

// What 16 pixels add: plain += D basis, products += D X basis.
__device__ inline void add_sixteen(float (&products)[4], float (&plain)[4], const uint32_t (&x)[4],
                                   const uint32_t (&d)[4], uint32_t b0, uint32_t b1) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    high[i] = product(d[i], x[i]), low[i] = left_out(d[i], x[i], high[i]);
  multiply_add<T>(plain, d, b0, b1);
  multiply_add<T>(products, high, b0, b1);
  multiply_add<T>(products, low, b0, b1);
}

// Where lane t of four puts its sums of channels from c on. The shift is taken off here: what X resolves of itself at a
// mean far above its spread is coarser than the difference.
template <int B>
struct ChannelSums {
  const float* shift;
  float *plain, *product;

  __device__ ChannelSums(const SumsPlace<T, B>& place, unsigned C, unsigned c, int t) : shift(place.saved + c) {
    plain = place.sums + ((t ? 1 + t : 0) * C + c);
    product = place.sums + ((t ? 1 + B + t : 1) * C + c);
  }
  // of the channels c + on and eight further, where there are `count` from c on
  __device__ void write(const float (&products)[4], const float (&plains)[4], int t, int on, int count) const {
    if (t > B) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = on + 8 * r;
      if (at >= count) continue;
      const float sum = plains[2 * r] + plains[2 * r + 1];
      plain[at] = sum;
      product[at] = products[2 * r] + products[2 * r + 1] - shift[at] * sum;
    }
  }
  __device__ void move(int channels) { shift += channels, plain += channels, product += channels; }
};

}  // namespace axnet::cuda
