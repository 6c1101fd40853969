// What PWAP's two directions share: the tile, the products over it, the log-domain weights.
//
//   tile      pixels [s0, s0 + pixels) of one image with all its channels in shared memory, as the type of X
//   channels  out[k, s] = sum_c w[k, c] x[c, s]   thread = pixel and a share of the channels, added in order
//   pixels    out[k, c] = sum_s w[k, s] x[c, s]   thread = channel
//   maps      kPoolMaps at a time in registers; weights by broadcast, four numbers a load
//
// What the matrix units do not take (pwap_tile.cuh) goes through here: float64 and very many channels.
#pragma once

#include "cuda/tile.cuh"
#include "cuda/wrap.h"

namespace axnet::cuda {

constexpr int kPoolTileBytes = 72 * 1024;  // three blocks on a multiprocessor of 228 KB, one on one of 100 KB
constexpr int kPoolRowBytes = 16 * 1024;   // of the rows [2K, row] beside it
constexpr int kPoolPixels = 64;
constexpr int kPoolMaps = 4;

struct PoolPlan {
  int64_t N, C, S, tiles;
  int K, pixels, row;  // pixels of a tile; row: of an array [K, row] in shared memory, a multiple of 4
  int width, shares;   // channels(): threads along the pixels (a power of two) and along the channels
  TilePlan tile;
  size_t tile_bytes;

  // The tiling depends on shapes and type alone, so that results do not depend on the GPU.
  PoolPlan(const View& view, int64_t N, int64_t C, int64_t S, int64_t K, int element_bytes)
      : N(N), C(C), S(S), K(static_cast<int>(K)), tile(view, S, 1, 1, 16 / element_bytes) {
    const int64_t room = kPoolTileBytes / (C * element_bytes);
    STD_TORCH_CHECK(room > 0, "pwap: x has ", C, " channels; the CUDA kernels hold at most ",
                    kPoolTileBytes / element_bytes, " of this type (use backend='reference').");
    const int64_t odd_room = room % 2 ? room : room - 1;  // a tile's pitch is odd
    const int64_t rows = kPoolRowBytes / (2 * K * std::max(4, element_bytes));
    const int64_t most = std::max<int64_t>(1, std::min<int64_t>({odd_room, rows, kPoolPixels}));
    tiles = ceil_div(S, most);
    while (N * tiles < 128 && ceil_div(S, tiles) > 8)
      tiles *= 2;  // enough blocks for a GPU
    pixels = static_cast<int>(ceil_div(S, tiles));
    tiles = ceil_div(S, pixels);
    row = static_cast<int>(ceil_div(pixels, 4) * 4);
    for (width = 1; width < pixels;)
      width *= 2;
    shares = kThreads / width;
    tile = TilePlan(view, S, static_cast<int>(C), pixels, 16 / element_bytes);
    tile_bytes = static_cast<size_t>(ceil_div(C * tile.pitch * element_bytes, 16) * 16);
  }
};

// Four numbers at p in one access where it is aligned to their size.
template <class Acc, class W>
__device__ inline void load_four(const W* p, bool fast, Acc (&out)[4]) {
  struct alignas(4 * sizeof(W) < 16 ? 4 * sizeof(W) : 16) Four {
    W at[4];
  };
  if (fast) {
    const Four v = *reinterpret_cast<const Four*>(p);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out[i] = static_cast<Acc>(v.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out[i] = static_cast<Acc>(p[i]);
  }
}

// weights [K, C] in memory; out [K, row] in shared memory; parts: [kPoolMaps, kThreads].
template <class T, class W>
__device__ inline void sum_over_channels(const PoolPlan& p, const T* tile, int pixels, const W* weights,
                                         acc_t<T>* parts, acc_t<T>* out) {
  using Acc = acc_t<T>;
  const int column = threadIdx.x % p.width, share = threadIdx.x / p.width, C = static_cast<int>(p.C);
  const bool fast = C % 4 == 0 && reinterpret_cast<uintptr_t>(weights) % (4 * sizeof(W)) == 0;
  for (int k0 = 0; k0 < p.K; k0 += kPoolMaps) {
    const W* rows[kPoolMaps];
    Acc sum[kPoolMaps] = {};
#pragma unroll
    for (int k = 0; k < kPoolMaps; ++k)
      rows[k] = weights + static_cast<int64_t>(k0 + k < p.K ? k0 + k : p.K - 1) * C;
    if (column < pixels) {
      const T* x = tile + column;
#pragma unroll 2
      for (int c = 4 * share; c + 4 <= C; c += 4 * p.shares) {
        Acc v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          v[i] = static_cast<Acc>(x[(c + i) * p.tile.pitch]);
#pragma unroll
        for (int k = 0; k < kPoolMaps; ++k) {
          Acc w[4];
          load_four(rows[k] + c, fast, w);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            sum[k] += w[i] * v[i];
        }
      }
      const int rest = C / 4 * 4;  // the last channels, where C is no multiple of 4
      if (share == rest / 4 % p.shares)
        for (int c = rest; c < C; ++c)
#pragma unroll
          for (int k = 0; k < kPoolMaps; ++k)
            sum[k] += static_cast<Acc>(rows[k][c]) * static_cast<Acc>(x[c * p.tile.pitch]);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kPoolMaps; ++k)
      parts[k * kThreads + threadIdx.x] = sum[k];
    __syncthreads();
    for (int i = threadIdx.x; i < kPoolMaps * p.width; i += kThreads) {
      const int k = i / p.width, s = i % p.width;
      if (k0 + k >= p.K || s >= pixels) continue;
      Acc total = 0;
      for (int j = 0; j < p.shares; ++j)
        total += parts[k * kThreads + j * p.width + s];
      out[(k0 + k) * p.row + s] = total;
    }
  }
  __syncthreads();
}

// weights [K, row] in shared memory; out [K, C] in memory.
template <class T>
__device__ inline void sum_over_pixels(const PoolPlan& p, const T* tile, int pixels, const acc_t<T>* weights,
                                       acc_t<T>* out) {
  using Acc = acc_t<T>;
  const int C = static_cast<int>(p.C), whole = pixels / 4 * 4;
  for (int c = threadIdx.x; c < C; c += kThreads) {
    const T* x = tile + c * p.tile.pitch;
    for (int k0 = 0; k0 < p.K; k0 += kPoolMaps) {
      const Acc* rows[kPoolMaps];
      Acc sum[kPoolMaps] = {};
#pragma unroll
      for (int k = 0; k < kPoolMaps; ++k)
        rows[k] = weights + (k0 + k < p.K ? k0 + k : p.K - 1) * p.row;
      for (int s = 0; s < whole; s += 4) {
        Acc v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          v[i] = static_cast<Acc>(x[s + i]);
#pragma unroll
        for (int k = 0; k < kPoolMaps; ++k) {
          Acc w[4];
          load_four(rows[k] + s, true, w);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            sum[k] += w[i] * v[i];
        }
      }
      for (int s = whole; s < pixels; ++s)
#pragma unroll
        for (int k = 0; k < kPoolMaps; ++k)
          sum[k] += rows[k][s] * static_cast<Acc>(x[s]);
#pragma unroll
      for (int k = 0; k < kPoolMaps; ++k)
        if (k0 + k < p.K) out[static_cast<int64_t>(k0 + k) * C + c] = sum[k];
    }
  }
}

// p = sigmoid(L) and w = p / p(top):  w = e^{min(L,0) - min(top,0)} (1 + e^{-|top|}) / (1 + e^{-|L|})
template <class Acc>
__device__ inline void probability(Acc logit, Acc top, Acc& p, Acc& w) {
  const Acc small = std::exp(logit < 0 ? logit : -logit);
  const Acc inverse = Acc(1) / (Acc(1) + small), factor = Acc(1) + std::exp(top < 0 ? top : -top);
  const Acc rise = top < 0 ? std::exp(logit - top) : logit < 0 ? small : Acc(1);
  p = logit != logit ? logit : logit < 0 ? small * inverse : inverse;
  w = logit != logit ? logit : rise * factor * inverse;
}

template <class Acc>
__device__ inline Acc log_sigmoid(Acc x) {  // finite for every finite x
  return (x < 0 ? x : Acc(0)) - std::log1p(std::exp(x < 0 ? x : -x));
}

// t, contiguous and of that type.
inline Tensor as(const Tensor& t, std::optional<ScalarType> type = std::nullopt) {
  const Tensor typed = type && t.scalar_type() != *type ? torch::stable::to(t, *type) : t;
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

}  // namespace axnet::cuda
