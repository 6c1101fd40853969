// masked_moments of bfloat16 in NCHW on the matrix units: the sums are products of X (and of X², as two bfloat16) with
// a small basis; the maxima take two elements an instruction (docs/method.md, "Sums on the matrix units"). A warp has
// 16 rows of X, eight pixels of two rows a lane in one go.
#include "cuda/basis.cuh"
#include "cuda/ring.cuh"
#include "cuda/tops.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;

constexpr int kRows = 16;  // of a warp
constexpr int kStageBytes = 40 * 1024;

template <int B>
constexpr bool kAhead = B <= 3;  // more leave no registers

// Of maxima (tops.cuh). A chunk has 32 pixels: a slot's lie in 64 bytes, and memory gives no fewer.
struct RowSearch {
  static constexpr int rows = kRows, words = 2, look = 4, unit = kChunk, apart = 1;
  static constexpr bool both = true, scattered = false;
  const T* map;  // at the first row
  int64_t from_row_to_row;
  int last;

  __device__ static bool alone() { return true; }
  __device__ static int word(int row) { return row / 8; }
  __device__ static int group(int row) { return row % 8; }
  __device__ static unsigned halves(int) { return 0x000f000fu; }
  __device__ const T* x(int row) const { return map + (row < last ? row : last) * from_row_to_row; }
  __device__ static int pixel(int t, int half, int i) { return 2 * t + half + 8 * i; }
};

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_rows_matrix_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  using Shape = Basis<B, FULL>;
  using Sums = RowSums<B, FULL>;
  constexpr int tiles = (2 * B + 8) / 8;  // of 8 columns: 1, m_a, left out of m_a
  constexpr int columns = 8 * tiles + (FULL ? 8 : 0);
  constexpr bool AHEAD = kAhead<B>;
  constexpr Order order = AHEAD ? Order::matrices : Order::rows;
  using Ahead = RowRing<1, kMomentsRing>;
  AXNET_SHARED(shared);
  if (weigh<T>(p)) return;
  const Shape basis(shared, tiling.pitch, tiling.stage);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = block / tiling.blocks;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), A = B > 3 ? p.A : B;
  const int c0 = block % tiling.blocks * tiling.channels + warp * kRows;
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * A * S;
  const T* x[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int c = c0 + 8 * r + g;
    x[r] = static_cast<const T*>(p.x_data) + n * p.x.n + (c < C ? c : C - 1) * p.x.c;
  }
  Ahead ahead(shared, tiling.ring + warp * Ahead::bytes, {static_cast<const T*>(p.x_data) + n * p.x.n + c0 * p.x.c},
              {static_cast<int>(p.x.c)}, C - 1 - c0);
  float sum[tiles][4] = {}, squares[4] = {};
  Tops<FULL> tops[2][1 + B];

  // words: of 32 pixels from s of the stage on, as the products want them: half of them, row i % 2, a pair of pixels
  auto take = [&](const uint32_t (&words)[2][4], int s, const uint16_t* masks, int pitch, uint32_t chunk) {
    uint32_t b[4];
#pragma unroll
    for (int k = 0; k < tiles; ++k) {
      load_shared(basis.row(Shape::first_order(8 * k + g)) + s + 8 * t, b);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        multiply_add<T>(sum[k], words[h], b[2 * h], b[2 * h + 1]);
    }
    if constexpr (FULL) {
      uint32_t left[4];
      const int row = g < Shape::rows ? g : 0;
      load_shared(basis.row(row) + s + 8 * t, b);
      load_shared(basis.row(Shape::rows + row) + s + 8 * t, left);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          high[i] = product(words[h][i], words[h][i]), low[i] = left_out(words[h][i], words[h][i], high[i]);
        multiply_add<T>(squares, high, b[2 * h], b[2 * h + 1]);
        multiply_add<T>(squares, high, left[2 * h], left[2 * h + 1]);
        multiply_add<T>(squares, low, b[2 * h], b[2 * h + 1]);
      }
    }
    auto see = [&](int r, int k, const uint32_t (&v)[4]) {
      tops[r][k].see(greater_of(greater_of(v[0], v[1]), greater_of(v[2], v[3])), chunk, k == 0);
    };
#pragma unroll
    for (int r = 0; r < 2; ++r)
      see(r, 0, {words[0][r], words[0][2 + r], words[1][r], words[1][2 + r]});
#pragma unroll
    for (int a = 0; a < B; ++a) {
      uint32_t m[4];
      load_shared(masks + a * pitch + 8 * t, m);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        see(r, 1 + a,
            {product(words[0][r], m[0]), product(words[0][2 + r], m[1]), product(words[1][r], m[2]),
             product(words[1][2 + r], m[3])});
    }
  };

  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    basis.fill(mask, A, S, s0, tiling.stage, order, [&] {
      if (AHEAD && tiling.ring && s0 == 0) ahead.begin(0, S);
    });
    __syncthreads();
    int s = 0;
    if constexpr (AHEAD)
      if (tiling.ring)
        s = ahead.walk(s0, s0 + pixels, [&](int place, int from) {
          const uint32_t number = static_cast<uint32_t>(from) / kChunk * 0x10001u;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t words[2][4];
#pragma unroll
            for (int h = 0; h < 2; ++h)
              ahead.read(place, 0, 2 * half + h, words[h]);
            const int at = from - s0 + half * kChunk;
            take(words, at, basis.row(1) + at, basis.pitch, number + half * 0x10001u);
          }
        }) - s0;
    auto chunk = [&](const uint32_t (&loaded)[2][4], int at, const uint16_t* masks, int pitch) {
      uint32_t words[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        arrange(loaded[r], r, words);
      take(words, at, masks, pitch, static_cast<uint32_t>(s0 + at) / kChunk * 0x10001u);
    };
    constexpr int flight = AHEAD ? 1 : 2;  // chunks
    auto many = [&](auto count) {
      constexpr int U = decltype(count)::value;
#pragma unroll 1
      for (; s + U * kChunk <= pixels; s += U * kChunk) {
        uint32_t loaded[U][2][4];
#pragma unroll
        for (int u = 0; u < U; ++u)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            load_eight<order>(x[r] + s0, s + u * kChunk, t, tiling.aligned, loaded[u][r]);
#pragma unroll
        for (int u = 0; u < U; ++u)
          chunk(loaded[u], s + u * kChunk, basis.row(1) + s + u * kChunk, basis.pitch);
      }
    };
    if constexpr (flight > 1) many(std::integral_constant<int, flight>{});
    many(std::integral_constant<int, 1>{});
    if (s < pixels) {
      uint32_t loaded[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        load_last<order>(x[r], s0 + s, t, S, loaded[r]);
      chunk(loaded, s, basis.tail, kChunk);
    }
  }

  __syncthreads();  // the basis has been read
  constexpr int numbers = (columns + 2 * (1 + B)) * kRows, slots = FULL ? kSlotWords<RowSearch, B> : 0;
  float* results = reinterpret_cast<float*>(shared) + warp * (numbers + slots);  // [columns, maxima, at; 16], slots
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
#pragma unroll
    for (int k = 0; k < tiles; ++k)
      results[(8 * k + column) * kRows + row] = sum[k][i];
    if constexpr (FULL) results[(8 * tiles + column) * kRows + row] = squares[i];
  }
  auto put = [&](int row, int k, const Spot& spot) {
    results[(columns + k) * kRows + row] = spot.top;
    memcpy(&results[(columns + 1 + B + k) * kRows + row], &spot.at, sizeof(int));
  };
  if constexpr (FULL) {
    const RowSearch search{static_cast<const T*>(p.x_data) + n * p.x.n + c0 * p.x.c, p.x.c, C - 1 - c0};
    place<RowSearch, B>(tops, reinterpret_cast<uint32_t*>(results + numbers), mask, S, search).each(put);
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        const uint32_t top = tops[r][k].top;
        const float most = largest(fmaxf(first_of<T>(top), second_of<T>(top)));
        if (t == 0) put(8 * r + g, k, Spot{most});
      }
  }
  __syncwarp();
  bool again = false;
  const int c = c0 + lane;
  if (lane < kRows && c < C) {
    float total[Sums::count], top[1 + B];
    int at[1 + B];
    const float* row = results + lane;
    total[0] = row[0];
#pragma unroll
    for (int a = 0; a < B; ++a)
      total[Sums::t(a)] = row[(1 + a) * kRows] + row[(1 + B + a) * kRows];
    if constexpr (FULL) {
      const float* square = row + 8 * tiles * kRows;
      total[Sums::s2] = square[0];
#pragma unroll
      for (int a = 0; a < B; ++a)
        total[Sums::t2(a)] = square[(1 + a) * kRows];
#pragma unroll
      for (int ab = 0; ab < pairs(B); ++ab)
        total[Sums::q2(ab)] = square[(1 + B + ab) * kRows];
    }
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      top[k] = as_held<T>(row[(columns + k) * kRows]);
      memcpy(&at[k], &row[(columns + 1 + B + k) * kRows], sizeof(int));
    }
    again = write_row<T, B, FULL>(p, n, c, total, top, at);
  }
  mend_rows<T>(p, FULL, again, n, c);
}

template <int B, bool FULL>
void launch_rows(const MomentsPlan& p, cudaStream_t stream) {
  using Shape = Basis<B, FULL>;
  Tiling tiling{};
  tiling.stage = Shape::stage(p.S, kStageBytes, false);
  tiling.pitch = Shape::pitch_of(tiling.stage, false);
  tiling.channels = kWarps * kRows;
  tiling.blocks = static_cast<int>(ceil_div(p.C, tiling.channels));
  tiling.aligned = is_aligned_map<T>(p.x_data, p.x, p.x.c);
  constexpr int ring = RowRing<1, kMomentsRing>::bytes * kWarps;
  const size_t basis = ring_after(Shape::bytes(tiling.pitch, tiling.stage, false));
  if (kAhead<B> && tiling.aligned && p.S >= RowRing<1, 2>::reach && p.C <= kMostOffset / p.S)
    tiling.ring = static_cast<int>(basis);
  const size_t results = (((2 * B + 8) / 8 * 8 + 8 + 2 * (1 + B)) * kRows + (FULL ? kSlotWords<RowSearch, B> : 0)) *
                         kWarps * sizeof(float);
  launch(moments_rows_matrix_kernel<B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
         std::max(basis + (tiling.ring ? ring : 0), results), stream, p, tiling);
}

}  // namespace

static bool matrix_moments_rows(cudaStream_t stream, const MomentsPlan& p, bool full) {
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
  if (p.S >= most || (p.x.channels_last && !is_vector_map<T>(p.x_data, p.x, p.C, p.S))) return false;
  return p.x.channels_last ? matrix_moments_across(stream, p, full) : matrix_moments_rows(stream, p, full);
}

}  // namespace axnet::cuda
