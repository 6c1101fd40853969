// pwap: probability-weighted average pooling in one read of X, in the log domain (docs/method.md, "PWAP").
// gated_pwap: the same of Z = X (b' + sum_a w'_a m_a) + h', which exists in the tile alone ("A3 before PWAP").
//
//   tile     L = W X + b;  w_s = p_s / p_top, p = sigmoid(L), top the tile's largest logit;  sum w X and sum w
//   combine  tiles in their order: pooled = sum w X / sum w, relative to the image's largest logit
//
// One map in NCHW takes pwap_one.cuh, of 7 x 7 pixels pwap_image.cuh; else up to 2048 channels of 16 and 32 bits take
// the matrix units (pwap_tile.cuh), the rest pooling.cuh's loops.
#include "checks.h"
#include "cuda/pooling.cuh"
#include "cuda/pwap_args.cuh"
#include "cuda/pwap_combine.cuh"
#include "cuda/pwap_image.cuh"
#include "cuda/pwap_one.cuh"
#include "cuda/pwap_wide.cuh"

namespace axnet::cuda {
namespace {

// Z in the place of X. Thread = channel.
template <class T>
__device__ inline void gate_tile(const PoolPlan& p, const PwapArgs& args, int64_t n, int64_t s0, int pixels, T* tile) {
  using Acc = acc_t<T>;
  const int A = args.A;
  const Acc* mask = static_cast<const Acc*>(args.mask) + n * A * p.S + s0;
  const Acc* fold = static_cast<const Acc*>(args.fold) + n * fold_rows(A) * p.C;
  for (int c = threadIdx.x; c < p.C; c += kThreads)
    for (int s = 0; s < pixels; ++s) {
      Acc gate = fold[c];
      for (int a = 0; a < A; ++a)
        gate += fold[(1 + a) * p.C + c] * mask[a * p.S + s];
      T* at = tile + c * p.tile.pitch + s;
      *at = T(static_cast<Acc>(*at) * gate + fold[(1 + A) * p.C + c]);
    }
  __syncthreads();
}

//   block   one tile; shared: the tile, logits and then weights [K, row], parts [kPoolMaps, 256]
template <class T>
__global__ void __launch_bounds__(kThreads, 2) pwap_tile_kernel(const PoolPlan p, const PwapArgs args) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  Acc* weights = reinterpret_cast<Acc*>(shared + p.tile_bytes);  // [K, row]
  Acc* parts = weights + p.K * p.row;                            // [kPoolMaps, 256]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, K = p.K;
  const int64_t n = blockIdx.x / p.tiles, s0 = blockIdx.x % p.tiles * p.pixels;
  const int pixels = static_cast<int>(p.S - s0 < p.pixels ? p.S - s0 : p.pixels);
  const View view = p.tile.view;
  stage(p.tile, static_cast<const T*>(args.x) + n * view.n + s0 * view.s, static_cast<int>(p.C), pixels, tile);
  __syncthreads();
  if (args.fold) gate_tile(p, args, n, s0, pixels, tile);
  sum_over_channels<T>(p, tile, pixels, static_cast<const Acc*>(args.weight.at), parts, weights);

  Acc* partial = static_cast<Acc*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 2) * K;
  for (int k = warp; k < K; k += kWarps) {
    Acc* row = weights + k * p.row;
    Acc top = -std::numeric_limits<Acc>::infinity(), mass = 0;
    const Acc bias = args.bias.at ? static_cast<Acc>(number(args.bias, k)) : Acc(0);
    for (int s = lane; s < pixels; s += kWarp) {
      row[s] += bias;
      top = row[s] > top ? row[s] : top;
    }
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
  sum_over_pixels<T>(p, tile, pixels, weights, partial);
}

// Z in the place of X, in a warp's part of a tile.
template <class T, bool LAST, int M, int RUN = run_of(M)>
__device__ inline void gate_part(int lane, const MatrixPlan& p, const PwapArgs& args, int n, int c0, int s0,
                                 unsigned char* stage) {
  constexpr int V = kVector<T>;
  const int A = args.A, channels = p.C - c0, pixels = p.S - s0;
  const float* fold = static_cast<const float*>(args.fold) + static_cast<int64_t>(n) * fold_rows(A) * p.C + c0;
  const float* mask = static_cast<const float*>(args.mask) + static_cast<int64_t>(n) * A * p.S + s0;
  WarpTile<T, LAST, M, RUN>::template each_piece<1>(lane, [&](int, int at, int c, int s) {
    if (c >= channels || s >= pixels) return;
    const int rest = LAST ? channels - c : pixels - s, count = rest < V ? rest : V;
    // V numbers of a row: neighbours along the piece, or one for all
    const auto numbers = [&](const float* from, bool along, float (&out)[V]) {
      if (along) return load_lanes<T>(from, count, out);
#pragma unroll
      for (int i = 0; i < V; ++i)
        out[i] = *from;
    };
    float gate[V], w[V], m[V];
    numbers(fold + c, LAST, gate);
#pragma unroll 1
    for (int a = 0; a < A; ++a) {
      numbers(fold + (1 + a) * p.C + c, LAST, w);
      numbers(mask + a * p.S + s, !LAST, m);
#pragma unroll
      for (int i = 0; i < V; ++i)
        gate[i] += w[i] * m[i];
    }
    numbers(fold + (1 + A) * p.C + c, LAST, w);
    Vector<T> z = WarpTile<T, LAST, M, RUN>::piece(stage + at);
#pragma unroll
    for (int i = 0; i < V; ++i)
      z.at[i] = T(static_cast<float>(z.at[i]) * gate[i] + w[i]);
    WarpTile<T, LAST, M, RUN>::set_piece(stage + at, z);
  });
}

//   block   the tiles of a walk, for M maps (pwap_tile.cuh)
//   shared  the ring; parts [warps, M, P]; shares; PooledMaps
template <class T, bool LAST, int M>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1) pwap_matrix_kernel(const MatrixPlan p, const PwapArgs args) {
  AXNET_SHARED(shared);
  using Tile = WarpTile<T, LAST, M>;
  using Product = Products<T, LAST, M>;
  constexpr int P = Tile::P;
  const int warp = threadIdx.x / kWarp, c0 = warp * Tile::kRun, channels = p.C - c0;
  unsigned lane = threadIdx.x % kWarp;
  unsigned char* ring = shared + warp * p.stages * kStage;
  float* parts = reinterpret_cast<float*>(shared + p.warps * p.stages * kStage);
  const Shares<T, P> shares{reinterpret_cast<unsigned char*>(parts + p.warps * M * P), M};
  const PooledMaps<M> found(parts + p.warps * M * P + M * (P + 8));
  const unsigned walk = blockIdx.x / p.groups;
  const int k0 = (blockIdx.x - walk * p.groups) * M, maps = p.K - k0 < M ? p.K - k0 : M;
  const int n = walk / p.walks, first = (walk - n * p.walks) * p.steps;
  const int last = first + p.steps < p.tiles ? first + p.steps : p.tiles;
  const T* x = static_cast<const T*>(args.x) + n * p.image;

  for (int i = 0; i + 1 < p.stages; ++i) {
    if (first + i < last) Tile::fetch(lane, p, x, c0, (first + i) * P, ring + i * kStage);
    copies_commit();
  }
  found.begin(args, k0, maps);
  for (int i = threadIdx.x; i < M * P; i += blockDim.x)
    shares.set(i / P, i % P, 0);
  Rows<T, M, false> weights[Tile::kSlots];
  typed<T>(args.weight, [&](auto from) {
    Product::load_rows(from + static_cast<int64_t>(k0) * p.C + c0, p.C, maps, channels, weights);
  });
  typename Product::Sums sums = {};
  int at = 0;

#pragma unroll 1
  for (int i = first; i < last; ++i) {
    const int s0 = i * P, ahead = at == 0 ? p.stages - 1 : at - 1;
    lane = again(lane) % kWarp;
    __syncwarp();  // all lanes have done with the stage that is filled now
    if (i + p.stages - 1 < last) Tile::fetch(lane, p, x, c0, s0 + (p.stages - 1) * P, ring + ahead * kStage);
    copies_commit();
    copies_wait(p.stages - 1);
    __syncwarp();
    unsigned char* stage = ring + at * kStage;
    if (args.fold) {
      gate_part<T, LAST, M>(lane, p, args, n, c0, s0, stage);
      __syncwarp();
    }
    lane = again(lane) % kWarp;
    Product::channels(lane, stage, weights, parts + warp * M * P);
    __syncthreads();
    lane = again(lane) % kWarp;
    found.weigh(lane, p, args, n, k0, maps, s0, parts, shares);
    __syncthreads();
    lane = again(lane) % kWarp;
    Product::scale(lane, found.falls, sums);
    Product::pixels(lane, stage, shares, 0, sums);
    at = at + 1 == p.stages ? 0 : at + 1;
  }
  found.template end<T, Product>(p, args, walk, n, k0, maps, c0, sums);
}

//   block   the tiles of a walk, for 16 maps (pwap_wide.cuh)
//   shared  the stages; the rows of weights; parts [warps, 16, P]; shares; PooledMaps; what lines are asked for with
template <class T, bool LAST>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1) pwap_wide_kernel(const MatrixPlan p, const PwapArgs args) {
  AXNET_SHARED(shared);
  constexpr int M = 16;
  using Walk = WideWalk<T, LAST>;
  using Product = Products<T, LAST, M, kWideRun>;
  using Row = Rows<T, M, false>;
  constexpr int P = Walk::P;
  const int warp = threadIdx.x / kWarp, c0 = warp * kWideRun;
  unsigned lane = threadIdx.x % kWarp;
  unsigned char *stage = shared + warp * kStage, *held = shared + p.warps * kStage;
  const HeldRows<Row, Product::kSlots> weights{held + warp * kWideHeld};
  static_assert(weights.bytes == kWideHeld);
  float* parts = reinterpret_cast<float*>(held + p.warps * kWideHeld);
  const Shares<T, P> shares{reinterpret_cast<unsigned char*>(parts + p.warps * M * P), M};
  const PooledMaps<M> found(parts + p.warps * M * P + M * (P + 8));
  const unsigned walk = blockIdx.x / p.groups;
  const int k0 = (blockIdx.x - walk * p.groups) * M, maps = p.K - k0 < M ? p.K - k0 : M;
  const int n = walk / p.walks, first = walk - n * p.walks;
  const Walk tiles{p, static_cast<const T*>(args.x) + n * p.image, c0, stage,
                   reinterpret_cast<unsigned char*>(found.biases + M) + warp * 4 * kWarp};

  {
    Row rows[Product::kSlots];
    typed<T>(args.weight, [&](auto from) {
      Product::load_rows(from + static_cast<int64_t>(k0) * p.C + c0, p.C, maps, p.C - c0, rows);
    });
    weights.set(rows);
  }
  tiles.begin(lane, first);
  found.begin(args, k0, maps);
  for (int i = threadIdx.x; i < M * P; i += blockDim.x)
    shares.set(i / P, i % P, 0);
  typename Product::Sums sums = {};

#pragma unroll 1
  for (int i = first; i < p.tiles; i += p.walks) {
    lane = again(lane) % kWarp;
    tiles.wait();
    if (args.fold) {
      gate_part<T, LAST, M, kWideRun>(lane, p, args, n, c0, i * P, stage);
      __syncwarp();
    }
    lane = again(lane) % kWarp;
    Product::channels(lane, stage, weights, parts + warp * M * P);
    __syncthreads();
    lane = again(lane) % kWarp;
    found.weigh(lane, p, args, n, k0, maps, i * P, parts, shares);
    __syncthreads();
    lane = again(lane) % kWarp;
    Product::scale(lane, found.falls, sums);
    Product::pixels(lane, stage, shares, 0, sums, tiles.refill(lane, i + p.walks));
    tiles.refilled(lane, i + p.walks);
  }
  tiles.end();
  found.template end<T, Product>(p, args, walk, n, k0, maps, c0, sums);
}

//   block   the tiles of a walk, for one map (pwap_one.cuh)
template <class T, int Q>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1) pwap_one_kernel(const OnePlan p, const PwapArgs args) {
  AXNET_SHARED(shared);
  using Lane = OneLane<T, Q>;
  Lane lane(p, shared);
  const OneWalk walk(p, Lane::P);
  const T* x = again(static_cast<const T*>(args.x) + walk.n * p.image);
  float weights[Lane::kChannels], sums[Lane::kChannels] = {};
  // asked for before the copies, behind which they would wait
  typed<T>(args.weight, [&](auto from) { lane.load_row(from, weights); });
  lane.begin(x, walk.begin, walk.end);
  const float bias = args.bias.at ? static_cast<float>(number(args.bias, 0)) : 0.f;
  float top = -std::numeric_limits<float>::infinity(), factor = 1, mass = 0;

#pragma unroll 1
  for (int s0 = walk.begin, tile = 0; s0 < walk.end; s0 += Lane::P, ++tile) {
    float* parts = Lane::parts(p, shared, tile % 2);
    lane.products([&](int) -> const auto& { return weights; }, parts);
    __syncthreads();  // the parts of the tile before are no longer read
    float logits[Lane::own], mine[Lane::own], shares[Lane::kPixels], most = -std::numeric_limits<float>::infinity();
#pragma unroll
    for (int o = 0; o < Lane::own; ++o)
      logits[o] = bias;
    lane.add_parts(parts, p.warps, logits);
#pragma unroll
    for (int o = 0; o < Lane::own; ++o)
      if (s0 + lane.first + o < walk.end && logits[o] > most) most = logits[o];
    most = warp_max(most);
    if (!(most - most == 0)) most = 0;  // as in pwap_tile_kernel
    if (most > top) {
      const float next = 1 + std::exp(-std::abs(most));
      const float fall = std::exp(std::fmin(top, 0.f) - std::fmin(most, 0.f)) * next * reciprocal(factor);
      top = most, factor = next, mass *= fall;
#pragma unroll
      for (float& sum : sums)
        sum *= fall;
    }
    float part = 0;
#pragma unroll
    for (int o = 0; o < Lane::own; ++o) {
      const int s = s0 + lane.first + o;
      // as probability(), of which `factor` is kept
      const float logit = logits[o], small = std::exp(-std::abs(logit)), inverse = reciprocal(1 + small);
      const float prob = logit < 0 ? small * inverse : inverse;
      mine[o] = s < walk.end ? (top < 0 ? std::exp(logit - top) : logit < 0 ? small : 1.f) * factor * inverse : 0.f;
      if (lane.counts) part += mine[o];
      if (lane.warp > 0 || !lane.counts || s >= walk.end) continue;
      const int64_t place = static_cast<int64_t>(walk.n) * p.S + s;
      static_cast<float*>(args.logits)[place] = logit;
      static_cast<T*>(args.prob)[place] = narrowed<T>(prob);
    }
    mass += part;
    lane.spread(mine, shares);
    lane.pixels(x, s0, walk.end, shares, sums, [](int) {});
  }

  mass = warp_sum(mass);
  if (p.walks == 1) {  // nothing to merge
    T* pooled = static_cast<T*>(args.pooled) + static_cast<int64_t>(walk.n) * p.C;
    lane.each_sum(sums, [&](int c, float sum) { pooled[c] = narrowed<T>(sum * reciprocal(mass)); });
    float* norm = static_cast<float*>(args.norm) + 2 * static_cast<int64_t>(walk.n);
    if (threadIdx.x == 0) norm[0] = top, norm[1] = mass;
    return;
  }
  float* partial = static_cast<float*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 2);
  if (threadIdx.x == 0) partial[p.C] = top, partial[p.C + 1] = mass;
  lane.each_sum(sums, [&](int c, float sum) { partial[c] = sum; });
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
  std::optional<OnePlan> one;
  std::optional<ImagePlan> image;
  if (!mask) one = OnePlan::of(x, K), image = ImagePlan::of(x, K);
  const std::optional<MatrixPlan> plan = MatrixPlan::of(x, K, 1, 0);
  const Tensor rows = (image || one || plan) && reads(x, weight) ? as(weight) : as(weight, acc);
  with_type(type_of(x), [&](auto type) {
    using T = decltype(type);
    PwapArgs args{data(x),
                  numbers_of(rows),
                  numbers_of(bias),
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
      launch(pwap_combine_kernel<T>, N * K, static_cast<int>(ceil_div(C, kMergedChannels * kMerging)), kMerging,
             (kWarp + 1) * sizeof(acc_t<T>), queue.stream(), args, static_cast<int>(C), static_cast<int>(K),
             static_cast<int>(walks), Divider(K));
    };
    if (image)
      if constexpr (sizeof(T) <= 4)
        return launch(pwap_image_kernel<T>, N, 1, image->warps * kWarp, image->bytes, queue.stream(), *image, args);
    if (one) {
      const auto launch_tiles = [&] {
        with_side<T>(*one, [&](auto side) {
          launch(pwap_one_kernel<T, decltype(side)::value>, N * one->walks, 1, one->warps * kWarp, one->bytes,
                 queue.stream(), *one, args);
        });
      };
      return one->walks == 1 ? launch_tiles() : launch_all(one->walks, launch_tiles);
    }
    if (plan) {
      const auto launch_tiles = [&] {
        with_warp_tile<T>(*plan, [&](auto tile) {
          using Tile = decltype(tile);
          const auto blocks = [&](const auto& kernel) {
            launch(kernel, N * plan->walks * plan->groups, 1, plan->warps * kWarp, plan->bytes, queue.stream(), *plan,
                   args);
          };
          if constexpr (Tile::kMaps == 16 && !std::is_same_v<T, Half>)
            if (plan->wide) return blocks(pwap_wide_kernel<T, Tile::kLast>);
          blocks(pwap_matrix_kernel<T, Tile::kLast, Tile::kMaps>);
        });
      };
      return plan->walks == 1 ? launch_tiles() : launch_all(plan->walks, launch_tiles);
    }
    const PoolPlan p(view_of(x), N, C, S, K, sizeof(T));
    launch_all(p.tiles, [&] {
      const size_t bytes = p.tile_bytes + (K * p.row + kPoolMaps * kThreads) * sizeof(acc_t<T>);
      launch(pwap_tile_kernel<T>, N * p.tiles, 1, kThreads, bytes, queue.stream(), p, args);
    });
  });
  return {pooled, prob, logits, norm};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pwap(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  check_pwap(x, weight, bias, checks::Type::floating);
  const Queue queue(x);
  return pool(queue, dense(x), weight, bias, std::nullopt, std::nullopt);
}

std::tuple<Tensor, Tensor> gated_pwap(Tensor x_in, Tensor mask, Tensor gate_in, std::optional<Tensor> norm_weight,
                                      std::optional<Tensor> norm_bias, Tensor mean, Tensor var, double eps,
                                      Tensor weight, std::optional<Tensor> bias) {
  check_gated_pwap(x_in, mask, gate_in, norm_weight, norm_bias, mean, var, weight, bias, checks::Type::floating);
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
