// masked_moments of bfloat16 in NCHW on the matrix units, of small maps whose rows are no whole words: 7 x 7 pixels.
// 32 channels of an image are one run of memory, which a warp copies to shared memory. There the even rows begin at
// whole words, and the odd ones half a word later: they are taken from the pixel before on, which belongs to the row
// before. So there are two bases, the second moved by a pixel; words beyond a row are replaced by others of the lane.
#include "cuda/row_moments.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;

constexpr int kOddRows = 2 * kRows;              // of a warp
constexpr int kLeast = 49, kMost = 55;           // pixels: seven words of a lane, of which it may lack the last one
constexpr int kRun = kOddRows * kMost * 2 + 64;  // bytes in shared memory
constexpr int kPitch = 96, kPixels = 64;         // of the bases

struct OddTiling {
  Divider of_blocks{1};
  int blocks, groups;               // of an image; of 32 rows, which a warp takes one after the other
  int masks, runs, slots, numbers;  // bytes: where they begin in shared memory, behind the bases
  int row_bytes;                    // from a row of numbers by channel to the next
  float inverse;                    // 1 / S
};

// Pixel of place `e` of a row, `odd` or even, or where there is none, of the one that stands there instead.
__device__ inline int pixel_of(int e, int odd, int S) {
  if (e - odd < 0) return 0;
  const int at = e < 56 ? e : e - 8, low = (at & ~1) - odd;  // the eighth word is the seventh once more
  if (at < 48 || low + 1 < S) return at - odd;
  return low < S ? low : at - 8 - odd;
}

template <int B>
constexpr int kOddSlots = 4 * (1 + B) * kWarp;  // words of a warp: the maxima of its lanes

// Places of the maxima of 32 rows, of which each lane has one (UnitSearch in small: there is one unit).
template <int B>
struct OddSearch {
  const uint32_t* slots;
  const unsigned char* run;
  const uint16_t* bases;  // row 1 of the first; the second is `apart` further
  int apart, S;
  const float* mask;

  // The largest of the lane's row, in both halves, of the four lanes' own.
  __device__ uint32_t largest(int k, uint32_t (&top)[4]) const {
    const int lane = threadIdx.x % kWarp, row = lane / 2 + lane % 2 * kRows;
    load_shared(slots + (row / 8 * (1 + B) + k) * kWarp + row % 8 * 4, top);
    const uint32_t most = greater_of(greater_of(top[0], top[1]), greater_of(top[2], top[3]));
    return greater_of(most, most >> 16 | most << 16);
  }
  // The first of the pixels of row `row` with the largest exact product, by the whole warp.
  __device__ int exact_place(int row, int k) const {
    const int lane = threadIdx.x % kWarp;
    const auto* pixels = reinterpret_cast<const T*>(run) + row * S;
    auto exact = [&](int s) {
      return (k > 0 ? as_held<T>(mask[(k - 1) * S + s]) : 1.f) * static_cast<float>(pixels[s]);
    };
    const int further = lane + kWarp;
    const float first = exact(lane), second = further < S ? exact(further) : first;
    return first_of_largest(fmaxf(first, second), second > first ? further : lane);
  }
  __device__ void places(float (&tops)[1 + B], int (&places)[1 + B]) const {
    const int lane = threadIdx.x % kWarp, odd = lane % 2;
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      uint32_t top[4];
      const uint32_t most = largest(k, top);
      unsigned open = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        open |= above<true>(top[i], most) & 0x10001u << i;
      const int t = static_cast<int>(highest(open) % 4);
      const auto* words = reinterpret_cast<const uint32_t*>(run) + lane / 2 * S + odd * (S / 2) + t;
      const uint16_t* masks = bases + odd * apart + (k - 1) * kPitch + 8 * t;
      uint32_t m[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (k > 0) load_shared(masks + h * kChunk, m[h]);
      unsigned may = 0;
#pragma unroll
      for (int i = 0; i < 7; ++i)
        may |= above<true>(k > 0 ? product(words[4 * i], m[i / 4][i % 4]) : words[4 * i], most) & 0x10001u << i;
      // those that are there: not the pixel before an odd row, nor those beyond a row
      const int beyond = 2 * t + 48 - odd - S;  // the last word's first pixel
      if (odd && t == 0) may &= ~1u;
      may &= beyond < -1 ? ~0u : beyond < 0 ? ~(1u << 22) : ~0x400040u;
      const unsigned lanes = (open | open >> 16) & 15, either = (may | may >> 16) & 127;
      const int pair = (__ffs(static_cast<int>(either)) - 1) & 7;
      int at = 8 * pair + static_cast<int>((may >> pair & 1) ^ 1) + 2 * t - odd;
      // X itself is exact: the first pixel is the place if no other lane has one
      const bool tied = k > 0 ? ((open & (open - 1)) | (may & (may - 1))) != 0 : (lanes & (lanes - 1)) != 0;
#pragma unroll 1
      for (unsigned left = __ballot_sync(0xffffffffu, tied); left; left &= left - 1) {
        const int its = __ffs(static_cast<int>(left)) - 1, s = exact_place(its, k);
        if (lane == its) at = s;
      }
      tops[k] = first_of<T>(most), places[k] = at;
    }
  }
};

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_odd_rows_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ OddTiling tiling) {
  using Shape = Basis<B, FULL>;
  constexpr int base_bytes = Shape::all * kPitch * 2;
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int S = static_cast<int>(p.S), block = static_cast<int>(blockIdx.x) - mass_blocks(p);
  const int n = tiling.of_blocks.quotient(block);
  const int first = ((block - n * tiling.blocks) * kWarps + warp) * tiling.groups * kOddRows;
  const float* mask = row_at(static_cast<const float*>(p.mask), n * B, 4 * S);
  const T* next = static_cast<const T*>(p.x_data) + n * p.x.n + first * S + lane * 8;
  unsigned char* runs = shared + tiling.runs + warp * 2 * kRun;
  auto copy = [&](int to) {
#pragma unroll
    for (int i = 0; i < 7; ++i)
      if (i < 6 || lane + i * kWarp < kOddRows * S / 8)
        copy_ahead(runs + to + (lane + i * kWarp) * 16, next + i * kWarp * 8);
    next += kOddRows * S;
  };
  auto fill = [&](int odd, const auto& asked) {  // each by a warp of its own
    const Shape basis(shared + odd * base_bytes, kPitch, kPixels);
    basis.fill(mask, B, S, -odd, kPixels, Order::matrices, asked, false, threadIdx.x ^ odd * kWarp);
  };
  fill(0, [&] {
    copy(0);
    copies_commit();
  });
  fill(1, [] {});
  auto* masks = reinterpret_cast<uint16_t*>(shared + tiling.masks);  // [2, B, kPixels]: of what stands in the words
  for (int i = threadIdx.x; i < 2 * B * kPixels; i += kThreads) {
    const int row = i / kPixels, odd = row / B, e = i % kPixels;
    const uint32_t bits = pair_of<T>(mask[(row - odd * B) * S + pixel_of(e, odd, S)], 0.f);
    masks[row * kPixels + place_of(e, Order::matrices)] = static_cast<uint16_t>(bits);
  }
  if (tiling.groups > 1) copy(kRun);
  copies_commit();
  __syncthreads();

  RowWork<B, FULL, false> work(shared, kPitch);
  uint32_t* slots = reinterpret_cast<uint32_t*>(shared + tiling.slots) + warp * kOddSlots<B>;
  const RowNumbers<B, FULL> numbers(shared + tiling.numbers + warp * RowNumbers<B, FULL>::words * 4);
  int place = 0, c = first;
#pragma unroll 1
  for (int group = tiling.groups; group > 0; --group) {
    copies_wait<1>();
    __syncwarp();
    const unsigned char* run = runs + place;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      uint32_t words[2][2][4];
      const int last = 2 * t + 48 - odd - S;
      const unsigned keep = last < -1 ? 0x3210u : last < 0 ? 0x1010u : 0x7654u;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto* from = reinterpret_cast<const uint32_t*>(run) + (g + 8 * r) * S + odd * (S / 2) + t;
        uint32_t row[8];
#pragma unroll
        for (int i = 0; i < 7; ++i)
          row[i] = from[4 * i];
        row[6] = row[7] = __byte_perm(row[6], row[5], keep);
        if (odd) row[0] = __byte_perm(row[0], row[0], t == 0 ? 0x3232u : 0x3210u);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          words[i / 4][i % 4 / 2][i % 2 * 2 + r] = row[i];
      }
      work.begin();
#pragma unroll
      for (int half = 0; half < 2; ++half)
        work.add(words[half], odd * base_bytes + half * kChunk * 2);
      work.template see<true>(words, shared + (tiling.masks + odd * B * kPixels * 2 + 16 * t), kPixels * 2, 0);
      numbers.keep(work, 2 * g + odd, 16);
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int k = 0; k <= B; ++k)
          slots[((2 * odd + r) * (1 + B) + k) * kWarp + lane] = work.tops[r][k].top;
    }
    __syncwarp();
    float top[1 + B];
    int at[1 + B] = {};
    const OddSearch<B> search{slots, run, reinterpret_cast<const uint16_t*>(shared) + kPitch, base_bytes / 2, S, mask};
    if constexpr (FULL) {
      search.places(top, at);
    } else {
      uint32_t own[4];
#pragma unroll
      for (int k = 0; k <= B; ++k)
        top[k] = first_of<T>(search.largest(k, own));
    }
    __syncwarp();  // the run has been read
    if (group > 2) copy(place);
    copies_commit();
    const bool again = numbers.write(p, tiling.inverse, tiling.row_bytes, n, c + lane, top, at);
    mend_rows<T>(p, FULL, again, n, c + lane);
    __syncwarp();  // the maxima and the sums have been read
    c += kOddRows, place = kRun - place;
  }
}

template <int B, bool FULL>
void launch_odd(const MomentsPlan& p, cudaStream_t stream) {
  using Shape = Basis<B, FULL>;
  OddTiling tiling{};
  constexpr int least = kWarps * kOddRows;
  tiling.groups = groups_for_a_basis(p.N, p.C / least);
  tiling.blocks = static_cast<int>(p.C / least / tiling.groups);
  tiling.of_blocks = Divider(tiling.blocks);
  tiling.masks = 2 * Shape::all * kPitch * 2;
  tiling.runs = tiling.masks + 2 * B * kPixels * 2;
  tiling.slots = tiling.runs + kWarps * 2 * kRun;
  tiling.row_bytes = static_cast<int>(p.C * sizeof(float));
  tiling.inverse = 1.f / static_cast<float>(p.S);
  tiling.numbers = tiling.slots + kWarps * kOddSlots<B> * 4;
  const size_t bytes = tiling.numbers + kWarps * RowNumbers<B, FULL>::words * 4;
  launch(moments_odd_rows_kernel<B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads, bytes, stream, p, tiling);
}

}  // namespace

bool matrix_moments_odd(cudaStream_t stream, const MomentsPlan& p, bool full) {
  const bool runs = p.x.c == p.S && is_aligned_map<T>(p.x_data, p.x, kVector<T>);
  const bool fits = p.S % 2 == 1 && p.S >= kLeast && p.S <= kMost && p.C <= kMostOffset / p.S;
  if (!fits || p.C % (kWarps * kOddRows) || !runs) return false;
  switch (p.A) {
    case 1: full ? launch_odd<1, true>(p, stream) : launch_odd<1, false>(p, stream); return true;
    case 2: full ? launch_odd<2, true>(p, stream) : launch_odd<2, false>(p, stream); return true;
  }
  return false;
}

}  // namespace axnet::cuda
