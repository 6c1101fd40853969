// Maxima of bfloat16, two an instruction, of values rounded to bfloat16, masks too, as autocast's eager form has them.
// Positions: the first and the last chunk of pixels in which the rounded maximum stands are noted on the way; between
// them the exact products decide.
#pragma once

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

// The place of a maximum within the chunks [low, high] of a row of S pixels, `step` apart, through which four lanes
// look: `pixel(chunk)` is the first of a lane's P; load(whole, s, v) gives X from pixel s on, unless `whole` its
// last one for all beyond. The
// largest exact value first, then the first pixel; four lanes agree.
template <int P, class Pixel, class Load>
__device__ inline void place(const float* mask, int S, int low, int high, int step, const Pixel& pixel,
                             const Load& load, float& top, int& at) {
  top = -std::numeric_limits<float>::infinity(), at = std::numeric_limits<int>::max();
#pragma unroll 1
  for (int chunk = low; chunk <= high; chunk += step) {
    const int s = pixel(chunk);
    auto look = [&](auto whole) {
      float v[P];
      load(whole, s, v);
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const int inside = decltype(whole)::value || s + i < S ? s + i : S - 1;
        const float y = mask ? as_held<BFloat16>(mask[inside]) * v[i] : v[i];
        at = y > top ? inside : at, top = fmaxf(top, y);
      }
    };
    s + P <= S ? look(std::true_type{}) : look(std::false_type{});
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    const float v = __shfl_xor_sync(0xffffffffu, top, lanes);
    const int s = __shfl_xor_sync(0xffffffffu, at, lanes);
    at = v > top || (v == top && s < at) ? s : at, top = fmaxf(top, v);
  }
}

// The maximum of four lanes, and of which chunks they know that it stands in.
__device__ inline void agree(float& top, int& low, int& high) {
  float largest = top;
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
  if (top != largest) low = std::numeric_limits<int>::max(), high = -1;
  top = largest;
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    const int l = __shfl_xor_sync(0xffffffffu, low, lanes), h = __shfl_xor_sync(0xffffffffu, high, lanes);
    low = l < low ? l : low, high = h > high ? h : high;
  }
}

}  // namespace axnet::cuda
