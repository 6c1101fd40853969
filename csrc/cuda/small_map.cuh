// Small maps of bfloat16 in channels_last that lie in shared memory as a whole: copies of 16 channels that run ahead,
// as in ring.cuh, and the places of their maxima, which are looked up there.
#pragma once

#include "cuda/row_moments.cuh"

namespace axnet::cuda {

constexpr int kPixelBytes = kRows * 2;   // of 16 channels
constexpr int kResultPitch = kRows + 4;  // numbers between rows of results, for the banks

// What maps of up to PIXELS have, and B anatomies.
template <int B, int PIXELS>
struct Small {
  static constexpr bool whole = PIXELS == 256;                                        // no fewer
  static constexpr int units = whole ? 4 : 1, eights = whole ? 8 : PIXELS / 8;        // of 64 pixels; of a unit's
  static constexpr int all_pieces = whole ? 5 : 4, piece = eights * 8 * kPixelBytes;  // of a warp's ring; bytes
  static constexpr int spans = whole ? 2 : 1, of_span = whole ? 2 : 1;   // whose maxima are told apart; units
  static constexpr int groups = whole ? 1 : 2, pieces = groups * units;  // of a set: of 16 channels
  static constexpr int own = groups * kRows, step = kWarps * own;        // channels of a set; to the warp's next one
  static constexpr int kinds = 1 + B, squares = Basis<B, true>::rows;
  static constexpr int slot_words = groups * spans * kinds * 2 * kWarp;                       // of a warp
  static constexpr int result_words = whole ? slot_words : (squares + kinds) * kResultPitch;  // whole: of the slots
  static constexpr int stage = units * 64;
};

// Pixel s, or where there is none, the last one of the S as far from a multiple of eight.
__device__ inline int there(int s, int S) { return s < S ? s : s - (s - S + 8) / 8 * 8; }

// Pieces of a unit of pixels of 16 channels. The two parts of a pixel are swapped in every other four pixels, for the
// banks.
template <class Plan>
struct PieceRing {
  unsigned char* shared;
  const unsigned char* map;  // the lane's part of its first pixel of the set's first channels
  int at, to, from;          // bytes
  unsigned further[3];       // bytes to the lane's other pixels

  __device__ PieceRing(unsigned char* shared, int at, const BFloat16* x, int step, int S) : shared(shared), at(at) {
    const int lane = threadIdx.x % kWarp, pixel = lane / 2;
    auto offset = [&](int s) { return static_cast<unsigned>((Plan::whole ? s : there(s, S)) * step) * 2; };
    map = reinterpret_cast<const unsigned char*>(x + lane % 2 * 8) + offset(pixel);
    to = again(at + pixel * kPixelBytes + (lane % 2 ^ pixel / 4 % 2) * 16);
    from = again(at + (lane / 16 * 8 + lane % 8) * kPixelBytes + (lane / 8 % 2 ^ lane / 4 % 2) * 16);
#pragma unroll
    for (int i = 1; i < 4; ++i)
      further[i - 1] = again(offset(pixel + 16 * i)) - offset(pixel);
  }
  // Where piece k of a set stands. The first one has two places, which sets take in turn; or the whole set.
  __device__ static int place(int start, int k) {
    return Plan::whole ? (k ? (1 + k) * Plan::piece : start) : start + k * Plan::piece;
  }
  __device__ static int other(int start) { return Plan::piece * (Plan::whole ? 1 : Plan::pieces) - start; }
  // COUNT pieces from piece FIRST of the set on, itself one of `sets` that are left; on: channels to the next one.
  template <int FIRST, int COUNT>
  __device__ void copy(int start, int sets, int on) const {
    const unsigned char *from[4], *next = map;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      from[i] = i ? map + further[i - 1] : map;
#pragma unroll
    for (int k = FIRST; k < FIRST + COUNT; ++k) {
      const int set = k / Plan::pieces, unit = k % Plan::units;
      if (set == 0 || sets > set) {
        const int at = to + place(set % 2 ? other(start) : start, k % Plan::pieces);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int channels = set == 1 ? on : set * Plan::step;
          if (Plan::whole && i == 0 && (k == FIRST || unit == 0))
            next = map + 2 * channels + static_cast<uint64_t>(further[0]) * (4 * unit);
          const unsigned char* x = Plan::whole ? next : from[i] + 2 * (channels + k % Plan::groups * kRows);
          if (Plan::eights > 2 * i + 1 || threadIdx.x % kWarp < kWarp / 2)
            copy_ahead(shared + at + i * 16 * kPixelBytes, x);
          next += further[0];
        }
      }
      copies_commit();
    }
  }
  // 16 channels of 16 pixels, step i of a piece, as products of 16 rows want them.
  __device__ void read(int place, int i, uint32_t (&words)[4]) const {
    load_matrices<true>(shared + (from + place) + i * 16 * kPixelBytes, words);
  }
};

// Places of maxima. A slot has the pixels of a span that are as far from a multiple of eight. A lane looks at the first
// slot whose maximum is the channel's; where more than one pixel may have it, the warp goes over all pixels of the
// channel by the exact products.
template <class Plan>
struct SmallSearch {
  unsigned char* shared;
  int S, x;  // bytes: where the lane's channel begins in a piece

  // Bits of four neighbouring lanes' slots, a byte in all, whose maximum is `most`.
  __device__ static unsigned open(const uint32_t (&top)[4], uint32_t most) {
    uint32_t bits = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t)
      bits |= above<true>(top[t], most) & 0x10001u << 2 * t;
    return folded(bits);
  }
  __device__ static uint32_t largest(const uint32_t (&top)[4]) {
    return greater_of(greater_of(top[0], top[1]), greater_of(top[2], top[3]));
  }
  __device__ static uint32_t of_halves(uint32_t most) { return greater_of(most, __byte_perm(most, most, 0x1032)); }

  // The pixel of the maximum `most` of MASKED or plain X, and whether the warp must look. open: slots, a byte a span;
  // first: bytes to the piece where these begin, span `later`; m: to the masks.
  template <bool MASKED, int SPANS>
  __device__ int place(unsigned open, uint32_t most, int first, int later, int m, bool& tied) const {
    const int slot = first_bit(open) & (8 * SPANS - 1), span = SPANS > 1 ? slot / 8 : later, own = slot % 8;
    const int masks = m + (SPANS > 1 ? span * 256 : 0) + own / 2 * 16;
    const unsigned char* of_unit[Plan::of_span];
#pragma unroll
    for (int u = 0; u < Plan::of_span; ++u) {
      const int at =
          u == 0 ? (SPANS > 1 && span > 0 ? PieceRing<Plan>::place(0, 2) : first) : (2 + 2 * span) * Plan::piece;
      of_unit[u] = shared + (((x + own * kPixelBytes) ^ own / 4 * 16) + at);
    }
    auto value = [&](int i) -> uint32_t {
      return *reinterpret_cast<const uint16_t*>(of_unit[i / 8] + i % 8 * 8 * kPixelBytes);
    };
    uint32_t may = 0;
#pragma unroll
    for (int n = 0; n < 2 * Plan::of_span; ++n) {
      uint32_t four[4];
      if (MASKED) load_shared(shared + masks + n * 2 * kChunk, four);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int i = 4 * n + 2 * j;
        uint32_t v = firsts(value(i), value(i % 8 + 1 < Plan::eights ? i + 1 : i));
        if (MASKED) v = product(v, __byte_perm(four[2 * j], four[2 * j + 1], own % 2 ? 0x7632u : 0x5410u));
        may |= above<true>(v, most) & 0x10001u << i;
      }
    }
    may = folded(may);
    if (!Plan::whole) may &= (2u << ((S - 1 - own) >> 3)) - 1;
    const int i = first_bit(may);
    const unsigned others = open & (open - 1);
    // plain X is exact, and so is a zero: the first slot's first pixel comes before those of others if it is its first
    tied = !MASKED || most << 17 == 0 ? others != 0 && i > 0 : (others | (may & (may - 1))) != 0;
    return span * 128 + 8 * i + own;
  }
  // The first pixel of the largest exact product, by the whole warp. x, m: bytes to the channel in a piece, to its
  // masks; first: to the first piece.
  __device__ int exact_place(int x, int first, int m) const {
    const int lane = again(static_cast<int>(threadIdx.x % kWarp));  // rare: nothing is kept for it
    const unsigned char* pixels = shared + ((x + lane * kPixelBytes) ^ lane / 4 % 2 * 16);
    const unsigned char* masks = shared + (m + place_of(lane, Order::matrices) * 2);
    float top = -std::numeric_limits<float>::infinity();
    int at = lane;
#pragma unroll
    for (int i = 0; i < (Plan::whole ? 8 : 2); ++i) {
      if (!Plan::whole && lane + i * kWarp >= S) break;
      const int piece = PieceRing<Plan>::place(first, i / 2) + i % 2 * kWarp * kPixelBytes;
      const float y = first_of<BFloat16>(*reinterpret_cast<const uint16_t*>(pixels + piece)) *
                      first_of<BFloat16>(*reinterpret_cast<const uint16_t*>(masks + i * 2 * kChunk));
      if (y > top) top = y, at = lane + i * kWarp;
    }
    return first_of_largest(top, at);
  }
  // exact(lane): the place for a lane that has more than one.
  template <class F>
  __device__ static void settle(bool tied, int& pixel, const F& exact) {
#pragma unroll 1
    for (unsigned left = __ballot_sync(0xffffffffu, tied); left; left &= left - 1) {
      const int its = __ffs(static_cast<int>(left)) - 1, at = exact(its);
      if (static_cast<int>(threadIdx.x) % kWarp == its) pixel = at;
    }
  }

 private:
  // Bits 2 j of the lower half and of the upper one as 2 j and 2 j + 1.
  __device__ static unsigned folded(uint32_t bits) { return (bits | bits >> 15) & 0xffffu; }
  __device__ static int first_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
};

}  // namespace axnet::cuda
