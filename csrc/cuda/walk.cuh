// How the passes that write a map walk it, a few 16-byte vectors a thread, all in flight before the first use.
//
//   NCHW           an image is one flat run of C*S elements. Vectors repeat their pixels every S / gcd(S, V) vectors:
//                  a thread keeps to one such phase, holds the masks of its V pixels in registers and meets new
//                  channels
//   channels_last  a thread keeps to V channels, meets new pixels, and lets the coefficients of its channels pass by
#pragma once

#include <numeric>

#include "cuda/device.cuh"

namespace axnet::cuda {

template <class T>
constexpr int kSteps = sizeof(T) < 4 ? 2 : 4;

struct RowWalk {
  int64_t N, C, S, tasks;   // tasks: blocks of an image
  int phases, width, side;  // phases of an image; phases side by side in a block; periods side by side in a block
  int phase_blocks, rows;   // rows: channels of a period

  RowWalk(int64_t N, int64_t C, int64_t S, int vector, int steps) : N(N), C(C), S(S) {
    const int64_t common = std::gcd(S, static_cast<int64_t>(vector));
    phases = static_cast<int>(S / common), rows = static_cast<int>(vector / common);
    width = phases < kThreads ? phases : kThreads;
    side = kThreads / width;
    phase_blocks = static_cast<int>(ceil_div(phases, width));
    tasks = phase_blocks * ceil_div(ceil_div(C, rows), side * steps);
  }
  int64_t grid() const { return N * tasks; }
};

template <class T>
struct RowPlace {
  static constexpr int V = kVector<T>;
  bool active;
  int64_t n, period;  // the first of this thread's periods
  int phase, row, s;  // row, s: channel within the period and pixel of the phase's first element

  __device__ explicit RowPlace(const RowWalk& walk) {
    const int64_t task = blockIdx.x % walk.tasks;
    n = blockIdx.x / walk.tasks;
    const int side = threadIdx.x / walk.width;
    phase = static_cast<int>(task % walk.phase_blocks) * walk.width + threadIdx.x % walk.width;
    active = side < walk.side && phase < walk.phases;
    period = task / walk.phase_blocks * walk.side * kSteps<T> + side;
    const int64_t first = static_cast<int64_t>(phase) * V;
    row = static_cast<int>(first / walk.S), s = static_cast<int>(first % walk.S);
  }
  __device__ int64_t channel(const RowWalk& walk, int u) const { return (period + u * walk.side) * walk.rows + row; }
  __device__ int64_t element(const RowWalk& walk, int u) const { return channel(walk, u) * walk.S + s; }
  __device__ int count(int64_t element, int64_t elements) const {
    return element >= elements ? 0 : elements - element < V ? static_cast<int>(elements - element) : V;
  }
  template <class Acc, int B>
  __device__ void load_masks(const Acc* mask, int64_t S, Acc (&m)[B][V]) const {
    int at = s;
#pragma unroll
    for (int i = 0; i < V; ++i) {
#pragma unroll
      for (int a = 0; a < B; ++a)
        m[a][i] = mask[a * S + at];
      if (++at == S) at = 0;
    }
  }
};

struct ChannelWalk {
  int64_t N, S, tasks;
  int vectors, width, side, channel_blocks;  // vectors of a pixel; side by side in a block; pixels side by side

  ChannelWalk(int64_t N, int64_t C, int64_t S, int vector, int steps) : N(N), S(S) {
    vectors = static_cast<int>(ceil_div(C, vector));
    width = vectors < kThreads ? vectors : kThreads;
    side = kThreads / width;
    channel_blocks = static_cast<int>(ceil_div(vectors, width));
    tasks = channel_blocks * ceil_div(S, side * steps);
  }
  int64_t grid() const { return N * tasks; }
};

template <class T>
struct ChannelPlace {
  bool active;
  int64_t n, c;
  int first;  // pixel

  __device__ explicit ChannelPlace(const ChannelWalk& walk) {
    const int64_t task = blockIdx.x % walk.tasks;
    n = blockIdx.x / walk.tasks;
    const int side = threadIdx.x / walk.width;
    const int vector = static_cast<int>(task % walk.channel_blocks) * walk.width + threadIdx.x % walk.width;
    active = side < walk.side && vector < walk.vectors;
    c = static_cast<int64_t>(vector) * kVector<T>;
    first = static_cast<int>(task / walk.channel_blocks) * walk.side * kSteps<T> + side;
  }
  __device__ int pixel(const ChannelWalk& walk, int u) const { return first + u * walk.side; }
  __device__ int count(int64_t C) const { return C - c < kVector<T> ? static_cast<int>(C - c) : kVector<T>; }
};

// One element a thread, in the order of memory: for what is rare.
struct ElementWalk {
  int64_t N, C, S;

  int64_t grid() const { return N * tasks(); }
  __host__ __device__ int64_t tasks() const { return (C * S + kThreads - 1) / kThreads; }
};

struct ElementPlace {
  bool active;
  int64_t n, c, s;

  __device__ ElementPlace(const ElementWalk& walk, bool channels_last) {
    const int64_t element = blockIdx.x % walk.tasks() * kThreads + threadIdx.x;
    n = blockIdx.x / walk.tasks();
    active = element < walk.C * walk.S;
    c = channels_last ? element % walk.C : element / walk.S;
    s = channels_last ? element / walk.C : element % walk.S;
  }
};

// f(integral_constant): the anatomies of a single block that have kernels of their own, else 0.
template <class T, class F>
void with_anatomies(int anatomies, const F& f) {
  if constexpr (!std::is_same_v<T, double>) {
    switch (anatomies) {
      case 1: return f(std::integral_constant<int, 1>{});
      case 2: return f(std::integral_constant<int, 2>{});
      case 3: return f(std::integral_constant<int, 3>{});
    }
  }
  f(std::integral_constant<int, 0>{});
}

}  // namespace axnet::cuda
