// The basis of the sums on the matrix units, in shared memory (bfloat16; docs/method.md, "Sums on the matrix units"):
//
//   rows over the pixels   1, m_a, (PAIRS: m_a m_b,) rounded to bfloat16: row k;  what rounding left out: row rows + k
//   splat                  channels_last: the rounded masks of a pixel, each in both halves of a register
//   tail                   NCHW: the rounded masks of the last 32 pixels, where others stand for those beyond the map
//   one
//
// Orders of the pixels. NCHW, where lane t of four reads 16 bytes: as they are; or, for X that comes by load_matrices,
// so that they are 8 j + 2 t and the next, j = 0..3. channels_last, where load_matrices reads: so that lane t gets
// pixels 4 t and the next, then 4 t + 2 and the next; or, where it reads 16 bytes, four from 4 t on and from 16 + 4 t
// on.
//
// Beyond the map the basis is zero, so whatever X is read there adds nothing; the kernels read a pixel of the map
// again, which changes no maximum.
#pragma once

#include "cuda/device.cuh"
#include "cuda/matrix.h"
#include "cuda/packed.h"

namespace axnet::cuda {

constexpr int kChunk = 32;  // pixels that four lanes take in one go, NCHW: 8 each
constexpr int kStep = 16;   // channels_last: 4 each

// Of channels_last, by load_matrices or by vectors; of NCHW, of X by vectors or by load_matrices.
enum class Order { across, fours, rows, matrices };

// NCHW: pixel i of the chunk from s on. Beyond the map of S pixels another of the same slot (tops.cuh) where there is
// one, so that no other slot has its maximum there, else the last.
__device__ inline int in_map(int s, int i, int S) { return s + i < S ? s + i : s + i % 8 < S ? s + i % 8 : S - 1; }

// Where pixel s stands in a row of the basis.
__device__ inline int place_of(int s, Order order) {
  if (order == Order::across) return (s & ~14) | (s & 12) / 2 | (s & 2) * 4;
  if (order == Order::fours) return (s & ~28) | (s & 12) * 2 | (s & 16) / 4;
  return order == Order::matrices ? (s & ~30) | (s & 6) * 4 | (s & 24) / 4 : s;
}

template <int B, bool PAIRS>
struct Basis {
  static constexpr int rows = 1 + B + (PAIRS ? pairs(B) : 0), all = 2 * rows;
  const uint16_t* at;     // [all, pitch]
  const uint32_t* splat;  // [stage, B]
  const uint16_t* tail;   // [B, kChunk]
  int pitch;

  static size_t bytes(int pitch, int stage, bool channels_last) {
    return static_cast<size_t>(all) * pitch * 2 + (channels_last ? static_cast<size_t>(stage) * B * 4 : B * kChunk * 2);
  }
  // Pixels in shared memory at a time: as many as `limit` bytes hold, in equal shares, which no piece of a ring
  // crosses.
  static int stage(int64_t S, int limit, bool channels_last) {
    const int64_t most = limit / (all * 2 + (channels_last ? B * 4 : 0)) / 64 * 64, stages = ceil_div(S, most);
    const int unit = stages > 1 ? 64 : kChunk;
    return static_cast<int>(ceil_div(ceil_div(S, stages), unit) * unit);
  }
  // Rows start 64 (NCHW: four lanes read 64 bytes) or 16 bytes (channels_last: load_matrices) apart in the banks.
  static int pitch_of(int stage, bool channels_last) { return ceil_div(stage, 64) * 64 + (channels_last ? 8 : 32); }

  __device__ Basis(unsigned char* shared, int pitch, int stage)
      : at(reinterpret_cast<const uint16_t*>(shared)),
        splat(reinterpret_cast<const uint32_t*>(shared + all * pitch * 2)),
        tail(reinterpret_cast<const uint16_t*>(shared + all * pitch * 2)),
        pitch(pitch) {}
  __device__ const uint16_t* row(int k) const { return at + k * pitch; }
  // Row of a fragment: the rounded ones, then what was left out of those but the first; beyond, one of them again.
  __device__ static int first_order(int k) { return k <= B ? k : k <= 2 * B ? rows + k - B : rows; }

  // The same where the rounded ones and what was left out of them are neighbours, whose sums come in one lane.
  __device__ static int first_pair(int k) { return k / 2 > B ? rows : k % 2 * rows + k / 2; }

  // All threads of the block, between barriers. masks: of the image, [A, S]; an anatomy beyond A repeats the first.
  // asked(): once, when a thread's first masks are on their way. tailed: whether there is a tail. thread: its number,
  // of so many threads.
  template <int FLIGHT = B <= 3 ? 2 : 1, class F>
  __device__ void fill(const float* masks, int A, int S, int s0, int stage, Order order, const F& asked,
                       bool tailed = true, unsigned thread = threadIdx.x,
                       int threads = static_cast<int>(blockDim.x)) const {
    using T = BFloat16;
    const bool channels_last = order == Order::across || order == Order::fours;
    auto put_bits = [&](int k, int s, uint32_t high, uint32_t left) {
      auto* to = const_cast<uint16_t*>(at) + k * pitch + place_of(s, order);
      reinterpret_cast<uint32_t*>(to)[0] = high, reinterpret_cast<uint32_t*>(to + rows * pitch)[0] = left;
    };
    auto put = [&](int k, int s, float first, float second) {
      const uint32_t high = pair_of<T>(first, second);
      put_bits(k, s, high, pair_of<T>(first - first_of<T>(high), second - second_of<T>(high)));
      return high;
    };
    auto is_there = [&](int s) { return static_cast<unsigned>(s) < static_cast<unsigned>(S); };  // s0 may be -1
    auto mask_of = [&](int a) { return masks + static_cast<int64_t>(a < A ? a : 0) * S; };
    float last[B];  // of the map; channels_last: beyond it, the maxima meet it again
    auto fill_two = [&](int s, const float (&m)[B][2]) {
      const bool first = is_there(s0 + s), second = is_there(s0 + s + 1);
      put_bits(0, s, (first ? 0x3f80u : 0u) | (second ? 0x3f800000u : 0u), 0);  // 1 or 0
#pragma unroll
      for (int a = 0; a < B; ++a) {
        const uint32_t high = put(1 + a, s, m[a][0], m[a][1]);
        if (channels_last) {
          auto* to = const_cast<uint32_t*>(splat) + s * B + a;
          const uint32_t beyond = pair_of<T>(last[a], last[a]);
          to[0] = first ? firsts(high, high) : beyond;
          to[B] = second ? seconds(high, high) : beyond;
        }
      }
      if constexpr (PAIRS)
#pragma unroll
        for (int a = 0; a < B; ++a)
#pragma unroll
          for (int b = a; b < B; ++b)
            put(1 + B + pair_row(B, a, b), s, m[a][0] * m[b][0], m[a][1] * m[b][1]);
    };
    const int apart = 2 * threads;
    const int begin = 2 * static_cast<int>(thread);
    if (begin >= stage) asked();
#pragma unroll 1
    for (int s = begin; s < stage; s += FLIGHT * apart) {
      float m[FLIGHT][B][2];
#pragma unroll
      for (int u = 0; u < FLIGHT; ++u)
#pragma unroll
        for (int a = 0; a < B; ++a)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int at = s + u * apart + i;
            m[u][a][i] = at < stage && is_there(s0 + at) ? mask_of(a)[s0 + at] : 0.f;
          }
#pragma unroll
      for (int a = 0; a < B; ++a)
        last[a] = channels_last ? mask_of(a)[S - 1] : 0.f;
      if (s == begin) asked();
#pragma unroll
      for (int u = 0; u < FLIGHT; ++u)
        if (s + u * apart < stage) fill_two(s + u * apart, m[u]);
    }
    if (channels_last || !tailed || s0 + stage < S || S % kChunk == 0) return;
    const int from = S / kChunk * kChunk;
    for (int i = threadIdx.x; i < B * kChunk; i += threads) {
      const uint32_t high = pair_of<T>(mask_of(i / kChunk)[in_map(from, i % kChunk, S)], 0.f);
      const_cast<uint16_t*>(tail)[place_of(i, order)] = static_cast<uint16_t>(high);
    }
  }
};

// Eight pixels of a row of bfloat16 for lane t of four, in the order of the basis; s: the first of the lanes' 32.
template <Order ORDER>
__device__ inline void load_eight(const BFloat16* row, int s, int t, bool aligned, uint32_t (&out)[4]) {
  constexpr bool runs = ORDER == Order::rows;
  constexpr int apart = runs ? 2 : 8;
  row += s + (runs ? 8 : 2) * t;
  if (aligned && runs) {
    const uint4 v = __ldcs(reinterpret_cast<const uint4*>(row));
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    return;
  }
  const auto* from = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    out[k] = aligned ? __ldcs(reinterpret_cast<const uint32_t*>(row + apart * k))
                     : from[apart * k] | static_cast<uint32_t>(from[apart * k + 1]) << 16;
}

// The same at the end of a map of S pixels.
template <Order ORDER>
__device__ inline void load_last(const BFloat16* row, int s, int t, int S, uint32_t (&out)[4]) {
  constexpr bool runs = ORDER == Order::rows;
  const auto* from = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int at = runs ? 8 * t + 2 * k : 2 * t + 8 * k;
    out[k] = from[in_map(s, at, S)] | static_cast<uint32_t>(from[in_map(s, at + 1, S)]) << 16;
  }
}

// Eight pixels of the r-th row of a lane as products of 16 rows and 16 pixels want them: [16 of the 32, i], row i % 2.
__device__ inline void arrange(const uint32_t (&eight)[4], int r, uint32_t (&words)[2][4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    words[k / 2][k % 2 * 2 + r] = eight[k];
}

__device__ inline void load_shared(const void* p, uint32_t (&out)[4]) {
  const uint4 v = *static_cast<const uint4*>(p);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}

}  // namespace axnet::cuda
