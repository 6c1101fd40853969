// Maxima of bfloat16, two an instruction, of values rounded to bfloat16, masks too, as autocast's eager form has them.
// Positions: the first and the last chunk of pixels in which the rounded maximum stands are noted on the way; among
// their pixels the exact products decide.
#pragma once

#include "cuda/matrix.h"
#include "cuda/moments.cuh"
#include "cuda/packed.h"

namespace axnet::cuda {

constexpr uint32_t kLowest = 0xff80ff80u;  // -inf, -inf

// Maxima of pairs, and the first and last chunk in which each stands.
template <bool FULL>
struct Tops {
  uint32_t top = kLowest, first = 0, last = 0;

  __device__ void see(uint32_t best, uint32_t chunks, bool exact) {
    if constexpr (FULL) {
      const uint32_t rose = above<false>(best, top);
      first = (first & ~rose) | (chunks & rose);
      if (!exact) {
        const uint32_t stands = above<true>(best, top);
        last = (last & ~stands) | (chunks & stands);
      }
    }
    top = greater_of(top, best);
  }
};

// What one lane saw of a row in one place of its registers: every CHUNK-th group of four pixels.
struct Slot {
  float top;        // the largest value, rounded
  int first, last;  // chunks in which it stands
};

// The largest exact value and its first pixel.
struct Spot {
  float top = -std::numeric_limits<float>::infinity();
  int at = std::numeric_limits<int>::max();

  __device__ void see(float y, int s) { at = y > top || (y == top && s < at) ? s : at, top = fmaxf(top, y); }
  template <int LANES>
  __device__ void join() {
#pragma unroll
    for (int lanes = 1; lanes < LANES; lanes *= 2) {
      const float y = __shfl_xor_sync(0xffffffffu, top, lanes);
      const int s = __shfl_xor_sync(0xffffffffu, at, lanes);
      see(y, s);
    }
  }
};

// The largest of four lanes, in each of them.
__device__ inline float largest(float top) {
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2)
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lanes));
  return top;
}

// From rounded maxima to pixels: the largest exact value first, then the first pixel. A lane has H slots of each of R
// rows, four lanes share a row; slot h has the pixels pixel(h) + i GAP (i < 4) of each chunk. Only slots whose own
// maximum is the row's look, each at one chunk, all at once. Where a slot's maximum stands in later chunks as well,
// whose exact products may be larger, the warp goes over those together, or over many such slots lane by lane.
//
//   slot(r, k, h)  k = 0: of X itself, which is exact; k = 1 + a: of m_a X
//   x(r, lane)     the r-th row of a lane; its pixels are `step` apart
template <int B, int R, int H, int CHUNK, int GAP, class SlotOf, class Row, class Pixel>
__device__ inline void place(const float* mask, int S, int step, const SlotOf& slot, const Row& x, const Pixel& pixel,
                             Spot (&spots)[R][1 + B]) {
  constexpr int few = 4;  // slots that the warp takes one after the other
  const int lane = threadIdx.x % kWarp;
  unsigned open = 0;  // slots with later chunks
  auto inside = [&](int s) { return s < S ? s : S - 1; };
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r > 0 && (R == 2 || r % 2 == 0)) __syncwarp();  // no more loads at a time than registers hold
    float top[1 + B], v[1 + B][H][4], m[B][H][4];
    bool mine[1 + B][H];
    const BFloat16* row = x(r, lane);
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      top[k] = slot(r, k, 0).top;
#pragma unroll
      for (int h = 1; h < H; ++h)
        top[k] = fmaxf(top[k], slot(r, k, h).top);
      top[k] = largest(top[k]);
#pragma unroll
      for (int h = 0; h < H; ++h) {
        const Slot s = slot(r, k, h);
        mine[k][h] = s.top == top[k];
        if (k > 0 && mine[k][h] && s.last > s.first && s.top != 0) open |= 1u << ((r * B + k - 1) * H + h);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = inside(s.first * CHUNK + pixel(h, lane) + i * GAP);
          v[k][h][i] = mine[k][h] ? static_cast<float>(row[at * step]) : 0.f;
          if (k > 0) m[k - 1][h][i] = mine[k][h] ? mask[(k - 1) * S + at] : 0.f;
        }
      }
    }
#pragma unroll
    for (int k = 0; k <= B; ++k) {
#pragma unroll
      for (int h = 0; h < H; ++h) {
        // pixels are computed once more, not kept in registers
        const int from = again(slot(r, k, h).first * CHUNK + pixel(h, lane));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float y = k ? as_held<BFloat16>(m[k ? k - 1 : 0][h][i]) * v[k][h][i] : v[k][h][i];
          if (mine[k][h]) spots[r][k].see(y, inside(from + i * GAP));
        }
      }
    }
  }
  if (__ballot_sync(0xffffffffu, open != 0)) {
#pragma unroll 1
    for (int which = 0; which < R * B * H; ++which) {
      const bool mine = open >> which & 1;
      unsigned left = __ballot_sync(0xffffffffu, mine);
      if (!left) continue;
      const int r = which / (B * H), a = which / H % B, h = which % H;
      int first = 0, last = 0;
#pragma unroll
      for (int j = 0; j < R * B * H; ++j)
        if (j == which) {
          const Slot s = slot(j / (B * H), 1 + j / H % B, j % H);
          first = s.first, last = s.last;
        }
      Spot found;
      auto look = [&](const BFloat16* row, int s0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int s = inside(s0 + i * GAP);
          found.see(as_held<BFloat16>(mask[a * S + s]) * static_cast<float>(row[s * step]), s);
        }
      };
      auto keep = [&] {
#pragma unroll
        for (int j = 0; j < R * B; ++j)
          if (j == which / H) spots[j / B][1 + j % B].see(found.top, found.at);
      };
      if (__popc(left) > few) {
        if (mine) {
#pragma unroll 2
          for (int chunk = first + 1; chunk <= last; ++chunk)
            look(x(r, lane), chunk * CHUNK + pixel(h, lane));
          keep();
        }
        continue;
      }
      for (; left; left &= left - 1) {
        const int owner = __ffs(static_cast<int>(left)) - 1;
        const int from = __shfl_sync(0xffffffffu, first, owner), to = __shfl_sync(0xffffffffu, last, owner);
        found = Spot();
        for (int chunk = from + 1 + lane; chunk <= to; chunk += kWarp)
          look(x(r, owner), chunk * CHUNK + pixel(h, owner));
        found.template join<kWarp>();
        if (lane == owner) keep();
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int k = 0; k <= B; ++k)
      spots[r][k].template join<4>();
}

}  // namespace axnet::cuda
