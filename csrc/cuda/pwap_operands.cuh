// Numbers as operands of the matrix units. Float numbers enter as the sum of two parts, so that a product keeps 16 bits
// or more (20 in tf32): in bfloat16 where the features are bfloat16; float16, whose exponents do not reach, and float32
// take tf32. With 8 maps the high parts of the rows are the upper half of the operand and the low parts its lower half,
// so one product does for both.
#pragma once

#include "cuda/device.cuh"
#include "cuda/matrix.h"
#include "cuda/packed.h"

namespace axnet::cuda {

__device__ inline uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof(bits));
  return bits;
}
__device__ inline float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

// A pair of Half as two numbers of tf32.
__device__ inline void widen(uint32_t pair, uint32_t& first, uint32_t& second) {
  Half halves[2];
  memcpy(halves, &pair, sizeof(halves));
  first = bits_of(static_cast<float>(halves[0])), second = bits_of(static_cast<float>(halves[1]));
}

// v = high + low, high with the bits of `mask`. Both have v's sign, and neither is 0 unless v is: an infinite feature
// times either is the same infinity.
__device__ inline void split(float v, uint32_t mask, uint32_t& high, float& low) {
  high = bits_of(v * (1 - 0x1p-20f)) & mask;
  low = v - float_of(high);
}
constexpr uint32_t kTf32 = 0xffffe000u, kBFloat16 = 0xffff0000u;

// A feature: its low part may be 0, and is where the feature is infinite.
__device__ inline void split_feature(float v, uint32_t& high, uint32_t& low) {
  high = bits_of(v) & kTf32;
  const float big = float_of(high);
  low = big == v ? 0u : bits_of(v - big);
}

// A number of bfloat16 in two parts, in one word: the high one in the lower half. The low one is rounded.
__device__ inline uint32_t two_parts(float v) {
  uint32_t high;
  float low;
  split(v, kBFloat16, high, low);
  return high >> 16 | ((bits_of(low) + 0x8000u) & kBFloat16);
}

// T(v), two at a time where that is one instruction and one alone is a slow one.
template <class T>
__device__ inline T narrowed(float v) {
  if constexpr (sizeof(T) != 2) {
    return v;
  } else {
    const uint32_t pair = pair_of<T>(v, 0.f);
    T number;
    memcpy(&number, &pair, sizeof(number));
    return number;
  }
}

// Two numbers' high parts in one word, and their low parts.
__device__ inline void pair_up(uint32_t first, uint32_t second, uint32_t& high, uint32_t& low) {
  high = (first & 0xffffu) | second << 16;
  low = first >> 16 | (second & 0xffff0000u);
}

// A lane's numbers of the rows g (and g + 8) and 16 channels: v[i][r] is channel `i` (channel_of) of row g + 8 r.
// EXACT: numbers that T holds.
template <class T, int M, bool EXACT>
struct Rows {  // float, float16: as float, split where they are used
  float v[4][M / 8];

  __device__ void set(const float (&from)[4][M / 8]) { memcpy(v, from, sizeof(v)); }
  // c += rows x the 8 channels of `half`; b: the features in tf32
  __device__ void times(int half, uint32_t b0, uint32_t b1, float (&c)[4]) const {
    uint32_t high[4], low[4];
    parts(half, high, low);
    if constexpr (M == 16) multiply_add_tf32(c, low, b0, b1);
    multiply_add_tf32(c, high, b0, b1);
  }
  // and of float32 features in two parts
  __device__ void times(int half, const uint32_t (&big)[2], const uint32_t (&small)[2], float (&c)[4]) const {
    uint32_t high[4], low[4];
    parts(half, high, low);
    multiply_add_tf32(c, high, small[0], small[1]);
    if constexpr (M == 16) multiply_add_tf32(c, low, big[0], big[1]);
    multiply_add_tf32(c, high, big[0], big[1]);
  }

 private:
  __device__ void parts(int half, uint32_t (&high)[4], uint32_t (&low)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 0; r < M / 8; ++r) {
        float rest;
        split(again(v[2 * half + i][r]), kTf32, high[2 * i + r], rest);
        (M == 16 ? low[2 * i + r] : high[2 * i + 1]) = bits_of(rest);
      }
  }
};

template <int M>
struct Rows<BFloat16, M, false> {
  uint32_t high[4], low[M == 16 ? 4 : 1];

  __device__ void set(const float (&v)[4][M / 8]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2)
#pragma unroll
      for (int r = 0; r < M / 8; ++r)
        pair_up(two_parts(v[i][r]), two_parts(v[i + 1][r]), high[i + r], M == 16 ? low[i + r] : high[i + 1]);
  }
  __device__ void times(uint32_t b0, uint32_t b1, float (&c)[4]) const {
    if constexpr (M == 16) multiply_add<BFloat16>(c, low, b0, b1);
    multiply_add<BFloat16>(c, high, b0, b1);
  }
};

template <class T, int M>
struct Rows<T, M, true> {    // of 16 bits
  uint32_t pairs[2][M / 8];  // [channels 0-7, 8-15][rows 0-7, 8-15]

  __device__ void set(const float (&v)[4][M / 8]) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 0; r < M / 8; ++r) {
        pairs[i][r] = pair_of<T>(v[2 * i][r], v[2 * i + 1][r]);
      }
  }
  // of BFloat16
  __device__ void times(uint32_t b0, uint32_t b1, float (&c)[4]) const {
    const uint32_t a[4] = {pairs[0][0], M == 16 ? pairs[0][M / 8 - 1] : 0u, pairs[1][0],
                           M == 16 ? pairs[1][M / 8 - 1] : 0u};
    multiply_add<BFloat16>(c, a, b0, b1);
  }
  // of Half, in tf32
  __device__ void times(int half, uint32_t b0, uint32_t b1, float (&c)[4]) const {
    uint32_t a[4] = {};
#pragma unroll
    for (int r = 0; r < M / 8; ++r)
      widen(again(pairs[half][r]), a[r], a[2 + r]);
    multiply_add_tf32(c, a, b0, b1);
  }
};

template <int M>
struct Rows<float, M, true> : Rows<float, M, false> {};

// The words of a warp's parts [M, P]: turned for the banks.
template <int P>
__device__ inline int part_at(int k, int s) {
  return k * P + (s ^ (P == 32 ? k % 4 * 8 : P == 16 ? k / 2 % 2 * 8 : 0));
}

// What a block has between the products, for the pixels of a tile: 16-bit high and low parts [2, rows, P + 8] or float
// [rows, P + 4].
template <class T, int P>
struct Shares {
  static constexpr bool kHalves = std::is_same_v<T, BFloat16>;
  static constexpr int kPitch = P + (kHalves ? 8 : 4);
  unsigned char* at;
  int rows;

  __device__ void set(int row, int s, float v) const {
    if constexpr (kHalves) {
      const uint32_t word = two_parts(v);
      uint16_t* to = reinterpret_cast<uint16_t*>(at) + row * kPitch + s;
      to[0] = static_cast<uint16_t>(word), to[rows * kPitch] = static_cast<uint16_t>(word >> 16);
    } else {
      reinterpret_cast<float*>(at)[row * kPitch + s] = v;
    }
  }
};

}  // namespace axnet::cuda
