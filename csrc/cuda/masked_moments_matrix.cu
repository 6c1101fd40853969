// masked_moments of bfloat16 in NCHW on the matrix units: the sums are products of X (and of X², as two bfloat16) with
// a small basis; the maxima take two elements an instruction (docs/method.md, "Sums on the matrix units"). A warp has
// 16 rows of X, in the order in which they lie in memory: 16 bytes of two rows a lane.
#include "cuda/basis.cuh"
#include "cuda/tops.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;

constexpr int kRows = 16;  // of a warp
constexpr int kStageBytes = 40 * 1024;

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_rows_matrix_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  using Shape = Basis<B, FULL>;
  using Sums = RowSums<B, FULL>;
  constexpr int tiles = (2 * B + 8) / 8;  // of 8 columns: 1, m_a, left out of m_a
  constexpr int columns = 8 * tiles + (FULL ? 8 : 0);
  constexpr int flight = FULL || B > 3 ? 2 : 4;  // chunks in flight
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
    __syncthreads();
    basis.fill(mask, A, S, s0, tiling.stage, false);
    __syncthreads();
    const T* from[2] = {x[0] + s0, x[1] + s0};
    auto many = [&](auto count, int s) {
      constexpr int U = decltype(count)::value;
      uint32_t words[U][2][4];
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          load_eight(from[r], s + u * kChunk + 8 * t, tiling.aligned, words[u][r]);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int at = s + u * kChunk;
        take(words[u], at, basis.row(1) + at, basis.pitch, static_cast<uint32_t>((s0 + at) / kChunk) * 0x10001u);
      }
    };
    int s = 0;
    for (; s + flight * kChunk <= pixels; s += flight * kChunk)
      many(std::integral_constant<int, flight>{}, s);
#pragma unroll 1
    for (; s + kChunk <= pixels; s += kChunk)
      many(std::integral_constant<int, 1>{}, s);
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
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      const Tops<FULL>& found = tops[r][k];
      const float one = first_of<T>(found.top), two = second_of<T>(found.top);
      float top = fmaxf(one, two);
      int low = 0, high = 0;
      if constexpr (FULL) {
        const uint32_t last = k ? found.last : found.first;
        const int none = std::numeric_limits<int>::max();
        const int low1 = one == top ? static_cast<int>(found.first & 0xffff) : none;
        const int low2 = two == top ? static_cast<int>(found.first >> 16) : none;
        const int high1 = one == top ? static_cast<int>(last & 0xffff) : -1;
        const int high2 = two == top ? static_cast<int>(last >> 16) : -1;
        low = low1 < low2 ? low1 : low2, high = high1 > high2 ? high1 : high2;
      }
      agree(top, low, high);
      int at = 0;
      if constexpr (FULL)
        place<8>(
            k ? mask + (k - 1) * S : nullptr, S, low,
            k && top != 0 ? high
            : low < high  ? low
                          : high,
            1, [&](int chunk) { return chunk * kChunk + 8 * t; },
            [&](auto whole, int s, float (&v)[8]) {
              uint32_t words[4];
              if (decltype(whole)::value) load_eight(x[r], s, tiling.aligned, words);
              else load_last(x[r], s, S, words);
#pragma unroll
              for (int w = 0; w < 4; ++w)
                v[2 * w] = first_of<T>(words[w]), v[2 * w + 1] = second_of<T>(words[w]);
            },
            top, at);
      if (t == 0) {
        results[(columns + k) * kRows + 8 * r + g] = top;
        memcpy(&results[(columns + 1 + B + k) * kRows + 8 * r + g], &at, sizeof(int));
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
  const size_t results = ((2 * B + 8) / 8 * 8 + 8 + 2 * (1 + B)) * kRows * kWarps * sizeof(float);
  launch(moments_rows_matrix_kernel<B, FULL>, p.N * (1 + tiling.blocks), 1, kThreads,
         std::max(Shape::bytes(tiling.pitch, tiling.stage, false), results), stream, p, tiling);
}

}  // namespace

static bool matrix_moments_rows(const Queue& queue, const MomentsPlan& p, bool full) {
  const cudaStream_t stream = queue.stream();
  switch (p.A) {
    case 1: full ? launch_rows<1, true>(p, stream) : launch_rows<1, false>(p, stream); return true;
    case 2: full ? launch_rows<2, true>(p, stream) : launch_rows<2, false>(p, stream); return true;
  }
  if (full) return false;
  p.A == 3 ? launch_rows<3, false>(p, stream) : launch_rows<kMaxAnatomies, false>(p, stream);
  return true;
}

bool matrix_moments(const Queue& queue, const MomentsPlan& p, bool full) {
  constexpr int64_t most = int64_t{kStep} << 16;  // chunks are counted in 16 bits
  if (p.S >= most || (p.x.channels_last && !is_vector_map<T>(p.x_data, p.x, p.C, p.S))) return false;
  return p.x.channels_last ? matrix_moments_across(queue, p, full) : matrix_moments_rows(queue, p, full);
}

}  // namespace axnet::cuda
