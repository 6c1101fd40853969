// The sums of gate_norm's gradient in float, element by element (float32, float16), and for anything else a warp a row.
// How rows and pixels are shared: masked_moments_scalar.cu.
#include "cuda/eight.cuh"
#include "cuda/sums.cuh"

namespace axnet::cuda {
namespace {

constexpr int kRows = 16;  // of a warp, NCHW
constexpr int kStageBytes = 36 * 1024;

// The sums of one row in one thread: e0, e1, h_a, f_a.
template <int B>
struct Row {
  static constexpr int count = sum_rows(B);
  float sum[count] = {}, shift = 0;

  template <int P, class F>
  __device__ void add(const float (&x)[P], const float (&d)[P], const F& mask) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const float centred = x[i] - shift;
      sum[0] += d[i];
      sum[1] += d[i] * centred;
#pragma unroll
      for (int a = 0; a < B; ++a) {
        const float weighted = mask(a, i) * d[i];
        sum[2 + a] += weighted;
        sum[2 + B + a] += weighted * centred;
      }
    }
  }
};

template <class T, int B>
__global__ void __launch_bounds__(kThreads, 2) sums_rows_kernel(const SumsPlan p, const SumsTiling tiling) {
  AXNET_SHARED(shared);
  float* masks = reinterpret_cast<float*>(shared);  // [B, pitch]
  const SumsPlace<T, B> place(p, tiling);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), c0 = place.c0 + warp * kRows;
  const T *x[2], *d[2];
  Row<B> row[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t c = c0 + 8 * r + g < C ? c0 + 8 * r + g : C - 1;
    x[r] = place.x + c * p.x.c, d[r] = place.d + c * p.d.c;
    row[r].shift = place.saved[c];
  }
  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
      for (int a = 0; a < B; ++a)
        masks[a * tiling.pitch + s] = place.mask[a * S + s0 + s];
    __syncthreads();
    int s = 0;
    auto walk = [&](auto x_aligned, auto d_aligned) {
      // places are moved on, not computed anew from the plan
      const int own = Eight<T>::pixel(t, 0);
      const T* from[2] = {x[0] + s0 + own, x[1] + s0 + own};
      const T* grads[2] = {d[0] + s0 + own, d[1] + s0 + own};
      const float* weights = masks + own;
      for (; s + kStride <= pixels; s += kStride) {
        Eight<T> xs[2], ds[2];
#pragma unroll
        for (int r = 0; r < 2; ++r)
          xs[r].load(from[r], x_aligned), from[r] += kStride;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          ds[r].load(grads[r], d_aligned), grads[r] += kStride;
        float m[B][kGranule];
#pragma unroll
        for (int a = 0; a < B; ++a)
          load_masks<T>(weights + a * tiling.pitch, m[a]);
        weights += kStride;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float v[kGranule], grad[kGranule];
          xs[r].spread(v), ds[r].spread(grad);
          row[r].add(v, grad, [&](int a, int i) { return m[a][i]; });
        }
      }
    };
    if (tiling.x_aligned && tiling.d_aligned) walk(std::true_type{}, std::true_type{});
    else walk(tiling.x_aligned, tiling.d_aligned);
#pragma unroll 1
    for (s += t; s < pixels; s += 4)  // what is left of the map, a pixel at a time
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float v[1] = {static_cast<float>(x[r][s0 + s])}, grad[1] = {static_cast<float>(d[r][s0 + s])};
        row[r].add(v, grad, [&](int a, int) { return masks[a * tiling.pitch + s]; });
      }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int c = c0 + 8 * r + g;
#pragma unroll
    for (int k = 0; k < Row<B>::count; ++k) {
      float v = row[r].sum[k];
#pragma unroll
      for (int step = 1; step < 4; step *= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
      if (t == k % 4 && c < C) place.sums[k * p.C + c] = v;
    }
  }
}

template <class T, int B>
__global__ void __launch_bounds__(kThreads, 2) sums_channels_last_kernel(const SumsPlan p, const SumsTiling tiling) {
  constexpr int V = 4, P = 4, count = Row<B>::count;
  AXNET_SHARED(shared);
  float* masks = reinterpret_cast<float*>(shared);  // [pixels, B]
  const SumsPlace<T, B> place(p, tiling);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, part = warp % tiling.parts;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  const int x_step = static_cast<int>(p.x.s), d_step = static_cast<int>(p.d.s);
  const int own = (warp / tiling.parts * kWarp + lane) * V, c = place.c0 + own < C ? place.c0 + own : C - V;
  Row<B> row[V];
#pragma unroll
  for (int j = 0; j < V; ++j)
    row[j].shift = place.saved[c + j];
  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
      for (int a = 0; a < B; ++a)
        masks[s * B + a] = place.mask[a * S + s0 + s];
    __syncthreads();
    auto take = [&](auto many, int s) {
      constexpr int U = decltype(many)::value;
      const T *x = place.x + (s0 + s) * x_step + c, *d = place.d + (s0 + s) * d_step + c;
      Bits<T, V> xs[U], ds[U];
#pragma unroll
      for (int i = 0; i < U; ++i)
        xs[i].load(x + i * x_step), ds[i].load(d + i * d_step);
#pragma unroll
      for (int i = 0; i < U; ++i) {
        float v[V], grad[V];
        xs[i].spread(v), ds[i].spread(grad);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float one[1] = {v[j]}, its[1] = {grad[j]};
          row[j].add(one, its, [&](int a, int) { return masks[(s + i) * B + a]; });
        }
      }
    };
    int s = part * P;
    for (; s + P <= pixels; s += tiling.parts * P)
      take(std::integral_constant<int, P>{}, s);
#pragma unroll 1
    for (; s < pixels; ++s)  // the last of them, which one part has
      take(std::integral_constant<int, 1>{}, s);
  }
  __syncthreads();  // the masks have been read
  const int channels = tiling.channels;
  float* results = reinterpret_cast<float*>(shared);  // [parts, count, channels]
#pragma unroll
  for (int j = 0; j < V; ++j)
#pragma unroll
    for (int k = 0; k < count; ++k)
      results[(part * count + k) * channels + own + j] = row[j].sum[k];
  __syncthreads();
  for (int r = threadIdx.x; r < channels && place.c0 + r < C; r += kThreads)
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      float total = 0;
#pragma unroll 1
      for (int w = 0; w < tiling.parts; ++w)
        total += results[(w * count + k) * channels + r];
      place.sums[k * p.C + place.c0 + r] = total;
    }
}

// Any type, alignment, number of blocks and anatomies: a warp for a row.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) sums_any_kernel(const SumsPlan p) {
  using Acc = acc_t<T>;
  const int lane = threadIdx.x % kWarp, o = static_cast<int>(blockIdx.y), B = p.members;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, C = p.C, S = p.S;
  if (row >= p.N * C) return;
  const int64_t n = row / C, c = row % C;
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + c * p.x.c;
  const T* d = static_cast<const T*>(p.d_data) + n * p.d.n + (o * C + c) * p.d.c;
  const Acc* masks = static_cast<const Acc*>(p.mask) + (n * p.A + o) * S;
  const Acc shift = static_cast<const Acc*>(p.saved)[(n * p.blocks + o) * saved_rows(B) * C + c];
  Acc* sums = static_cast<Acc*>(p.sums) + (n * p.blocks + o) * sum_rows(B) * C + c;
#pragma unroll 1
  for (int a = -1; a < B; ++a) {
    Acc plain = 0, product = 0;
    for (int64_t s = lane; s < S; s += kWarp) {
      const Acc grad = static_cast<Acc>(d[s * p.d.s]) * (a < 0 ? Acc(1) : masks[a * S + s]);
      plain += grad, product += grad * (static_cast<Acc>(x[s * p.x.s]) - shift);
    }
    const double first = warp_sum(static_cast<double>(plain)), second = warp_sum(static_cast<double>(product));
    if (lane != 0) continue;
    sums[(a < 0 ? 0 : 2 + a) * C] = static_cast<Acc>(first);
    sums[(a < 0 ? 1 : 2 + B + a) * C] = static_cast<Acc>(second);
  }
}

template <class T, int B>
void launch_scalar(const SumsPlan& p, cudaStream_t stream) {
  const int per_pixel = B * static_cast<int>(sizeof(float));
  SumsTiling tiling{};
  tiling.stage = tiling.pitch = stage_of(p.S, per_pixel, kStageBytes);
  if (p.x.channels_last) {
    tiling.parts = parts_of(p.N * ceil_div(p.C, 4 * kWarp), p.S, 32);
    tiling.share(p.C, kWarps / tiling.parts * kWarp * 4, 1);
    const size_t results = sum_rows(B) * kThreads * 4 * sizeof(float);
    launch(sums_channels_last_kernel<T, B>, p.N * tiling.blocks, p.blocks, kThreads,
           std::max<size_t>(tiling.stage * per_pixel, results), stream, p, tiling);
    return;
  }
  tiling.share(p.C, kWarps * kRows, 1);
  tiling.x_aligned = is_aligned_map<T>(p.x_data, p.x, p.x.c);
  tiling.d_aligned = is_aligned_map<T>(p.d_data, p.d, p.d.c);
  launch(sums_rows_kernel<T, B>, p.N * tiling.blocks, p.blocks, kThreads, tiling.stage * per_pixel, stream, p, tiling);
}

}  // namespace

bool scalar_sums(cudaStream_t stream, const SumsPlan& p, Type of_x) {
  if (p.S > kMostOffset / kMaxAnatomies) return false;
  return with_type(of_x, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, Half>) {
      if (p.x.channels_last &&
          !(is_vector_map<T>(p.x_data, p.x, p.C, p.S) && is_vector_map<T>(p.d_data, p.d, p.C, p.S)))
        return false;
      if (p.members == 1) return launch_scalar<T, 1>(p, stream), true;
      if (p.members == 2) return launch_scalar<T, 2>(p, stream), true;
      if (p.members == 3) return launch_scalar<T, 3>(p, stream), true;
    }
    return false;
  });
}

void any_sums(cudaStream_t stream, const SumsPlan& p, Type of_x) {
  with_type(of_x, [&](auto type) {
    launch(sums_any_kernel<decltype(type)>, ceil_div(p.N * p.C, kWarps), p.blocks, kThreads, 0, stream, p);
  });
}

}  // namespace axnet::cuda
