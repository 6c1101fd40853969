// A tile of X in shared memory, the same for both layouts: channel c, pixel s at c * pitch + s, with an odd pitch, so
// that a warp reads either 32 pixels of a channel or 32 channels of a pixel without bank conflicts.
//
//   from memory  NCHW, whole rows of pixels: one run over all channels (so that rows of 49 pixels load in 16 bytes);
//                NCHW, parts of rows: a run per channel;  channels_last: a run per pixel
//   a thread     takes 16-byte pieces of the runs, kFlight of them in flight; a piece that sticks out of its run goes
//                element by element
//   to shared    the words of a piece in rotated order: the lanes of a warp then write to 32 different banks
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

constexpr int kFlight = 4;

struct TilePlan {
  View view;
  int pitch;
  bool flat;
  Divider pieces;  // of a full run
  Divider unit;    // elements of a run between jumps of the tile: S in a flat run

  TilePlan(const View& v, int64_t S, int channels, int pixels, int vector) : view(v), pitch(pixels | 1) {
    flat = !v.channels_last && pixels == S && S >= vector;
    const int64_t run = v.channels_last ? channels : flat ? static_cast<int64_t>(channels) * pixels : pixels;
    pieces = Divider((run + 2 * vector - 2) / vector);
    unit = Divider(flat ? S : std::numeric_limits<int32_t>::max());
  }
};

// Where the runs of one tile lie.
struct Runs {
  int count, length, row_step, element_step, jump;  // steps in the tile; jump: added at each multiple of the unit
  int64_t stride;                                   // between runs in memory

  __device__ Runs(const TilePlan& plan, int channels, int pixels) {
    if (plan.flat) {
      count = 1, length = channels * pixels, row_step = 0, element_step = 1, jump = plan.pitch - pixels, stride = 0;
    } else if (plan.view.channels_last) {
      count = pixels, length = channels, row_step = 1, element_step = plan.pitch, jump = 0, stride = plan.view.s;
    } else {
      count = channels, length = pixels, row_step = plan.pitch, element_step = 1, jump = 0, stride = plan.view.c;
    }
  }
};

// One piece: elements [first, first + V) of run `row`, of which some may lie outside [0, length).
template <class T>
struct Piece {
  int row, first;

  __device__ Piece(const TilePlan& plan, const Runs& runs, const T* x, int index) {
    constexpr int V = kVector<T>;
    row = plan.pieces.quotient(index);
    const uintptr_t start = reinterpret_cast<uintptr_t>(x + row * runs.stride) / sizeof(T);
    first = (index - row * static_cast<int>(plan.pieces.divisor)) * V - static_cast<int>(start % V);
  }
  __device__ bool whole(const Runs& runs) const {
    return row < runs.count && first >= 0 && first + kVector<T> <= runs.length;
  }
};

// Calls f(k, place) for the elements k of a piece; place: their index in the tile.
template <class T, class F>
__device__ inline void each_place(const TilePlan& plan, const Runs& runs, const Piece<T>& piece, int k, const F& f) {
  const int e = piece.first + k;
  if (piece.row < runs.count && e >= 0 && e < runs.length)
    f(piece.row * runs.row_step + e * runs.element_step + plan.unit.quotient(e) * runs.jump);
}

template <class T>
__device__ inline void scatter(const TilePlan& plan, const Runs& runs, const Piece<T>& piece, const Vector<T>& v,
                               T* tile) {
  constexpr int V = kVector<T>, words = 4, per_word = sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1;
  const int jumps = plan.unit.quotient(piece.first);
  const int next = (jumps + 1) * static_cast<int>(plan.unit.divisor) - piece.first;  // elements before the next jump
  T* to = tile + piece.row * runs.row_step + piece.first * runs.element_step + jumps * runs.jump;
  if constexpr (sizeof(T) == 8) {
#pragma unroll
    for (int k = 0; k < V; ++k)
      to[k * runs.element_step + (k >= next ? runs.jump : 0)] = v.at[k];
  } else {
    const int turn = static_cast<int>(threadIdx.x) / 8 % words;
    uint32_t bits[words], once[words], turned[words];
    memcpy(bits, &v, sizeof(bits));
#pragma unroll
    for (int w = 0; w < words; ++w)
      once[w] = turn & 1 ? bits[(w + 1) % words] : bits[w];
#pragma unroll
    for (int w = 0; w < words; ++w)
      turned[w] = turn & 2 ? once[(w + 2) % words] : once[w];
#pragma unroll
    for (int w = 0; w < words; ++w) {
      T part[per_word];
      memcpy(part, &turned[w], sizeof(part));
      const int k = (w + turn) % words * per_word;
#pragma unroll
      for (int i = 0; i < per_word; ++i)
        to[(k + i) * runs.element_step + (k + i >= next ? runs.jump : 0)] = part[i];
    }
  }
}

// x: the tile's first element in memory. All threads of the block; the caller synchronises.
template <class T>
__device__ inline void stage(const TilePlan& plan, const T* x, int channels, int pixels, T* tile) {
  const Runs runs(plan, channels, pixels);
  const int total = runs.count * static_cast<int>(plan.pieces.divisor);
  for (int start = static_cast<int>(threadIdx.x); start < total; start += kFlight * kThreads) {
    Vector<T> loaded[kFlight];
#pragma unroll
    for (int u = 0; u < kFlight; ++u) {
      const Piece<T> piece(plan, runs, x, start + u * kThreads);
      if (piece.whole(runs)) loaded[u] = load_vector(x + piece.row * runs.stride + piece.first);
    }
#pragma unroll
    for (int u = 0; u < kFlight; ++u) {
      const Piece<T> piece(plan, runs, x, start + u * kThreads);
      const T* from = x + piece.row * runs.stride + piece.first;
      if (piece.whole(runs)) scatter(plan, runs, piece, loaded[u], tile);
      else
        for (int k = 0; k < kVector<T>; ++k)
          each_place(plan, runs, piece, k, [&](int place) { tile[place] = from[k]; });
    }
  }
}

// The way back: the tile to memory.
template <class T>
__device__ inline void unstage(const TilePlan& plan, const T* tile, int channels, int pixels, T* x) {
  const Runs runs(plan, channels, pixels);
  const int total = runs.count * static_cast<int>(plan.pieces.divisor);
  for (int index = static_cast<int>(threadIdx.x); index < total; index += kThreads) {
    const Piece<T> piece(plan, runs, x, index);
    T* to = x + piece.row * runs.stride + piece.first;
    if (piece.whole(runs)) {
      Vector<T> v;
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k)
        each_place(plan, runs, piece, k, [&](int place) { v.at[k] = tile[place]; });
      store_vector(to, v);
    } else {
      for (int k = 0; k < kVector<T>; ++k)
        each_place(plan, runs, piece, k, [&](int place) { to[k] = tile[place]; });
    }
  }
}

}  // namespace axnet::cuda
