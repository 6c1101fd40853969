// matrix_gate: A3's gate in inference, from masked_moments' descriptors and 16-bit weights, on the matrix units.
//
//   s_a = sum_j LeakyReLU_0.2(W_aj d_aj + b_aj),  d_aj = avg, max, mmax_a, mavg_a;   g_a = sigmoid(V_a s_a + c_a)
//
// Two products, each one launch after one that rounds the descriptors. A block has kRows rows of the result for kImages
// images. Its eight warps are four parts, the j of the first product or quarters of the second one's sum, times two
// halves of the images; what the parts found is added up in shared memory. A lane reads 16 bytes along the sum of both
// operands, so the order in which the products add is another than that of the matrix units' own layout, and the same
// for both.
#include "cuda/device.cuh"
#include "cuda/matrix.h"

namespace axnet::cuda {
namespace {

constexpr int kRows = 16, kImages = 64, kParts = 4, kDepth = 32;  // kDepth: of the sum, a step
constexpr int kTiles = kImages / 8 / 2;                           // of eight images, a warp

// The descriptors in the type of the weights, image by image.
template <class T>
__global__ void __launch_bounds__(kThreads) round_kernel(const __grid_constant__ GatePlan p) {
  const int kinds = 2 + 2 * p.A, row = blockIdx.x, n = row / kinds, kind = row % kinds;
  const float* from = p.descriptors + static_cast<int64_t>(row) * p.C;
  T* to = static_cast<T*>(p.rows) + (static_cast<int64_t>(kind) * p.N + n) * p.C;
  for (int c = threadIdx.x; c < p.C; c += kThreads)
    to[c] = static_cast<T>(from[c]);
}

template <class T, bool HIDDEN>
__global__ void __launch_bounds__(kThreads) product_kernel(const __grid_constant__ GatePlan p) {
  AXNET_SHARED(shared);
  float* found = reinterpret_cast<float*>(shared);  // [kParts, kRows, kImages]
  const int rows = HIDDEN ? p.H : p.C, length = HIDDEN ? p.C : p.H;
  const int blocks = rows / kRows, a = blockIdx.x / blocks, first = blockIdx.x % blocks * kRows;
  const int image = blockIdx.y * kImages;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int part = warp / 2, half = warp % 2;

  const int group = HIDDEN ? a * kParts + part : a;
  const int begin = HIDDEN ? 0 : part * (length / kParts), end = HIDDEN ? length : begin + length / kParts;
  const T* weight = static_cast<const T*>(HIDDEN ? p.hidden_weight : p.gate_weight) +
                    (static_cast<int64_t>(group) * rows + first + g) * length + 8 * t;
  const int kind = part == 0 ? 0 : part == 1 ? 1 : part == 2 ? 2 + p.A + a : 2 + a;  // avg, max, mmax_a, mavg_a
  const T* values = HIDDEN ? static_cast<const T*>(p.rows) + static_cast<int64_t>(kind) * p.N * length
                           : static_cast<const T*>(p.sums) + static_cast<int64_t>(a) * p.N * length;
  const T* value[kTiles];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int n = image + (half + 2 * j) * 8 + g;
    value[j] = values + static_cast<int64_t>(n < p.N ? n : p.N - 1) * length + 8 * t;
  }
  const int tiles = (p.N - image - half * 8 + 15) / 16;  // that hold an image

  float sum[kTiles][4] = {};
#pragma unroll 2
  for (int k = begin; k < end; k += kDepth) {
    const uint4 w0 = __ldg(reinterpret_cast<const uint4*>(weight + k));
    const uint4 w1 = __ldg(reinterpret_cast<const uint4*>(weight + k + 8 * length));
    const uint32_t front[4] = {w0.x, w1.x, w0.y, w1.y}, back[4] = {w0.z, w1.z, w0.w, w1.w};
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
      if (j < tiles) {
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(value[j] + k));
        multiply_add<T>(sum[j], front, v.x, v.y);
        multiply_add<T>(sum[j], back, v.z, v.w);
      }
  }

  const T* bias = static_cast<const T*>(HIDDEN ? p.hidden_bias : p.gate_bias) + group * rows + first;
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = g + i / 2 * 8;
      float v = sum[j][i];
      if constexpr (HIDDEN) {
        v += static_cast<float>(bias[row]);
        v = v > 0 ? v : 0.2f * v;
      }
      found[(part * kRows + row) * kImages + (half + 2 * j) * 8 + 2 * t + i % 2] = v;
    }
  __syncthreads();
  for (int at = threadIdx.x; at < kRows * kImages; at += kThreads) {
    const int row = at % kRows, n = at / kRows;
    if (image + n >= p.N) continue;
    float total = 0;
#pragma unroll
    for (int q = 0; q < kParts; ++q)
      total += found[(q * kRows + row) * kImages + n];
    if constexpr (HIDDEN) {
      static_cast<T*>(p.sums)[(static_cast<int64_t>(a) * p.N + image + n) * rows + first + row] = static_cast<T>(total);
    } else {
      total += static_cast<float>(bias[row]);
      p.gate[(static_cast<int64_t>(image + n) * p.A + a) * rows + first + row] = 1 / (1 + expf(-total));
    }
  }
}

template <class T>
void run(cudaStream_t stream, const GatePlan& p) {
  const int groups = static_cast<int>(ceil_div(p.N, kImages));
  const size_t bytes = kParts * kRows * kImages * sizeof(float);
  launch(round_kernel<T>, static_cast<int64_t>(p.N) * (2 + 2 * p.A), 1, kThreads, 0, stream, p);
  launch(product_kernel<T, true>, p.A * (p.H / kRows), groups, kThreads, bytes, stream, p);
  launch(product_kernel<T, false>, p.A * (p.C / kRows), groups, kThreads, bytes, stream, p);
}

}  // namespace

void matrix_gate(cudaStream_t stream, const GatePlan& p, Type of_weights) {
  of_weights == Type::f16 ? run<Half>(stream, p) : run<BFloat16>(stream, p);
}

}  // namespace axnet::cuda
