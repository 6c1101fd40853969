// pwap_backward: one read of X and one write of dX (docs/method.md, "PWAP").
//
//   tile    a = <dpooled, X>;  share = w / sum w;  dL = (a - <dpooled, pooled>) share (1 - p) + dprob p (1 - p)
//           dX = sum_k share_k dpooled_k + W_k dL_k;  the tile's part of dW = sum dL X and db = sum dL
//   gather  dW and db from the tiles, in their order
//
// 2 to 16 maps of 16-bit types take the matrix units, and there a block takes several tiles (matrix_tile.cuh).
#include "checks.h"
#include "cuda/matrix_tile.cuh"
#include "cuda/pooling.cuh"

namespace axnet::cuda {
namespace {

struct PwapBackwardArgs {
  const void* x;
  void* dx;                            // or null
  const void *grad_pooled, *pooled;    // T [N, K, C]
  const void* grad_prob;               // T [N, K, S] or null
  const void *weight, *logits, *norm;  // acc [K, C], [N, K, S], [N, 2, K]
  void* partial;                       // acc [N, tiles, K*C + K]
  void *weight_grad, *bias_grad;       // acc [K, C], acc [K]
};

constexpr int kStrip = 8;  // pixels of a channel that a thread holds of dX

//   block   one tile; shared: the tile (X, then dX), shares and dL [2K, row], parts [MAPS, 256]
template <class T, int MAPS>
__global__ void __launch_bounds__(kThreads, 2)
    pwap_backward_kernel(const PoolPlan p, const TilePlan dx_tile, const PwapBackwardArgs args) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  Acc* shares = reinterpret_cast<Acc*>(shared + p.tile_bytes);  // [K, row]
  const int K = p.K, C = static_cast<int>(p.C);
  Acc* slopes = shares + K * p.row;  // [K, row]: first a, then dL
  Acc* parts = slopes + K * p.row;   // [MAPS, 256]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t n = blockIdx.x / p.tiles, s0 = blockIdx.x % p.tiles * p.pixels;
  const int pixels = static_cast<int>(p.S - s0 < p.pixels ? p.S - s0 : p.pixels);
  const View view = p.tile.view;
  const T* grad = static_cast<const T*>(args.grad_pooled) + n * K * p.C;
  const Acc* weight = static_cast<const Acc*>(args.weight);
  stage(p.tile, static_cast<const T*>(args.x) + n * view.n + s0 * view.s, C, pixels, tile);
  __syncthreads();
  sum_over_channels<T, MAPS>(p, tile, pixels, grad, static_cast<const Acc*>(nullptr), parts, slopes);

  Acc* partial = static_cast<Acc*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 1) * K;
  for (int k = warp; k < K; k += kWarps) {
    const T* pooled = static_cast<const T*>(args.pooled) + (n * K + k) * p.C;
    double product = 0;  // <dpooled_k, pooled_k>, by every tile again: cheaper than a launch
    for (int c = lane; c < C; c += kWarp)
      product += static_cast<double>(static_cast<Acc>(grad[k * p.C + c])) * static_cast<Acc>(pooled[c]);
    const Acc mean = static_cast<Acc>(warp_sum(product));
    const Acc* norm = static_cast<const Acc*>(args.norm) + n * 2 * K;
    const Acc top = norm[k], inverse = Acc(1) / norm[K + k];
    const int64_t place = (n * K + k) * p.S + s0;
    Acc bias = 0;
    for (int s = lane; s < pixels; s += kWarp) {
      Acc prob, share;
      probability(static_cast<const Acc*>(args.logits)[place + s], top, prob, share);
      share *= inverse;
      Acc slope = (slopes[k * p.row + s] - mean) * share * (Acc(1) - prob);
      if (args.grad_prob)
        slope += static_cast<Acc>(static_cast<const T*>(args.grad_prob)[place + s]) * prob * (Acc(1) - prob);
      bias += slope;
      shares[k * p.row + s] = share;
      slopes[k * p.row + s] = slope;
    }
    bias = warp_sum(bias);
    if (lane == 0) partial[K * p.C + k] = bias;
  }
  __syncthreads();
  sum_over_pixels<T, MAPS>(p, tile, pixels, slopes, partial);
  if (!args.dx) return;

  for (int c = threadIdx.x; c < C; c += kThreads)  // a thread has read all of X's channel before it writes dX's there
    for (int first = 0; first < pixels; first += kStrip) {
      Acc sum[kStrip] = {};
      for (int k = 0; k < K; ++k) {
        const Acc g = static_cast<Acc>(grad[k * p.C + c]), w = weight[k * p.C + c];
        const Acc *share = shares + k * p.row + first, *slope = slopes + k * p.row + first;
#pragma unroll
        for (int i = 0; i < kStrip; ++i)
          if (first + i < pixels) sum[i] += g * share[i] + w * slope[i];
      }
      T* out = tile + c * p.tile.pitch + first;
#pragma unroll
      for (int i = 0; i < kStrip; ++i)
        if (first + i < pixels) out[i] = T(sum[i]);
    }
  __syncthreads();
  const View dv = dx_tile.view;
  unstage(dx_tile, tile, C, pixels, static_cast<T*>(args.dx) + n * dv.n + s0 * dv.s);
}

// rows: shares, then dL [2, 16, P + 8]; lefts [P / 16, 2, lane]: both turned over, as left operands of 16 pixels x 16
// maps.
template <class T, int P>
__device__ inline void turn_over(const float* rows, Left<T, float>* lefts) {
  const int thread = thread_again(), lane = thread % kWarp, warp = thread / kWarp;
  if (warp >= P / 8) return;
  const float* from = rows + warp % 2 * kMaps * (P + 8) + warp / 2 * 16 + lane / 4;
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    v[i] = from[(lane % 4 * 2 + i / 4 * 8 + i % 2) * (P + 8) + i / 2 % 2 * 8];
  lefts[thread] = Left<T, float>(v);
}

// dX of the tile's pixels in the place of X. A warp writes the channels it has read.
template <class T, bool LAST, int P>
__device__ inline void write_dx(const MatrixPlan& p, const MatrixTile<T, LAST, P>& tile, int pixels, const T* grad,
                                const float* weight, const Left<T, float>* lefts) {
  struct alignas(4) Pair {
    T at[2];
  };
  const int thread = thread_again(), lane = thread % kWarp, g = lane / 4, t = lane % 4, C = static_cast<int>(p.C);
#pragma unroll 1
  for (int c0 = thread / kWarp * 16; c0 < C; c0 += kWarps * 16)
#pragma unroll
    for (int c = c0; c < c0 + 16; c += 8) {
      T pairs[4];
      float w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = 2 * t + i / 2 * 8 + i % 2, at = k * C + c + g;
        const bool real = k < p.K && c + g < C;
        pairs[i] = real ? grad[at] : T(0.f), w[i] = real ? weight[at] : 0.f;
      }
      uint32_t b[2];
      memcpy(b, pairs, sizeof(b));
#pragma unroll
      for (int s = 0; s < P; s += 16)
        if (s < pixels) {
          float out[4] = {};
          lefts[(s / 8 + 1) * kWarp + lane].times(w, out);
          lefts[s / 8 * kWarp + lane].times(b[0], b[1], out);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const Pair pair{{T(out[2 * i]), T(out[2 * i + 1])}};
            T* at = tile.place(2 * t, s + g + i * 8) + c * (LAST ? 1 : P);  // 8 channels on, pieces turn alike
            if constexpr (LAST) *reinterpret_cast<Pair*>(at) = pair;
            else at[0] = pair.at[0], at[P] = pair.at[1];
          }
        }
    }
}

//   block   the tiles of a walk; shared: [8, 16, P + 8]: products of the warps, in their place then shares and dL, as
//           rows and as left operands; [3, 16]: <dpooled, pooled>, db, the block's job; the tile (X, then dX)
//   warp    shares and dL of the maps w and w + 8, lane = pixel
template <class T, bool LAST, int P>
__global__ void __launch_bounds__(kThreads, P == 32 ? 2 : 1)
    pwap_backward_matrix_kernel(const MatrixPlan p, const View dx_view, const PwapBackwardArgs args,
                                MatrixTile<T, LAST, P> tile) {
  AXNET_SHARED(shared);
  constexpr int row = P + 8;
  float* parts = reinterpret_cast<float*>(shared);
  float *means = parts + kWarps * kMaps * row, *biases = means + kMaps, *slopes = parts + kMaps * row;
  unsigned* job = reinterpret_cast<unsigned*>(biases + kMaps);  // image, tiles
  tile.at = reinterpret_cast<T*>(job + kMaps), tile.pitch = p.pitch;
  const int K = p.K, C = static_cast<int>(p.C);
  if (threadIdx.x == 0) {
    const unsigned first = blockIdx.x % p.walks * p.steps;
    job[0] = blockIdx.x / p.walks;
    job[1] = first, job[2] = first + p.steps < static_cast<unsigned>(p.tiles) ? first + p.steps : p.tiles;
  }
  __syncthreads();
  for (int k = threadIdx.x / kWarp; k < K; k += kWarps) {
    const int64_t at = (job[0] * static_cast<int64_t>(K) + k) * C;
    const T *grad = static_cast<const T*>(args.grad_pooled) + at, *pooled = static_cast<const T*>(args.pooled) + at;
    double product = 0;
    for (int c = threadIdx.x % kWarp; c < C; c += kWarp)
      product += static_cast<double>(static_cast<float>(grad[c])) * static_cast<float>(pooled[c]);
    const float mean = static_cast<float>(warp_sum(product));
    if (threadIdx.x % kWarp == 0) means[k] = mean, biases[k] = 0;
  }
  Sums<P> sums = {};

#pragma unroll 1
  while (job[1] < job[2]) {
    const int s0 = job[1] * p.pixels;
    const int pixels = static_cast<int>(p.S) - s0 < p.pixels ? static_cast<int>(p.S) - s0 : p.pixels;
    tile.load(p, static_cast<const T*>(args.x) + job[0] * p.view.n + s0 * p.view.s, pixels);
    __syncthreads();
    multiply_channels(p, tile, pixels, static_cast<const T*>(args.grad_pooled) + job[0] * K * p.C, 0, parts);
    __syncthreads();
    const int lane = thread_again() % kWarp;
#pragma unroll 1
    for (int k = thread_again() / kWarp; k < kMaps; k += kWarps) {
      float* column = parts + k * row + lane;
      float share = 0, slope = 0;
      if (k < K && lane < pixels) {
        const int64_t map = static_cast<int64_t>(job[0]) * K + k, place = map * p.S + s0 + lane;
        const float* norm = static_cast<const float*>(args.norm) + (map + static_cast<int64_t>(job[0]) * K);
        float a = 0, prob;
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
          a += column[w * kMaps * row];
        probability(static_cast<const float*>(args.logits)[place], norm[0], prob, share);
        share *= 1 / norm[K];
        slope = (a - means[k]) * share * (1 - prob);
        if (args.grad_prob)
          slope += static_cast<float>(static_cast<const T*>(args.grad_prob)[place]) * prob * (1 - prob);
      }
      const float bias = warp_sum(slope);
      if (lane < P) column[0] = share, column[kMaps * row] = slope;
      if (lane == 0 && k < K) biases[k] += bias;
    }
    __syncthreads();
    auto* lefts = reinterpret_cast<Left<T, float>*>(slopes + kMaps * row);
    if (args.dx) turn_over<T, P>(parts, lefts);
    multiply_pixels(p, tile, pixels, slopes, sums);
    __syncthreads();
    if (args.dx) {
      write_dx(p, tile, pixels, static_cast<const T*>(args.grad_pooled) + job[0] * K * p.C,
               static_cast<const float*>(args.weight), lefts);
      __syncthreads();
      tile.store(p, dx_view, static_cast<T*>(args.dx) + job[0] * dx_view.n + job[1] * p.pixels * dx_view.s, pixels);
      __syncthreads();
    }
    if (thread_again() == 0) ++job[1];
    __syncthreads();
  }

  float* partial = static_cast<float*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 1) * K;
  store_sums<P>(p, sums, 0, partial);
  const int last = thread_again();
  if (last < K) partial[K * p.C + last] = biases[last];
}

//   block   32 columns of the parts [rows, K*C + K]; warps take the rows in turn and are added in order, in double
template <class Acc>
__global__ void __launch_bounds__(kThreads)
    pwap_gather_kernel(const PwapBackwardArgs args, int64_t rows, int64_t K, int64_t C) {
  AXNET_SHARED(shared);
  double* parts = reinterpret_cast<double*>(shared);  // [8, 32]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t columns = (C + 1) * K, column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  double total = 0;
  if (column < columns) {
    const Acc* from = static_cast<const Acc*>(args.partial) + column;
#pragma unroll 8
    for (int64_t r = warp; r < rows; r += kWarps)
      total += from[r * columns];
  }
  parts[threadIdx.x] = total;
  __syncthreads();
  if (warp > 0 || column >= columns) return;
  total = 0;
  for (int w = 0; w < kWarps; ++w)
    total += parts[w * kWarp + lane];
  Acc* out = column < K * C ? static_cast<Acc*>(args.weight_grad) + column
                            : static_cast<Acc*>(args.bias_grad) + (column - K * C);
  *out = static_cast<Acc>(total);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pwap_backward(Tensor grad_pooled, std::optional<Tensor> grad_prob, Tensor x_in,
                                                 Tensor weight, Tensor logits, Tensor norm, Tensor pooled,
                                                 bool input_grad) {
  check_pwap_backward(grad_pooled, grad_prob, x_in, weight, logits, norm, pooled);
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), S = H * W, K = weight.size(0);
  const ScalarType type_of_x = x.scalar_type(), acc = accumulator(x);
  Tensor dx = empty_features(input_grad ? N : 0, C, H, W, is_channels_last(x), type_of_x, device);
  Tensor weight_grad = empty({K, C}, acc, device), bias_grad = empty({K}, acc, device);
  if (N * C == 0) {
    torch::stable::zero_(weight_grad);
    torch::stable::zero_(bias_grad);
    return {dx, weight_grad, bias_grad};
  }
  auto plain = [&](const Tensor& t) { return torch::stable::contiguous(torch::stable::to(t, type_of_x)); };
  const Tensor grad = plain(grad_pooled), mean = plain(pooled);
  std::optional<Tensor> map_grad;
  if (grad_prob) map_grad = plain(*grad_prob);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    using Acc = acc_t<T>;
    PwapBackwardArgs args{data(x),        input_grad ? data(dx) : nullptr,
                          data(grad),     data(mean),
                          data(map_grad), data(weight),
                          data(logits),   data(norm),
                          nullptr,        data(weight_grad),
                          data(bias_grad)};
    Tensor partial;
    const auto launch_all = [&](int64_t walks, const auto& launch_tiles) {
      partial = empty({N * walks, (C + 1) * K}, acc, device);
      args.partial = data(partial);
      launch_tiles();
      launch(pwap_gather_kernel<Acc>, ceil_div((C + 1) * K, kWarp), 1, kThreads, kThreads * sizeof(double),
             queue.stream(), args, N * walks, K, C);
    };
    const View view = view_of(x), dx_view = input_grad ? view_of(dx) : view;
    if constexpr (kHasMatrices<T>)
      if (K > 1 && K <= kMaps && C <= kMatrixChannels) {
        const MatrixPlan p(view, N, C, S, K);
        return launch_all(p.walks, [&] {
          with_matrix_tile<T>(p, [&]<bool LAST, int P>(MatrixTile<T, LAST, P> tile) {
            const size_t bytes = p.tile_bytes + (kWarps * (P + 8) + 3) * kMaps * sizeof(float);
            launch(pwap_backward_matrix_kernel<T, LAST, P>, N * p.walks, 1, kThreads, bytes, queue.stream(), p, dx_view,
                   args, tile);
          });
        });
      }
    const PoolPlan p(view, N, C, S, K, sizeof(T));
    const TilePlan dx_tile(dx_view, S, static_cast<int>(C), p.pixels, kVector<T>);
    launch_all(p.tiles, [&] {
      with_maps<T>(K, [&](auto maps) {
        constexpr int MAPS = decltype(maps)::value;
        const size_t bytes = p.tile_bytes + (2 * K * p.row + MAPS * kThreads) * sizeof(Acc);
        launch(pwap_backward_kernel<T, MAPS>, N * p.tiles, 1, kThreads, bytes, queue.stream(), p, dx_tile, args);
      });
    });
  });
  return {dx, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) { m.impl("pwap_backward", TORCH_BOX(&pwap_backward)); }

}  // namespace axnet::cuda
