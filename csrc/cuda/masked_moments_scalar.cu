// masked_moments in float, element by element: float32, float16, and what the matrix units do not take of bfloat16.
// In NCHW a warp has 16 rows of X: four lanes side by side over the pixels, two rows each; their masks come from shared
// memory and serve both rows.
#include "cuda/scalar_row.cuh"

namespace axnet::cuda {
namespace {

constexpr int kRows = 16;  // of a warp, NCHW
constexpr int kStageBytes = 36 * 1024;

// The sum of two neighbouring lanes: of the first numbers in the one, of the second ones in the other.
__device__ inline float shared_of_two(float first, float second, bool want_second) {
  const float other = __shfl_xor_sync(0xffffffffu, want_second ? first : second, 1);
  return (want_second ? second : first) + other;
}

template <class T, int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_rows_kernel(const __grid_constant__ MomentsPlan p, const Tiling tiling) {
  AXNET_SHARED(shared);
  if (weigh<T, B>(p)) return;
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
  const bool again = t < 2 && c < C && write_row<B, FULL>(p, n, c, sum, top, at);
  mend_rows<T>(p, FULL, again, n, c);
}

template <class T, int B, bool FULL>
void launch_scalar(const MomentsPlan& p, cudaStream_t stream) {
  const int per_pixel = B * static_cast<int>(sizeof(float));
  Tiling tiling{};
  tiling.stage = stage_of(p.S, per_pixel, kStageBytes);
  tiling.channels = kWarps * kRows;
  tiling.blocks = static_cast<int>(ceil_div(p.C, tiling.channels));
  tiling.of_blocks = Divider(tiling.blocks);
  tiling.pitch = tiling.stage;
  tiling.aligned = is_aligned_map<T>(p.x_data, p.x, p.x.c);
  launch(moments_rows_kernel<T, B, FULL>, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads, tiling.stage * per_pixel,
         stream, p, tiling);
}

// Any type, alignment and number of anatomies: a warp for a row.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) moments_any_kernel(const __grid_constant__ MomentsPlan p, bool full) {
  if (weigh<T, 0>(p)) return;
  const int64_t row = (int64_t{blockIdx.x} - mass_blocks(p)) * kWarps + threadIdx.x / kWarp;
  if (row < p.N * p.C) careful_row<T>(p, full, row / p.C, row % p.C);
}

}  // namespace

bool scalar_moments(cudaStream_t stream, const MomentsPlan& p, Type of_x, bool full) {
  if (p.S > kMostOffset / kMaxAnatomies) return false;
  if (p.x.channels_last) return scalar_moments_across(stream, p, of_x, full);
  return with_scalar_kernel(of_x, p.A, full, [&](auto type, auto anatomies, auto is_full) {
    launch_scalar<decltype(type), decltype(anatomies)::value, decltype(is_full)::value>(p, stream);
  });
}

void any_moments(cudaStream_t stream, const MomentsPlan& p, Type of_x, bool full) {
  with_type(of_x, [&](auto type) {
    launch(moments_any_kernel<decltype(type)>, mass_blocks(p) + ceil_div(p.N * p.C, kWarps), 1, kThreads, 0, stream, p,
           full);
  });
}

}  // namespace axnet::cuda
