// masked_moments of bfloat16 in channels_last on the matrix units. `parts` warps share the pixels and are added in
// order. Training: X comes out of a ring, as pairs of channels for the maxima and, turned over, as pairs of pixels of
// 16 rows for the products (row_moments.cuh). Else the product of masked_moments_matrix.cu across, 8 V channels a warp,
// whose pairs of pixels are formed in registers.
#include "cuda/eight.cuh"
#include "cuda/ring.cuh"
#include "cuda/row_moments.cuh"
#include "cuda/tops_across.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;

constexpr int kStageBytes = 40 * 1024;
constexpr int kPad = 8;  // numbers between rows of results, for the banks

// Pairs of channels of a lane; rows of results. Not FULL: rows of the fragments of the basis.
template <int B, bool FULL>
struct Across {
  static constexpr int words = FULL || B > 3 ? 2 : 4, channels = 2 * words;
  static constexpr int rows = FULL ? RowSums<B, FULL>::count : B > 3 ? 48 : 8, tiles = rows > 16 ? rows / 16 : 1;
  static constexpr int maxima = 1 + B, numbers = rows + maxima + (FULL ? maxima : 0);
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
  using Sums = RowSums<B, FULL>;
  rows.s1(add(0));
#pragma unroll
  for (int a = 0; a < B; ++a)
    rows.t(a, FULL ? add(Sums::t(a)) : add_two(1 + a, 1 + B + a));
  if constexpr (FULL) {
    rows.s2(add(Sums::s2));
#pragma unroll
    for (int a = 0; a < B; ++a)
      rows.t2(a, add(Sums::t2(a)));
#pragma unroll
    for (int k = 0; k < pairs(B); ++k)
      rows.q2(k, add(Sums::q2(k)));
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

// Where a warp stands.
struct AcrossPlace {
  int warp, lane, n, group, part, c0, own;  // c0: the block's first channel; own: channels to the warp's first one
  const float* mask;

  template <class Plan>
  __device__ AcrossPlace(const MomentsPlan& p, const Tiling& tiling, int A, Plan, unsigned thread = threadIdx.x)
      : warp(static_cast<int>(thread / kWarp)), lane(static_cast<int>(thread % kWarp)) {
    const int block = static_cast<int>(blockIdx.x) - mass_blocks(p);
    n = tiling.of_blocks.quotient(block);
    group = warp >> tiling.parts_log, part = warp - (group << tiling.parts_log);
    c0 = (block - n * tiling.blocks) * tiling.turns * tiling.channels, own = group * 8 * Plan::channels;
    mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * A * p.S;
  }
};

// What the warps left in shared memory is added, written, and gone over again where it must be.
template <int B, bool FULL>
__device__ inline void finish_all(const MomentsPlan& p, const Tiling& tiling, int n, int c0, const float* results) {
  unsigned again = 0;
  const int r = 4 * static_cast<int>(threadIdx.x);
  if (r < tiling.channels && c0 + r < static_cast<int>(p.C))
    again = finish<B, FULL>(p, n, c0 + r, results + r, tiling.channels + kPad, tiling.parts);
  if (r / (4 * kWarp) * (4 * kWarp) < tiling.channels)
#pragma unroll 1
    for (int j = 0; j < 4; ++j)
      mend_rows<T>(p, FULL, again >> j & 1, n, c0 + r + j);
}

template <int B>
__global__ void __launch_bounds__(kThreads, 2)
    moments_across_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ Tiling tiling) {
  using Shape = Basis<B, true>;
  using Plan = Across<B, true>;
  using Search = AcrossSearch<B>;
  constexpr int W = Plan::words, V = Plan::channels, piece = Plan::Ahead::reach;
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  const Shape basis(shared, tiling.pitch, tiling.stage);
  const AcrossPlace place(p, tiling, B, Plan{});
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), step = static_cast<int>(p.x.s), t = place.lane % 4;
  int c0 = place.c0;
  typename Plan::Ahead ahead(shared, tiling.ring + place.warp * Plan::Ahead::bytes,
                             static_cast<const T*>(p.x_data) + place.n * p.x.n + (c0 + place.own), step,
                             (C - c0 - place.own) / 8 - 1, tiling.parts);
  // chunks to the next piece
  const uint32_t further = again(static_cast<uint32_t>(tiling.parts * piece) / kStep * 0x10001u);
  // maps of less than two pieces: the last one is on its way from the start
  const bool early = S < 2 * piece && S % piece != 0;
  auto before = [&](int of_piece) { return again(S) < piece ? 0 : of_piece; };  // what then lies before it
  auto begin = [&] {
    ahead.begin(place.part * piece, S);
    if (early) ahead.copy_rest(before(Plan::Ahead::piece_bytes), before(piece), S);
  };
  RowWork<B, true, false> first_half(shared, tiling.pitch), second_half = first_half;
#pragma unroll 1
  for (int turn = 0; turn < tiling.turns; ++turn) {
    first_half.begin(), second_half.begin();
    Tops<true> tops[W][1 + B];
    auto take = [&](int at, int s, uint32_t chunk) {  // a piece of the ring, pixels from s of the stage on
      uint32_t best[W][B][2];
      const uint32_t chunks[2] = {chunk, chunk + 0x10001u};
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        uint32_t v[4][W], m[B][4];  // of four pixels
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint2 channels = ahead.read(at, u, i);
          v[i][0] = channels.x, v[i][1] = channels.y;
        }
#pragma unroll
        for (int j = 0; j < B; ++j)
          load_shared(basis.splat + (s + u * kStep + 4 * t) * B + 4 * j, m[j]);
#pragma unroll
        for (int w = 0; w < W; ++w) {
          tops[w][0].see_halves(v[0][w], v[1][w], v[2][w], v[3][w], chunks[u]);
#pragma unroll
          for (int a = 0; a < B; ++a)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const uint32_t y = product(v[i][w], m[(i * B + a) / 4][(i * B + a) % 4]);
              best[w][a][u] = i ? greater_of(best[w][a][u], y) : y;
            }
        }
      }
#pragma unroll
      for (int w = 0; w < W; ++w)
#pragma unroll
        for (int a = 0; a < B; ++a)
          tops[w][1 + a].see_two(best[w][a], chunks);
      const auto parts = first_half.parts(2 * s);
      uint32_t words[2][4];
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        ahead.read_rows(at, 0, upper, words[0]), ahead.read_rows(at, 1, upper, words[1]);
        (upper ? second_half : first_half).add(words, parts);
      }
    };

    int next = place.part * piece;  // the warp's next pixel
    for (int s0 = 0; s0 < S; s0 += tiling.stage) {
      const int end = S - s0 < tiling.stage ? S : s0 + tiling.stage;
      if (turn == 0) {
        __syncthreads();
        basis.fill(
            place.mask, B, S, s0, tiling.stage, Order::fours,
            [&] {
              if (s0 == 0) begin();
            },
            true, again(threadIdx.x), kThreads);
        __syncthreads();
      }
      uint32_t chunk = static_cast<uint32_t>(next) / kStep * 0x10001u;
      next = ahead.walk(next, end, [&](int at, int s) {
        take(at, s - s0, chunk);
        chunk += further;
      });
      if (next < end)  // the last piece, which one part has
        take(early ? ahead.came(before(Plan::Ahead::piece_bytes)) : ahead.rest(next, S), next - s0, chunk);
    }

    if (turn + 1 < tiling.turns) {
      __syncwarp();  // the ring has been read
      ahead.map += 2 * tiling.channels;
      begin();
    }
    __syncthreads();  // the rings have been read, or the results of the turn before
    // nothing is kept for the end
    const AcrossPlace place(p, tiling, B, Plan{}, again(threadIdx.x));
    const int channels = tiling.channels + kPad, lane = place.lane, n = place.n, own = place.own;
    float* results = reinterpret_cast<float*>(shared + tiling.results);  // [parts, numbers, channels]
    float* mine = results + (place.part * Plan::numbers * channels + own);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto& work = upper ? second_half : first_half;
        const int t = lane % 4;
        float* to = mine + (lane / 4 + 16 * upper + 8 * r);
        if (t <= B) to[t * channels] = work.sum[0][2 * r] + work.sum[0][2 * r + 1];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (2 * t + i < Shape::rows) to[(1 + B + 2 * t + i) * channels] = work.squares[2 * r + i];
      }
    const Search search{static_cast<const T*>(p.x_data) + n * p.x.n + (c0 + own),
                        C - V - c0 - own,
                        place.mask,
                        basis.row(1),
                        basis.pitch,
                        S,
                        step,
                        tiling.stage >= S && S % 4 == 0,
                        tiling.parts == 1};
    auto* slots = reinterpret_cast<uint32_t*>(results + tiling.parts * Plan::numbers * channels);
    Spot spots[1 + B];
    search.run(tops, slots + place.warp * Search::slot_words, spots);
    float* tops_to = mine + (Plan::rows * channels + lane);
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      tops_to[k * channels] = spots[k].top;
      memcpy(&tops_to[(Plan::maxima + k) * channels], &spots[k].at, sizeof(int));
    }
    __syncthreads();
    finish_all<B, true>(p, tiling, n, c0, results);
    c0 += tiling.channels;
  }
}

template <int B>
__global__ void __launch_bounds__(kThreads, (B > 3 ? 1 : 2))
    descriptors_across_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  using Shape = Basis<B, false>;
  using Plan = Across<B, false>;
  constexpr int W = Plan::words, V = Plan::channels, zero = Shape::rows;  // row `rows`: what rounding left out of 1
  constexpr int piece = 2 * kStep;                                        // pixels that a warp takes in one go
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), A = B > 3 ? p.A : B, step = static_cast<int>(p.x.s);
  const Shape basis(shared, tiling.pitch, tiling.stage);
  const AcrossPlace place(p, tiling, A, Plan{});
  const int lane = place.lane, g = lane / 4, t = lane % 4, c = place.c0 + place.own + g * V;
  const T* x = static_cast<const T*>(p.x_data) + place.n * p.x.n + (c < C ? c : C - V);
  const int stride = tiling.parts * piece;
  int rows[Plan::tiles];  // of the fragments that this lane holds: where they begin in shared memory
#pragma unroll
  for (int k = 0; k < Plan::tiles; ++k) {
    const int r = 16 * k + lane % 16, row = Plan::rows == 8 && r >= 8 ? zero : Shape::first_order(r);
    rows[k] = again((row * basis.pitch + lane / 16 * 8) * 2);
  }
  float sum[Plan::tiles][V][4] = {};
  Tops<false> tops[W][1 + B];
  auto describe = [&](const Bits<T, V>(&bits)[4], int s) {
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

  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    basis.fill(place.mask, A, S, s0, tiling.stage, Order::across, [] {}, true, threadIdx.x, kThreads);
    __syncthreads();
    int s = place.part * piece;
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
  __syncthreads();  // the basis has been read
  const int channels = tiling.channels + kPad;
  float* results = reinterpret_cast<float*>(shared + tiling.results);  // [parts, numbers, channels]
  float* mine = results + place.part * Plan::numbers * channels + place.own;
#pragma unroll
  for (int k = 0; k < Plan::tiles; ++k)
#pragma unroll
    for (int i = 0; i < (Plan::rows > 8 ? 2 : 1); ++i) {
      float* to = mine + (16 * k + g + 8 * i) * channels;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < V; j += 4)
          *reinterpret_cast<float4*>(to + (2 * t + h) * V + j) = float4{
              sum[k][j][2 * i + h], sum[k][j + 1][2 * i + h], sum[k][j + 2][2 * i + h], sum[k][j + 3][2 * i + h]};
    }
  float* tops_to = mine + Plan::rows * channels;
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
  __syncthreads();
  finish_all<B, false>(p, tiling, place.n, place.c0, results);
}

template <int B, bool FULL>
void launch_across(const MomentsPlan& p, cudaStream_t stream) {
  using Shape = Basis<B, FULL>;
  using Plan = Across<B, FULL>;
  Tiling tiling{};
  tiling.stage = Shape::stage(p.S, kStageBytes, true);
  tiling.pitch = Shape::pitch_of(tiling.stage, !FULL);
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
  auto* kernel = descriptors_across_kernel<B>;
  if constexpr (FULL) kernel = moments_across_kernel<B>;
  launch(kernel, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads, std::max(basis + rings, tiling.results + results),
         stream, p, tiling);
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
