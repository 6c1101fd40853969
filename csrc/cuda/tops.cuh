// Maxima of bfloat16, two an instruction, of values rounded to bfloat16, masks too, as autocast's eager form has them.
// Positions: the first and the last chunk of pixels in which the rounded maximum stands are noted on the way; among
// their pixels the exact products decide.
#pragma once

#include "cuda/basis.cuh"
#include "cuda/moments.cuh"

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

// The largest exact value and its first pixel.
struct Spot {
  float top = -std::numeric_limits<float>::infinity();
  int at = std::numeric_limits<int>::max();

  __device__ void see(float y, int s) { at = y > top || (y == top && s < at) ? s : at, top = fmaxf(top, y); }
  __device__ void join() {
#pragma unroll
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
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

// From rounded maxima to pixels: the largest exact value first, then the first pixel. What a lane has of a row in one
// half of a register is a slot: some pixels of each chunk that it met. A lane takes a row and one of its maxima at a
// time, whose slots lie in four neighbouring lanes. Only slots whose own maximum is the row's are looked at, each at
// one chunk, all its pixels together. Where a slot's maximum stands in later chunks as well, whose exact products may
// be larger, the warp goes over those together, or over many such slots lane by lane.
//
// Search, of the rows that a warp has, by index:
//   rows, words, look           how many rows; registers of maxima of a lane; pixels of a slot in a chunk
//   unit                        pixels from a chunk to the next
//   word(row), group(row)       the register of the row's slots, and the first of its four lanes, by four
//   both, halves(row)           whether a row has slots in both halves; bits of its slots: t, 16 + t in the upper half
//   x(row)                      its place in X, whose pixels are `apart` apart
//   pixel(t, half, i)           of the slot of lane t of four, the i-th of `look`, from the chunk on, ascending
template <class Search, int B>
struct Found {
  static constexpr int kinds = 1 + B, tasks = Search::rows * kinds, rounds = (tasks + kWarp - 1) / kWarp;
  Spot spots[rounds];

  // found(row, k, spot); k = 0: of X itself, which is exact; k = 1 + a: of m_a X
  template <class F>
  __device__ void each(const F& found) const {
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      const int task = i * kWarp + static_cast<int>(threadIdx.x) % kWarp;
      if (task < tasks) found(task % Search::rows, task / Search::rows, spots[i]);
    }
  }
};

template <class Search, int B>
constexpr int kSlotWords = Search::words * (1 + B) * 3 * kWarp;  // of a warp in shared memory

template <class Search, int B>
__device__ inline Found<Search, B> place(const Tops<true> (&tops)[Search::words][1 + B], uint32_t* slots,
                                         const float* mask, int S, const Search& search) {
  using Task = Found<Search, B>;
  constexpr int few = 4;  // slots that the warp takes one after the other
  constexpr int rounds = Task::rounds, look = Search::look;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int w = 0; w < Search::words; ++w)
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      uint32_t* to = slots + (w * (1 + B) + k) * 3 * kWarp + lane;
      to[0] = tops[w][k].top, to[kWarp] = tops[w][k].first, to[2 * kWarp] = tops[w][k].last;
    }
  __syncwarp();

  Task found;
  unsigned open[rounds];  // slots of the task that are still to be looked at: t, 16 + t of the upper half
  const uint32_t* from[rounds];
  auto task_of = [&](int i) { return i * kWarp + lane < Task::tasks ? i * kWarp + lane : 0; };
#pragma unroll
  for (int i = 0; i < rounds; ++i) {
    const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
    from[i] = slots + (search.word(row) * (1 + B) + k) * 3 * kWarp + 4 * search.group(row);
    uint32_t top[4];
    load_shared(from[i], top);
    uint32_t most = greater_of(greater_of(top[0], top[1]), greater_of(top[2], top[3]));
    if constexpr (Search::both) most = greater_of(most, most >> 16 | most << 16);
    open[i] = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t)
      open[i] |= above<true>(top[t], most) & 0x10001u << t;
    open[i] &= i * kWarp + lane < Task::tasks ? search.halves(row) : 0;
  }
  auto any = [&] {
    unsigned left = 0;
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      left |= open[i];
    return __ballot_sync(0xffffffffu, left != 0) != 0;
  };
  auto inside = [&](int s) { return s < S ? s : S - 1; };
  auto exact = [&](const BFloat16* x, int k, int s) {
    const float v = static_cast<float>(x[s * search.apart]);
    return k ? as_held<BFloat16>(mask[(k - 1) * S + s]) * v : v;
  };
  while (any()) {
    int slot[rounds], later[rounds], first[rounds];
    float x[rounds][look], weight[rounds][look];
#pragma unroll
    for (int i = 0; i < rounds; ++i) {  // all loads are on their way before the first use
      const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
      const bool mine = open[i] != 0;
      slot[i] = mine ? __ffs(static_cast<int>(open[i])) - 1 : 0;
      const auto* chunks = reinterpret_cast<const uint16_t*>(from[i] + kWarp + slot[i] % 16) + slot[i] / 16;
      first[i] = chunks[0], later[i] = k > 0 && mine && chunks[2 * kWarp] > first[i] ? chunks[2 * kWarp] : 0;
      const BFloat16* pixels = search.x(row);
      const float* weights = mask + (k > 0 ? (k - 1) * S : 0);
#pragma unroll
      for (int p = 0; p < look; ++p) {
        const int s = inside(first[i] * Search::unit + search.pixel(slot[i] % 16, slot[i] / 16, p));
        x[i][p] = mine ? static_cast<float>(pixels[s * search.apart]) : 0.f;
        weight[i][p] = mine && k > 0 ? weights[s] : 1.f;
      }
    }
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      Spot best;
#pragma unroll
      for (int p = 0; p < look; ++p) {
        const float y = as_held<BFloat16>(weight[i][p]) * x[i][p];
        if (y > best.top) best.top = y, best.at = p;
      }
      if (best.top == 0) later[i] = 0;
      best.at = inside(first[i] * Search::unit + search.pixel(slot[i] % 16, slot[i] / 16, best.at % look));
      if (open[i] != 0) found.spots[i].see(best.top, best.at);
      open[i] &= open[i] - 1;
    }
    bool more = false;
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      more |= later[i] > 0;
    if (!__ballot_sync(0xffffffffu, more)) continue;
#pragma unroll 1
    for (int i = 0; i < rounds; ++i) {
      int slot_of = 0, last = 0;
      const uint32_t* at = slots;
#pragma unroll
      for (int j = 0; j < rounds; ++j)
        if (j == i) slot_of = slot[j], last = later[j], at = from[j];
      unsigned left = __ballot_sync(0xffffffffu, last > 0);
      if (!left) continue;
      const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
      const auto* chunks = reinterpret_cast<const uint16_t*>(at + kWarp + slot_of % 16) + slot_of / 16;
      const int first = chunks[0] + 1;
      Spot further;
      auto see = [&](int owner_row, int owner_k, int owner_slot, int chunk) {
        const BFloat16* x = search.x(owner_row);
#pragma unroll
        for (int p = 0; p < look; ++p) {
          const int s = inside(chunk * Search::unit + search.pixel(owner_slot % 16, owner_slot / 16, p));
          further.see(exact(x, owner_k, s), s);
        }
      };
      auto keep = [&] {
#pragma unroll
        for (int j = 0; j < rounds; ++j)
          if (j == i) found.spots[j].see(further.top, further.at);
      };
      if (__popc(left) > few) {
        if (last > 0) {
#pragma unroll 1
          for (int chunk = first; chunk <= last; ++chunk)
            see(row, k, slot_of, chunk);
          keep();
        }
        continue;
      }
      for (; left; left &= left - 1) {
        const int owner = __ffs(static_cast<int>(left)) - 1;
        const int begin = __shfl_sync(0xffffffffu, first, owner), end = __shfl_sync(0xffffffffu, last, owner);
        const int its_slot = __shfl_sync(0xffffffffu, slot_of, owner), its_task = i * kWarp + owner;
        further = Spot();
        for (int chunk = begin + lane; chunk <= end; chunk += kWarp)
          see(its_task % Search::rows, its_task / Search::rows, its_slot, chunk);
        further.join();
        if (lane == owner) keep();
      }
    }
  }
  return found;
}

}  // namespace axnet::cuda
