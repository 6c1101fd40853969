// The sums of gate_norm's gradient in float, element by element (float32, float16), and for anything else a warp a row.
// How rows and pixels are shared: masked_moments_scalar.cu, masked_moments_channels.cu.
#include "cuda/eight.cuh"
#include "cuda/matrix.h"
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
      const float product = d[i] * (x[i] - shift);
      sum[0] += d[i];
      sum[1] += product;
#pragma unroll
      for (int a = 0; a < B; ++a) {
        sum[2 + a] += mask(a, i) * d[i];
        sum[2 + B + a] += mask(a, i) * product;
      }
    }
  }
};

// Sums over four lanes; lane t gets those of all numbers 4 j + t.
template <int COUNT>
__device__ inline void share_sums(const float (&all)[COUNT], int t, float (&own)[COUNT / 4]) {
  float half[COUNT / 2];
#pragma unroll
  for (int i = 0; i < COUNT / 2; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, t % 2 ? all[2 * i] : all[2 * i + 1], 1);
    half[i] = (t % 2 ? all[2 * i + 1] : all[2 * i]) + other;
  }
#pragma unroll
  for (int i = 0; i < COUNT / 4; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, t / 2 ? half[2 * i] : half[2 * i + 1], 2);
    own[i] = (t / 2 ? half[2 * i + 1] : half[2 * i]) + other;
  }
}

// A block whose masks stand in shared memory at once takes several groups of channels for them, one after the other.
template <class T, int B>
__global__ void __launch_bounds__(kThreads, 2) sums_rows_kernel(const SumsPlan p, const SumsTiling tiling) {
  constexpr int count = Row<B>::count;
  AXNET_SHARED(shared);
  float* masks = reinterpret_cast<float*>(shared);  // [B, pitch]
  const SumsPlace<T, B> place(p, tiling);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  const int end = place.c0 + tiling.channels < C ? place.c0 + tiling.channels : C;
  const T *x[2], *d[2];
  const float* shifts[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {  // there is one group where they are not whole
    const int64_t c = place.c0 + warp * kRows + 8 * r + g, there = c < C ? c : C - 1;
    x[r] = place.x + there * p.x.c, d[r] = place.d + there * p.d.c, shifts[r] = place.saved + there;
  }
  const int x_on = again(static_cast<int>(tiling.width * p.x.c)), d_on = again(static_cast<int>(tiling.width * p.d.c));
  int c = place.c0 + warp * kRows + 8 * (t % 2) + g;
  float* to = place.sums + (static_cast<unsigned>(t / 2 * C) + c);
#pragma unroll 1
  for (int first = place.c0; first < end; first += tiling.width, c += tiling.width, to += tiling.width) {
    Row<B> row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      row[r].shift = *shifts[r];
    int s0 = 0;
    do {
      const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
      if (first == place.c0) {
        __syncthreads();
        for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
          for (int a = 0; a < B; ++a)
            masks[a * tiling.pitch + s] = place.mask[a * S + s0 + s];
        __syncthreads();
      }
      int s = 0;
      if (tiling.x_aligned && tiling.d_aligned) {
        // places are moved on, not computed anew from the plan
        const int own = Eight<T>::pixel(t, 0);
        const T* from[2] = {x[0] + s0 + own, x[1] + s0 + own};
        const T* grads[2] = {d[0] + s0 + own, d[1] + s0 + own};
        const float* weights = masks + own;
        for (; s + kStride <= pixels; s += kStride) {
          Eight<T> xs[2], ds[2];
#pragma unroll
          for (int r = 0; r < 2; ++r)
            xs[r].load(from[r], true), from[r] += kStride;
#pragma unroll
          for (int r = 0; r < 2; ++r)
            ds[r].load(grads[r], true), grads[r] += kStride;
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
      }
      // what is left of the map, and all of one without 16-byte pieces: lane t has every fourth pixel
      s += t;
      const T *from[2] = {x[0] + s0 + s, x[1] + s0 + s}, *grads[2] = {d[0] + s0 + s, d[1] + s0 + s};
      const float* weights = masks + s;
      auto take = [&](auto many) {
        constexpr int U = decltype(many)::value;
        float v[2][U], grad[2][U];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int i = 0; i < U; ++i)
            v[r][i] = static_cast<float>(from[r][4 * i]), grad[r][i] = static_cast<float>(grads[r][4 * i]);
          from[r] += 4 * U, grads[r] += 4 * U;
        }
#pragma unroll
        for (int r = 0; r < 2; ++r)
          row[r].add(v[r], grad[r], [&](int a, int i) { return weights[a * tiling.pitch + 4 * i]; });
        weights += 4 * U, s += 4 * U;
      };
#pragma unroll 1
      while (s + 28 < pixels)
        take(std::integral_constant<int, 8>{});
      if (s + 12 < pixels) take(std::integral_constant<int, 4>{});
#pragma unroll 1
      while (s < pixels)
        take(std::integral_constant<int, 1>{});
      s0 += tiling.stage;
    } while (s0 < S);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      x[r] += x_on, d[r] += d_on, shifts[r] += tiling.width;
    float all[2 * count], own[count / 2];  // number k of row r at 2 k + r
#pragma unroll
    for (int i = 0; i < 2 * count; ++i)
      all[i] = row[i % 2].sum[i / 2];
    share_sums(all, t, own);
    if (c >= C) continue;
#pragma unroll
    for (int i = 0; i < count / 2; ++i)
      to[2 * i * C] = own[i];
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
  for (int k = 0; k < count; ++k)
    *reinterpret_cast<float4*>(results + ((part * count + k) * channels + own)) =
        float4{row[0].sum[k], row[1].sum[k], row[2].sum[k], row[3].sum[k]};
  __syncthreads();
  // four channels of a number at a time; channels / 4 x parts are kThreads
  for (int i = threadIdx.x; i < count * channels / 4; i += kThreads) {
    const int k = static_cast<unsigned>(i * tiling.parts) / kThreads, r = 4 * i - k * channels;
    if (place.c0 + r >= C) continue;
    const float* from = results + (k * channels + r);
    float total[4] = {};
#pragma unroll 1
    for (int w = 0; w < tiling.parts; ++w, from += count * channels) {
      const float4 v = *reinterpret_cast<const float4*>(from);
      total[0] += v.x, total[1] += v.y, total[2] += v.z, total[3] += v.w;
    }
    float* to = place.sums + (static_cast<unsigned>(k * C) + place.c0 + r);
    if (is_aligned(place.sums)) *reinterpret_cast<float4*>(to) = float4{total[0], total[1], total[2], total[3]};
    else
#pragma unroll
      for (int j = 0; j < 4; ++j)
        to[j] = total[j];
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
  constexpr int width = kWarps * kRows;
  // on larger maps the beginning weighs little, and the loads that pause between two groups more
  const bool many = p.S <= 16 * kStride && p.C % width == 0 && std::max(p.x.c, p.d.c) <= kMostOffset / p.C;
  tiling.share(p.C, width, many ? groups_of(p.N * p.blocks, p.C / width) : 1);
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
