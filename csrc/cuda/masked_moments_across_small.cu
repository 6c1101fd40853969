// masked_moments of bfloat16 in channels_last on the matrix units, in training, of maps that lie in shared memory as a
// whole: up to 56 pixels, and 256. A warp takes 16 channels after 16 others for one basis. The matrix units get them
// turned over, so that a lane has pairs of pixels, as in NCHW (row_moments.cuh); places of maxima are looked up where X
// lies, and results leave in 16 bytes.
#include "cuda/small_map.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

using T = BFloat16;

struct SmallTiling {
  Divider of_blocks{1};
  int blocks, sets;          // of an image; of channels, which a warp takes one after the other
  int beside, on;            // channels from a warp's first to the next one's; from its first set to the next
  int masks, apart;          // bytes: where those of the maxima begin, behind a row of ones; from each to the next
  int ring, slots, results;  // bytes: where they begin
  int row_bytes;             // from a row of numbers by channel to the next
  float inverse, far;        // 1 / S; times the square of a channel's sum: how large its sum of squares must be
};

// Where a lane puts sums: four channels of two rows, whose sources stand in shared memory.
template <int B, class Plan>
struct SmallRows {
  float *to[2], scale = 0;  // of the second
  int from[2];              // bytes

  // Rows by number, eight and eight: squares and sums; what is left of these, means, zeros.
  struct Tables {
    uint32_t to[2] = {}, from[2] = {}, plain = 0, means = 0;  // nibbles of eight rows; bits
  };
  static constexpr Tables tables() {
    Tables all;
    constexpr int Q = Plan::squares;
    int row = 0;
    auto put = [&](int to, int from) {
      all.to[row / 8] |= static_cast<uint32_t>(to) << 4 * (row % 8);
      all.from[row / 8] |= static_cast<uint32_t>(from) << 4 * (row % 8);
      ++row;
    };
    for (int q = 0; q < Q; ++q)
      all.plain |= 1u << row, put(q == 0 ? 2 : q <= B ? 2 + B + q : 2 + B + pairs(B) + q, q);
    for (int q = 0; q <= B; ++q)
      all.plain |= 1u << row, put(q == 0 ? 1 : 2 + q, Q + q);
    while (row < 8)
      put(2, 0);  // as the first row
    for (int q = 0; q <= B; ++q)
      all.means |= 1u << row, put(q == 0 ? 0 : 1 + q, Q + q);
    put(0, 0);
    for (int q = 0; q < pairs(B); ++q)
      put(3 + 2 * B + q, 0);
    while (row < 16)
      put(0, 0);
    return all;
  }

  __device__ SmallRows(const MomentsPlan& p, const SmallTiling& tiling, int n, int c, int results) {
    constexpr Tables all = tables();
    const int lane = threadIdx.x % kWarp, j = lane / 4;
#pragma unroll
    for (int round = 0; round < 2; ++round) {
      const bool mean = all.means >> 8 * round && all.means >> (8 * round + j) & 1;
      auto* base = static_cast<float*>(mean ? p.descriptors : p.moments);
      const int its = n * (mean ? 2 + 2 * B : moment_rows(B)) + static_cast<int>(all.to[round] >> 4 * j & 15);
      to[round] = row_at(base, its, tiling.row_bytes) + (c + lane % 4 * 4);
      from[round] = results + static_cast<int>((all.from[round] >> 4 * j & 15) * kResultPitch + lane % 4 * 4) * 4;
      if (round == 1) scale = mean ? tiling.inverse : all.plain >> (8 + j) & 1 ? 1.f : 0.f;
    }
  }
  __device__ void write(const unsigned char* shared, int further) {
#pragma unroll
    for (int round = 0; round < 2; ++round) {
      Vector<float> v = *reinterpret_cast<const Vector<float>*>(shared + from[round]);
#pragma unroll
      for (int j = 0; round == 1 && j < 4; ++j)
        v.at[j] = fmaf(v.at[j], scale, 0.f);  // zeros have one sign
      store_vector(to[round], v), to[round] += further;
    }
  }
};

// All but the last `pending` pieces that were asked for are there.
__device__ inline void wait_for_others(int pending) {
  if (pending == 4) copies_wait<4>();
  else if (pending == 3) copies_wait<3>();
  else copies_wait(pending);
  __syncwarp();
}

template <int B, int PIXELS>
__global__ void __launch_bounds__(kThreads, 2)
    moments_small_across_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ SmallTiling tiling) {
  using Plan = Small<B, PIXELS>;
  using Search = SmallSearch<Plan>;
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, row = lane % kRows;
  const int S = static_cast<int>(p.S), block = static_cast<int>(blockIdx.x) - mass_blocks(p);
  const int n = tiling.of_blocks.quotient(block);
  const int c = (block - n * tiling.blocks) * tiling.sets * Plan::step + warp * tiling.beside;
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * (B * S);
  PieceRing<Plan> ring(shared, tiling.ring + warp * (Plan::all_pieces * Plan::piece),
                       static_cast<const T*>(p.x_data) + n * p.x.n + c, static_cast<int>(p.x.s), S);
  // Two sets of a warp stand side by side, if they can: a channel's neighbours are in the cache soon after.
  int left = tiling.sets, on = Plan::whole ? tiling.on : Plan::step;
  const Basis<B, true> basis(shared, tiling.apart / 2, Plan::stage);
  basis.template fill<Plan::whole ? 1 : 2>(
      mask, B, S, 0, Plan::stage, Order::matrices, [&] { ring.template copy<0, Plan::all_pieces>(0, left, on); },
      false);
  if (!Plan::whole)
    for (int i = threadIdx.x; i < Plan::kinds * Plan::stage; i += kThreads) {
      const int k = i / Plan::stage, s = i % Plan::stage;
      const uint32_t bits = pair_of<T>(k > 0 ? mask[(k - 1) * S + there(s, S)] : 1.f, 0.f);
      auto* to = shared + (tiling.masks + k * tiling.apart + place_of(s, Order::matrices) * 2);
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(bits);
    }
  __syncthreads();

  RowWork<B, true, false> work(shared, tiling.apart / 2);
  const int masks = again(tiling.masks + 16 * t), results_at = tiling.results + warp * Plan::result_words * 4;
  auto* slots = reinterpret_cast<uint32_t*>(shared + tiling.slots) + warp * Plan::slot_words;
  auto* results = reinterpret_cast<float*>(shared + results_at);
  SmallRows<B, Plan> rows(p, tiling, n, c, results_at);
  const int row_bytes = tiling.row_bytes;
  const int channel = c + lane % Plan::own;
  float* tops = row_at(static_cast<float*>(p.descriptors), n * (2 + 2 * B) + 1, row_bytes) + channel;
  int32_t* places = row_at(p.argmax, n * Plan::kinds, row_bytes) + channel;
  auto channel_at = [&](int row) { return ring.at + row / 8 * 16 + row % 8 * 2; };  // bytes, in a piece
  const Search search{shared, S, again(channel_at(row))};
  int start = 0;
#pragma unroll 1
  for (int from = c; left > 0; --left) {
    unsigned mend = 0;  // channels that are to be gone over again
    auto put_sums = [&](int group) {
      unsigned wrong = 0;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        // not finite, or far from zero
        const float sum = work.sum[0][2 * r] + work.sum[0][2 * r + 1];
        const float less = t == 0 ? sum * sum * tiling.far : sum - sum, more = t == 0 ? work.squares[2 * r] : 0.f;
        wrong |= less <= more ? 0u : 1u << r;
        if (t <= B) results[(Plan::squares + t) * kResultPitch + g + 8 * r] = sum;
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (2 * t + i < Plan::squares) results[(2 * t + i) * kResultPitch + g + 8 * r] = work.squares[2 * r + i];
      }
      __syncwarp();
      rows.write(shared, group + 1 < Plan::groups ? kRows : on - group * kRows);
      mend |= wrong_rows(wrong) << group * kRows;
    };
#pragma unroll
    for (int group = 0; group < Plan::groups; ++group) {
      work.begin();
      uint32_t best[2][Plan::kinds];
#pragma unroll
      for (int u = 0; u < Plan::units; ++u) {
        const int k = group * Plan::units + u, place = ring.place(start, k);
        wait_for_others(Plan::all_pieces - 1 - k);
        uint32_t words[2][2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ring.read(place, i, words[i / 2][i % 2]);
        if (Plan::eights < 8) words[1][1][2] = words[1][1][0], words[1][1][3] = words[1][1][1];
#pragma unroll
        for (int kind = 0; kind < Plan::kinds; ++kind) {
          uint32_t m[2][4];
#pragma unroll
          for (int half = 0; half < 2; ++half)
            if (kind > 0) load_shared(shared + (masks + kind * tiling.apart) + (u * 2 + half) * 2 * kChunk, m[half]);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int i = 0; i < Plan::eights; ++i) {
              const uint32_t v = words[i / 4][i / 2 % 2][i % 2 * 2 + r];
              const uint32_t y = kind > 0 ? product(v, m[i / 4][i % 4]) : v;
              best[r][kind] = u % Plan::of_span + i > 0 ? greater_of(best[r][kind], y) : y;
            }
            if ((u + 1) % Plan::of_span == 0)
              slots[(((group * Plan::spans + u / Plan::of_span) * Plan::kinds + kind) * 2 + r) * kWarp + lane] =
                  best[r][kind];
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
          work.add(words[half], (u * 2 + half) * 2 * kChunk);
      }
      if (Plan::groups > 1) put_sums(group);
    }
    __syncwarp();  // the maxima are there
    auto put = [&](int k, uint32_t most, int pixel) {
      *row_at(tops, k > 0 ? B + k : 0, row_bytes) = first_of<T>(most);
      *row_at(places, k, row_bytes) = pixel;
    };
    if constexpr (Plan::whole) {  // lanes have both spans of a channel, two kinds; then a span of a channel
      constexpr int span_words = Plan::kinds * 2 * kWarp;
      const uint32_t* own = slots + row / 8 * kWarp + row % 8 * 4;
      const int upper = lane / kRows;
      uint32_t top[2][4];
      {
        const int k = B > 1 ? 1 + upper : 1;
        load_shared(own + k * 2 * kWarp, top[0]);
        load_shared(own + span_words + k * 2 * kWarp, top[1]);
        const uint32_t most = Search::of_halves(greater_of(Search::largest(top[0]), Search::largest(top[1])));
        const unsigned open = Search::open(top[0], most) | Search::open(top[1], most) << 8;
        bool tied;
        int pixel = search.template place<true, 2>(open, most, start, 0, tiling.masks + k * tiling.apart, tied);
        Search::settle(tied, pixel, [&](int its) {
          const int k = B > 1 ? 1 + its / kRows : 1;
          return search.exact_place(channel_at(its % kRows), start, tiling.masks + k * tiling.apart);
        });
        put(k, most, pixel);
      }
      load_shared(own + upper * span_words, top[0]);
      const uint32_t mine = Search::of_halves(Search::largest(top[0]));
      const uint32_t most = greater_of(mine, __shfl_xor_sync(0xffffffffu, mine, kRows));
      const unsigned open = Search::open(top[0], most);
      bool tied;
      int pixel = search.template place<false, 1>(open, most, upper ? ring.place(0, 2) : start, upper, 0, tied);
      Search::settle(tied, pixel,
                     [&](int its) { return search.exact_place(channel_at(its % kRows), start, tiling.masks); });
      if (!open) pixel = S;
      const int other = __shfl_xor_sync(0xffffffffu, pixel, kRows);
      if (!upper) put(0, most, other < pixel ? other : pixel);
    } else {  // a lane has a channel
      const uint32_t* own = slots + lane / kRows * (Plan::kinds * 2 * kWarp) + row / 8 * kWarp + row % 8 * 4;
      const int its = ring.place(start, lane / kRows);
#pragma unroll
      for (int k = 0; k < Plan::kinds; ++k) {
        uint32_t top[4];
        load_shared(own + k * 2 * kWarp, top);
        const uint32_t most = Search::of_halves(Search::largest(top));
        const unsigned open = Search::open(top, most);
        const int m = tiling.masks + k * tiling.apart;
        bool tied;
        int pixel = k > 0 ? search.template place<true, 1>(open, most, its, 0, m, tied)
                          : search.template place<false, 1>(open, most, its, 0, m, tied);
        Search::settle(tied, pixel, [&](int its) {
          return search.exact_place(channel_at(its % kRows), ring.place(start, its / kRows), m);
        });
        put(k, most, pixel);
      }
    }
    tops += on, places += on;
    __syncwarp();  // X and the maxima have been read
    ring.template copy<Plan::all_pieces, Plan::pieces>(start, left, on);
    start = ring.other(start);
    ring.map += 2 * on;
    if (Plan::groups == 1) put_sums(0);
    __syncwarp();  // the results have been read
    if (mend) mend_rows<T>(p, true, mend >> lane & 1, n, from + lane);
    from += on;
    if (Plan::whole) on = 2 * Plan::step - on;
  }
}

template <int B, int PIXELS>
bool launch_small(const MomentsPlan& p, cudaStream_t stream) {
  using Plan = Small<B, PIXELS>;
  if (p.C % Plan::step) return false;
  SmallTiling tiling{};
  tiling.sets = groups_for_a_basis(p.N, p.C / Plan::step);
  tiling.blocks = static_cast<int>(p.C / Plan::step / tiling.sets);
  tiling.of_blocks = Divider(tiling.blocks);
  const bool two = Plan::whole && tiling.sets % 2 == 0;
  tiling.beside = two ? 2 * Plan::own : Plan::own, tiling.on = two ? Plan::own : Plan::step;
  tiling.apart = (Plan::stage + 32) * 2;
  const int basis = Plan::squares * 2 * tiling.apart;
  tiling.masks = Plan::whole ? 0 : basis;
  tiling.ring = Plan::whole ? basis : basis + Plan::kinds * tiling.apart;
  tiling.slots = tiling.ring + kWarps * Plan::all_pieces * Plan::piece;
  const int behind = tiling.slots + kWarps * Plan::slot_words * 4;
  tiling.results = Plan::whole ? tiling.slots : behind;
  tiling.row_bytes = static_cast<int>(p.C * sizeof(float));
  tiling.inverse = 1.f / static_cast<float>(p.S);
  tiling.far = static_cast<float>((1 + 1 / kFar) / static_cast<double>(p.S));
  launch(moments_small_across_kernel<B, PIXELS>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
         Plan::whole ? behind : behind + kWarps * Plan::result_words * 4, stream, p, tiling);
  return true;
}

template <int B>
bool small_of(const MomentsPlan& p, cudaStream_t stream) {
  if (p.S == 256) return launch_small<B, 256>(p, stream);
  return p.S >= 8 && p.S <= 56 && launch_small<B, 56>(p, stream);
}

}  // namespace

bool matrix_moments_across_small(cudaStream_t stream, const MomentsPlan& p) {
  if (p.A > 2 || !p.moments || !p.argmax) return false;
  return p.A == 1 ? small_of<1>(p, stream) : small_of<2>(p, stream);
}

}  // namespace axnet::cuda
