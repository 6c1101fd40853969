// How the passes that write a map walk it: threads that live long, and no division, no test and no alignment question
// per vector. What a thread keeps and what it meets:
//
//   NCHW           keeps V pixels (their masks in registers), meets channel after channel, whose coefficients come from
//                  a table in shared memory. An image is one flat run of C*S elements; where S is not a multiple of V
//                  (7x7), vectors repeat their pixels every S / gcd(S, V) vectors, and one may end a channel and begin
//                  the next
//   channels_last  keeps V channels (their coefficients in registers), meets pixel after pixel, whose masks come from a
//                  table in shared memory
//   any            one element a thread: other alignments, float64, more than three anatomies, fusion "concat"
#pragma once

#include <numeric>

#include "cuda/device.cuh"
#include "cuda/packed.h"

namespace axnet::cuda {

constexpr int kWalkThreads = 320;  // at most; 48 x 48 pixels are 288 vectors of bfloat16
constexpr int kWalkFlight = 4;     // vectors in flight a thread
constexpr int kWalkBlocks = 2;     // of a multiprocessor, channels_last; three were not faster on an H200
constexpr int kWalkTable = 24;     // KB of a block's table at most
constexpr int kWalkLeast = 8;      // pieces of a block

// Pieces of a block: `blocks` blocks stand side by side already, `pieces` are there to share out. A block takes
// `least`, which pay for its beginning, but a GPU gets what its multiprocessors (132 of an H200) take at a time, two
// blocks each, an image `fewest`, and a multiprocessor not many more than eight.
inline int64_t pieces_of_a_block(int64_t blocks, int64_t pieces, int64_t least, int64_t most, int64_t fewest) {
  const int64_t many = ceil_div(1024, blocks);
  const int64_t parts = std::clamp(pieces / least, std::min(std::max<int64_t>(264 / blocks, fewest), many), many);
  return std::min(ceil_div(pieces, std::min(parts, pieces)), std::max<int64_t>(most, 1));
}

constexpr int64_t kMostOffset = std::numeric_limits<int32_t>::max();

template <class T>
bool is_aligned_map(const void* data, const View& view, int64_t step) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && view.n % kVector<T> == 0 && step % kVector<T> == 0;
}

// A channels_last map whose pixels are whole vectors, with 32-bit offsets within an image.
template <class T>
bool is_vector_map(const void* data, const View& view, int64_t C, int64_t S) {
  return C % kVector<T> == 0 && is_aligned_map<T>(data, view, view.s) && view.s <= kMostOffset / S;
}

// A map of which every vector that a Walk meets is whole and aligned, with 32-bit offsets within an image.
template <class T>
bool can_walk(int64_t C, int64_t S, bool channels_last,
              std::initializer_list<std::pair<const void*, const View*>> maps) {
  for (const auto& [data, view] : maps)
    if (channels_last ? !is_vector_map<T>(data, *view, C, S)
                      : S < kVector<T> || !is_aligned_map<T>(data, *view, C * S) || C > kMostOffset / S)
      return false;
  return true;
}

// Threads side by side over the `width` things that a thread keeps, `side` times over what it meets.
struct Walk {
  int kept_blocks, width, side, meets, tasks, threads;  // meets: of a block; tasks: blocks of an image
  int run;                                              // what a thread meets, where it is contiguous
  int phases = 0, rows = 1;                             // NCHW: vectors and channels of a period
  Divider of_tasks, of_width, of_kept_blocks;
  int inner = 0;  // NCHW: vectors of a period that lie in one channel, if a block has all of them and rows > 1
  Divider of_inner, of_split;

  Walk(int64_t N, int64_t kept, int64_t met, int unit, int entry_bytes, int least, int most, int fewest) {
    kept_blocks = static_cast<int>(ceil_div(kept, most));
    width = static_cast<int>(ceil_div(kept, kept_blocks));
    side = std::max(1, kThreads / width);
    const int64_t piece = static_cast<int64_t>(side) * kWalkFlight * unit;
    meets = static_cast<int>(piece * pieces_of_a_block(N * kept_blocks, ceil_div(met, piece), least,
                                                       kWalkTable * 1024 / (piece * entry_bytes), fewest));
    tasks = static_cast<int>(kept_blocks * ceil_div(met, meets));
    threads = static_cast<int>(ceil_div(static_cast<int64_t>(width) * side, kWarp) * kWarp);
    run = meets / side;
    of_tasks = Divider(tasks), of_width = Divider(width), of_kept_blocks = Divider(kept_blocks);
  }
  // NCHW; kept: the vectors of a period of `rows` channels
  static Walk rows_of(int64_t N, int64_t C, int64_t S, int vector, int entry_bytes, int least = kWalkLeast,
                      int fewest = 2) {
    const int64_t common = std::gcd(S, static_cast<int64_t>(vector));
    // where a vector spans channels, a thread holds more: 256 of them leave 128 registers for each of two blocks
    Walk walk(N, S / common, C, static_cast<int>(vector / common), entry_bytes, least,
              common == vector ? kWalkThreads : kThreads, fewest);
    walk.phases = static_cast<int>(S / common), walk.rows = static_cast<int>(vector / common);
    if (walk.rows > 1 && walk.kept_blocks == 1) {
      walk.inner = walk.phases - (walk.rows - 1);
      walk.of_inner = Divider(walk.inner), walk.of_split = Divider(walk.rows - 1);
    }
    return walk;
  }
  static Walk channels_of(int64_t N, int64_t C, int64_t S, int vector, int entry_bytes, int least = kWalkLeast) {
    Walk walk(N, C / vector, S, 1, entry_bytes, least, kThreads, 2);
    walk.phases = static_cast<int>(C / vector);
    return walk;
  }
};

// Where a thread stands in a Walk.
struct Stand {
  bool active;
  int n, block, kept;    // block: of the blocks side by side; kept: its vector
  int first, count, at;  // what the block meets; the first of them that the thread meets itself

  __device__ Stand(const Walk& walk, int met) {
    n = walk.of_tasks.quotient(static_cast<int>(blockIdx.x));
    const int task = static_cast<int>(blockIdx.x) - n * walk.tasks, piece = walk.of_kept_blocks.quotient(task);
    const int side = walk.of_width.quotient(static_cast<int>(threadIdx.x));
    block = task - piece * walk.kept_blocks;
    kept = (block - side) * walk.width + static_cast<int>(threadIdx.x);
    first = piece * walk.meets;
    count = met - first < walk.meets ? met - first : walk.meets;
    at = side * walk.rows;
    active = side < walk.side && kept < walk.phases;
  }
};

// NCHW, S no multiple of the vector: the threads whose vectors end a channel and begin the next stand together at the
// end, so that most warps have none of them.
template <int V>
__device__ inline void split_last(Stand& stand, const Walk& walk, int S) {
  if (walk.inner == 0) return;
  const int t = static_cast<int>(threadIdx.x), rest = t - walk.side * walk.inner;
  int side, kept;
  if (rest < 0) {
    side = walk.of_inner.quotient(t), kept = t - side * walk.inner;
    int before = 0;
#pragma unroll
    for (int row = 1; row < V; ++row)
      before += row < walk.rows && row * S / V - (row - 1) <= kept ? 1 : 0;
    kept += before;
  } else {
    side = walk.of_split.quotient(rest), kept = (rest - side * (walk.rows - 1) + 1) * S / V;
  }
  stand.kept = kept, stand.at = side * walk.rows, stand.active = side < walk.side;
}

// visit(U, at, step): U of what a thread meets, `step` apart: FLIGHT while there are so many, then one by one.
template <int FLIGHT, class F>
__device__ inline void meet(const Stand& stand, const Walk& walk, const F& visit) {
  const int step = walk.side * walk.rows;
  int at = stand.at;
  for (; at + (FLIGHT - 1) * step < stand.count; at += FLIGHT * step)
    visit(std::integral_constant<int, FLIGHT>{}, at, step);
#pragma unroll 1
  for (; at < stand.count; at += step)
    visit(std::integral_constant<int, 1>{}, at, step);
}

// A row of a table in shared memory, read in 16 bytes.
template <int K>
struct alignas(16) Entry {
  float at[(K + 3) / 4 * 4];
};

template <int K>
__device__ inline Entry<K> entry_of(const Entry<K>* table, int i) {
  Entry<K> entry;
  const float4* from = reinterpret_cast<const float4*>(table + i);
#pragma unroll
  for (int k = 0; k < (K + 3) / 4; ++k) {
    const float4 v = from[k];
    entry.at[4 * k] = v.x, entry.at[4 * k + 1] = v.y, entry.at[4 * k + 2] = v.z, entry.at[4 * k + 3] = v.w;
  }
  return entry;
}

// V numbers of memory, and in float.
template <class T, int V>
struct Bits {
  static constexpr int words = V * static_cast<int>(sizeof(T)) / 4;
  uint32_t at[words];

  __device__ void load(const T* p) {
    if constexpr (words == 4) {
      const uint4 v = __ldcs(reinterpret_cast<const uint4*>(p));
      at[0] = v.x, at[1] = v.y, at[2] = v.z, at[3] = v.w;
    } else if constexpr (words == 2) {
      const uint2 v = __ldcs(reinterpret_cast<const uint2*>(p));
      at[0] = v.x, at[1] = v.y;
    } else {
      at[0] = __ldcs(reinterpret_cast<const uint32_t*>(p));
    }
  }
  __device__ void store(T* p) const {
    if constexpr (words == 4) __stwb(reinterpret_cast<uint4*>(p), uint4{at[0], at[1], at[2], at[3]});
    else __stwb(reinterpret_cast<uint2*>(p), uint2{at[0], at[1]});
  }
  __device__ void spread(float (&out)[V]) const {
#pragma unroll
    for (int k = 0; k < words; ++k) {
      if constexpr (sizeof(T) == 2) out[2 * k] = first_of<T>(at[k]), out[2 * k + 1] = second_of<T>(at[k]);
      else memcpy(&out[k], &at[k], 4);
    }
  }
  __device__ void gather(const float (&v)[V]) {
#pragma unroll
    for (int k = 0; k < words; ++k) {
      if constexpr (sizeof(T) == 2) at[k] = pair_of<T>(v[2 * k], v[2 * k + 1]);
      else memcpy(&at[k], &v[k], 4);
    }
  }
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
auto with_anatomies(int anatomies, const F& f) {
  if constexpr (!std::is_same_v<T, double>) {
    switch (anatomies) {
      case 1: return f(std::integral_constant<int, 1>{});
      case 2: return f(std::integral_constant<int, 2>{});
      case 3: return f(std::integral_constant<int, 3>{});
    }
  }
  return f(std::integral_constant<int, 0>{});
}

}  // namespace axnet::cuda
