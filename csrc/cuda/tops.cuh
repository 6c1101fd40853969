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
    const uint32_t more = greater_of(top, best);
    if constexpr (FULL) {
      const uint32_t rose = above<false>(more, top);
      first = (first & ~rose) | (chunks & rose);
      if (!exact) {
        const uint32_t stands = above<true>(best, top);
        last = (last & ~stands) | (chunks & stands);
      }
    }
    top = more;
  }
  // Exact, of the four values of a chunk; `last`: where it was one of the latter two.
  __device__ void see_halves(uint32_t v0, uint32_t v1, uint32_t v2, uint32_t v3, uint32_t chunks) {
    const uint32_t before = greater_of(greater_of(top, v0), v1), more = greater_of(greater_of(before, v2), v3);
    const uint32_t rose = above<false>(more, top), later = above<false>(more, before);
    first = (first & ~rose) | (chunks & rose), last = (last & ~rose) | (later & rose);
    top = more;
  }
  // Of a chunk and the next one, not exact.
  __device__ void see_two(const uint32_t (&best)[2], const uint32_t (&chunks)[2]) {
    const uint32_t more = greater_of(greater_of(top, best[0]), best[1]), rose = above<false>(more, top);
    const uint32_t stands = above<true>(best[0], more), again = above<true>(best[1], more);
    const uint32_t its = (chunks[1] & ~stands) | (chunks[0] & stands);
    first = (first & ~rose) | (its & rose);
    last = (last & ~stands) | (chunks[0] & stands);
    last = (last & ~again) | (chunks[1] & again);
    top = more;
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

// Work of which each lane of a warp has `count` units, as one run: where the lane's own begin, and how many there are.
struct Run {
  int begin, total;

  __device__ explicit Run(int count) : begin(count) {
    const unsigned lane = again(threadIdx.x % kWarp);
#pragma unroll
    for (unsigned lanes = 1; lanes < kWarp; lanes *= 2) {
      const int more = __shfl_sync(0xffffffffu, begin, static_cast<int>((lane + kWarp - lanes) % kWarp));
      begin += lane >= lanes ? more : 0;
    }
    total = __shfl_sync(0xffffffffu, begin, kWarp - 1);
    begin -= count;
  }
  // The lane that has a unit: the last one that begins no later. All lanes, each for a unit of its own.
  __device__ int owner(int unit) const {
    int owner = 0;
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
      owner += __shfl_sync(0xffffffffu, begin, owner + lanes) <= unit ? lanes : 0;
    return owner;
  }
};

// From rounded maxima to pixels: the largest exact value first, then the first pixel. What a lane has of a row in one
// half of a register is a slot: some pixels of each chunk that it met. A lane takes a row and one of its maxima at a
// time, whose slots lie in four neighbouring lanes. Only slots whose own maximum is the row's are looked at, each at
// its first chunk, all its pixels together. Where a slot's maximum stands in later chunks as well, whose exact products
// may be larger, the warp goes over the chunks of all such slots together.
//
// Search, of the rows that a warp has, by index:
//   rows, words, look           how many rows; registers of maxima of a lane; pixels of a slot in a chunk
//   unit                        pixels from a chunk to the next
//   word(row), group(row)       the register of the row's slots, and the first of its four lanes, by four
//   x(row)                      its place in X
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
  unsigned open[rounds];           // slots of the task that are to be looked at yet: t, 16 + t of the upper half
  unsigned late[rounds] = {};      // those whose later chunks are
  auto words_of = [&](int task) {  // of four lanes: tops; from kWarp and 2 kWarp on, first and last chunks
    const int row = task % Search::rows, k = task / Search::rows;
    return slots + (search.word(row) * (1 + B) + k) * 3 * kWarp + 4 * search.group(row);
  };
  auto half_of = [](const uint32_t* words, int slot) {
    return static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(words + slot % 16)[slot / 16]);
  };
  auto twice = [&](const uint32_t* words, int slot) { return half_of(words, slot) * 0x10001u; };
  auto first_of_slot = [&](const uint32_t* words, int slot) { return static_cast<int>(half_of(words + kWarp, slot)); };
  // X itself is exact, and so is a zero: what stands later has no larger one
  auto last_of_slot = [&](const uint32_t* words, int k, int slot) {
    return static_cast<int>(half_of(words + (k > 0 && half_of(words, slot) << 17 != 0 ? 2 : 1) * kWarp, slot));
  };
  auto task_of = [&](int i) { return i * kWarp + lane < Task::tasks ? i * kWarp + lane : 0; };
#pragma unroll
  for (int i = 0; i < rounds; ++i) {
    uint32_t top[4];
    load_shared(words_of(task_of(i)), top);
    uint32_t most = greater_of(greater_of(top[0], top[1]), greater_of(top[2], top[3]));
    most = greater_of(most, most >> 16 | most << 16);
    open[i] = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t)
      open[i] |= above<true>(top[t], most) & 0x10001u << t;
    if (i * kWarp + lane >= Task::tasks) open[i] = 0;
  }

  // pixel p of a slot in a chunk
  auto pixel_of = [&](int chunk, int slot, int p) {
    const int s = chunk * Search::unit + search.pixel(slot % 16, slot / 16, p);
    return s < S ? s : S - 1;
  };
  // bits of those of two pixels, by their masks, that may have the slot's maximum, since X is at most its own there
  auto reached = [&](uint32_t masks, const uint32_t* words, int k, int slot) {
    return above<true>(product(masks, twice(words - k * 3 * kWarp, slot)), twice(words, slot)) |
           ~above<true>(masks, 0u);
  };
  auto any = [&](const unsigned (&slots)[rounds]) {
    unsigned left = 0;
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      left |= slots[i];
    return __ballot_sync(0xffffffffu, left != 0) != 0;
  };
  do {  // a slot of each task, all together
    float weight[rounds][look];
    uint32_t x[rounds][look];  // as the first half of a pair; -inf is not read
    int slot[rounds], first[rounds];
#pragma unroll
    for (int i = 0; i < rounds; ++i) {  // all loads are on their way before the first use
      const int row = task_of(i) % Search::rows, k = task_of(i) / Search::rows;
      slot[i] = open[i] ? __ffs(static_cast<int>(open[i])) - 1 : 0;
      first[i] = first_of_slot(words_of(task_of(i)), slot[i]);
#pragma unroll
      for (int p = 0; p < look; ++p) {
        const int s = pixel_of(first[i], slot[i], p);
        weight[i][p] = open[i] && k > 0 ? mask[(k - 1) * S + s] : 1.f;
        x[i][p] = kLowest & 0xffffu;
        if (open[i]) x[i][p] = reinterpret_cast<const uint16_t*>(search.x(row))[s];
      }
    }
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      const int k = task_of(i) / Search::rows;
      Spot best;
#pragma unroll
      for (int p = 0; p < look; ++p) {
        const float y = as_held<BFloat16>(weight[i][p]) * first_of<BFloat16>(x[i][p]);
        if (y > best.top) best.top = y, best.at = p;
      }
      best.at = pixel_of(first[i], slot[i], best.at % look);
      if (open[i] == 0) continue;
      found.spots[i].see(best.top, best.at);
      if (last_of_slot(words_of(task_of(i)), k, slot[i]) > first[i]) late[i] |= open[i] & -open[i];
      open[i] &= open[i] - 1;
    }
  } while (any(open));

  // What is left: later chunks of a slot. Each lane has a slot's run of them, and the warp goes over those of all lanes
  // as one.
  while (any(late)) {
    int task = 0, its_slot = 0, begin = 0, count = 0;
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      if (count == 0 && late[i] != 0) {
        task = task_of(i), its_slot = __ffs(static_cast<int>(late[i])) - 1;
        begin = first_of_slot(words_of(task), its_slot) + 1;
        count = last_of_slot(words_of(task), task / Search::rows, its_slot) + 1 - begin;
        late[i] &= late[i] - 1;
      }
    const Run run(count);
#pragma unroll 1
    for (int unit = lane; unit - lane < run.total; unit += kWarp) {
      const int owner = run.owner(unit);
      const int what = __shfl_sync(0xffffffffu, task * kWarp + its_slot, owner);
      const int chunk = __shfl_sync(0xffffffffu, begin - run.begin, owner) + unit;
      const int row = what / kWarp % Search::rows, k = what / kWarp / Search::rows, at = what % kWarp;
      const uint32_t* words = words_of(what / kWarp);
      const auto* pixels = reinterpret_cast<const uint16_t*>(search.x(row));
      float weights[look];
      uint32_t values[look];
#pragma unroll
      for (int p = 0; p < look; ++p)
        weights[p] = unit < run.total && k > 0 ? mask[(k - 1) * S + pixel_of(chunk, at, p)] : 1.f;
#pragma unroll
      for (int p = 0; p < look; p += 2) {
        const uint32_t held = pair_of<BFloat16>(weights[p], weights[p + 1]);
        const uint32_t may = unit < run.total ? (k > 0 ? reached(held, words, k, at) : ~0u) : 0u;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          values[p + j] = kLowest & 0xffffu;
          if (may >> 16 * j & 1) values[p + j] = pixels[pixel_of(chunk, at, p + j)];
        }
        weights[p] = first_of<BFloat16>(held), weights[p + 1] = second_of<BFloat16>(held);
      }
      Spot best;
#pragma unroll
      for (int p = 0; p < look; ++p) {
        const float y = weights[p] * first_of<BFloat16>(values[p]);
        if (y > best.top) best.top = y, best.at = p;
      }
      const bool reaches = above<true>(pair_of<BFloat16>(best.top, best.top), twice(words, at)) & 1;
      best.at = pixel_of(chunk, at, best.at % look);
      for (unsigned left = __ballot_sync(0xffffffffu, unit < run.total && reaches); left; left &= left - 1) {
        const int lane_of = __ffs(static_cast<int>(left)) - 1;
        const float y = __shfl_sync(0xffffffffu, best.top, lane_of);
        const int s = __shfl_sync(0xffffffffu, best.at, lane_of);
        const int its_task = __shfl_sync(0xffffffffu, what / kWarp, lane_of);
#pragma unroll
        for (int i = 0; i < rounds; ++i)
          if (its_task == i * kWarp + lane) found.spots[i].see(y, s);
      }
    }
  }
  return found;
}

}  // namespace axnet::cuda
