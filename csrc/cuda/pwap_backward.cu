// pwap_backward: one read of X and one write of dX (docs/method.md, "PWAP").
//
//   tile    a = <dpooled, X>;  share = w / sum w;  dL = (a - <dpooled, pooled>) share (1 - p) + dprob p (1 - p)
//           dX = sum_k share_k dpooled_k + W_k dL_k;  the tile's part of dW = sum dL X and db = sum dL
//   gather  dW and db from the tiles, in their order
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
    const PoolPlan p(view_of(x), N, C, S, K, sizeof(T));
    const TilePlan dx_tile(input_grad ? view_of(dx) : p.tile.view, S, static_cast<int>(C), p.pixels, kVector<T>);
    Tensor partial = empty({N * p.tiles, (C + 1) * K}, acc, device);
    const PwapBackwardArgs args{data(x),        input_grad ? data(dx) : nullptr,
                                data(grad),     data(mean),
                                data(map_grad), data(weight),
                                data(logits),   data(norm),
                                data(partial),  data(weight_grad),
                                data(bias_grad)};
    with_maps<T>(K, [&](auto maps) {
      constexpr int MAPS = decltype(maps)::value;
      const size_t bytes = p.tile_bytes + (2 * K * p.row + MAPS * kThreads) * sizeof(Acc);
      launch(pwap_backward_kernel<T, MAPS>, N * p.tiles, 1, kThreads, bytes, queue.stream(), p, dx_tile, args);
    });
    launch(pwap_gather_kernel<Acc>, ceil_div((C + 1) * K, kWarp), 1, kThreads, kThreads * sizeof(double),
           queue.stream(), args, N * p.tiles, K, C);
  });
  return {dx, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) { m.impl("pwap_backward", TORCH_BOX(&pwap_backward)); }

}  // namespace axnet::cuda
