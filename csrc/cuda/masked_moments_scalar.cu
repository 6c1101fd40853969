// masked_moments in float, element by element: float32, float16, and what the matrix units do not take of bfloat16.
//
//   NCHW           a warp has 16 rows of X: four lanes side by side over the pixels, two rows each; their masks
//                  come from shared memory and serve both rows
//   channels_last  a lane has V channels and walks over the pixels, whose masks every lane reads at once; `parts` warps
//                  share the pixels and are added in order
#include "cuda/eight.cuh"
#include "cuda/moments.cuh"

namespace axnet::cuda {
namespace {

constexpr int kRows = 16;  // of a warp, NCHW
constexpr int kStageBytes = 36 * 1024;

struct None {
  template <class... Args>
  __device__ void operator()(const Args&...) const {}
};

// The sums and maxima of one row in one thread.
template <int B, bool FULL>
struct Row {
  using Sums = RowSums<B, FULL>;
  float sum[Sums::count] = {}, top[1 + B];
  int at[1 + B] = {};  // of the granule in which the maximum stands

  __device__ Row() {
#pragma unroll
    for (int k = 0; k <= B; ++k)
      top[k] = -std::numeric_limits<float>::infinity();
  }
  // Whether it did.
  __device__ bool rise(int k, float best, int here) {
    const bool rose = best > top[k];
    if constexpr (FULL) at[k] = rose ? here : at[k];
    top[k] = fmaxf(top[k], best);
    return rose;
  }
  // mask(a, i): of pixel i. HALVES: at[0] of half of the pixels; keep(a, y): where the maximum of m_a X rises
  template <bool HALVES = false, int P, class F, class G = None>
  __device__ void add(const float (&x)[P], const F& mask, int here, const G& keep = G()) {
    constexpr int half = HALVES ? P / 2 : P;
    float best = x[0], second = x[HALVES ? half : 0];
#pragma unroll
    for (int i = 0; i < P; ++i) {
      (i < half ? best : second) = fmaxf(i < half ? best : second, x[i]);
      sum[0] += x[i];
      if constexpr (FULL) sum[Sums::s2] += x[i] * x[i];
    }
    if constexpr (HALVES) rise(0, fmaxf(best, second), second > best ? here + half : here);
    else rise(0, best, here);
    float weighted[FULL ? B : 1][P];
#pragma unroll
    for (int a = 0; a < B; ++a) {
      float (&y)[P] = weighted[FULL ? a : 0];
#pragma unroll
      for (int i = 0; i < P; ++i) {
        y[i] = mask(a, i) * x[i];
        best = i == 0 ? y[i] : fmaxf(best, y[i]);
        sum[Sums::t(a)] += y[i];
        if constexpr (FULL) sum[Sums::t2(a)] += y[i] * x[i];
      }
      if (rise(1 + a, best, here)) keep(a, y);
      if constexpr (FULL)
#pragma unroll
        for (int b = 0; b <= a; ++b)
#pragma unroll
          for (int i = 0; i < P; ++i)
            sum[Sums::q2(pair_row(B, b, a))] += y[i] * weighted[b][i];
    }
  }
};

// The sum of two neighbouring lanes: of the first numbers in the one, of the second ones in the other.
__device__ inline float shared_of_two(float first, float second, bool want_second) {
  const float other = __shfl_xor_sync(0xffffffffu, want_second ? first : second, 1);
  return (want_second ? second : first) + other;
}

template <class T, int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_rows_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  AXNET_SHARED(shared);
  if (weigh<T>(p)) return;
  float* masks = reinterpret_cast<float*>(shared);  // [B, pitch]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = tiling.of_blocks.quotient(block);
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), whole = S / kStride * kStride;
  const int c0 = (block - n * tiling.blocks) * tiling.channels + warp * kRows, A = B > 3 ? p.A : B;
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * A * S;
  const T* x[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int c = c0 + 8 * r + g;
    x[r] = static_cast<const T*>(p.x_data) + n * p.x.n + (c < C ? c : C - 1) * p.x.c;
  }
  Row<B, FULL> row[2];
  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
      for (int a = 0; a < B; ++a)
        masks[a * tiling.pitch + s] = mask[(a < A ? a : 0) * S + s0 + s];
    __syncthreads();
    int s = 0;
    auto walk = [&](auto aligned) {
      // places are moved on, not computed anew from the plan, unless that costs the last registers
      constexpr bool MOVED = B <= 3;
      const int own = Eight<T>::pixel(t, 0);
      const T* from[2] = {x[0] + s0 + own, x[1] + s0 + own};
      const float* weights = masks + own;
      for (; s + kStride <= pixels; s += kStride) {
        Eight<T> eight[2];
#pragma unroll
        for (int r = 0; r < 2; ++r)
          eight[r].load(MOVED ? from[r] : x[r] + s0 + s + own, aligned), from[r] += kStride;
        float m[B][kGranule];
#pragma unroll
        for (int a = 0; a < B; ++a)
          load_masks<T>((MOVED ? weights : masks + s + own) + a * tiling.pitch, m[a]);
        weights += kStride;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float v[kGranule];
          eight[r].spread(v);
          row[r].add(v, [&](int a, int i) { return m[a][i]; }, s0 + s);
        }
      }
    };
    if constexpr (B > 3) walk(tiling.aligned);
    else tiling.aligned ? walk(std::true_type{}) : walk(std::false_type{});
#pragma unroll 1
    for (s += t; s < pixels; s += 4)  // what is left of the map, a pixel at a time
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float v[1] = {static_cast<float>(x[r][s0 + s])};
        row[r].add(v, [&](int a, int) { return masks[a * tiling.pitch + s]; }, s0 + s);
      }
  }
  // lanes of even t get the first row's numbers, of odd t the second's
  const bool second = t % 2;
  float sum[RowSums<B, FULL>::count], top[1 + B];
  int at[1 + B] = {};
#pragma unroll
  for (int k = 0; k < RowSums<B, FULL>::count; ++k) {
    sum[k] = shared_of_two(row[0].sum[k], row[1].sum[k], second);
    sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 2);
  }
#pragma unroll
  for (int k = 0; k <= B; ++k) {
    if constexpr (FULL)  // from the granule to the pixel
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        int& granule = row[r].at[k];
        if (granule >= whole) continue;
        Eight<T> eight;
        float v[kGranule], m[kGranule];
        const int own = granule + Eight<T>::pixel(t, 0);
        eight.load(x[r] + own, tiling.aligned);
        eight.spread(v);
        if (k > 0 && tiling.stage >= S) load_masks<T>(masks + (k - 1) * tiling.pitch + own, m);
        int found = 0;
#pragma unroll
        for (int i = kGranule - 1; i >= 0; --i) {
          const int s = Eight<T>::pixel(t, i);
          if (k > 0 && tiling.stage < S) m[i] = mask[(k - 1) * S + granule + s];
          if ((k > 0 ? m[i] * v[i] : v[i]) == row[r].top[k]) found = s;
        }
        granule += found;
      }
    auto join = [&](float other, int there) {
      if constexpr (FULL) at[k] = other > top[k] || (other == top[k] && there < at[k]) ? there : at[k];
      top[k] = fmaxf(top[k], other);
    };
    top[k] = second ? row[1].top[k] : row[0].top[k], at[k] = second ? row[1].at[k] : row[0].at[k];
    join(__shfl_xor_sync(0xffffffffu, second ? row[0].top[k] : row[1].top[k], 1),
         FULL ? __shfl_xor_sync(0xffffffffu, second ? row[0].at[k] : row[1].at[k], 1) : 0);
    join(__shfl_xor_sync(0xffffffffu, top[k], 2), FULL ? __shfl_xor_sync(0xffffffffu, at[k], 2) : 0);
  }
  const int c = c0 + 8 * t + g;
  const bool again = t < 2 && c < C && write_row<T, B, FULL>(p, n, c, sum, top, at);
  mend_rows<T>(p, FULL, again, n, c);
}

// Channels of a thread and its pixels in flight.
template <int B, bool FULL>
constexpr int kLanes = FULL || B > 3 ? 2 : 4;

template <class T, int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_channels_last_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  constexpr int V = kLanes<B, FULL>;
  using Sums = RowSums<B, FULL>;
  constexpr int maxima = 1 + B, numbers = Sums::count + maxima + (FULL ? maxima : 0);
  AXNET_SHARED(shared);
  if (weigh<T>(p)) return;
  float* masks = reinterpret_cast<float*>(shared);  // [pixels, B]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, part = warp % tiling.parts;
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = tiling.of_blocks.quotient(block);
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), step = static_cast<int>(p.x.s);
  const int c0 = (block - n * tiling.blocks) * tiling.channels, own = (warp / tiling.parts * kWarp + lane) * V;
  const int A = B > 3 ? p.A : B, whole = S / kGranule * kGranule;
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(n) * A * S;
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + (c0 + own < C ? c0 + own : C - V);
  Row<B, FULL> row[V];
  // FULL: of a thread, [V, B, 2 halves of a granule]: the m_a X among which the maximum stands
  float4* const granules = reinterpret_cast<float4*>(masks + tiling.stage * B) + threadIdx.x;
  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
      for (int a = 0; a < B; ++a)
        masks[s * B + a] = mask[(a < A ? a : 0) * S + s0 + s];
    __syncthreads();
    const T* from = x + static_cast<int64_t>(s0) * step;
    auto load = [&](auto& bits, int s) {
      int i = 0;
#pragma unroll
      for (auto& pixel : bits)
        pixel.load(from + (s + i++) * step);
    };
    auto take = [&]<int P>(const Bits<T, V>(&bits)[P], int s) {
      constexpr bool kept = FULL && P == kGranule;
      float m[kept ? P * B : 4];  // all at once: for all the compiler knows, what is kept of a granule changes masks
#pragma unroll
      for (int i = 0; i < (kept ? P * B : 0); i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(masks + s * B + i);
        m[i] = four.x, m[i + 1] = four.y, m[i + 2] = four.z, m[i + 3] = four.w;
      }
      auto mask_of = [&](int a, int i) { return kept ? m[i * B + a] : masks[(s + i) * B + a]; };
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
      for (int j = 0; j < V; ++j) {
        if constexpr (kept)
          row[j].template add<true>(v[j], mask_of, s0 + s, [&](int a, const float (&y)[P]) {
            float4* to = granules + (j * B + a) * 2 * kThreads;
            to[0] = float4{y[0], y[1], y[2], y[3]}, to[kThreads] = float4{y[4], y[5], y[6], y[7]};
          });
        else row[j].add(v[j], mask_of, s0 + s);
      }
    };
    const int stride = tiling.parts * kGranule, last = pixels - kGranule;
    int s = part * kGranule;
    if constexpr (FULL && B <= 2) {  // a granule is on its way while another is added; there are no more registers
      if (s <= last) {
        Bits<T, V> now[kGranule], next[kGranule];
        load(now, s);
        for (; s + stride <= last; s += 2 * stride) {
          load(next, s + stride);
          take(now, s);
          load(now, s + 2 * stride < last ? s + 2 * stride : last);
          take(next, s + stride);
        }
        if (s <= last) {
          take(now, s);
          s += stride;
        }
      }
    } else {
      for (; s <= last; s += stride) {
        Bits<T, V> now[kGranule];
        load(now, s);
        take(now, s);
      }
    }
#pragma unroll 1
    for (; s < pixels; ++s) {  // the last granule, which one part has
      Bits<T, V> now[1];
      load(now, s);
      take(now, s);
    }
  }
  if constexpr (FULL) {
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        int& at = row[j].at[k];
        if (at >= whole) continue;
        int found = 0;
        if (k == 0) {
#pragma unroll
          for (int i = kGranule / 2 - 1; i >= 0; --i)
            if (static_cast<float>(x[static_cast<int64_t>(at + i) * step + j]) == row[j].top[k]) found = i;
        } else {
          const float4* kept = granules + (j * B + (k ? k - 1 : 0)) * 2 * kThreads;
          const float4 low = kept[0], high = kept[kThreads];
          const float y[kGranule] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int i = kGranule - 1; i >= 0; --i)
            if (y[i] == row[j].top[k]) found = i;
        }
        at += found;
      }
  }
  __syncthreads();  // the masks have been read
  const int channels = tiling.channels;
  float* results = reinterpret_cast<float*>(shared);  // [parts, numbers, channels]
  float* mine = results + part * numbers * channels + own;
#pragma unroll
  for (int j = 0; j < V; ++j) {
#pragma unroll
    for (int k = 0; k < Sums::count; ++k)
      mine[k * channels + j] = row[j].sum[k];
#pragma unroll
    for (int k = 0; k < maxima; ++k) {
      mine[(Sums::count + k) * channels + j] = row[j].top[k];
      if constexpr (FULL) memcpy(&mine[(Sums::count + maxima + k) * channels + j], &row[j].at[k], sizeof(int));
    }
  }
  __syncthreads();
  for (int r = threadIdx.x; r < (channels + kThreads - 1) / kThreads * kThreads; r += kThreads) {
    bool again = false;
    if (r < channels && c0 + r < C) {
      float sum[Sums::count], top[maxima];
      int at[maxima] = {};
      const float* from = results + r;
#pragma unroll
      for (int k = 0; k < Sums::count; ++k) {
        float total = 0;
#pragma unroll 1
        for (int w = 0; w < tiling.parts; ++w)
          total += from[(w * numbers + k) * channels];
        sum[k] = total;
      }
#pragma unroll
      for (int k = 0; k < maxima; ++k) {
        top[k] = -std::numeric_limits<float>::infinity();
#pragma unroll 1
        for (int w = 0; w < tiling.parts; ++w) {
          const float other = from[(w * numbers + Sums::count + k) * channels];
          if constexpr (FULL) {
            int there;
            memcpy(&there, &from[(w * numbers + Sums::count + maxima + k) * channels], sizeof(int));
            if (other > top[k] || (other == top[k] && there < at[k])) at[k] = there;
          }
          top[k] = fmaxf(top[k], other);
        }
      }
      again = write_row<T, B, FULL>(p, n, c0 + r, sum, top, at);
    }
    mend_rows<T>(p, FULL, again, n, c0 + r);
  }
}

template <class T, int B, bool FULL>
void launch_scalar(const MomentsPlan& p, cudaStream_t stream) {
  const int per_pixel = B * static_cast<int>(sizeof(float));
  Tiling tiling{};
  tiling.stage = stage_of(p.S, per_pixel, kStageBytes);
  tiling.parts = 1;
  if (p.x.channels_last) {
    constexpr int V = kLanes<B, FULL>;
    tiling.parts = parts_of(p.N * ceil_div(p.C, V * kWarp), p.S, 8 * kGranule);
    tiling.channels = kWarps / tiling.parts * kWarp * V;
    tiling.blocks = static_cast<int>(ceil_div(p.C, tiling.channels));
    tiling.of_blocks = Divider(tiling.blocks);
    using Sums = RowSums<B, FULL>;
    constexpr size_t granules = FULL ? V * B * kGranule * kThreads * sizeof(float) : 0;
    const size_t results = (Sums::count + (FULL ? 2 : 1) * (1 + B)) * kThreads * V * sizeof(float);
    launch(moments_channels_last_kernel<T, B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads,
           std::max(tiling.stage * per_pixel + granules, results), stream, p, tiling);
    return;
  }
  tiling.channels = kWarps * kRows;
  tiling.blocks = static_cast<int>(ceil_div(p.C, tiling.channels));
  tiling.of_blocks = Divider(tiling.blocks);
  tiling.pitch = tiling.stage;
  tiling.aligned = is_aligned_map<T>(p.x_data, p.x, p.x.c);
  launch(moments_rows_kernel<T, B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads, tiling.stage * per_pixel,
         stream, p, tiling);
}

template <class T>
bool launch_anatomies(const MomentsPlan& p, bool full, cudaStream_t stream) {
  switch (p.A) {
    case 1: full ? launch_scalar<T, 1, true>(p, stream) : launch_scalar<T, 1, false>(p, stream); return true;
    case 2: full ? launch_scalar<T, 2, true>(p, stream) : launch_scalar<T, 2, false>(p, stream); return true;
    case 3: full ? launch_scalar<T, 3, true>(p, stream) : launch_scalar<T, 3, false>(p, stream); return true;
  }
  if (full) return false;
  launch_scalar<T, kMaxAnatomies, false>(p, stream);
  return true;
}

// Any type, alignment and number of anatomies: a warp for a row.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) moments_any_kernel(const __grid_constant__ MomentsPlan p, bool full) {
  if (weigh<T>(p)) return;
  const int64_t row = (int64_t{blockIdx.x} - mass_blocks(p)) * kWarps + threadIdx.x / kWarp;
  if (row < p.N * p.C) careful_row<T>(p, full, row / p.C, row % p.C);
}

}  // namespace

bool scalar_moments(cudaStream_t stream, const MomentsPlan& p, Type of_x, bool full) {
  if (p.S > kMostOffset / kMaxAnatomies) return false;
  const bool done = with_type(of_x, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, Half>) {
      if (p.x.channels_last && !is_vector_map<T>(p.x_data, p.x, p.C, p.S)) return false;
      return launch_anatomies<T>(p, full, stream);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      if (!full || p.A != 3 || (p.x.channels_last && !is_vector_map<T>(p.x_data, p.x, p.C, p.S))) return false;
      launch_scalar<T, 3, true>(p, stream);
      return true;
    } else {
      return false;
    }
  });
  return done;
}

void any_moments(cudaStream_t stream, const MomentsPlan& p, Type of_x, bool full) {
  with_type(of_x, [&](auto type) {
    launch(moments_any_kernel<decltype(type)>, mass_blocks(p) + ceil_div(p.N * p.C, kWarps), 1, kThreads, 0, stream, p,
           full);
  });
}

}  // namespace axnet::cuda
