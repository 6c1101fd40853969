// pwap: probability-weighted average pooling in one read of X, in the log domain (docs/method.md, "PWAP").
// gated_pwap: the same of Z = X (b' + sum_a w'_a m_a) + h', which exists in the tile alone ("A3 before PWAP").
//
//   tile     L = W X + b;  w_s = p_s / p_top, p = sigmoid(L), top the tile's largest logit;  sum w X and sum w
//   combine  tiles in their order: pooled = sum w X / sum w, relative to the image's largest logit
//
// Several maps of 16-bit types take the matrix units, and there a block takes several tiles (matrix_tile.cuh).
#include "checks.h"
#include "cuda/algebra.cuh"
#include "cuda/matrix_tile.cuh"
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

// Z in the place of X; place(c, s): its address in the tile. Thread = channel; `turn`: its order of pixels, for the
// banks.
template <class T, class Plan, class F>
__device__ inline void gate_tile(const Plan& p, const PwapArgs& args, int64_t n, int64_t s0, int pixels, int turn,
                                 const F& place) {
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
#pragma unroll 2
    for (int i = 0; i < (pixels + 7) / 8 * 8; ++i) {
      const int s = i ^ turn;
      if (s >= pixels) continue;
      Acc gate = b;
#pragma unroll
      for (int a = 0; a < kHeld; ++a)
        if (a < A) gate += w[a] * mask[a * p.S + s];
#pragma unroll 1
      for (int a = kHeld; a < A; ++a)
        gate += fold[(1 + a) * p.C + c] * mask[a * p.S + s];
      T* at = place(static_cast<int>(c), s);
      *at = T(static_cast<Acc>(*at) * gate + h);
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
  if (args.fold) gate_tile<T>(p, args, n, s0, pixels, 0, [&](int c, int s) { return tile + c * p.tile.pitch + s; });
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

//   block   the tiles of a walk, for 16 maps; shared: [8, 16, P + 8]: products of the warps (matrix_tile.cuh), the
//   first
//           then the weights; [4, 16]: largest logits so far, denominators, what a larger top leaves of the sums, the
//           block's job; the tile
//   warp    weights of the maps w and w + 8, lane = pixel
template <class T, bool LAST, int P>
__global__ void __launch_bounds__(kThreads, P == 32 ? 2 : 1)
    pwap_matrix_kernel(const MatrixPlan p, const PwapArgs args, MatrixTile<T, LAST, P> tile) {
  AXNET_SHARED(shared);
  constexpr int row = P + 8;
  float* parts = reinterpret_cast<float*>(shared);
  float *tops = parts + kWarps * kMaps * row, *masses = tops + kMaps, *falls = masses + kMaps;
  // image, first map, tiles, place of the sums: in shared memory, as the sums take the registers
  unsigned* job = reinterpret_cast<unsigned*>(falls + kMaps);
  tile.at = reinterpret_cast<T*>(job + kMaps), tile.pitch = p.pitch;
  const int thread = threadIdx.x;
  if (thread < kMaps) tops[thread] = -std::numeric_limits<float>::infinity(), masses[thread] = 0;
  if (threadIdx.x == 0) {
    const unsigned block = blockIdx.x / p.groups, first = block % p.walks * p.steps;
    job[0] = block / p.walks, job[1] = blockIdx.x % p.groups * kMaps, job[4] = block;
    job[2] = first, job[3] = first + p.steps < static_cast<unsigned>(p.tiles) ? first + p.steps : p.tiles;
  }
  __syncthreads();
  Sums<P> sums = {};

#pragma unroll 1
  while (job[2] < job[3]) {
    const int s0 = job[2] * p.pixels;
    const int pixels = static_cast<int>(p.S) - s0 < p.pixels ? static_cast<int>(p.S) - s0 : p.pixels;
    tile.load(p, static_cast<const T*>(args.x) + job[0] * p.view.n + s0 * p.view.s, pixels);
    __syncthreads();
    if (args.fold)
      gate_tile<T>(p, args, job[0], s0, pixels, LAST ? 0 : threadIdx.x / 8 % 4 * 2,
                   [&](int c, int s) { return tile.place(c, s); });
    multiply_channels(p, tile, pixels, static_cast<const float*>(args.weight), job[1], parts);
    __syncthreads();
    const int k0 = job[1], lane = thread_again() % kWarp;
#pragma unroll 1
    for (int k = thread_again() / kWarp; k < kMaps; k += kWarps) {
      const bool real = k0 + k < p.K && lane < pixels;
      float logit = real && args.bias ? static_cast<const float*>(args.bias)[k0 + k] : 0.f;
      float* column = parts + k * row + lane;
      if (lane < P)
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
          logit += column[w * kMaps * row];
      const float before = tops[k];
      float top = warp_max(real ? logit : -std::numeric_limits<float>::infinity()), fall = 1;
      if (!(top - top == 0)) top = 0;  // as in pwap_tile_kernel
      if (top > before) fall = std::exp(log_sigmoid(before) - log_sigmoid(top));
      else top = before;
      float prob, share;
      probability(logit, top, prob, share);
      if (!real) share = 0;
      const float mass = warp_sum(share);
      if (lane < P) *column = share;
      if (lane == 0) tops[k] = top, masses[k] = masses[k] * fall + mass, falls[k] = fall;
      if (real) {
        const int64_t place = (static_cast<int64_t>(job[0]) * p.K + k0 + k) * p.S + s0 + lane;
        static_cast<float*>(args.logits)[place] = logit;
        static_cast<T*>(args.prob)[place] = T(prob);
      }
    }
    __syncthreads();
    if (thread_again() == 0) ++job[2];
    const float upper = falls[lane / 4], lower = falls[lane / 4 + 8];
    if (upper != 1 || lower != 1)
#pragma unroll
      for (int i = 0; i < 256 / P; ++i)
#pragma unroll
        for (int e = 0; e < 8; ++e)
          sums[i][e / 4][e % 4] *= e / 2 % 2 ? lower : upper;
    multiply_pixels(p, tile, pixels, parts, sums);
    __syncthreads();
  }

  const int last = thread_again(), k = static_cast<int>(job[1]) + last;
  float* partial = static_cast<float*>(args.partial) + job[4] * (p.C + 2) * p.K;
  store_sums<P>(p, sums, job[1], partial);
  if (last < kMaps && k < p.K) partial[p.K * p.C + k] = tops[last], partial[p.K * (p.C + 1) + k] = masses[last];
}

//   block   256 channels of one map of one image; shared: the shares of up to 256 of its parts
template <class T>
__global__ void __launch_bounds__(kThreads)
    pwap_combine_kernel(const PwapArgs args, int64_t C, int K, int64_t walks, int64_t channel_blocks) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  Acc* shares = reinterpret_cast<Acc*>(shared);
  const int64_t map = blockIdx.x / channel_blocks, n = map / K, k = map % K, size = (C + 2) * K;
  const int64_t c = blockIdx.x % channel_blocks * kThreads + threadIdx.x;
  const Acc* partial = static_cast<const Acc*>(args.partial) + n * walks * size;
  const Acc *tops = partial + K * C + k, *masses = tops + K;
  Acc top = tops[0];
  for (int64_t i = 1; i < walks; ++i)
    top = tops[i * size] > top ? tops[i * size] : top;
  const Acc reference = log_sigmoid(top);
  double mass = 0;
  Acc total = 0;
  for (int64_t first = 0; first < walks; first += kThreads) {
    const int count = static_cast<int>(walks - first < kThreads ? walks - first : kThreads);
    __syncthreads();
    if (threadIdx.x < count)
      shares[threadIdx.x] = std::exp(log_sigmoid(tops[(first + threadIdx.x) * size]) - reference);
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      mass += static_cast<double>(shares[i]) * masses[(first + i) * size];
      if (c < C) total += shares[i] * partial[(first + i) * size + k * C + c];
    }
  }
  if (c < C) static_cast<T*>(args.pooled)[map * C + c] = T(static_cast<Acc>(total / static_cast<Acc>(mass)));
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
    PwapArgs args{data(x),
                  data(weight),
                  data(bias),
                  data(pooled),
                  data(prob),
                  data(logits),
                  data(norm),
                  nullptr,
                  data(mask),
                  data(fold),
                  mask ? static_cast<int>(mask->size(1)) : 0};
    Tensor partial;
    const auto launch_all = [&](int64_t walks, const auto& launch_tiles) {
      partial = empty({N * walks, (C + 2) * K}, acc, device);
      args.partial = data(partial);
      launch_tiles();
      const int64_t channel_blocks = ceil_div(C, kThreads);
      launch(pwap_combine_kernel<T>, N * K * channel_blocks, 1, kThreads, kThreads * sizeof(acc_t<T>), queue.stream(),
             args, C, static_cast<int>(K), walks, channel_blocks);
    };
    if constexpr (kHasMatrices<T>)
      if (K > 1 && C <= kMatrixChannels) {
        const MatrixPlan p(view_of(x), N, C, S, K);
        return launch_all(p.walks, [&] {
          with_matrix_tile<T>(p, [&]<bool LAST, int P>(MatrixTile<T, LAST, P> tile) {
            const size_t bytes = p.tile_bytes + (kWarps * (P + 8) + 4) * kMaps * sizeof(float);
            launch(pwap_matrix_kernel<T, LAST, P>, N * p.walks * p.groups, 1, kThreads, bytes, queue.stream(), p, args,
                   tile);
          });
        });
      }
    const PoolPlan p(view_of(x), N, C, S, K, sizeof(T));
    launch_all(p.tiles, [&] {
      with_maps<T>(K, [&](auto maps) {
        constexpr int MAPS = decltype(maps)::value;
        const size_t bytes = p.tile_bytes + (K * p.row + MAPS * kThreads) * sizeof(acc_t<T>);
        launch(pwap_tile_kernel<T, MAPS>, N * p.tiles, 1, kThreads, bytes, queue.stream(), p, args);
      });
    });
  });
  return {pooled, prob, logits, norm};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pwap(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  check_pwap(x, weight, bias);
  const Queue queue(x);
  return pool(queue, dense(x), weight, bias, std::nullopt, std::nullopt);
}

std::tuple<Tensor, Tensor> gated_pwap(Tensor x_in, Tensor mask, Tensor gate_in, std::optional<Tensor> norm_weight,
                                      std::optional<Tensor> norm_bias, Tensor mean, Tensor var, double eps,
                                      Tensor weight, std::optional<Tensor> bias) {
  check_gated_pwap(x_in, mask, gate_in, norm_weight, norm_bias, mean, var, weight, bias);
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
