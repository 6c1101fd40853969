// PWAP of 16-bit types on the matrix units: the tile in shared memory and the two products over it, 16 maps at a time.
//
//   tile      P pixels with all their channels (zero up to a multiple of 16), as they lie in memory: NCHW rows of P
//             pixels, their 16-byte pieces in turned order; channels_last rows of channels, padded by one piece. Either
//             way eight rows of a matrix lie in different banks.
//   channels  [16, P] = left [16, C] x tile   warp w takes the channels 16 (w + 8 i); warps are added in order
//   pixels    [16, C] += left [16, P] x tile  warp w holds the channels 16 (w + 8 i) in registers, tile after tile
//   left      float numbers as a sum of two of T, so that products keep 16 bits or more; exact in T where they are T
#pragma once

#include "cuda/device.cuh"
#include "cuda/matrix.h"

namespace axnet::cuda {

constexpr int kMaps = 16;   // rows of a product
constexpr int kWave = 264;  // blocks that a large GPU holds at once
constexpr int kMatrixChannels = 2048;

template <class T>
constexpr bool kHasMatrices = sizeof(T) == 2;

// A block walks `steps` tiles of `pixels` pixels of one image, for one group of maps. The tiling depends on shapes
// alone, so that results do not depend on the GPU.
struct MatrixPlan {
  int64_t C, S;
  int K, walks, groups, tiles, pixels, steps, pitch;
  int length, shift;  // of a row of the tile; load() has 2^shift threads along it
  View view;
  size_t tile_bytes;

  static int width(int64_t C) { return C <= kMatrixChannels / 2 ? 32 : 16; }

  MatrixPlan(const View& view, int64_t N, int64_t C, int64_t S, int64_t K)
      : C(C), S(S), K(static_cast<int>(K)), groups(static_cast<int>(ceil_div(K, kMaps))), view(view) {
    pixels = width(C);
    if (N * groups * ceil_div(S, pixels) < kWave) pixels = 16;
    tiles = static_cast<int>(ceil_div(S, pixels));
    // Rounds of blocks times tiles of a block; a block's numerators cost about as much as a tile.
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int n = 1; n <= tiles; ++n) {
      const int64_t cost = ceil_div(N * groups * ceil_div(tiles, n), kWave) * (n + 1);
      if (cost < least) least = cost, steps = n;
    }
    walks = static_cast<int>(ceil_div(tiles, steps));
    const int64_t channels = ceil_div(C, 16) * 16;
    pitch = view.channels_last ? static_cast<int>(channels) + 8 : width(C);
    length = view.channels_last ? static_cast<int>(channels) : pixels;
    for (shift = 0; (8 << shift) < length;)
      ++shift;
    tile_bytes = static_cast<size_t>((view.channels_last ? width(C) : channels) * pitch * 2);
  }
};

__device__ inline uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof(bits));
  return bits;
}

// v = high + low, high with the bits of `mask`. Both have v's sign, and neither is 0 unless v is: an infinite feature
// times either is the same infinity.
__device__ inline void split(float v, uint32_t mask, uint32_t& high, float& low) {
  high = bits_of(v * (1 - 0x1p-20f)) & mask;
  float part;
  memcpy(&part, &high, sizeof(part));
  low = v - part;
}

// A left operand of 16 x 16 numbers: v[2 i], v[2 i + 1] are pair i of a lane (matrix.h).
template <class T, class W>
struct Left;

template <class T>
struct Left<T, T> {
  uint32_t pairs[4];

  __device__ explicit Left(const T (&v)[8]) { memcpy(pairs, v, sizeof(pairs)); }
  __device__ void times(uint32_t b0, uint32_t b1, float (&c)[4]) const { multiply_add<T>(c, pairs, b0, b1); }
};

template <>
struct alignas(16) Left<BFloat16, float> {
  uint32_t high[4], low[4];

  __device__ explicit Left(const float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      split_pair(v[2 * i], v[2 * i + 1], high[i], low[i]);
  }
  __device__ static void split_pair(float v0, float v1, uint32_t& big, uint32_t& small) {
    uint32_t first, second;
    float rest[2];
    split(v0, 0xffff0000u, first, rest[0]);
    split(v1, 0xffff0000u, second, rest[1]);
    big = first >> 16 | second;
    const BFloat16 pair[2] = {BFloat16(rest[0]), BFloat16(rest[1])};
    memcpy(&small, pair, sizeof(pair));
  }
  __device__ void times(uint32_t b0, uint32_t b1, float (&c)[4]) const {
    multiply_add<BFloat16>(c, low, b0, b1);
    multiply_add<BFloat16>(c, high, b0, b1);
  }
  // Of float numbers b: the lane's four of a right operand of 16 x 8.
  __device__ void times(const float (&b)[4], float (&c)[4]) const {
    uint32_t big[2], small[2];
    split_pair(b[0], b[1], big[0], small[0]);
    split_pair(b[2], b[3], big[1], small[1]);
    multiply_add<BFloat16>(c, high, small[0], small[1]);
    times(big[0], big[1], c);
  }
};

// float16 has too few exponents for parts of a float: products in tf32, which holds every float16. The depth k of its
// two halves is 2t for t and 2t + 1 for t + 4, so that the pairs stay in their lanes.
template <>
struct alignas(16) Left<Half, float> {
  uint32_t high[2][4], low[2][4];

  __device__ explicit Left(const float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float rest;
      const int half = i / 4, place = i % 2 * 2 + i / 2 % 2;
      split(v[i], 0xffffe000u, high[half][place], rest);
      low[half][place] = bits_of(rest) & 0xffffe000u;
    }
  }
  __device__ void times(uint32_t b0, uint32_t b1, float (&c)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Half pair[2];
      memcpy(pair, half ? &b1 : &b0, sizeof(pair));
      const uint32_t first = bits_of(static_cast<float>(pair[0])), second = bits_of(static_cast<float>(pair[1]));
      multiply_add_tf32(c, low[half], first, second);
      multiply_add_tf32(c, high[half], first, second);
    }
  }
  __device__ void times(const float (&b)[4], float (&c)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t big[2];
      float small[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        split(b[2 * half + i], 0xffffe000u, big[i], small[i]);
      multiply_add_tf32(c, high[half], bits_of(small[0]) & 0xffffe000u, bits_of(small[1]) & 0xffffe000u);
      multiply_add_tf32(c, low[half], big[0], big[1]);
      multiply_add_tf32(c, high[half], big[0], big[1]);
    }
  }
};

// 16 x 16 of weights [K, C] as a lane holds them. from: the lane's first; rows, columns: what there is from it on;
// zeros beyond.
template <class W>
__device__ inline void load_left(const W* from, int rows, int columns, int C, W (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int down = i / 2 % 2 * 8, right = i / 4 * 8 + i % 2;
    v[i] = down < rows && right < columns ? from[down * C + right] : W(0.f);
  }
}

template <class T, bool LAST, int P>
struct MatrixTile {
  T* at;
  int pitch;

  // Of channel c, pixel s.
  __device__ T* place(int c, int s) const {
    if constexpr (LAST) return at + s * pitch + c;
    const int turn = P == 32 ? c / 2 % 4 : c / 4 % 2;
    return at + c * P + ((s / 8) ^ turn) * 8 + s % 8;
  }
  // The lane's row for load_matrices of the 16 x 16 numbers from (c, s) on, as right operands: two of 16 x 8, side by
  // side.
  static constexpr bool kChannelsAcross = !LAST, kPixelsAcross = LAST;
  __device__ T* channels_down(int c, int s) const {
    const int lane = thread_again() % kWarp;
    return LAST ? place(c + lane / 8 % 2 * 8, s + lane % 8 + lane / 16 * 8) : place(c + lane % 16, s + lane / 16 * 8);
  }
  __device__ T* pixels_down(int c, int s) const {
    const int lane = thread_again() % kWarp;
    return LAST ? place(c + lane / 16 * 8, s + lane % 16) : place(c + lane % 8 + lane / 16 * 8, s + lane / 8 % 2 * 8);
  }
  static constexpr int kStride = kWarps * 16 * (LAST ? 1 : P);  // from a warp's channels to its next

  // x: the tile's first element in memory. All threads of the block; the caller synchronises. Thread = piece of a row.
  __device__ void load(const MatrixPlan& p, const T* x, int pixels) const {
    const int rows = LAST ? (pixels + 15) / 16 * 16 : (static_cast<int>(p.C) + 15) / 16 * 16;
    const int real_rows = LAST ? pixels : static_cast<int>(p.C), length = LAST ? static_cast<int>(p.C) : pixels;
    const int thread = thread_again(), step = kThreads >> p.shift, row0 = thread >> p.shift,
              first = (thread - row0 * (1 << p.shift)) * 8;
    const int64_t stride = LAST ? p.view.s : p.view.c;
    const int count = length - first < 8 ? length - first : 8;
    if (first < p.length) {
      T* to = LAST ? place(first, row0) : place(row0, first);
      const T* from = x + row0 * stride + first;
#pragma unroll 1
      for (int row = row0; row < rows; row += step) {
        if (row < real_rows && count == 8 && is_aligned(from)) {
          copy_async(to, from);
        } else {
          Vector<T> v;
#pragma unroll
          for (int k = 0; k < 8; ++k)
            v.at[k] = row < real_rows && k < count ? from[k] : T(0.f);
          *reinterpret_cast<Vector<T>*>(to) = v;
        }
        to += step * (LAST ? pitch : P), from += step * stride;  // steps of NCHW are multiples of 8: the same turn
      }
    }
    copies_arrived();
  }

  // The way back: the tile to x.
  __device__ void store(const MatrixPlan& p, const View& view, T* x, int pixels) const {
    const int rows = LAST ? pixels : static_cast<int>(p.C), length = LAST ? static_cast<int>(p.C) : pixels;
    const int thread = thread_again(), step = kThreads >> p.shift, row0 = thread >> p.shift;
    const int first = (thread - (row0 << p.shift)) * 8, count = length - first < 8 ? length - first : 8;
    if (count <= 0) return;
    const int64_t stride = LAST ? view.s : view.c;
    const T* from = LAST ? place(first, row0) : place(row0, first);
    T* to = x + row0 * stride + first;
#pragma unroll 1
    for (int row = row0; row < rows; row += step) {
      const Vector<T> v = *reinterpret_cast<const Vector<T>*>(from);
      store_some(to, v, count, is_aligned(to));
      from += step * (LAST ? pitch : P), to += step * stride;
    }
  }
};

// out [16, P + 8] in shared memory, one for each warp: a warp's share of sum_c weights[k0 + k, c] x[c, s].
template <class T, bool LAST, int P, class W>
__device__ inline void multiply_channels(const MatrixPlan& p, const MatrixTile<T, LAST, P>& tile, int pixels,
                                         const W* weights, int k0, float* out) {
  using Tile = MatrixTile<T, LAST, P>;
  const int thread = thread_again(), warp = thread / kWarp, lane = thread % kWarp, C = static_cast<int>(p.C);
  float sums[P / 8][4] = {};
  const int rows = p.K - k0 - lane / 4;
  int columns = C - warp * 16 - lane % 4 * 2;
  weights += static_cast<int64_t>(k0 + lane / 4) * C + (C - columns);
  W next[8];
  load_left(weights, rows, columns, C, next);
  const T* from[P / 16];
#pragma unroll
  for (int i = 0; i < P / 16; ++i)
    from[i] = tile.channels_down(warp * 16, i * 16);
#pragma unroll 1
  for (int c = warp * 16; c < C; c += kWarps * 16) {
    const Left<T, W> left(next);
    weights += kWarps * 16, columns -= kWarps * 16;
    load_left(weights, rows, columns, C, next);  // under way during the products
#pragma unroll
    for (int i = 0; i < P / 16; ++i) {
      if (i * 16 < pixels) {
        uint32_t b[4];
        load_matrices<Tile::kChannelsAcross>(from[i], b);
        left.times(b[0], b[1], sums[2 * i]);
        left.times(b[2], b[3], sums[2 * i + 1]);
      }
      from[i] += Tile::kStride;
    }
  }
  float* row = out + (warp * kMaps + lane / 4) * (P + 8) + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < P / 8; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      row[e / 2 * 8 * (P + 8) + i * 8 + e % 2] = sums[i][e];
}

// A warp's part of [16, C]: channels 16 (w + 8 i) + 8 j of both halves.
template <int P>
using Sums = float[256 / P][2][4];

// sums += left [16, P + 8] in shared memory (zero beyond the pixels) x the tile.
template <class T, bool LAST, int P>
__device__ inline void multiply_pixels(const MatrixPlan& p, const MatrixTile<T, LAST, P>& tile, int pixels,
                                       const float* left, Sums<P>& sums) {
  using Tile = MatrixTile<T, LAST, P>;
  const int thread = thread_again(), warp = thread / kWarp, lane = thread % kWarp;
#pragma unroll 1
  for (int s = 0; s < pixels; s += 16) {
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      v[i] = left[(lane / 4 + i / 2 % 2 * 8) * (P + 8) + s + lane % 4 * 2 + i / 4 * 8 + i % 2];
    const Left<T, float> a(v);
    const T* from = tile.pixels_down(warp * 16, s);
#pragma unroll
    for (int i = 0; i < 256 / P; ++i)
      if ((warp + i * kWarps) * 16 < p.C) {
        uint32_t b[4];
        load_matrices<Tile::kPixelsAcross>(from + i * Tile::kStride, b);
        a.times(b[0], b[1], sums[i][0]);
        a.times(b[2], b[3], sums[i][1]);
      }
  }
}

// out [K, C] in memory gets the rows from k0 on.
template <int P>
__device__ inline void store_sums(const MatrixPlan& p, const Sums<P>& sums, int k0, float* out) {
  const int thread = thread_again(), warp = thread / kWarp, lane = thread % kWarp;
#pragma unroll
  for (int i = 0; i < 256 / P; ++i)
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int k = k0 + lane / 4 + e / 2 % 2 * 8, c = (warp + i * kWarps) * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (k < p.K && c < p.C) out[k * p.C + c] = sums[i][e / 4][e % 4];
    }
}

// f(tile type) for the layout and the number of channels.
template <class T, class F>
void with_matrix_tile(const MatrixPlan& p, const F& f) {
  const bool wide = p.C > kMatrixChannels / 2;
  if (p.view.channels_last) return wide ? f(MatrixTile<T, true, 16>{}) : f(MatrixTile<T, true, 32>{});
  return wide ? f(MatrixTile<T, false, 16>{}) : f(MatrixTile<T, false, 32>{});
}

}  // namespace axnet::cuda
