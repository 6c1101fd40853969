// masked_moments of bfloat16 in channels_last on the matrix units: the product of masked_moments_matrix.cu across, 8 V
// channels a warp; `parts` warps share the pixels and are added in order. Training: X comes out of a ring, as pairs of
// channels for the maxima and as pairs of pixels for the products; else the pairs of pixels are formed in registers.
#include "cuda/basis.cuh"
#include "cuda/eight.cuh"
#include "cuda/ring.cuh"
#include "cuda/tops.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;

constexpr int kStageBytes = 40 * 1024;
constexpr int kPad = 8;  // numbers between rows of results, for the banks

// channels_last: pairs of channels of a lane, rows of the fragments of the basis.
template <int B, bool FULL>
struct Across {
  static constexpr int words = FULL || B > 3 ? 2 : 4, channels = 2 * words;
  static constexpr int rows = FULL ? 16 : B > 3 ? 48 : 8, tiles = rows > 16 ? rows / 16 : 1;
  static constexpr int maxima = 1 + B, numbers = rows + maxima + (FULL ? maxima : 0);
  // FULL: the rows of X² from the top, those of X from the bottom
  static constexpr int first = 16 - (1 + 2 * B);
  using Ahead = ChannelRing<kMomentsRing>;  // FULL
};

// Of maxima (tops.cuh); rows: the channels of a warp. A chunk has 16 pixels.
struct AcrossSearch {
  static constexpr int rows = 32, words = 2, look = 4, unit = kStep;
  static constexpr bool both = false, scattered = true;
  const T* map;  // at the first channel
  int last;      // the first of the last four channels that there are
  int apart, parts;

  __device__ bool alone() const { return parts == 1; }
  __device__ static int word(int row) { return row % 4 / 2; }
  __device__ static int group(int row) { return row / 4; }
  __device__ static unsigned halves(int row) { return row % 2 ? 0x000f0000u : 0x0000000fu; }
  __device__ const T* x(int row) const { return map + ((row / 4 * 4 < last ? row / 4 * 4 : last) + row % 4); }
  __device__ static int pixel(int t, int, int i) { return 4 * t + i; }
};

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, (B > 3 ? 1 : 2))
    moments_channels_last_matrix_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  using Shape = Basis<B, FULL>;
  using Sums = RowSums<B, FULL>;
  using Plan = Across<B, FULL>;
  constexpr int W = Plan::words, V = Plan::channels, zero = Shape::rows;  // row `rows`: what rounding left out of 1
  AXNET_SHARED(shared);
  if (weigh<T>(p)) return;
  const Shape basis(shared, tiling.pitch, tiling.stage);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = block / tiling.blocks,
            part = warp % tiling.parts;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), A = B > 3 ? p.A : B, step = static_cast<int>(p.x.s);
  const int c0 = block % tiling.blocks * tiling.channels, own = warp / tiling.parts * 8 * V;  // of the warp
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * A * S;
  const int c = c0 + own + g * V;
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + (c < C ? c : C - V);
  constexpr int piece = 2 * kStep;  // pixels that a warp takes in one go
  const int stride = tiling.parts * piece;
  typename Plan::Ahead ahead(shared, tiling.ring + warp * Plan::Ahead::bytes,
                             static_cast<const T*>(p.x_data) + n * p.x.n + c0 + own, step, (C - c0 - own) / 8 - 1,
                             tiling.parts);
  float sum[Plan::tiles][V][4] = {};
  Tops<FULL> tops[W][1 + B];

  // rows of the fragments that this lane holds
  auto row_of = [&](int r) {
    if constexpr (FULL) return r < Shape::rows ? r : r < 2 * Shape::rows - 1 ? r + 1 : zero;
    return Plan::rows == 8 && r >= 8 ? zero : Shape::first_order(r);
  };
  auto row_of_x = [&](int r) { return r < Plan::first ? zero : Shape::first_order(r - Plan::first); };
  int rows[Plan::tiles], rows_of_x = 0;  // where they begin in shared memory
  auto start_of = [&](int row) { return again((row * basis.pitch + lane / 16 * 8) * 2); };
#pragma unroll
  for (int k = 0; k < Plan::tiles; ++k)
    rows[k] = start_of(row_of(16 * k + lane % 16));
  if constexpr (FULL) rows_of_x = start_of(row_of_x(lane % 16));

  const uint32_t further = again(static_cast<uint32_t>(stride) / kStep * 0x10001u);  // chunks to the next piece
  // FULL: 16 pixels from s of the stage on, step u of a piece of the ring
  auto take = [&](int place, int u, int s, uint32_t chunks) {
    uint32_t v[4][W], best[W][1 + B], m[B][4];  // of four pixels
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 channels = ahead.read(place, u, i);
      v[i][0] = channels.x, v[i][1] = channels.y;
    }
#pragma unroll
    for (int j = 0; j < B; ++j)
      load_shared(basis.splat + (s + 4 * t) * B + 4 * j, m[j]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int w = 0; w < W; ++w) {
        best[w][0] = i ? greater_of(best[w][0], v[i][w]) : v[i][w];
#pragma unroll
        for (int a = 0; a < B; ++a) {
          const uint32_t y = product(v[i][w], m[(i * B + a) / 4][(i * B + a) % 4]);
          best[w][1 + a] = i ? greater_of(best[w][1 + a], y) : y;
        }
      }
#pragma unroll
    for (int w = 0; w < W; ++w)
#pragma unroll
      for (int k = 0; k <= B; ++k)
        tops[w][k].see(best[w][k], chunks, k == 0);
    uint32_t a[4], ax[4];
    load_matrices<false>(shared + (rows[0] + 2 * s), a);
    load_matrices<false>(shared + (rows_of_x + 2 * s), ax);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      uint32_t x[4];
      ahead.read_columns(place, u, upper, x);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float (&to)[4] = sum[0][2 * upper + h];
        const uint32_t b0 = x[2 * h], b1 = x[2 * h + 1], high0 = product(b0, b0), high1 = product(b1, b1);
        multiply_add<T>(to, ax, b0, b1);
        multiply_add<T>(to, a, left_out(b0, b0, high0), left_out(b1, b1, high1));
        multiply_add<T>(to, a, high0, high1);
      }
    }
  };
  auto describe = [&](const Bits<T, V>(&bits)[4], int s) {  // not FULL
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int w = 0; w < W; ++w)
        tops[w][0].top = greater_of(tops[w][0].top, bits[i].at[w]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int a = 0; a < B; ++a) {
        const uint32_t m = basis.splat[(s + 4 * t + i) * B + a];
#pragma unroll
        for (int w = 0; w < W; ++w)
          tops[w][1 + a].top = greater_of(tops[w][1 + a].top, product(bits[i].at[w], m));
      }
    uint32_t a[Plan::tiles][4];
#pragma unroll
    for (int k = 0; k < Plan::tiles; ++k)
      load_matrices<false>(shared + (rows[k] + 2 * s), a[k]);
#pragma unroll
    for (int w = 0; w < W; ++w)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t v[4] = {bits[0].at[w], bits[1].at[w], bits[2].at[w], bits[3].at[w]};
        const uint32_t b0 = h ? seconds(v[0], v[1]) : firsts(v[0], v[1]);
        const uint32_t b1 = h ? seconds(v[2], v[3]) : firsts(v[2], v[3]);
#pragma unroll
        for (int k = 0; k < Plan::tiles; ++k)
          multiply_add<T>(sum[k][2 * w + h], a[k], b0, b1);
      }
  };

  int next = part * piece;  // FULL: the warp's next pixel
  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    basis.fill(mask, A, S, s0, tiling.stage, Order::across, [&] {
      if (FULL && s0 == 0) ahead.begin(next, S);
    });
    __syncthreads();
    if constexpr (FULL) {
      uint32_t chunks = static_cast<uint32_t>(next) / kStep * 0x10001u;
      next = ahead.walk(next, s0 + pixels, [&](int place, int s) {
        take(place, 0, s - s0, chunks);
        take(place, 1, s - s0 + kStep, chunks + 0x10001u);
        chunks += further;
      });
      if (next < s0 + pixels) {  // of the last piece, which one part has
        const int place = ahead.rest(next, S);
        take(place, 0, next - s0, chunks);
        if (next + kStep < S) take(place, 1, next - s0 + kStep, chunks + 0x10001u);
      }
    } else {
      int s = part * piece;
      auto many = [&](auto count) {
        constexpr int U = decltype(count)::value;
        const T* from = x + (s0 + s + 4 * t) * step;
        Bits<T, V> bits[U][4];
#pragma unroll
        for (int u = 0; u < U; ++u)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            bits[u][i].load(from + (u * kStep + i) * step);
#pragma unroll
        for (int u = 0; u < U; ++u)
          describe(bits[u], s + u * kStep);
      };
      for (; s + piece <= pixels; s += stride)
        many(std::integral_constant<int, 2>{});
      if (s + kStep <= pixels) {  // of the last piece, which one part has
        many(std::integral_constant<int, 1>{});
        s += kStep;
      }
      if (s < pixels) {
        Bits<T, V> bits[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int pixel = s0 + s + 4 * t + i;
          bits[i].load(x + (pixel < S ? pixel : S - 1) * step);
        }
        describe(bits, s);
      }
    }
  }

  __syncthreads();  // the basis has been read
  const int channels = tiling.channels + kPad;
  float* results = reinterpret_cast<float*>(shared);  // [parts, numbers, channels]
  float* mine = results + part * Plan::numbers * channels + own;
#pragma unroll
  for (int k = 0; k < Plan::tiles; ++k)
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
      for (int i = 0; i < (Plan::rows > 8 ? 4 : 2); ++i)
        mine[(16 * k + g + i / 2 * 8) * channels + (FULL ? 8 * j + 2 * t + i % 2 : (2 * t + i % 2) * V + j)] =
            sum[k][j][i];
  if constexpr (FULL) {
    const T* first = static_cast<const T*>(p.x_data) + n * p.x.n + c0 + own;
    const AcrossSearch search{first, C - V - c0 - own, step, tiling.parts};
    auto* slots = reinterpret_cast<uint32_t*>(results + (tiling.parts * Plan::numbers * channels + 3) / 4 * 4);
    place<AcrossSearch, B>(tops, slots + warp * kSlotWords<AcrossSearch, B>, mask, S, search)
        .each([&](int channel, int k, const Spot& spot) {
          mine[(Plan::rows + k) * channels + channel] = spot.top;
          memcpy(&mine[(Plan::rows + Plan::maxima + k) * channels + channel], &spot.at, sizeof(int));
        });
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        const uint32_t top = tops[j / 2][k].top;
        const float most = largest(j % 2 ? second_of<T>(top) : first_of<T>(top));
        if (t == 0) mine[(Plan::rows + k) * channels + g * V + j] = most;
      }
  }
  __syncthreads();
  for (int r = threadIdx.x; r < (tiling.channels + kThreads - 1) / kThreads * kThreads; r += kThreads) {
    bool again = false;
    if (r < tiling.channels && c0 + r < C) {
      float total[Sums::count], top[1 + B];
      int at[1 + B] = {};
      const float* from = results + r;
      auto add = [&](int row) {
        float v = from[row * channels];
#pragma unroll 1
        for (int w = 1; w < tiling.parts; ++w)
          v += from[(w * Plan::numbers + row) * channels];
        return v;
      };
      constexpr int base = FULL ? Plan::first : 0;
      total[0] = add(base);
#pragma unroll
      for (int a = 0; a < B; ++a)
        total[Sums::t(a)] = add(base + 1 + a) + add(base + 1 + B + a);
      if constexpr (FULL) {
        total[Sums::s2] = add(0);
#pragma unroll
        for (int k = 0; k < B + pairs(B); ++k)
          total[k < B ? Sums::t2(k) : Sums::q2(k - B)] = add(1 + k) + add(Shape::rows + k);
      }
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        top[k] = from[(Plan::rows + k) * channels];
        if constexpr (FULL) memcpy(&at[k], &from[(Plan::rows + Plan::maxima + k) * channels], sizeof(int));
#pragma unroll 1
        for (int w = 1; w < tiling.parts; ++w) {
          const float other = from[(w * Plan::numbers + Plan::rows + k) * channels];
          if constexpr (FULL) {
            int there;
            memcpy(&there, &from[(w * Plan::numbers + Plan::rows + Plan::maxima + k) * channels], sizeof(int));
            at[k] = other > top[k] || (other == top[k] && there < at[k]) ? there : at[k];
          }
          top[k] = fmaxf(top[k], other);
        }
        top[k] = as_held<T>(top[k]);
      }
      again = write_row<T, B, FULL>(p, n, c0 + r, total, top, at);
    }
    mend_rows<T>(p, FULL, again, n, c0 + r);
  }
}

template <int B, bool FULL>
void launch_across(const MomentsPlan& p, cudaStream_t stream) {
  using Shape = Basis<B, FULL>;
  using Plan = Across<B, FULL>;
  Tiling tiling{};
  tiling.stage = Shape::stage(p.S, kStageBytes, true);
  tiling.pitch = Shape::pitch_of(tiling.stage, true);
  tiling.parts = parts_of(p.N * ceil_div(p.C, 8 * Plan::channels), p.S, 8 * kStep);
  tiling.channels = kWarps / tiling.parts * 8 * Plan::channels;
  tiling.blocks = static_cast<int>(ceil_div(p.C, tiling.channels));
  const size_t basis = ring_after(Shape::bytes(tiling.pitch, tiling.stage, true));
  tiling.ring = static_cast<int>(basis);
  const size_t results = (static_cast<size_t>(Plan::numbers * tiling.parts * (tiling.channels + kPad)) +
                          (FULL ? kSlotWords<AcrossSearch, B> * kWarps : 0) + 4) *
                         sizeof(float);
  launch(moments_channels_last_matrix_kernel<B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
         std::max(basis + (FULL ? Plan::Ahead::bytes * kWarps : 0), results), stream, p, tiling);
}

}  // namespace

bool matrix_moments_across(cudaStream_t stream, const MomentsPlan& p, bool full) {
  switch (p.A) {
    case 1: full ? launch_across<1, true>(p, stream) : launch_across<1, false>(p, stream); return true;
    case 2: full ? launch_across<2, true>(p, stream) : launch_across<2, false>(p, stream); return true;
  }
  if (full) return false;
  p.A == 3 ? launch_across<3, false>(p, stream) : launch_across<kMaxAnatomies, false>(p, stream);
  return true;
}

}  // namespace axnet::cuda
