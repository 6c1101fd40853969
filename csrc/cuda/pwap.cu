// pwap: probability-weighted average pooling in one read of X, in the log domain (docs/method.md, "PWAP").
// gated_pwap: the same of Z = X (b' + sum_a w'_a m_a) + h', which exists in the tile alone ("A3 before PWAP").
//
//   tile     L = W X + b;  w_s = p_s / p_top, p = sigmoid(L), top the tile's largest logit;  sum w X and sum w
//   combine  tiles in their order: pooled = sum w X / sum w, relative to the image's largest logit
#include "cuda/algebra.cuh"
#include "cuda/pooling.cuh"

namespace axnet::cuda {
namespace {

struct PwapArgs {
  const void* x;
  const void *weight, *bias;  // acc [K, C], acc [K] or null
  void *pooled, *prob;        // T [N, K, C], T [N, K, S]
  void *logits, *norm;        // acc [N, K, S]; acc [N, 2, K]: largest logit, sum of p / p(largest logit)
  void* partial;              // acc [N, tiles, K*C + 2*K]: numerators, largest logits, denominators
  const void *mask, *fold;    // acc [N, A, S], acc [N, fold_rows(A), C]; null: pool X itself
  int A;
};

// Z in the place of X. Thread = channel.
template <class T>
__device__ inline void gate_tile(const PoolPlan& p, const PwapArgs& args, int64_t n, int64_t s0, int pixels, T* tile) {
  using Acc = acc_t<T>;
  constexpr int kHeld = 4;  // anatomies whose weights stay in registers
  const int A = args.A;
  const Acc* mask = static_cast<const Acc*>(args.mask) + n * A * p.S + s0;
  const Acc* fold = static_cast<const Acc*>(args.fold) + n * fold_rows(A) * p.C;
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < p.C; c += kThreads) {
    const Acc b = fold[c], h = fold[(1 + A) * p.C + c];
    Acc w[kHeld];
#pragma unroll
    for (int a = 0; a < kHeld; ++a)
      w[a] = a < A ? fold[(1 + a) * p.C + c] : Acc(0);
    T* row = tile + c * p.tile.pitch;
#pragma unroll 2
    for (int s = 0; s < pixels; ++s) {
      Acc gate = b;
#pragma unroll
      for (int a = 0; a < kHeld; ++a)
        if (a < A) gate += w[a] * mask[a * p.S + s];
#pragma unroll 1
      for (int a = kHeld; a < A; ++a)
        gate += fold[(1 + a) * p.C + c] * mask[a * p.S + s];
      row[s] = T(static_cast<Acc>(row[s]) * gate + h);
    }
  }
  __syncthreads();
}

//   block   one tile; shared: the tile, logits and then weights [K, row], parts [MAPS, 256]
template <class T, int MAPS>
__global__ void __launch_bounds__(kThreads, 2) pwap_tile_kernel(const PoolPlan p, const PwapArgs args) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  Acc* weights = reinterpret_cast<Acc*>(shared + p.tile_bytes);  // [K, row]
  Acc* parts = weights + p.K * p.row;                            // [MAPS, 256]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, K = p.K;
  const int64_t n = blockIdx.x / p.tiles, s0 = blockIdx.x % p.tiles * p.pixels;
  const int pixels = static_cast<int>(p.S - s0 < p.pixels ? p.S - s0 : p.pixels);
  const View view = p.tile.view;
  stage(p.tile, static_cast<const T*>(args.x) + n * view.n + s0 * view.s, static_cast<int>(p.C), pixels, tile);
  __syncthreads();
  if (args.fold) gate_tile(p, args, n, s0, pixels, tile);
  sum_over_channels<T, MAPS>(p, tile, pixels, static_cast<const Acc*>(args.weight), static_cast<const Acc*>(args.bias),
                             parts, weights);

  Acc* partial = static_cast<Acc*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 2) * K;
  for (int k = warp; k < K; k += kWarps) {
    Acc* row = weights + k * p.row;
    Acc top = -std::numeric_limits<Acc>::infinity(), mass = 0;
    for (int s = lane; s < pixels; s += kWarp)
      top = row[s] > top ? row[s] : top;
    top = warp_max(top);
    if (!(top - top == 0)) top = 0;  // inf or NaN among the logits: let it show in the sums
    const int64_t place = (n * K + k) * p.S + s0;
    for (int s = lane; s < pixels; s += kWarp) {
      const Acc logit = row[s];
      Acc prob, weight;
      probability(logit, top, prob, weight);
      mass += weight;
      row[s] = weight;
      static_cast<Acc*>(args.logits)[place + s] = logit;
      static_cast<T*>(args.prob)[place + s] = T(prob);
    }
    mass = warp_sum(mass);
    if (lane == 0) partial[K * p.C + k] = top, partial[K * (p.C + 1) + k] = mass;
  }
  __syncthreads();
  sum_over_pixels<T, MAPS>(p, tile, pixels, weights, partial);
}

//   block   256 channels of one map of one image; shared: the shares of up to 256 tiles
template <class T>
__global__ void __launch_bounds__(kThreads)
    pwap_combine_kernel(const PoolPlan p, const PwapArgs args, int64_t channel_blocks) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  Acc* shares = reinterpret_cast<Acc*>(shared);
  const int K = p.K;
  const int64_t map = blockIdx.x / channel_blocks, n = map / K, k = map % K, size = (p.C + 2) * K;
  const int64_t c = blockIdx.x % channel_blocks * kThreads + threadIdx.x;
  const Acc* partial = static_cast<const Acc*>(args.partial) + n * p.tiles * size;
  const Acc *tops = partial + K * p.C + k, *masses = tops + K;
  Acc top = tops[0];
  for (int64_t i = 1; i < p.tiles; ++i)
    top = tops[i * size] > top ? tops[i * size] : top;
  const Acc reference = log_sigmoid(top);
  double mass = 0;
  Acc total = 0;
  for (int64_t first = 0; first < p.tiles; first += kThreads) {
    const int count = static_cast<int>(p.tiles - first < kThreads ? p.tiles - first : kThreads);
    __syncthreads();
    if (threadIdx.x < count)
      shares[threadIdx.x] = std::exp(log_sigmoid(tops[(first + threadIdx.x) * size]) - reference);
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      mass += static_cast<double>(shares[i]) * masses[(first + i) * size];
      if (c < p.C) total += shares[i] * partial[(first + i) * size + k * p.C + c];
    }
  }
  if (c < p.C) static_cast<T*>(args.pooled)[map * p.C + c] = T(static_cast<Acc>(total / static_cast<Acc>(mass)));
  if (c == 0) {
    Acc* norm = static_cast<Acc*>(args.norm) + n * 2 * K;
    norm[k] = top, norm[K + k] = static_cast<Acc>(mass);
  }
}

// mask, fold: of the gate, or neither.
std::tuple<Tensor, Tensor, Tensor, Tensor> pool(const Queue& queue, const Tensor& x, const Tensor& weight,
                                                const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                                                const std::optional<Tensor>& fold) {
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), S = H * W, K = weight.size(0);
  const ScalarType acc = accumulator(x);
  Tensor pooled = empty({N, K, C}, x.scalar_type(), device), prob = empty({N, K, H, W}, x.scalar_type(), device);
  Tensor logits = empty({N, K, H, W}, acc, device), norm = empty({N, 2, K}, acc, device);
  if (N * C == 0) return {pooled, prob, logits, norm};
  with_type(x, [&](auto type) {
    using T = decltype(type);
    const PoolPlan p(view_of(x), N, C, S, K, sizeof(T));
    Tensor partial = empty({N * p.tiles, (C + 2) * K}, acc, device);
    const PwapArgs args{data(x),      data(weight), data(bias),    data(pooled), data(prob), data(logits),
                        data(norm),   data(partial), data(mask),   data(fold),
                        mask ? static_cast<int>(mask->size(1)) : 0};
    with_maps<T>(K, [&](auto maps) {
      constexpr int MAPS = decltype(maps)::value;
      const size_t bytes = p.tile_bytes + (K * p.row + MAPS * kThreads) * sizeof(acc_t<T>);
      launch(pwap_tile_kernel<T, MAPS>, N * p.tiles, 1, kThreads, bytes, queue.stream(), p, args);
    });
    const int64_t channel_blocks = ceil_div(C, kThreads);
    launch(pwap_combine_kernel<T>, N * K * channel_blocks, 1, kThreads, kThreads * sizeof(acc_t<T>), queue.stream(), p,
           args, channel_blocks);
  });
  return {pooled, prob, logits, norm};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pwap(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  const Queue queue(x);
  return pool(queue, dense(x), weight, bias, std::nullopt, std::nullopt);
}

std::tuple<Tensor, Tensor> gated_pwap(Tensor x_in, Tensor mask, Tensor gate_in, std::optional<Tensor> norm_weight,
                                      std::optional<Tensor> norm_bias, Tensor mean, Tensor var, double eps,
                                      Tensor weight, std::optional<Tensor> bias) {
  const Queue queue(x_in);
  const Tensor x = dense(x_in), gate = torch::stable::contiguous(gate_in);
  std::optional<Tensor> fold;
  if (x.size(0) > 0) fold = fold_given(queue, x, gate, norm_weight, norm_bias, mean, var, eps);
  const auto result = pool(queue, x, weight, bias, mask, fold);
  return {std::get<0>(result), std::get<1>(result)};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) {
  m.impl("pwap", TORCH_BOX(&pwap));
  m.impl("gated_pwap", TORCH_BOX(&gated_pwap));
}

}  // namespace axnet::cuda
