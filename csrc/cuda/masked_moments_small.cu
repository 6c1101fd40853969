// masked_moments of bfloat16 in NCHW on the matrix units, of maps of 16 x 16 pixels. Shared memory holds a warp's 16
// rows whole, four units of 64 pixels, so every place is known when this is compiled, and the rows are still there when
// the places of their maxima are looked for. Until then the maxima of each unit are kept: they are few enough.
#include "cuda/ring.cuh"
#include "cuda/row_moments.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;

constexpr int kPixels = 256, kUnit = 64, kUnits = kPixels / kUnit, kPitch = kPixels + 32;
constexpr int kMostRows = 2 * kRows;  // of a warp, before it writes what it has of them

struct SmallTiling {
  Divider of_blocks{1};
  int blocks, groups, together;  // of an image; of 16 rows, which a warp takes one after the other; and writes at once
  int row_bytes;                 // from a row of numbers by channel to the next
};

// A warp's rows in shared memory: units in the order of RowRing.
struct HeldRows {
  static constexpr int unit_bytes = kRows * kUnit * 2, bytes = kUnits * unit_bytes;

  unsigned char* shared;
  const T* next;  // the lane's part of the rows that come
  int to, from;

  __device__ HeldRows(unsigned char* shared, int at, const T* rows) : shared(shared) {
    const int lane = threadIdx.x % kWarp, row = lane / 8;
    next = rows + (lane % 8 * 8 + row * kPixels);
    to = again(at + row * 128 + (lane % 8 ^ row) * 16);
    from = again(at + lane % 16 * 128 + (lane / 16 ^ lane % 8) * 16);
  }
  // Asks for the next rows.
  __device__ void ask() {
    unsigned char *even = shared + to, *odd = shared + (to ^ 64);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        copy_ahead((i % 2 ? odd : even) + (unit * unit_bytes + i * 512), next + (unit * kUnit + i * 4 * kPixels));
      copies_commit();
    }
    next += kRows * kPixels;
  }
  // Waits for a unit, one after the other, and reads it as the products want it.
  __device__ void read(int unit, uint32_t (&words)[2][2][4]) const {
    unit == 0 ? copies_wait<kUnits - 1>() : copies_wait(kUnits - 1 - unit);
    __syncwarp();  // the copies of all lanes are there
#pragma unroll
    for (int i = 0; i < 4; ++i)
      load_matrices<false>(shared + ((from ^ i * 32) + unit * unit_bytes), words[i / 2][i % 2]);
  }
};

// The maxima of a warp's rows in shared memory, and where they stand.
template <int B, bool FULL>
struct SmallMaxima {
  static constexpr int kinds = 1 + B, units = FULL ? kUnits : 1, slot_words = units * kinds * kWarp;
  static constexpr int found_words = FULL ? kinds * kRows : 0, words = slot_words + found_words + kinds * kMostRows;

  uint32_t* slots;   // [units, kinds, lanes]: of rows g and g + 8, by lane 4 g + t
  uint32_t* found;   // [kinds, rows of a group]: bits 4 u + t of the slots that have a row's largest, and this
  uint32_t* places;  // [kinds, rows of all groups]: the place of the largest, and this

  __device__ explicit SmallMaxima(unsigned char* shared)
      : slots(reinterpret_cast<uint32_t*>(shared)), found(slots + slot_words), places(found + found_words) {}

  __device__ void keep(const Tops<false> (&tops)[2][kinds], int unit) const {
#pragma unroll
    for (int k = 0; k < kinds; ++k)
      slots[(unit * kinds + k) * kWarp + threadIdx.x % kWarp] =
          greater_of(firsts(tops[0][k].top, tops[1][k].top), seconds(tops[0][k].top, tops[1][k].top));
  }
  // What the slots say of a group's rows, from `row` on: a lane has one kind of two rows.
  __device__ void settle(int row) const {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    if (lane >= 8 * kinds) return;
    uint32_t top[units][4];
#pragma unroll
    for (int u = 0; u < units; ++u)
      load_shared(slots + u * kinds * kWarp + 4 * lane, top[u]);
    uint32_t most = top[0][0], open = 0;
#pragma unroll
    for (int i = 1; i < 4 * units; ++i)
      most = greater_of(most, top[i / 4][i % 4]);
    if constexpr (FULL) {
#pragma unroll
      for (int i = 0; i < 4 * units; ++i)
        open |= above<true>(top[i / 4][i % 4], most) & 0x10001u << i;
    }
    uint32_t* to = FULL ? found + lane / 8 * kRows : places + lane / 8 * kMostRows + row;
    to[lane % 8] = firsts(open, most), to[lane % 8 + 8] = seconds(open, most);
  }
};

// Where the maxima of 16 rows stand, of which each has two lanes. They look at the row's slot, a lane's part of a unit,
// that has the largest. If no other slot and no other pixel there has a product that is rounded to the same, this is
// the place; else the warp goes over the row by the exact products.
template <int B>
struct SmallSearch {
  unsigned char* shared;  // begins with the basis
  int rows;               // bytes: where the warp's begin

  // The first pixel of row `row` with the largest exact product, by the whole warp.
  __device__ int exact_place(int row, int k) const {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    uint32_t pairs[4];
    load_shared(shared + (rows + lane / 8 * HeldRows::unit_bytes + row * 128 + (lane ^ row) % 8 * 16), pairs);
    const unsigned char* masks = shared + 2 * (k * kPitch + place_of(8 * lane, Order::matrices));
    Spot best;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t m = *reinterpret_cast<const uint32_t*>(masks + 16 * i);
      const float y[2] = {first_of<T>(m) * first_of<T>(pairs[i]), second_of<T>(m) * second_of<T>(pairs[i])};
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (y[j] > best.top) best.top = y[j], best.at = 8 * lane + 2 * i + j;
    }
    return first_of_largest(best.top, best.at);
  }
  // Of the rows of a group, the first of which is row `first` of those that are written at once.
  __device__ void places(const SmallMaxima<B, true>& maxima, int first) const {
    const int lane = static_cast<int>(threadIdx.x % kWarp), row = lane / 2, half = lane % 2;
    const int own = rows + row * 128 + (row % 8 ^ 4 * half) * 16, masks = 64 * half;
    uint32_t* to = maxima.places + first + row;
    uint32_t most[1 + B], xs[1 + B][4], ms[1 + B][4];
    unsigned open[1 + B];
    int at[1 + B];
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      const uint32_t word = maxima.found[k * kRows + row];
      most[k] = seconds(word, word), open[k] = word & 0xffffu;
      const int slot = (__ffs(static_cast<int>(open[k])) - 1) & 15, t = slot % 4, unit = slot / 4;
      at[k] = unit * kUnit + 2 * t;
      const int from = own + unit * HeldRows::unit_bytes + 4 * t;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        xs[k][i] = *reinterpret_cast<const uint32_t*>(shared + (from ^ 16 * i));
      if (k > 0) load_shared(shared + (masks + k * kPitch * 2 + unit * 2 * kUnit + 16 * t), ms[k]);
    }
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      unsigned may = 0;  // bits i of a pair's first pixel, 16 + i of its second
#pragma unroll
      for (int i = 0; i < 4; ++i)
        may |= above<true>(k > 0 ? product(xs[k][i], ms[k][i]) : xs[k][i], most[k]) & 0x10001u << i;
      may <<= 4 * half;
      may |= __shfl_xor_sync(0xffffffffu, may, 1);
      const unsigned either = (may | may >> 16) & 255, pair = (__ffs(static_cast<int>(either)) - 1) & 7;
      // X itself is exact: the first pixel is the place if no other slot of its unit has one
      const unsigned others = open[k] & (open[k] - 1), unit = 15u << ((at[k] / kUnit) * 4);
      const bool tied = k > 0 ? (others | (may & (may - 1))) != 0 : (others & unit) != 0;
      at[k] += static_cast<int>(8 * pair + ((may >> pair & 1) ^ 1));
#pragma unroll 1
      for (unsigned left = __ballot_sync(0xffffffffu, tied) & 0x55555555u; left; left &= left - 1) {
        const int its = __ffs(static_cast<int>(left)) / 2, s = exact_place(its, k);
        if (row == its) at[k] = s;
      }
      to[k * kMostRows] = __byte_perm(static_cast<uint32_t>(at[k]), most[k], 0x7610);
    }
  }
};

// Where things begin in shared memory, in bytes: the basis, the warps' rows, their maxima, their sums.
template <int B, bool FULL>
struct SmallLayout {
  using Maxima = SmallMaxima<B, FULL>;
  using Numbers = RowNumbers<B, FULL>;
  static constexpr int rows = (Basis<B, FULL>::all * kPitch * 2 + 127) / 128 * 128;
  static constexpr int maxima = rows + kWarps * HeldRows::bytes;
  static constexpr int numbers = maxima + kWarps * Maxima::words * 4;
  static constexpr int bytes = numbers + kWarps * Numbers::words * 4;
  static_assert(bytes <= 99 * 1024);  // of a block, of most GPUs
};

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_small_rows_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ SmallTiling tiling) {
  using Layout = SmallLayout<B, FULL>;
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = tiling.of_blocks.quotient(block);
  int c = ((block - n * tiling.blocks) * kWarps + warp) * tiling.groups * kRows;
  const float* mask = row_at(static_cast<const float*>(p.mask), n, B * kPixels * 4);
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + c * kPixels;
  const Basis<B, FULL> basis(shared, kPitch, kPixels);
  HeldRows held(shared, Layout::rows + warp * HeldRows::bytes, x);
  basis.fill(mask, B, kPixels, 0, kPixels, Order::matrices, [&] { held.ask(); }, false);
  __syncthreads();
  RowWork<B, FULL, false> work(shared, kPitch);
  const SmallMaxima<B, FULL> maxima(shared + Layout::maxima + warp * Layout::Maxima::words * 4);
  const RowNumbers<B, FULL> numbers(shared + Layout::numbers + warp * Layout::Numbers::words * 4);
  int row = 0;
#pragma unroll 1
  for (int group = tiling.groups; group > 0; --group) {
    work.begin();
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      uint32_t words[2][2][4];
      held.read(unit, words);
      work.add(words[0], 2 * unit * kUnit);
      work.add(words[1], 2 * (unit * kUnit + kChunk));
      const unsigned char* masks = shared + (work.masks + 2 * unit * kUnit);
      if (FULL || unit == 0) work.template see<true>(words, masks, work.pitch, 0);
      else work.see(words, masks, work.pitch, 0);
      if (FULL || unit == kUnits - 1) maxima.keep(work.tops, FULL ? unit : 0);
    }
    numbers.keep(work, row + lane / 4, 8);
    __syncwarp();
    maxima.settle(row);
    __syncwarp();
    if constexpr (FULL) {
      const SmallSearch<B> search{shared, Layout::rows + warp * HeldRows::bytes};
      search.places(maxima, row);
      __syncwarp();
    }
    if (group > 1) held.ask();
    row += kRows;
    if (row == tiling.together * kRows) {
      float top[1 + B];
      int at[1 + B];
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        const uint32_t word = maxima.places[k * kMostRows + lane];
        top[k] = second_of<T>(word), at[k] = static_cast<int>(word & 0xffffu);
      }
      const bool again = lane < row && numbers.write(p, 1.f / kPixels, tiling.row_bytes, n, c + lane, top, at);
      mend_rows<T>(p, FULL, again, n, c + lane);
      __syncwarp();  // what was kept of the rows has been read
      c += row, row = 0;
    }
  }
}

template <int B, bool FULL>
void launch_small(const MomentsPlan& p, cudaStream_t stream) {
  SmallTiling tiling{};
  constexpr int least = kWarps * kRows;
  tiling.groups = groups_for_a_basis(p.N, p.C / least);
  tiling.together = tiling.groups % 2 == 0 ? 2 : 1;
  tiling.blocks = static_cast<int>(p.C / least / tiling.groups);
  tiling.row_bytes = static_cast<int>(p.C * sizeof(float));
  tiling.of_blocks = Divider(tiling.blocks);
  launch(moments_small_rows_kernel<B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
         SmallLayout<B, FULL>::bytes, stream, p, tiling);
}

}  // namespace

bool matrix_moments_small(cudaStream_t stream, const MomentsPlan& p, bool full) {
  const bool runs = p.x.c == kPixels && is_aligned_map<T>(p.x_data, p.x, p.x.c);
  if (p.S != kPixels || !runs || p.C % (kWarps * kRows) || p.C > kMostOffset / kPixels) return false;
  switch (p.A) {
    case 1: full ? launch_small<1, true>(p, stream) : launch_small<1, false>(p, stream); return true;
    case 2: full ? launch_small<2, true>(p, stream) : launch_small<2, false>(p, stream); return true;
  }
  if (full || p.A > 3) return false;
  launch_small<3, false>(p, stream);
  return true;
}

}  // namespace axnet::cuda
