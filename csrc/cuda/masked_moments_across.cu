// masked_moments of bfloat16 in channels_last on the matrix units: the product of masked_moments_matrix.cu across, 8 V
// channels a warp; `parts` warps share the pixels and are added in order. Training: X comes out of a ring, as pairs of
// channels for the maxima and as pairs of pixels for the products; else the pairs of pixels are formed in registers.
#include "cuda/basis.cuh"
#include "cuda/eight.cuh"
#include "cuda/ring.cuh"
#include "cuda/tops_across.cuh"

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

// The largest of four lanes' words, word t of W in lane t; in lanes W and on again.
template <int W>
__device__ inline uint32_t largest_of(const uint32_t (&words)[W], int t) {
  auto other = [](uint32_t v, int lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); };
  uint32_t own[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = words[i], high = words[W - 2 + i];
    own[i] = greater_of(t & 2 ? high : low, other(t & 2 ? low : high, 2));
  }
  return greater_of(t & 1 ? own[1] : own[0], other(t & 1 ? own[0] : own[1], 1));
}

// Four channels from c on: the parts' results are added and written. Bits of those that must be gone over again.
template <int B, bool FULL>
__device__ inline unsigned finish(const MomentsPlan& p, int n, int c, const float* results, int channels, int parts) {
  using Plan = Across<B, FULL>;
  using Four = Vector<float>;
  const int further = Plan::numbers * channels;  // to the next part
  auto read = [&](int row) { return *reinterpret_cast<const Four*>(results + row * channels); };
  auto add = [&](int row) {
    Four v = read(row);
#pragma unroll 1
    for (int w = 1; w < parts; ++w) {
      const Four other = *reinterpret_cast<const Four*>(results + (w * further + row * channels));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        v.at[j] += other.at[j];
    }
    return v;
  };
  auto add_two = [&](int row, int second) {
    const Four v = add(row), other = add(second);
    Four sum;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sum.at[j] = v.at[j] + other.at[j];
    return sum;
  };
  RowsTo<B, FULL> rows(p, n, c);
  constexpr int base = FULL ? Plan::first : 0;
  rows.s1(add(base));
#pragma unroll
  for (int a = 0; a < B; ++a)
    rows.t(a, add_two(base + 1 + a, base + 1 + B + a));
  if constexpr (FULL) {
    rows.s2(add(0));
#pragma unroll
    for (int k = 0; k < B + pairs(B); ++k) {
      const Four v = add_two(1 + k, Basis<B, FULL>::rows + k);
      k < B ? rows.t2(k, v) : rows.q2(k - B, v);
    }
  }
#pragma unroll
  for (int k = 0; k <= B; ++k) {
    Four top = read(Plan::rows + k), at = {};
    if constexpr (FULL) at = read(Plan::rows + Plan::maxima + k);
#pragma unroll 1
    for (int w = 1; w < parts; ++w) {
      const float* from = results + (w * further + (Plan::rows + k) * channels);
      const Four other = *reinterpret_cast<const Four*>(from);
      Four there = {};
      if constexpr (FULL) there = *reinterpret_cast<const Four*>(from + Plan::maxima * channels);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool sooner = __float_as_int(there.at[j]) < __float_as_int(at.at[j]);
        if (FULL && (other.at[j] > top.at[j] || (other.at[j] == top.at[j] && sooner))) at.at[j] = there.at[j];
        top.at[j] = fmaxf(top.at[j], other.at[j]);
      }
    }
#pragma unroll
    for (int j = 0; FULL && j < 4; ++j)
      top.at[j] = as_held<T>(top.at[j]);
    rows.maximum(k, top, at);
  }
  return rows.again();
}

template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, (B > 3 ? 1 : 2))
    moments_channels_last_matrix_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  using Shape = Basis<B, FULL>;
  using Plan = Across<B, FULL>;
  constexpr int W = Plan::words, V = Plan::channels, zero = Shape::rows;  // row `rows`: what rounding left out of 1
  AXNET_SHARED(shared);
  if (weigh<T>(p)) return;
  const Shape basis(shared, tiling.pitch, tiling.stage);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = tiling.of_blocks.quotient(block);
  const int group = warp >> tiling.parts_log, part = warp - (group << tiling.parts_log);
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), A = B > 3 ? p.A : B, step = static_cast<int>(p.x.s);
  int c0 = (block - n * tiling.blocks) * tiling.turns * tiling.channels;
  const int own = group * 8 * V;  // of the warp
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * A * S;
  const int c = c0 + own + g * V;
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + (c < C ? c : C - V);
  constexpr int piece = 2 * kStep;  // pixels that a warp takes in one go
  const int stride = tiling.parts * piece;
  typename Plan::Ahead ahead(shared, tiling.ring + warp * Plan::Ahead::bytes,
                             static_cast<const T*>(p.x_data) + n * p.x.n + c0 + own, step, (C - c0 - own) / 8 - 1,
                             tiling.parts);
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
  // FULL, maps of less than two pieces: the last one is on its way from the start
  const bool early = S < 2 * piece && S % piece != 0;
  auto begin = [&] {
    if constexpr (!FULL) return;
    ahead.begin(part * piece, S);
    if (early) ahead.copy_rest(S / piece * Plan::Ahead::piece_bytes, S / piece * piece, S);
  };
  const int turns = FULL ? tiling.turns : 1;
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    float sum[Plan::tiles][V][4] = {};
    Tops<FULL> tops[W][1 + B];

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
      const uint32_t* masks = basis.splat + (s + 4 * t) * B;
      uint32_t m[B][4];
#pragma unroll
      for (int j = 0; j < (B <= 3 ? B : 0); ++j)
        load_shared(masks + 4 * j, m[j]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int w = 0; w < W; ++w)
          tops[w][0].top = greater_of(tops[w][0].top, bits[i].at[w]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int a = 0; a < B; ++a) {
          const int k = i * B + a;
          const uint32_t both = B <= 3 ? m[k / 4][k % 4] : masks[k];
#pragma unroll
          for (int w = 0; w < W; ++w)
            tops[w][1 + a].top = greater_of(tops[w][1 + a].top, product(bits[i].at[w], both));
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
      if (turn == 0) {
        __syncthreads();
        basis.fill(mask, A, S, s0, tiling.stage, Order::across, [&] {
          if (s0 == 0) begin();
        });
        __syncthreads();
      }
      if constexpr (FULL) {
        uint32_t chunks = static_cast<uint32_t>(next) / kStep * 0x10001u;
        next = ahead.walk(next, s0 + pixels, [&](int place, int s) {
          take(place, 0, s - s0, chunks);
          take(place, 1, s - s0 + kStep, chunks + 0x10001u);
          chunks += further;
        });
        if (next < s0 + pixels) {  // of the last piece, which one part has
          const int place = early ? ahead.came(S / piece * Plan::Ahead::piece_bytes) : ahead.rest(next, S);
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

    if (FULL && turn + 1 < turns) {
      __syncwarp();  // the ring has been read
      ahead.map += 2 * tiling.channels;
      begin();
    }
    __syncthreads();  // the rings have been read, or the results of the turn before
    const int channels = tiling.channels + kPad;
    float* results = reinterpret_cast<float*>(shared + tiling.results);  // [parts, numbers, channels]
    float* mine = results + part * Plan::numbers * channels + own;
#pragma unroll
    for (int k = 0; k < Plan::tiles; ++k)
#pragma unroll
      for (int i = 0; i < (Plan::rows > 8 ? 2 : 1); ++i) {
        float* to = mine + (16 * k + g + 8 * i) * channels;
        if constexpr (FULL) {
#pragma unroll
          for (int j = 0; j < V; ++j)
            *reinterpret_cast<float2*>(to + 8 * j + 2 * t) = float2{sum[k][j][2 * i], sum[k][j][2 * i + 1]};
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int j = 0; j < V; j += 4)
              *reinterpret_cast<float4*>(to + (2 * t + h) * V + j) = float4{
                  sum[k][j][2 * i + h], sum[k][j + 1][2 * i + h], sum[k][j + 2][2 * i + h], sum[k][j + 3][2 * i + h]};
        }
      }
    float* tops_to = mine + Plan::rows * channels;
    if constexpr (FULL) {
      const T* first = static_cast<const T*>(p.x_data) + n * p.x.n + c0 + own;
      const bool one_stage = tiling.stage >= S;
      const AcrossSearch<B> search{first, C - V - c0 - own, mask, basis.splat, S, step, one_stage, tiling.parts == 1};
      auto* slots = reinterpret_cast<uint32_t*>(results + tiling.parts * Plan::numbers * channels);
      Spot spots[1 + B];
      search.run(tops, slots + warp * AcrossSearch<B>::slot_words, spots);
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        tops_to[k * channels + lane] = spots[k].top;
        memcpy(&tops_to[(Plan::maxima + k) * channels + lane], &spots[k].at, sizeof(int));
      }
    } else {
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        uint32_t words[W];
#pragma unroll
        for (int w = 0; w < W; ++w)
          words[w] = tops[w][k].top;
        const uint32_t most = largest_of(words, t);
        if (t < W)
          *reinterpret_cast<float2*>(tops_to + k * channels + g * V + 2 * t) =
              float2{first_of<T>(most), second_of<T>(most)};
      }
    }
    __syncthreads();
    unsigned again = 0;
    const int r = 4 * static_cast<int>(threadIdx.x);
    if (r < tiling.channels && c0 + r < C) again = finish<B, FULL>(p, n, c0 + r, results + r, channels, tiling.parts);
    if (r / (4 * kWarp) * (4 * kWarp) < tiling.channels)
#pragma unroll 1
      for (int j = 0; j < 4; ++j)
        mend_rows<T>(p, FULL, again >> j & 1, n, c0 + r + j);
    c0 += tiling.channels;
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
  while (1 << tiling.parts_log < tiling.parts)
    ++tiling.parts_log;
  const size_t basis = ring_after(Shape::bytes(tiling.pitch, tiling.stage, true));
  const size_t rings = FULL ? Plan::Ahead::bytes * kWarps : 0;
  const size_t results = (static_cast<size_t>(Plan::numbers * tiling.parts * (tiling.channels + kPad)) +
                          (FULL ? AcrossSearch<B>::slot_words * kWarps : 0)) *
                         sizeof(float);
  // Several groups of channels of an image in turn for one basis, while the blocks are many and two of them have room
  // on a multiprocessor, the next copies beside the results; two on each of 132 are 264.
  const int groups = static_cast<int>(ceil_div(p.C, tiling.channels));
  const bool may = FULL && tiling.stage >= p.S && p.C % tiling.channels == 0 && basis + rings + results <= 110 * 1024;
  tiling.turns = 1;
  while (may && tiling.turns < 8 && groups % (2 * tiling.turns) == 0 && p.N * groups / (2 * tiling.turns) >= 248)
    tiling.turns *= 2;
  tiling.blocks = groups / tiling.turns, tiling.of_blocks = Divider(tiling.blocks);
  tiling.ring = static_cast<int>(basis);
  tiling.results = static_cast<int>(tiling.turns > 1 ? basis + rings : basis);
  launch(moments_channels_last_matrix_kernel<B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
         std::max(basis + rings, tiling.results + results), stream, p, tiling);
}

}  // namespace

bool matrix_moments_across_small(cudaStream_t stream, const MomentsPlan& plan);  // masked_moments_across_small.cu

bool matrix_moments_across(cudaStream_t stream, const MomentsPlan& p, bool full) {
  if (full && matrix_moments_across_small(stream, p)) return true;
  switch (p.A) {
    case 1: full ? launch_across<1, true>(p, stream) : launch_across<1, false>(p, stream); return true;
    case 2: full ? launch_across<2, true>(p, stream) : launch_across<2, false>(p, stream); return true;
  }
  if (full) return false;
  p.A == 3 ? launch_across<3, false>(p, stream) : launch_across<kMaxAnatomies, false>(p, stream);
  return true;
}

}  // namespace axnet::cuda
