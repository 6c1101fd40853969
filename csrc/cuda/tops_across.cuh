// Places of maxima in channels_last (tops.cuh): pixels of a channel lie in as many places of memory, each of which
// costs as much as a row of them, so of X few are read.
#pragma once

#include "cuda/tops.cuh"

namespace axnet::cuda {

// From the rounded maxima of a warp's 32 channels to pixels, as tops.cuh has it; a lane has a channel. Its slots are
// four lanes' runs of four pixels of a chunk of 16.
template <int B>
struct AcrossSearch {
  static constexpr int words = 2, pixels = 4, slot_words = words * (1 + B) * 3 * kWarp;  // of a warp
  static constexpr unsigned ones = 0x01010101u;  // of four slots or pixels a bit each, eight bits apart

  const BFloat16* map;      // at the warp's first channel
  int last_four;            // the first of the last four channels that there are
  const float* mask;        // of the image
  const uint16_t* rounded;  // the same, in rows of the basis
  int pitch, S, step;
  bool all_there;  // whether these have all pixels, which are whole slots
  bool alone;      // whether no other warp looks at these channels

  __device__ const uint16_t* x(unsigned row) const {
    const int four = static_cast<int>(row & ~3u);
    return reinterpret_cast<const uint16_t*>(map + ((four < last_four ? four : last_four) + static_cast<int>(row % 4)));
  }
  __device__ int in_map(int s) const { return s < S ? s : S - 1; }
  // The masks of PAIRS pairs of pixels from s on, of a slot or its latter half.
  template <int PAIRS>
  __device__ void masks_of(int a, int s, uint32_t (&out)[PAIRS]) const {
    if (all_there && s < S) {
      const uint16_t* from = rounded + (a * pitch + place_of(s, Order::fours));
      if constexpr (PAIRS == 2) {
        const uint2 both = *reinterpret_cast<const uint2*>(from);
        out[0] = both.x, out[1] = both.y;
      } else {
        out[0] = *reinterpret_cast<const uint32_t*>(from);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < PAIRS; ++i)
      out[i] = pair_of<BFloat16>(mask[a * S + in_map(s + 2 * i)], mask[a * S + in_map(s + 2 * i + 1)]);
  }
  // Bits of four: of two in either of two registers, all bits of a half or none.
  __device__ static unsigned bits(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x6420) & ones; }
  __device__ static int first_bit(unsigned of) {
    return static_cast<int>(static_cast<unsigned>(__ffs(static_cast<int>(of))) / 8);
  }
  // Those whose product with the slot's largest X reaches its maximum: X is at most that there.
  __device__ static unsigned reaching(const uint32_t (&m)[2], uint32_t x, uint32_t top) {
    return bits(above<true>(product(m[0], x), top) | ~above<true>(m[0], 0u),
                above<true>(product(m[1], x), top) | ~above<true>(m[1], 0u));
  }
  __device__ void read(int row, int s, unsigned wanted, uint32_t (&out)[pixels]) const {
    const int first = in_map(s), left = S - 1 - first;
    const uint16_t* from = x(row) + first * step;
#pragma unroll
    for (int i = 0; i < pixels; ++i) {
      const unsigned further = static_cast<unsigned>((i < left ? i : left) * step);
      out[i] = kLowest & 0xffffu;
      if (wanted >> 8 * i & 1) out[i] = from[i ? further : 0];
    }
  }
  // The largest exact product of the four pixels from s on, and its first pixel.
  __device__ Spot best_of(const uint32_t (&m)[2], const uint32_t (&x)[pixels], int s) const {
    Spot best;
#pragma unroll
    for (int i = 0; i < pixels; ++i) {
      const float y = (i % 2 ? second_of<BFloat16>(m[i / 2]) : first_of<BFloat16>(m[i / 2])) * first_of<BFloat16>(x[i]);
      if (y > best.top) best.top = y, best.at = i;
    }
    best.at = in_map(s + best.at % pixels);
    return best;
  }

  __device__ void run(const Tops<true> (&tops)[words][1 + B], uint32_t* slots, Spot (&spots)[1 + B]) const {
    const unsigned lane = again(threadIdx.x % kWarp);
#pragma unroll
    for (int w = 0; w < words; ++w)
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        uint32_t* to = slots + (w * (1 + B) + k) * 3 * kWarp + lane;
        to[0] = tops[w][k].top, to[kWarp] = tops[w][k].first;
        to[2 * kWarp] = tops[w][k].last;
      }
    __syncwarp();
    const uint32_t* own = slots + lane % 4 / 2 * (1 + B) * 3 * kWarp + lane / 4 * 4;
    const uint32_t half = lane % 2 ? 0x7632u : 0x5410u;
    auto four = [&](int k, int what, uint32_t (&out)[2]) {  // of the lane's channel; what: top, first, last
      uint32_t v[4];
      load_shared(own + (3 * k + what) * kWarp, v);
      out[0] = __byte_perm(v[0], v[1], half), out[1] = __byte_perm(v[2], v[3], half);
    };
    auto of_slot = [](const uint32_t (&v)[2], int t) { return __byte_perm(v[0], v[1], 0x1010 + 0x2222 * t); };  // twice

    uint32_t top[1 + B][2], most[1 + B], first[2], values[1 + B][pixels], masks[1 + B][2], xs[1 + B];
    unsigned open[1 + B], wanted[1 + B];  // slots of the maximum; pixels that may have it
    int at[1 + B], lasts[1 + B], chunks[1 + B];
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      four(k, 0, top[k]);
      most[k] = greater_of(top[k][0], top[k][1]);
      most[k] = greater_of(most[k], __byte_perm(most[k], most[k], 0x1032));
      if (k > 0) open[k] = bits(above<true>(top[k][0], most[k]), above<true>(top[k][1], most[k]));
    }
    bool both;
    uint32_t value = 0;
    {  // X itself is exact: of equal slots that of the first two pixels has the place, and the first there
      uint32_t later[2];
      four(0, 1, first), four(0, 2, later);
      first[0] |= ~above<true>(top[0][0], most[0]), first[1] |= ~above<true>(top[0][1], most[0]);
      unsigned least = ~0u;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const unsigned chunk = t % 2 ? first[t / 2] >> 16 : first[t / 2] & 0xffffu;
        const unsigned key = chunk * 8 + 2 * t + (later[t / 2] >> (t % 2 * 16) & 1);
        least = key < least ? key : least;
      }
      if (least >= 8u * 0xffff) least = 0;  // not a number
      at[0] = static_cast<int>(least) * 2;
      const int t = static_cast<int>(least / 2 % 4);
      uint32_t beyond = 0;  // where the product with its mask would be above the slot's largest
#pragma unroll
      for (int a = 0; a < B; ++a) {
        uint32_t m[1];
        masks_of(a, at[0], m);
        beyond |= above<false>(product(m[0], most[0]), of_slot(top[1 + a], t));
      }
      both = beyond == 0;
      if (beyond == 0xffffu) at[0] = in_map(at[0] + 1);
      if (both) value = *(x(lane) + at[0] * step);
    }
#pragma unroll
    for (int k = 1; k <= B; ++k) {
      uint32_t last[2];
      four(k, 1, first), four(k, 2, last);
      if (S % (2 * kStep) != 0)  // the last pixel again, which another slot has
#pragma unroll
        for (int t = 0; t < 4; ++t)
          if (static_cast<int>(t % 2 ? first[t / 2] >> 16 : first[t / 2] & 0xffffu) * kStep + 4 * t >= S)
            open[k] &= ~(1u << 8 * t);
      const int t = open[k] ? first_bit(open[k]) : 0;
      chunks[k] = static_cast<int>(of_slot(first, t) & 0xffffu);
      // a zero is exact: what stands later has no larger one
      lasts[k] = most[k] << 17 ? static_cast<int>(of_slot(last, t) & 0xffffu) : 0;
      xs[k] = of_slot(top[0], t), at[k] = chunks[k] * kStep + 4 * t;
      masks_of(k - 1, at[k], masks[k]);
      wanted[k] = reaching(masks[k], xs[k], most[k]);
      const bool known = alone && ((open[k] & (open[k] - 1)) | (wanted[k] & (wanted[k] - 1))) == 0 &&
                         lasts[k] <= chunks[k] && wanted[k] != 0;
      read(lane, at[k], known ? 0 : wanted[k], values[k]);
      if (known) spots[k].top = first_of<BFloat16>(most[k]), spots[k].at = in_map(at[k] + first_bit(wanted[k]));
    }
    spots[0].top = first_of<BFloat16>(most[0]);
    spots[0].at = both && first_of<BFloat16>(value) != spots[0].top ? in_map(at[0] + 1) : at[0];
    unsigned late[1 + B];
#pragma unroll
    for (int k = 1; k <= B; ++k) {
      const Spot best = best_of(masks[k], values[k], at[k]);
      if (best.top > spots[k].top) spots[k] = best;
      late[k] = lasts[k] > chunks[k] ? open[k] & -open[k] : 0;
      open[k] &= open[k] - 1;
    }
    look_again(open, late, most, four, spots);
  }

 private:
  // Other slots of the same maximum, and later chunks of a slot, whose exact products may be larger. Each lane has a
  // slot's run of chunks, and the warp goes over those of all lanes as one.
  template <class Four>
  __device__ void look_again(unsigned (&open)[1 + B], unsigned (&late)[1 + B], const uint32_t (&most)[1 + B],
                             const Four& four, Spot (&spots)[1 + B]) const {
    const int lane = static_cast<int>(again(threadIdx.x % kWarp));
    auto any = [&] {
      unsigned left = 0;
#pragma unroll
      for (int k = 1; k <= B; ++k)
        left |= open[k] | late[k];
      return __ballot_sync(0xffffffffu, left != 0) != 0;
    };
    while (any()) {
      int begin = 0, count = 0, what = 0;
      uint32_t both = 0;  // the slot's largest X, the maximum
#pragma unroll
      for (int k = 1; k <= B; ++k)
        if (count == 0 && (open[k] | late[k]) != 0) {
          const bool later = late[k] != 0;
          const int t = first_bit(later ? late[k] : open[k]);
          uint32_t top[2], first[2], last[2];
          four(0, 0, top), four(k, 1, first), four(k, 2, last);
          auto of_slot = [&](const uint32_t (&v)[2]) { return __byte_perm(v[0], v[1], 0x10 + 0x22 * t) & 0xffffu; };
          begin = static_cast<int>(of_slot(first)) + later;
          count = static_cast<int>(most[k] << 17 ? of_slot(last) : of_slot(first)) + 1 - begin;
          what = 4 * k + t, both = of_slot(top) | most[k] << 16;
          if (later) late[k] = 0;
          else open[k] &= open[k] - 1;
        }
      const Run run(count);
#pragma unroll 1
      for (int unit = lane; unit - lane < run.total; unit += kWarp) {
        const int owner = run.owner(unit);
        const int its = __shfl_sync(0xffffffffu, (begin - run.begin) * 256 + what, owner), k = (its & 255) / 4;
        const uint32_t its_both = __shfl_sync(0xffffffffu, both, owner);
        const uint32_t x = firsts(its_both, its_both), top = seconds(its_both, its_both);
        const int s = unit < run.total ? ((its >> 8) + unit) * kStep + (its & 3) * 4 : 0;
        uint32_t own[2], values[pixels];
        masks_of(k > 0 ? k - 1 : 0, s, own);
        read(owner, s, unit < run.total ? reaching(own, x, top) : 0, values);
        const Spot best = best_of(own, values, s);
        const bool reaches = above<true>(pair_of<BFloat16>(best.top, best.top), top) & 1;
        for (unsigned left = __ballot_sync(0xffffffffu, unit < run.total && reaches); left; left &= left - 1) {
          const int lane_of = __ffs(static_cast<int>(left)) - 1;
          const float y = __shfl_sync(0xffffffffu, best.top, lane_of);
          const int there = __shfl_sync(0xffffffffu, best.at, lane_of);
          const int its_task = __shfl_sync(0xffffffffu, 32 * k + owner, lane_of);
#pragma unroll
          for (int k = 1; k <= B; ++k)
            if (its_task == 32 * k + lane) spots[k].see(y, there);
        }
      }
    }
  }
};

}  // namespace axnet::cuda
