// masked_moments of bfloat16 in NCHW on the matrix units: the sums are products of X (and of X², as two bfloat16) with
// a small basis; the maxima take two elements an instruction (docs/method.md, "Sums on the matrix units"). A warp has
// 16 rows of X, in the order in which they lie in memory: 16 bytes of two rows a lane.
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

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_rows_matrix_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  using Shape = Basis<B, FULL>;
  using Sums = RowSums<B, FULL>;
  constexpr int tiles = (2 * B + 8) / 8;  // of 8 columns: 1, m_a, left out of m_a
  constexpr int columns = 8 * tiles + (FULL ? 8 : 0);
  constexpr bool AHEAD = kAhead<B>;
  using Ahead = RowRing<1, kMomentsRing>;
  AXNET_SHARED(shared);
  if (weigh<T>(p)) return;
  const Shape basis(shared, tiling.pitch, tiling.stage);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int block = static_cast<int>(blockIdx.x - p.N), n = block / tiling.blocks;
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

  // words: 8 pixels of both rows from pixel 8 t of the chunk on, which begins at s of the stage
  auto take = [&](const uint32_t (&words)[2][4], int s, const uint16_t* masks, int pitch, uint32_t chunks) {
    const uint32_t a0[4] = {words[0][0], words[1][0], words[0][1], words[1][1]};
    const uint32_t a1[4] = {words[0][2], words[1][2], words[0][3], words[1][3]};
    uint32_t b[4];
#pragma unroll
    for (int k = 0; k < tiles; ++k) {
      load_shared(basis.row(Shape::first_order(8 * k + g)) + s + 8 * t, b);
      multiply_add<T>(sum[k], a0, b[0], b[1]);
      multiply_add<T>(sum[k], a1, b[2], b[3]);
    }
    if constexpr (FULL) {
      uint32_t high0[4], high1[4], low0[4], low1[4], left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        high0[i] = product(a0[i], a0[i]), low0[i] = left_out(a0[i], a0[i], high0[i]);
        high1[i] = product(a1[i], a1[i]), low1[i] = left_out(a1[i], a1[i], high1[i]);
      }
      const int row = g < Shape::rows ? g : 0;
      load_shared(basis.row(row) + s + 8 * t, b);
      load_shared(basis.row(Shape::rows + row) + s + 8 * t, left);
      multiply_add<T>(squares, high0, b[0], b[1]);
      multiply_add<T>(squares, high1, b[2], b[3]);
      multiply_add<T>(squares, high0, left[0], left[1]);
      multiply_add<T>(squares, high1, left[2], left[3]);
      multiply_add<T>(squares, low0, b[0], b[1]);
      multiply_add<T>(squares, low1, b[2], b[3]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
      tops[r][0].see(greater_of(greater_of(words[r][0], words[r][1]), greater_of(words[r][2], words[r][3])), chunks,
                     true);
#pragma unroll
    for (int a = 0; a < B; ++a) {
      uint32_t m[4];
      load_shared(masks + a * pitch + 8 * t, m);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        tops[r][1 + a].see(greater_of(greater_of(product(words[r][0], m[0]), product(words[r][1], m[1])),
                                      greater_of(product(words[r][2], m[2]), product(words[r][3], m[3]))),
                           chunks, false);
    }
  };

  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    if (AHEAD && tiling.ring) ahead.begin(s0, s0 + pixels);
    __syncthreads();
    basis.fill(mask, A, S, s0, tiling.stage, false);
    __syncthreads();
    auto chunk = [&](const uint32_t (&words)[2][4], int at) {
      take(words, at, basis.row(1) + at, basis.pitch, static_cast<uint32_t>((s0 + at) / kChunk) * 0x10001u);
    };
    int s = 0;
    if constexpr (AHEAD)
      if (tiling.ring)
        s = ahead.walk(s0, s0 + pixels, [&](int place, int from) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t words[2][4];
            ahead.read(place, 0, half, words);
            chunk(words, from - s0 + half * kChunk);
          }
        }) - s0;
    constexpr int flight = AHEAD ? 1 : 2;  // chunks
    auto many = [&](auto count) {
      constexpr int U = decltype(count)::value;
#pragma unroll 1
      for (; s + U * kChunk <= pixels; s += U * kChunk) {
        uint32_t words[U][2][4];
#pragma unroll
        for (int u = 0; u < U; ++u)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            load_eight(x[r] + s0, s + u * kChunk + 8 * t, tiling.aligned, words[u][r]);
#pragma unroll
        for (int u = 0; u < U; ++u)
          chunk(words[u], s + u * kChunk);
      }
    };
    if constexpr (flight > 1) many(std::integral_constant<int, flight>{});
    many(std::integral_constant<int, 1>{});
    if (s < pixels) {
      uint32_t words[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        load_last(x[r], s0 + s + 8 * t, S, words[r]);
      take(words, s, basis.tail, kChunk, static_cast<uint32_t>((s0 + s) / kChunk) * 0x10001u);
    }
  }

  __syncthreads();  // the basis has been read
  float* results =
      reinterpret_cast<float*>(shared) + warp * (columns + 2 * (1 + B)) * kRows;  // [columns, maxima, at; 16]
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
#pragma unroll
    for (int k = 0; k < tiles; ++k)
      results[(8 * k + column) * kRows + row] = sum[k][i];
    if constexpr (FULL) results[(8 * tiles + column) * kRows + row] = squares[i];
  }
  Spot spots[2][1 + B];
  auto half_of = [](uint32_t pair, int h) { return h ? second_of<T>(pair) : first_of<T>(pair); };
  if constexpr (FULL) {
    place<B, 2, 2, kChunk, 2>(
        mask, S, 1,
        [&](int r, int k, int h) {
          const Tops<FULL>& found = tops[r][k];
          return Slot{half_of(found.top, h), static_cast<int>(found.first >> 16 * h & 0xffff),
                      static_cast<int>(found.last >> 16 * h & 0xffff)};
        },
        [&](int r, int of) {
          const int c = c0 + 8 * r + of / 4;
          return static_cast<const T*>(p.x_data) + n * p.x.n + (c < C ? c : C - 1) * p.x.c;
        },
        [](int h, int of) { return of % 4 * 8 + h; }, spots);
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k <= B; ++k)
        spots[r][k].top = largest(fmaxf(half_of(tops[r][k].top, 0), half_of(tops[r][k].top, 1)));
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int k = 0; k <= B; ++k)
      if (t == 0) {
        results[(columns + k) * kRows + 8 * r + g] = spots[r][k].top;
        memcpy(&results[(columns + 1 + B + k) * kRows + 8 * r + g], &spots[r][k].at, sizeof(int));
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
  const size_t results = ((2 * B + 8) / 8 * 8 + 8 + 2 * (1 + B)) * kRows * kWarps * sizeof(float);
  launch(moments_rows_matrix_kernel<B, FULL>, p.N * (1 + tiling.blocks), 1, kThreads,
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
