// pwap_backward: one read of X and one write of dX (docs/method.md, "PWAP").
//
//   tile    a = <dpooled, X>;  share = w / sum w;  dL = (a - <dpooled, pooled>) share (1 - p) + dprob p (1 - p)
//           dX = sum_k share_k dpooled_k + W_k dL_k;  the tile's part of dW = sum dL X and db = sum dL
//   gather  dW and db from the tiles, in their order
//
// 16 maps of all channels that are too many for the registers of a block have kernels of their own (pwap_slopes.cuh).
// One map in NCHW takes pwap_one.cuh, of 7 x 7 pixels pwap_image.cuh; else up to 2048 channels of 16 and 32 bits take
// the matrix units (pwap_tile.cuh), the rest pooling.cuh's loops.
#include "checks.h"
#include "cuda/pooling.cuh"
#include "cuda/pwap_args.cuh"
#include "cuda/pwap_image.cuh"
#include "cuda/pwap_one.cuh"
#include "cuda/pwap_slopes.cuh"

namespace axnet::cuda {
namespace {

constexpr int kStrip = 8;  // pixels of a channel that a thread holds of dX

//   block   one tile; shared: the tile (X, then dX), shares and dL [2K, row], parts [kPoolMaps, 256]
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    pwap_backward_kernel(const PoolPlan p, const TilePlan dx_tile, const PwapBackwardArgs args) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  Acc* shares = reinterpret_cast<Acc*>(shared + p.tile_bytes);  // [K, row]
  const int K = p.K, C = static_cast<int>(p.C);
  Acc* slopes = shares + K * p.row;  // [K, row]: first a, then dL
  Acc* parts = slopes + K * p.row;   // [kPoolMaps, 256]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t n = blockIdx.x / p.tiles, s0 = blockIdx.x % p.tiles * p.pixels;
  const int pixels = static_cast<int>(p.S - s0 < p.pixels ? p.S - s0 : p.pixels);
  const View view = p.tile.view;
  const T* grad = static_cast<const T*>(args.grad_pooled) + n * K * p.C;
  const Acc* weight = static_cast<const Acc*>(args.weight.at);
  stage(p.tile, static_cast<const T*>(args.x) + n * view.n + s0 * view.s, C, pixels, tile);
  __syncthreads();
  sum_over_channels<T>(p, tile, pixels, grad, parts, slopes);

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
  sum_over_pixels<T>(p, tile, pixels, slopes, partial);
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

//   block   the tiles of a walk, for the maps from k0 on (pwap_tile.cuh)
//   shared  the ring; parts [warps, M, P]; shares and dL; of every map: <dpooled, pooled>, largest logit,
//           1 + e^-|it|, 1 / denominator, sum of dL; BFloat16: the weights, turned over
template <class T, bool LAST, int M>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    pwap_backward_matrix_kernel(const MatrixPlan p, const PwapBackwardArgs args, const int k0) {
  AXNET_SHARED(shared);
  using Tile = WarpTile<T, LAST, M>;
  using Product = Products<T, LAST, M>;
  constexpr int P = Tile::P;
  const int warp = threadIdx.x / kWarp, c0 = warp * Tile::kRun, channels = p.C - c0;
  unsigned lane = threadIdx.x % kWarp;
  unsigned char* ring = shared + warp * p.stages * kStage;
  float* parts = reinterpret_cast<float*>(shared + p.warps * p.stages * kStage);
  const Shares<T, P> shares{reinterpret_cast<unsigned char*>(parts + p.warps * M * P), 2 * M};
  const MapNumbers<T, M> numbers(parts + p.warps * M * P + 2 * M * (P + 8));
  float* biases = numbers.inverses + M;
  const int maps = p.K - k0 < M ? p.K - k0 : M, n = blockIdx.x / p.walks;
  const int first = (blockIdx.x - n * p.walks) * p.steps;
  const int last = first + p.steps < p.tiles ? first + p.steps : p.tiles;
  const int64_t map0 = static_cast<int64_t>(n) * p.K + k0;
  const T* x = static_cast<const T*>(args.x) + n * p.image;
  for (int i = 0; i + 1 < p.stages; ++i) {
    if (first + i < last) Tile::fetch(lane, p, x, c0, (first + i) * P, ring + i * kStage);
    copies_commit();
  }

  const T* grad = static_cast<const T*>(args.grad_pooled) + map0 * p.C;
  numbers.fill(p, args, grad, n, k0, maps);
  if (threadIdx.x < M) biases[threadIdx.x] = 0;
  for (int i = threadIdx.x; i < 2 * M * P; i += blockDim.x)
    shares.set(i / P, i % P, 0);
  Rows<T, M, true> grads[Tile::kSlots];
  Product::load_rows(grad + c0, p.C, maps, channels, grads);
  unsigned char* turned = reinterpret_cast<unsigned char*>(biases + M) + warp * kTurnedBytes;
  if constexpr (std::is_same_v<T, BFloat16>)
    typed<T>(args.weight, [&](auto from) {
      Product::turn_over(from + static_cast<int64_t>(k0) * p.C + c0, p.C, maps, channels, turned);
    });
  typename Product::Sums sums = {};
  int at = 0;

#pragma unroll 1
  for (int i = first; i < last; ++i) {
    const int s0 = i * P, ahead = at == 0 ? p.stages - 1 : at - 1;
    lane = again(lane) % kWarp;
    // the numbers of the thread's first map and pixel, under way during the product and before the copies that follow
    float logit = 0, prob_grad = 0;
    const auto load = [&](int index) {
      const int k = index / P, s = s0 + index % P;
      if (index >= M * P || k >= maps || s >= p.S) return;
      const int64_t place = (map0 + k) * p.S + s;
      logit = static_cast<const float*>(args.logits)[place];
      if (args.grad_prob) prob_grad = static_cast<float>(static_cast<const T*>(args.grad_prob)[place]);
    };
    load(warp * kWarp + lane);
    __syncwarp();  // all lanes have done with the stage that is filled now
    if (i + p.stages - 1 < last) Tile::fetch(lane, p, x, c0, s0 + (p.stages - 1) * P, ring + ahead * kStage);
    copies_commit();
    copies_wait(p.stages - 1);
    __syncwarp();
    unsigned char* stage = ring + at * kStage;
    lane = again(lane) % kWarp;
    Product::channels(lane, stage, grads, parts + warp * M * P);
    __syncthreads();
    lane = again(lane) % kWarp;
#pragma unroll 1
    for (int index = warp * kWarp + lane; index < M * P; index += p.warps * kWarp) {
      const int k = index / P, s = index % P;
      if ((index - index % kWarp) / P >= maps) break;  // all lanes of the warp; their shares stay 0
      float a = 0;
#pragma unroll 4
      for (int w = 0; w < p.warps; ++w)
        a += parts[w * M * P + part_at<P>(k, s)];
      float share;
      float slope = numbers.slope(k, a, logit, prob_grad, share);
      if (k >= maps || s0 + s >= p.S) share = slope = 0;
      const float bias = warp_sum<P>(slope);
      shares.set(k, s, share);
      shares.set(M + k, s, slope);
      if (s == 0 && k < maps) biases[k] += bias;
      load(index + p.warps * kWarp);
    }
    __syncthreads();
    lane = again(lane) % kWarp;
    Product::pixels(lane, stage, shares, M, sums);
    if (args.dx)
      write_inputs<T, LAST, M>(lane, p, args, stage, shares, grads, turned, grad, maps, channels, n, k0, c0, s0);
    at = at + 1 == p.stages ? 0 : at + 1;
  }

  float* partial = static_cast<float*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 1) * p.K + k0;
  if (threadIdx.x < maps) partial[p.K * p.C + threadIdx.x] = biases[threadIdx.x];
  partial += static_cast<int64_t>(k0) * (p.C - 1) + c0;
  Product::each_sum(sums, maps, channels, [&](int k, int c, float sum) { partial[k * p.C + c] = sum; });
}

//   block   the tiles of a walk, for one map (pwap_one.cuh)
template <class T, int Q>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    pwap_backward_one_kernel(const OnePlan p, const PwapBackwardArgs args) {
  AXNET_SHARED(shared);
  using Lane = OneLane<T, Q>;
  Lane lane(p, shared);
  const OneWalk walk(p, Lane::P);
  const int64_t n = walk.n;
  const T* x = static_cast<const T*>(args.x) + n * p.image;
  // asked for before the copies, behind which they would wait
  float grads[Lane::kAnswers], means[Lane::kAnswers], weights[Lane::kAnswers], sums[Lane::kChannels] = {};
  lane.load_answers(static_cast<const T*>(args.grad_pooled) + n * p.C, grads);
  lane.load_answers(static_cast<const T*>(args.pooled) + n * p.C, means);
  const float* norm = static_cast<const float*>(args.norm) + 2 * n;
  const float top = norm[0], denominator = norm[1];
  typed<T>(args.weight, [&](auto from) { lane.load_answers(from, weights); });
  lane.begin(x, walk.begin, walk.end);
  double* products = reinterpret_cast<double*>(Lane::parts(p, shared, 2));  // [warps]
  const OneRows<T, Q> rows(lane, p.warps, products + p.warps);
  if constexpr (!Lane::kLast)
#pragma unroll
    for (int i = 0; i < Lane::kAnswers; ++i)
      rows.set(lane.answer(i), grads[i], weights[i]);
  double product = 0;
#pragma unroll
  for (int i = 0; i < Lane::kAnswers; ++i)
    product += static_cast<double>(grads[i]) * means[i];
  product = warp_sum(product);
  if (lane.lane == 0) products[lane.warp] = product;
  __syncthreads();
  product = 0;
  for (int w = 0; w < p.warps; ++w)
    product += products[w];
  const float mean = static_cast<float>(product), factor = (1 + std::exp(-std::abs(top))) / denominator;
  T* dx = args.dx ? static_cast<T*>(args.dx) + n * args.dx_image : nullptr;
  const int dx_step = Lane::kLast ? args.dx_pixel : args.dx_channel;
  float bias = 0;

#pragma unroll 1
  for (int s0 = walk.begin, tile = 0; s0 < walk.end; s0 += Lane::P, ++tile) {
    float logits[Lane::own] = {}, prob_grads[Lane::own] = {};  // under way during the products
#pragma unroll
    for (int o = 0; o < Lane::own; ++o) {
      const int s = s0 + lane.first + o;
      if (s >= walk.end) continue;
      logits[o] = static_cast<const float*>(args.logits)[n * p.S + s];
      if (args.grad_prob) prob_grads[o] = static_cast<float>(static_cast<const T*>(args.grad_prob)[n * p.S + s]);
    }
    float* parts = Lane::parts(p, shared, tile % 2);
    if constexpr (Lane::kLast) lane.products([&](int) -> const auto& { return grads; }, parts);
    else lane.products([&](int j) { return rows.grad(j); }, parts);
    __syncthreads();  // the parts of the tile before are no longer read
    float mine[Lane::own], own_slopes[Lane::own] = {}, shares[Lane::kPixels], slopes[Lane::kPixels];
    lane.add_parts(parts, p.warps, own_slopes);
#pragma unroll
    for (int o = 0; o < Lane::own; ++o) {
      const float logit = logits[o], small = std::exp(-std::abs(logit)), inverse = reciprocal(1 + small);
      const float prob = logit < 0 ? small * inverse : inverse, rest = logit < 0 ? inverse : small * inverse;
      const bool real = s0 + lane.first + o < walk.end;
      const float share = (top < 0 ? std::exp(logit - top) : logit < 0 ? small : 1.f) * factor * inverse;
      const float slope = ((own_slopes[o] - mean) * share + prob_grads[o] * prob) * rest;
      mine[o] = real ? share : 0, own_slopes[o] = real ? slope : 0;
      if (lane.counts) bias += own_slopes[o];
    }
    lane.spread(mine, shares);
    lane.spread(own_slopes, slopes);
    const int to = lane.place(s0, dx_step), there = dx ? lane.inside(s0, walk.end) : 0;
    const auto write = [&](int j, const auto& grad, const auto& weight) {
#pragma unroll
      for (int a = j * kChunk; a < (j + 1) * kChunk; ++a) {
        float v[Lane::V];
#pragma unroll
        for (int i = 0; i < Lane::V; ++i) {
          const int c = lane.channel_of(a, i), s = lane.pixel_of(a, i);
          v[i] = shares[s] * grad[c] + slopes[s] * weight[c];
        }
        Bits<T, Lane::V> out;
        out.gather(v);
        if (a < there) out.store(dx + static_cast<int64_t>(to + a * again(Lane::R * dx_step)));
      }
    };
    lane.pixels(x, s0, walk.end, slopes, sums, [&](int j) {
      if constexpr (Lane::kLast) write(j, grads, weights);
      else write(j, rows.grad(j), rows.weight(j));
    });
  }

  float* partial = static_cast<float*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 1);
  bias = warp_sum(bias);
  if (threadIdx.x == 0) partial[p.C] = bias;
  lane.each_sum(sums, [&](int c, float sum) { partial[c] = sum; });
}

//   block   32 TOGETHER columns of the parts [rows, K*C + K]; warps take the rows in turn and are added in order, in
//           double
template <class Acc, int TOGETHER>
__global__ void __launch_bounds__(kThreads)
    pwap_gather_kernel(const PwapBackwardArgs args, int rows, int64_t weights, int64_t columns) {
  AXNET_SHARED(shared);
  struct alignas(TOGETHER * sizeof(Acc)) Columns {
    Acc at[TOGETHER];
  };
  double* parts = reinterpret_cast<double*>(shared);  // [TOGETHER, 8, 32]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kWarp + lane) * TOGETHER, step = columns * kWarps;
  double total[TOGETHER] = {};
  if (column < columns) {
    const Acc* from = static_cast<const Acc*>(args.partial) + warp * columns + column;
#pragma unroll 8
    for (int r = warp; r < rows; r += kWarps, from += step) {
      const Columns v = *reinterpret_cast<const Columns*>(from);
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i)
        total[i] += v.at[i];
    }
  }
#pragma unroll
  for (int i = 0; i < TOGETHER; ++i)
    parts[i * kThreads + threadIdx.x] = total[i];
  __syncthreads();
  if (warp >= TOGETHER || column + warp >= columns) return;
  double sum = 0;
  for (int w = 0; w < kWarps; ++w)
    sum += parts[warp * kThreads + w * kWarp + lane];
  const int64_t own = column + warp;
  Acc* out =
      own < weights ? static_cast<Acc*>(args.weight_grad) + own : static_cast<Acc*>(args.bias_grad) + (own - weights);
  *out = static_cast<Acc>(sum);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pwap_backward(Tensor grad_pooled, std::optional<Tensor> grad_prob, Tensor x_in,
                                                 Tensor weight, Tensor logits, Tensor norm, Tensor pooled,
                                                 bool input_grad) {
  check_pwap_backward(grad_pooled, grad_prob, x_in, weight, logits, norm, pooled, checks::Type::floating);
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
  const bool bfloat16 = type_of_x == ScalarType::BFloat16;
  const std::optional<MatrixPlan> plan = MatrixPlan::of(x, K, 2, bfloat16 ? kTurnedBytes : 0, true);
  const std::optional<OnePlan> one = OnePlan::of(x, K);
  const std::optional<ImagePlan> image = ImagePlan::of(x, K);
  const bool as_it_is = (image || one || (plan && bfloat16)) && reads(x, weight);
  const Tensor rows = as_it_is ? as(weight) : as(weight, acc);
  const Tensor grad = as(grad_pooled, type_of_x), mean = as(pooled, type_of_x);
  std::optional<Tensor> map_grad;
  if (grad_prob) map_grad = as(*grad_prob, type_of_x);
  with_type(type_of(x), [&](auto type) {
    using T = decltype(type);
    using Acc = acc_t<T>;
    PwapBackwardArgs args{data(x),           input_grad ? data(dx) : nullptr,
                          data(grad),        data(mean),
                          data(map_grad),    numbers_of(rows),
                          data(logits),      data(norm),
                          nullptr,           nullptr,
                          data(weight_grad), data(bias_grad)};
    Tensor partial;
    const auto launch_all = [&](int64_t walks, const auto& launch_tiles) {
      partial = empty({N * walks, (C + 1) * K}, acc, device);
      args.partial = data(partial);
      launch_tiles();
      const int64_t columns = (C + 1) * K;
      const auto gather = [&](const auto& kernel, int together) {
        launch(kernel, ceil_div(columns, together * kWarp), 1, kThreads, together * kThreads * sizeof(double),
               queue.stream(), args, static_cast<int>(N * walks), K * C, columns);
      };
      if (columns % 2 == 0 && columns > 8192) gather(pwap_gather_kernel<Acc, 2>, 2);
      else gather(pwap_gather_kernel<Acc, 1>, 1);
    };
    const View view = view_of(x), dx_view = input_grad ? view_of(dx) : view;
    if (image)
      if constexpr (sizeof(T) <= 4) {
        args.dx_image = dx_view.n;
        return launch_all(1, [&] {
          launch(pwap_backward_image_kernel<T>, N, 1, image->warps * kWarp, image->bytes, queue.stream(), *image, args);
        });
      }
    if (one) {
      args.dx_image = dx_view.n;
      args.dx_channel = static_cast<int>(dx_view.c), args.dx_pixel = static_cast<int>(dx_view.s);
      return launch_all(one->walks, [&] {
        with_side<T>(*one, [&](auto side) {
          launch(pwap_backward_one_kernel<T, decltype(side)::value>, N * one->walks, 1, one->warps * kWarp, one->bytes,
                 queue.stream(), *one, args);
        });
      });
    }
    if (plan) {
      args.dx_image = dx_view.n;
      args.dx_channel = static_cast<int>(dx_view.c), args.dx_pixel = static_cast<int>(dx_view.s);
      args.dx_fast = (dx_view.channels_last ? C : S) % kVector<T> == 0;  // a tensor of its own, without gaps
      return launch_all(plan->walks, [&] {
        with_warp_tile<T>(*plan, [&](auto tile) {
          using Tile = decltype(tile);
          const auto blocks = [&](const auto& kernel, const MatrixPlan& of, int64_t count, int k0) {
            launch(kernel, N * count, 1, of.warps * kWarp, of.bytes, queue.stream(), of, args, k0);
          };
          if constexpr (Tile::kMaps == 16 && std::is_same_v<T, BFloat16>)
            if (plan->wide) {
              for (int k0 = 0; k0 < K; k0 += plan->maps)  // the later ones add to dX
                blocks(pwap_backward_wide_kernel<T, Tile::kLast>, *plan, plan->walks, k0);
              return;
            }
          if constexpr (Tile::kMaps == 16)
            if (plan->halves == 2) {
              const Tensor slopes = empty({N, K, S, 2}, acc, device);
              const MatrixPlan before = plan->of_slopes(x);
              args.slopes = data(slopes);
              for (int k0 = 0; k0 < K; k0 += plan->maps) {
                blocks(pwap_backward_slopes_kernel<T, Tile::kLast>, before, before.walks, k0);
                blocks(pwap_backward_half_kernel<T, Tile::kLast>, *plan, 2 * plan->walks, k0);
              }
              return;
            }
          for (int k0 = 0; k0 < K; k0 += plan->maps)  // the later ones add to dX
            blocks(pwap_backward_matrix_kernel<T, Tile::kLast, Tile::kMaps>, *plan, plan->walks, k0);
        });
      });
    }
    const PoolPlan p(view, N, C, S, K, sizeof(T));
    const TilePlan dx_tile(dx_view, S, static_cast<int>(C), p.pixels, kVector<T>);
    launch_all(p.tiles, [&] {
      const size_t bytes = p.tile_bytes + (2 * K * p.row + kPoolMaps * kThreads) * sizeof(Acc);
      launch(pwap_backward_kernel<T>, N * p.tiles, 1, kThreads, bytes, queue.stream(), p, dx_tile, args);
    });
  });
  return {dx, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) { m.impl("pwap_backward", TORCH_BOX(&pwap_backward)); }

}  // namespace axnet::cuda
