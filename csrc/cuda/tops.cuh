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
// Pixels that lie in as many places of memory cost as much as the rows they stand in, so of them fewer are read: those
// whose mask times the slot's largest X reaches its maximum; of X itself, whose maximum is exact, one slot, and the
// second half of its pixels where the first has not the maximum.
//
// Search, of the rows that a warp has, by index:
//   rows, words, look           how many rows; registers of maxima of a lane; pixels of a slot in a chunk
//   unit                        pixels from a chunk to the next
//   word(row), group(row)       the register of the row's slots, and the first of its four lanes, by four
//   scattered                   whether a slot's pixels lie in as many places of memory
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
  auto words_of = [&](int row, int k) {  // of four lanes: tops; from kWarp and 2 kWarp on, first and last chunks
    return slots + (search.word(row) * (1 + B) + k) * 3 * kWarp + 4 * search.group(row);
  };
  auto half_of = [](const uint32_t* words, int slot) {
    return static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(words + slot % 16)[slot / 16]);
  };
  auto task_of = [&](int i) { return i * kWarp + lane < Task::tasks ? i * kWarp + lane : 0; };
#pragma unroll
  for (int i = 0; i < rounds; ++i) {
    const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
    from[i] = words_of(row, k);
    uint32_t top[4];
    load_shared(from[i], top);
    uint32_t most = greater_of(greater_of(top[0], top[1]), greater_of(top[2], top[3]));
    if constexpr (Search::both) most = greater_of(most, most >> 16 | most << 16);
    open[i] = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t)
      open[i] |= above<true>(top[t], most) & 0x10001u << t;
    open[i] &= i * kWarp + lane < Task::tasks ? search.halves(row) : 0;
    if constexpr (Search::scattered)
      if (k == 0) {  // X itself is exact: of equal slots the first chunk's has the place, and the first there
        uint32_t chunks[4];
        load_shared(from[i] + kWarp, chunks);
        const int upper = open[i] >> 16 ? 16 : 0;
        unsigned least = ~0u;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          const unsigned at = (chunks[t] >> upper & 0xffffu) * 4 + t;
          least = open[i] >> upper >> t & 1 && at < least ? at : least;
        }
        open[i] = open[i] ? 1u << (upper + least % 4) : 0;
      }
  }
  auto any = [&] {
    unsigned left = 0;
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      left |= open[i];
    return __ballot_sync(0xffffffffu, left != 0) != 0;
  };
  auto inside = [&](int s) { return s < S ? s : S - 1; };
  // bits of those of two pixels, by their masks, that may have the slot's maximum, since X is at most its own there
  auto reached = [&](uint32_t masks, const uint32_t* words, int k, int slot) {
    const uint32_t most = half_of(words - k * 3 * kWarp, slot), top = half_of(words, slot);
    return above<true>(product(masks, most * 0x10001u), top * 0x10001u) | ~above<true>(masks, 0u);
  };
  unsigned second[rounds] = {};  // scattered, of X itself: the lower half of a slot's pixels was not its place
  while (any()) {
    int slot[rounds], later[rounds], first[rounds];
    float weight[rounds][look];
    uint32_t x[rounds][look];  // as the first half of a pair; -inf is not read
    bool mine[rounds];
#pragma unroll
    for (int i = 0; i < rounds; ++i) {  // all loads are on their way before the first use
      const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
      mine[i] = open[i] != 0;
      slot[i] = mine[i] ? __ffs(static_cast<int>(open[i])) - 1 : 0;
      first[i] = static_cast<int>(half_of(from[i] + kWarp, slot[i]));
      const int last = static_cast<int>(half_of(from[i] + 2 * kWarp, slot[i]));
      later[i] = k > 0 && mine[i] && last > first[i] ? last : 0;
      const auto* pixels = reinterpret_cast<const uint16_t*>(search.x(row));
      const float* weights = mask + (k > 0 ? (k - 1) * S : 0);
#pragma unroll
      for (int p = 0; p < look; ++p) {
        const int s = inside(first[i] * Search::unit + search.pixel(slot[i] % 16, slot[i] / 16, p));
        weight[i][p] = mine[i] && k > 0 ? weights[s] : 1.f;
        x[i][p] = kLowest & 0xffffu;
        if (!Search::scattered && mine[i]) x[i][p] = pixels[s * search.apart];
      }
    }
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
      const auto* pixels = reinterpret_cast<const uint16_t*>(search.x(row));
#pragma unroll
      for (int p = 0; p < look; p += 2) {
        const uint32_t held = pair_of<BFloat16>(weight[i][p], weight[i][p + 1]);
        weight[i][p] = first_of<BFloat16>(held), weight[i][p + 1] = second_of<BFloat16>(held);
        if constexpr (Search::scattered) {
          uint32_t wanted = reached(held, from[i], k, slot[i]);
          if (!mine[i] || (k == 0 && second[i] != p / (look / 2))) wanted = 0;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int s = inside(first[i] * Search::unit + search.pixel(slot[i] % 16, slot[i] / 16, p + j));
            if (wanted >> 16 * j & 1) x[i][p + j] = pixels[s * search.apart];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      Spot best;
#pragma unroll
      for (int p = 0; p < look; ++p) {
        const float y = weight[i][p] * first_of<BFloat16>(x[i][p]);
        if (y > best.top) best.top = y, best.at = p;
      }
      if (best.top == 0) later[i] = 0;
      if constexpr (Search::scattered) {
        const int k = task_of(i) / Search::rows;
        if (k == 0 && !second[i] && best.top < first_of<BFloat16>(half_of(from[i], slot[i]))) {
          second[i] = 1;
          continue;
        }
        second[i] = 0;
      }
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
      const uint32_t* words = slots;
#pragma unroll
      for (int j = 0; j < rounds; ++j)
        if (j == i) slot_of = slot[j], last = later[j], words = from[j];
      unsigned left = __ballot_sync(0xffffffffu, last > 0);
      if (!left) continue;
      const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
      const int first = static_cast<int>(half_of(words + kWarp, slot_of)) + 1;
      Spot further;
      auto see = [&](int owner_row, int owner_k, int owner_slot, int chunk) {
        const BFloat16* x = search.x(owner_row);
        const float* weights = mask + (owner_k - 1) * S;
#pragma unroll
        for (int p = 0; p < look; p += 2) {
          const int s[2] = {inside(chunk * Search::unit + search.pixel(owner_slot % 16, owner_slot / 16, p)),
                            inside(chunk * Search::unit + search.pixel(owner_slot % 16, owner_slot / 16, p + 1))};
          const uint32_t held = pair_of<BFloat16>(weights[s[0]], weights[s[1]]);
          const uint32_t wanted =
              Search::scattered ? reached(held, words_of(owner_row, owner_k), owner_k, owner_slot) : ~0u;
          if (wanted & 1) further.see(first_of<BFloat16>(held) * static_cast<float>(x[s[0] * search.apart]), s[0]);
          if (wanted >> 16) further.see(second_of<BFloat16>(held) * static_cast<float>(x[s[1] * search.apart]), s[1]);
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
