// masked_moments of bfloat16 in NCHW on the matrix units: the sums are products of X (and of X², as two bfloat16) with
// a small basis; the maxima take two elements an instruction (docs/method.md, "Sums on the matrix units"). A warp has
// 16 rows of X. Maps of 7 x 7 pixels: masked_moments_odd.cu.
#include "cuda/ring.cuh"
#include "cuda/row_moments.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;
using Ahead = RowRing<1, kMomentsRing>;

constexpr int kStageBytes = 40 * 1024;

template <int B>
constexpr bool kAhead = B <= 3;  // more leave no registers

struct RowTiling : Tiling {
  Divider of_blocks{1};
  int groups, together;  // of 16 rows, which a warp takes one after the other; whose maxima are placed together
  int slots;             // where the warps' maxima begin in shared memory, of whole maps
  int row_bytes;         // from a row of numbers by channel to the next
  float inverse;         // 1 / S
};

// Of maxima (tops.cuh). A chunk has 32 pixels: a slot's lie in 64 bytes, and memory gives no fewer.
struct RowSearch {
  static constexpr int rows = kRows, words = 2, look = 4, unit = kChunk;
  const T* map;  // at the first row
  int64_t from_row_to_row;
  int last;

  __device__ static int word(int row) { return row / 8; }
  __device__ static int group(int row) { return row % 8; }
  __device__ const T* x(int row) const { return map + (row < last ? row : last) * from_row_to_row; }
  __device__ static int pixel(int t, int half, int i) { return 2 * t + half + 8 * i; }
};

// Where a warp stands.
struct RowPlace {
  int n, warp, lane, c0;  // c0: its first channel
  const T* image;
  const float* mask;

  __device__ RowPlace(const MomentsPlan& p, const RowTiling& tiling, int A)
      : warp(threadIdx.x / kWarp), lane(threadIdx.x % kWarp) {
    const int block = static_cast<int>(blockIdx.x) - mass_blocks(p);
    n = tiling.of_blocks.quotient(block);
    c0 = (block - n * tiling.blocks) * tiling.channels + warp * kRows * tiling.groups;
    image = static_cast<const T*>(p.x_data) + n * p.x.n;
    mask = row_at(static_cast<const float*>(p.mask), n * A, 4 * static_cast<int>(p.S));
  }
};

// Maps of whole units of pixels whose basis is one stage: it serves several groups of rows.
template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_whole_rows_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ RowTiling tiling) {
  using Search = UnitSearch<B>;
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  const RowPlace place(p, tiling, B);
  const Basis<B, FULL> basis(shared, tiling.pitch, tiling.stage);
  const int S = static_cast<int>(p.S), step = static_cast<int>(p.x.c);
  Ahead ahead(shared, tiling.ring + place.warp * Ahead::bytes, {place.image + place.c0 * p.x.c}, {step}, kRows);
  basis.fill(place.mask, B, S, 0, tiling.stage, Order::matrices, [&] { ahead.begin_runs(S, tiling.groups - 1); });
  __syncthreads();
  RowWork<B, FULL> work(shared, tiling.pitch);
  [[maybe_unused]] unsigned mend = 0;  // rows that are to be gone over again
  int c = place.c0, odd = 0;
#pragma unroll 1
  for (int group = tiling.groups; group > 0; --group) {
    work.begin();
    ahead.walk_run(S, [&](int piece, int s) {
      uint32_t words[2][2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ahead.read(piece, 0, i, words[i / 2][i % 2]);
      work.add(words[0], 2 * s);
      work.add(words[1], 2 * (s + kChunk));
      work.see(words, shared + (work.masks + 2 * s), work.pitch, s / Search::unit);
    });
    const unsigned wrong =
        wrong_rows(write_sums<true>(p, tiling.inverse, tiling.row_bytes, place.n, c + place.lane / 4, work));
    if constexpr (FULL) {
      const Search search(shared + tiling.slots, tiling.together, p, place.mask, basis);
      mend |= wrong << odd * kRows;
      search.keep(work.tops, odd * kRows);
      odd ^= tiling.together - 1;
      if (!odd) {
        const int rows = tiling.together * kRows, first = c - rows + kRows, at = first + place.lane;
        float* to = row_at(static_cast<float*>(p.descriptors), place.n * (2 + 2 * B) + 1, tiling.row_bytes) + at;
        int32_t* places = row_at(p.argmax, place.n * (1 + B), tiling.row_bytes) + at;
        __syncwarp();
        search.places(place.image + first * p.x.c, rows, [&](int k, float top, int pixel) {
          if (place.lane < rows) *row_at(to, k > 0 ? B + k : 0, tiling.row_bytes) = top;
          if (place.lane < rows && p.argmax) *row_at(places, k, tiling.row_bytes) = pixel;
        });
        __syncwarp();  // they have been read
        if (mend) mend_rows<T>(p, true, mend >> place.lane & 1, place.n, at);
        mend = 0;
      }
    } else {
      write_tops<true, B>(p, tiling.row_bytes, place.n, c + place.lane / 4, work.tops);
      if (wrong) mend_rows<T>(p, false, place.lane < kRows && wrong >> place.lane & 1, place.n, c + place.lane);
    }
    c += kRows;
  }
}

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_rows_matrix_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ RowTiling tiling) {
  constexpr bool AHEAD = kAhead<B>;
  constexpr Order order = AHEAD ? Order::matrices : Order::rows;
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), A = B > 3 ? p.A : B;
  const RowPlace place(p, tiling, A);
  const Basis<B, FULL> basis(shared, tiling.pitch, tiling.stage);
  const int c0 = place.c0, lane = place.lane, t = lane % 4;
  Ahead ahead(shared, tiling.ring + place.warp * Ahead::bytes, {place.image + c0 * p.x.c}, {static_cast<int>(p.x.c)},
              C - 1 - c0);
  const T* x[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int c = c0 + 8 * r + lane / 4;
    x[r] = place.image + (c < C ? c : C - 1) * p.x.c;
  }
  RowWork<B, FULL> work(shared, tiling.pitch);
  work.begin();
  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    basis.fill(place.mask, A, S, s0, tiling.stage, order, [&] {
      if (AHEAD && tiling.ring && s0 == 0) ahead.begin(0, S);
    });
    __syncthreads();
    int s = 0;
    if constexpr (AHEAD)
      if (tiling.ring)
        s = ahead.walk(s0, s0 + pixels, [&](int piece, int from) {
          uint32_t words[2][2][4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            ahead.read(piece, 0, i, words[i / 2][i % 2]);
          const int at = 2 * (from - s0);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            work.add(words[half], at + half * 2 * kChunk);
            work.see(words[half], shared + (work.masks + at + half * 2 * kChunk), work.pitch, from / kChunk + half);
          }
        }) - s0;
    auto chunk = [&](const uint32_t (&loaded)[2][4], int at, const unsigned char* masks, int apart) {
      uint32_t words[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        arrange(loaded[r], r, words);
      work.add(words, 2 * at);
      work.see(words, masks, apart, (s0 + at) / kChunk);
    };
#pragma unroll 1
    for (; s + kChunk <= pixels; s += kChunk) {
      uint32_t loaded[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        load_eight<order>(x[r] + s0, s, t, tiling.aligned, loaded[r]);
      chunk(loaded, s, shared + (work.masks + 2 * s), work.pitch);
    }
    if (s < pixels) {
      uint32_t loaded[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        load_last<order>(x[r], s0 + s, t, S, loaded[r]);
      chunk(loaded, s, reinterpret_cast<const unsigned char*>(basis.tail + 8 * t), 2 * kChunk);
    }
  }

  const unsigned wrong =
      wrong_rows(write_sums<false>(p, tiling.inverse, tiling.row_bytes, place.n, c0 + lane / 4, work));
  const int rows = C - c0 < kRows ? C - c0 : kRows;
  if constexpr (FULL) {
    __syncthreads();  // the basis has been read
    if (rows <= 0) return;
    const RowSearch search{place.image + c0 * p.x.c, p.x.c, rows - 1};
    auto* slots = reinterpret_cast<uint32_t*>(shared) + place.warp * kSlotWords<RowSearch, B>;
    float* to = row_at(static_cast<float*>(p.descriptors), place.n * (2 + 2 * B) + 1, tiling.row_bytes) + c0;
    int32_t* places = row_at(p.argmax, place.n * (1 + B), tiling.row_bytes) + c0;
    cuda::place<RowSearch, B>(work.tops, slots, place.mask, S, search).each([&](int row, int k, const Spot& spot) {
      if (row >= rows) return;
      row_at(to, k > 0 ? B + k : 0, tiling.row_bytes)[row] = as_held<T>(spot.top);
      if (p.argmax) row_at(places, k, tiling.row_bytes)[row] = spot.at;
    });
  } else {
    write_tops<false, B>(p, tiling.row_bytes, place.n, c0 + lane / 4, work.tops);
  }
  if (wrong) mend_rows<T>(p, FULL, lane < rows && wrong >> lane & 1, place.n, c0 + lane);
}

constexpr size_t kMostShared = 99 * 1024;  // of a block, of most GPUs

template <int B, bool FULL>
void launch_rows(const MomentsPlan& p, cudaStream_t stream) {
  using Shape = Basis<B, FULL>;
  RowTiling tiling{};
  tiling.stage = Shape::stage(p.S, kStageBytes, false);
  tiling.pitch = Shape::pitch_of(tiling.stage, false);
  tiling.aligned = is_aligned_map<T>(p.x_data, p.x, p.x.c);
  tiling.row_bytes = static_cast<int>(p.C * sizeof(float));
  tiling.inverse = 1.f / static_cast<float>(p.S);
  const size_t basis = ring_after(Shape::bytes(tiling.pitch, tiling.stage, false));
  if (kAhead<B> && tiling.aligned && p.S >= Ahead::reach && p.C <= kMostOffset / p.S)
    tiling.ring = static_cast<int>(basis);
  const size_t slots = FULL ? UnitSearch<B>::words * kWarps * sizeof(uint32_t) : 0;
  const size_t ahead = basis + (tiling.ring ? Ahead::bytes * kWarps : 0);
  constexpr int least = kWarps * kRows;
  tiling.groups = tiling.together = 1;
  const bool whole =
      tiling.ring && p.S % Ahead::reach == 0 && tiling.stage >= p.S && p.C % least == 0 && ahead + slots <= kMostShared;
  if (whole) {
    if (p.S >= 2 * Ahead::reach) tiling.groups = groups_for_a_basis(p.N, p.C / least);
    tiling.together = tiling.groups % 2 == 0 && ahead + 2 * slots <= kMostShared ? 2 : 1;
    tiling.slots = static_cast<int>(ahead);
  }
  tiling.channels = least * tiling.groups;
  tiling.blocks = static_cast<int>(ceil_div(p.C, tiling.channels));
  tiling.of_blocks = Divider(tiling.blocks);
  auto* kernel = moments_rows_matrix_kernel<B, FULL>;
  if constexpr (kAhead<B>)
    if (whole) kernel = moments_whole_rows_kernel<B, FULL>;
  launch(kernel, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
         whole ? ahead + tiling.together * slots
               : std::max(ahead, FULL ? kSlotWords<RowSearch, B> * kWarps * sizeof(uint32_t) : 0),
         stream, p, tiling);
}

}  // namespace

bool matrix_moments_odd(cudaStream_t stream, const MomentsPlan& plan, bool full);    // masked_moments_odd.cu
bool matrix_moments_small(cudaStream_t stream, const MomentsPlan& plan, bool full);  // masked_moments_small.cu

static bool matrix_moments_rows(cudaStream_t stream, const MomentsPlan& p, bool full) {
  if (matrix_moments_odd(stream, p, full) || matrix_moments_small(stream, p, full)) return true;
  switch (p.A) {
    case 1: full ? launch_rows<1, true>(p, stream) : launch_rows<1, false>(p, stream); return true;
    case 2: full ? launch_rows<2, true>(p, stream) : launch_rows<2, false>(p, stream); return true;
  }
  if (full) return false;
  p.A == 3 ? launch_rows<3, false>(p, stream) : launch_rows<kMaxAnatomies, false>(p, stream);
  return true;
}

bool matrix_moments(cudaStream_t stream, const MomentsPlan& p, bool full) {
  constexpr int64_t most = int64_t{kStep} << 16;  // chunks are counted in 16 bits
  if (p.S >= most || p.C > kMostOffset / static_cast<int64_t>(sizeof(float))) return false;
  if (p.x.channels_last && !is_vector_map<T>(p.x_data, p.x, p.C, p.S)) return false;
  return p.x.channels_last ? matrix_moments_across(stream, p, full) : matrix_moments_rows(stream, p, full);
}

}  // namespace axnet::cuda
