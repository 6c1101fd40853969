// masked_moments in float, element by element, in channels_last: a lane has V channels and walks over the pixels, whose
// masks every lane reads at once; `parts` warps share the pixels and are added in order.
#include "cuda/matrix.h"
#include "cuda/scalar_row.cuh"

namespace axnet::cuda {
namespace {

constexpr int kStageBytes = 32 * 1024;

// Channels of a thread.
template <int B, bool FULL>
constexpr int kLanes = FULL || B > 3 ? 2 : 4;

// What the threads have found, in shared memory: [numbers, parts, channels] of floats.
template <int B, bool FULL>
struct Results {
  using Sums = RowSums<B, FULL>;
  using Four = Vector<float>;
  static constexpr int V = kLanes<B, FULL>, pitch = V * kThreads, maxima = Sums::maxima;
  static constexpr int numbers = Sums::count + (FULL ? 2 : 1) * maxima;

  __device__ static void put(float* to, const Row<B, FULL> (&row)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
#pragma unroll
      for (int k = 0; k < Sums::count; ++k)
        to[k * pitch + j] = row[j].sum[k];
#pragma unroll
      for (int k = 0; k < maxima; ++k) {
        to[(Sums::count + k) * pitch + j] = row[j].top[k];
        if constexpr (FULL) memcpy(&to[(Sums::count + maxima + k) * pitch + j], &row[j].at[k], sizeof(int));
      }
    }
  }
  // Four channels from c on: the parts' results are added and written. Bits of those that must be gone over again.
  __device__ static unsigned finish(const MomentsPlan& p, int n, int c, const float* from, int parts, int channels) {
    auto read = [&](int w, int k) { return *reinterpret_cast<const Four*>(from + (k * pitch + w * channels)); };
    RowsTo<B, FULL> to(p, n, c);
    Four sum[Sums::count];
#pragma unroll
    for (int k = 0; k < Sums::count; ++k)
      sum[k] = read(0, k);
#pragma unroll 1
    for (int w = 1; w < parts; ++w)
#pragma unroll
      for (int k = 0; k < Sums::count; ++k) {
        const Four other = read(w, k);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sum[k].at[j] += other.at[j];
      }
    to.s1(sum[0]);
#pragma unroll
    for (int a = 0; a < B; ++a)
      to.t(a, sum[Sums::t(a)]);
    if constexpr (FULL) {
      to.s2(sum[Sums::s2]);
#pragma unroll
      for (int a = 0; a < B; ++a)
        to.t2(a, sum[Sums::t2(a)]);
#pragma unroll
      for (int k = 0; k < pairs(B); ++k)
        to.q2(k, sum[Sums::q2(k)]);
    }
    Four top[maxima], at[maxima] = {};
#pragma unroll
    for (int k = 0; k < maxima; ++k) {
      top[k] = read(0, Sums::count + k);
      if constexpr (FULL) at[k] = read(0, Sums::count + maxima + k);
    }
#pragma unroll 1
    for (int w = 1; w < parts; ++w)
#pragma unroll
      for (int k = 0; k < maxima; ++k) {
        const Four other = read(w, Sums::count + k);
        Four there = {};
        if constexpr (FULL) there = read(w, Sums::count + maxima + k);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool sooner = __float_as_int(there.at[j]) < __float_as_int(at[k].at[j]);
          const bool better = other.at[j] > top[k].at[j] || (other.at[j] == top[k].at[j] && sooner);
          at[k].at[j] = better ? there.at[j] : at[k].at[j];
          top[k].at[j] = fmaxf(top[k].at[j], other.at[j]);
        }
      }
#pragma unroll
    for (int k = 0; k < maxima; ++k)
      to.maximum(k, top[k], at[k]);
    return to.again();
  }
};

// Masks of `pixels` pixels from s0 on, in shared memory: [pixels, B].
template <int B>
__device__ inline void fill(float* masks, const MomentsPlan& p, int n, int s0, int pixels) {
  const int A = B > 3 ? p.A : B, S = static_cast<int>(p.S);
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * (A * S);
  if (B <= 3 && S % 4 == 0 && is_aligned(mask)) {
#pragma unroll 1
    for (int s = 4 * static_cast<int>(threadIdx.x); s < pixels; s += 4 * kThreads) {
      float4 four[B];  // of an anatomy
#pragma unroll
      for (int a = 0; a < B; ++a)
        four[a] = *reinterpret_cast<const float4*>(mask + (a * S + s0 + s));
      float v[4 * B];
#pragma unroll
      for (int a = 0; a < B; ++a)
        v[a] = four[a].x, v[B + a] = four[a].y, v[2 * B + a] = four[a].z, v[3 * B + a] = four[a].w;
#pragma unroll
      for (int i = 0; i < 4 * B; i += 4)
        *reinterpret_cast<float4*>(masks + (s * B + i)) = float4{v[i], v[i + 1], v[i + 2], v[i + 3]};
    }
    return;
  }
  for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
    for (int a = 0; a < B; ++a)
      masks[s * B + a] = mask[(a < A ? a : 0) * S + s0 + s];
}

// What a thread keeps of the granules in which its channels' maxima stand, in shared memory, for want of registers.
template <int B>
struct Kept {
  static constexpr int rows = 2 + 2 * B;  // of a channel: granules; X up to each pair of pixels; halves of each m_a X
  float4* own;

  __device__ float4& row(int j, int k) const { return own[(j * rows + k) * kThreads]; }
  __device__ int& granule(int j, int k) const { return reinterpret_cast<int*>(&row(j, 0))[k]; }
  template <int P, int Q>
  __device__ void put(int j, int k, int here, const float (&y)[P], const float (&best)[Q]) const {
    granule(j, k) = here;
    if constexpr (P == kGranule) {
      if (k == 0) row(j, 1) = float4{best[0], best[1], best[2], best[3]};
      else row(j, 2 * k) = float4{y[0], y[1], y[2], y[3]}, row(j, 2 * k + 1) = float4{y[4], y[5], y[6], y[7]};
    }
  }
  // The first pixel of the pair in which a maximum of X stands.
  __device__ int pair(int j, float top, int whole) const {
    const int at = granule(j, 0);
    const float4 best = row(j, 1);
    return at + (at >= whole || best.x == top ? 0 : best.y == top ? 2 : best.z == top ? 4 : 6);
  }
  __device__ int pixel(int j, int k, float top, int whole) const {
    const int at = granule(j, k);
    const float4 low = row(j, 2 * k), high = row(j, 2 * k + 1);
    const float y[kGranule] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    int found = 0;
#pragma unroll
    for (int i = kGranule - 1; i >= 0; --i)
      if (y[i] == top) found = i;
    return at + (at < whole ? found : 0);
  }
};

// Of a thread: its image, the block's first channel, its own first one from there on, and which of the parts it is in.
struct Place {
  int n, c0, own, part;

  __device__ Place(const MomentsPlan& p, const Tiling& tiling, int V) {
    // computed anew where it is asked for: there are no registers to keep it in over the pixels
    const int block = again(static_cast<int>(blockIdx.x)) - mass_blocks(p);
    const int thread = again(static_cast<int>(threadIdx.x));
    n = tiling.of_blocks.quotient(block), c0 = (block - n * tiling.blocks) * tiling.channels;
    part = thread / kWarp & (tiling.parts - 1);
    own = ((thread / kWarp >> tiling.parts_log) * kWarp + thread % kWarp) * V;
  }
  template <class T>
  __device__ const T* x(const MomentsPlan& p, int V) const {
    const int C = static_cast<int>(p.C);
    return static_cast<const T*>(p.x_data) + static_cast<unsigned>(n) * p.x.n + (c0 + own < C ? c0 + own : C - V);
  }
};

template <class T, int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_channels_last_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  constexpr int V = kLanes<B, FULL>;
  constexpr bool AHEAD = FULL && B <= 2;  // a granule is on its way while another is added; else registers are short
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
  float* masks = reinterpret_cast<float*>(shared);  // [pixels, B]
  const int S = static_cast<int>(p.S), step = static_cast<int>(p.x.s);
  Row<B, FULL> row[V];
  const Kept<B> kept{reinterpret_cast<float4*>(masks + tiling.stage * B) + threadIdx.x};
  if constexpr (FULL)
#pragma unroll
    for (int j = 0; j < V; ++j)
      kept.row(j, 0) = float4{};
  const int stride = tiling.parts * kGranule, further = static_cast<int>(static_cast<unsigned>(stride) * step);
  int s0 = 0;
  do {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage, last = pixels - kGranule;
    const Place place(p, tiling, V);
    int s = place.part * kGranule;
    const T* from = place.x<T>(p, V) + (s0 + s) * step;  // of the granule that is read next
    auto load = [&](auto& bits) {
      const T* pixel = from;
      const int pace = again(step);  // one register, not two of 64 bits
#pragma unroll
      for (auto& its : bits)
        its.load(pixel), pixel += pace;
      from += again(further);
    };
    Bits<T, V> now[kGranule];
    if (AHEAD && s <= last) load(now);
    __syncthreads();
    fill<B>(masks, p, place.n, s0, pixels);
    __syncthreads();
    auto take = [&]<int P, bool RISEN>(const Bits<T, V>(&bits)[P], int s, std::bool_constant<RISEN>) {
      constexpr bool early = FULL && P == kGranule;
      float m[early ? P * B : 4];  // all at once: for all the compiler knows, what is kept of a granule changes masks
#pragma unroll
      for (int i = 0; i < (early ? P * B : 0); i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(masks + s * B + i);
        m[i] = four.x, m[i + 1] = four.y, m[i + 2] = four.z, m[i + 3] = four.w;
      }
      auto mask_of = [&](int a, int i) { return early ? m[i * B + a] : masks[(s + i) * B + a]; };
      float v[V][P];
#pragma unroll
      for (int i = 0; i < P; ++i) {
        float one[V];
        bits[i].spread(one);
#pragma unroll
        for (int j = 0; j < V; ++j)
          v[j][i] = one[j];
      }
#pragma unroll
      for (int j = 0; j < V; ++j)
        row[j].template add<RISEN>(v[j], mask_of, s0 + s, [&](int k, int here, const auto& y, const auto& best) {
          kept.put(j, k, here, y, best);
        });
    };
    auto risen = [&] {  // all rows of the warp
      bool all = true;
#pragma unroll
      for (int j = 0; j < V; ++j)
        all = all && row[j].risen();
      return __ballot_sync(0xffffffffu, !all) == 0;
    };
    if constexpr (AHEAD) {
      Bits<T, V> next[kGranule];
      for (bool low = true; low && s + stride <= last; low = !risen()) {
        load(next);
        take(now, s, std::false_type{});
        s += stride;
#pragma unroll
        for (int i = 0; i < kGranule; ++i)
          now[i] = next[i];
      }
#pragma unroll 1
      for (; s + stride <= last; s += 2 * stride) {
        load(next);
        take(now, s, std::true_type{});
        if (s + 2 * stride <= last) load(now);
        take(next, s + stride, std::true_type{});
      }
      if (s <= last) {
        take(now, s, std::false_type{});
        s += stride;
      }
    } else {
      auto walk = [&](auto are_risen) {
        load(now);
        take(now, s, are_risen);
        s += stride;
      };
      for (bool low = true; low && s <= last; low = !risen())
        walk(std::false_type{});
#pragma unroll 1
      while (s <= last)
        walk(std::true_type{});
    }
#pragma unroll 1
    for (; s < pixels; ++s) {  // the last granule, which one part has
      Bits<T, V> one[1];
      one[0].load(Place(p, tiling, V).x<T>(p, V) + (s0 + s) * step);
      take(one, s, std::false_type{});
    }
    s0 = again(s0) + tiling.stage;  // the only number that counts the stages
  } while (s0 < S);
  const Place place(p, tiling, V);
  if constexpr (FULL) {
    const T* x = place.x<T>(p, V);
    const int whole = S / kGranule * kGranule;
    float first[V];  // of the pair in which the maximum of X stands
#pragma unroll
    for (int j = 0; j < V; ++j) {
      row[j].at[0] = kept.pair(j, row[j].top[0], whole);
      first[j] = static_cast<float>(x[row[j].at[0] * step + j]);
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
      for (int k = 1; k <= B; ++k)
        row[j].at[k] = kept.pixel(j, k, row[j].top[k], whole);
#pragma unroll
    for (int j = 0; j < V; ++j)
      row[j].at[0] += first[j] != row[j].top[0] ? 1 : 0;
  }
  __syncthreads();  // the masks have been read
  float* results = reinterpret_cast<float*>(shared);
  Results<B, FULL>::put(results + (place.part * tiling.channels + place.own), row);
  __syncthreads();
  unsigned far = 0;
  const int r = 4 * static_cast<int>(threadIdx.x), c = place.c0 + r;
  if (r < tiling.channels && c < p.C)
    far = Results<B, FULL>::finish(p, place.n, c, results + r, tiling.parts, tiling.channels);
  if (__ballot_sync(0xffffffffu, far != 0) != 0)
#pragma unroll 1
    for (int j = 0; j < 4; ++j)
      mend_rows<T>(p, FULL, far >> j & 1, place.n, c + j);
}

template <class T, int B, bool FULL>
void launch_channels(const MomentsPlan& p, cudaStream_t stream) {
  constexpr int V = kLanes<B, FULL>, per_pixel = B * static_cast<int>(sizeof(float));
  Tiling tiling{};
  tiling.stage = stage_of(p.S, per_pixel, kStageBytes);
  tiling.parts = parts_of(p.N * ceil_div(p.C, V * kWarp), p.S, 8 * kGranule);
  while (1 << tiling.parts_log < tiling.parts)
    ++tiling.parts_log;
  tiling.channels = kWarps / tiling.parts * kWarp * V;
  tiling.blocks = static_cast<int>(ceil_div(p.C, tiling.channels));
  tiling.of_blocks = Divider(tiling.blocks);
  constexpr size_t kept = FULL ? V * Kept<B>::rows * kThreads * sizeof(float4) : 0;
  constexpr size_t results = Results<B, FULL>::numbers * Results<B, FULL>::pitch * sizeof(float);
  launch(moments_channels_last_kernel<T, B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
         std::max(tiling.stage * per_pixel + kept, results), stream, p, tiling);
}

}  // namespace

bool scalar_moments_across(cudaStream_t stream, const MomentsPlan& p, Type of_x, bool full) {
  const bool whole = with_type(of_x, [&](auto type) { return is_vector_map<decltype(type)>(p.x_data, p.x, p.C, p.S); });
  return whole && with_scalar_kernel(of_x, p.A, full, [&](auto type, auto anatomies, auto is_full) {
           launch_channels<decltype(type), decltype(anatomies)::value, decltype(is_full)::value>(p, stream);
         });
}

}  // namespace axnet::cuda
