// The gradient of the logits, and PWAP's way back where 16 maps of all channels are too many for a block:
//
//   wide    all channels in a block, whose rows lie in shared memory (pwap_wide.cuh), if there is so much of it; else
//   slopes  share = w / sum w and dL of every pixel, from all channels: a warp multiplies its channels of both halves
//   half    dX, and the tile's part of dW and db, of half of the channels: X is read once more, dX written once
#pragma once

#include "cuda/pwap_args.cuh"
#include "cuda/pwap_wide.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {

// A thread's logit and gradient of a probability, under way during the product and before the copies that follow.
template <class T, int P>
struct SlopeInputs {
  const PwapBackwardArgs& args;
  const MatrixPlan& p;
  int64_t map0;
  int maps;
  float logit = 0, prob_grad = 0;

  __device__ SlopeInputs(const PwapBackwardArgs& args, const MatrixPlan& p, int64_t map0, int maps)
      : args(args), p(p), map0(map0), maps(maps) {}
  __device__ void load(int index, int s0) {
    const int k = index / P, s = s0 + index % P;
    if (k >= maps || s >= p.S) return;
    const int64_t place = (map0 + k) * p.S + s;
    logit = static_cast<const float*>(args.logits)[place];
    if (args.grad_prob) prob_grad = static_cast<float>(static_cast<const T*>(args.grad_prob)[place]);
  }
};

// Of M maps, in shared memory: <dpooled, pooled>, largest logit, 1 + e^-|it|, 1 / denominator.
template <class T, int M>
struct MapNumbers {
  float *means, *tops, *factors, *inverses;
  __device__ explicit MapNumbers(float* at) : means(at), tops(at + M), factors(tops + M), inverses(factors + M) {}

  // grad: of the map k0
  __device__ void fill(const MatrixPlan& p, const PwapBackwardArgs& args, const T* grad, int n, int k0,
                       int maps) const {
    for (int k = threadIdx.x / kWarp; k < maps; k += p.warps) {
      const T* pooled = static_cast<const T*>(args.pooled) + (static_cast<int64_t>(n) * p.K + k0 + k) * p.C;
      const double product = product_of(grad + k * p.C, pooled, p.C);
      const float mean = static_cast<float>(warp_sum(product));
      if (threadIdx.x % kWarp == 0) {
        const float* norm = static_cast<const float*>(args.norm) + static_cast<int64_t>(n) * 2 * p.K + k0 + k;
        means[k] = mean, tops[k] = norm[0], factors[k] = 1 + std::exp(-std::abs(norm[0])), inverses[k] = 1 / norm[p.K];
      }
    }
  }

  // The lane's part of a product of rows: four neighbours in float, their sums in double.
  __device__ static double product_of(const T* a, const T* b, int C) {
    double product = 0;
    const int lane = threadIdx.x % kWarp;
    if (C % 4 == 0 && (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % (4 * sizeof(T)) == 0) {
      for (int c = 4 * lane; c < C; c += 4 * kWarp) {
        Bits<T, 4> four[2];
        float v[2][4];
        four[0].load(a + c), four[1].load(b + c);
        four[0].spread(v[0]), four[1].spread(v[1]);
        product += (v[0][0] * v[1][0] + v[0][1] * v[1][1]) + (v[0][2] * v[1][2] + v[0][3] * v[1][3]);
      }
      return product;
    }
    for (int c = lane; c < C; c += kWarp)
      product += static_cast<double>(static_cast<float>(a[c])) * static_cast<float>(b[c]);
    return product;
  }

  // The shares and dL of a tile, from the parts of all warps; what `in` has loaded is of the thread's first number.
  template <int P>
  __device__ void weigh(unsigned lane, const MatrixPlan& p, int maps, int s0, const float* parts, SlopeInputs<T, P>& in,
                        const Shares<T, P>& shares, float* biases) const {
#pragma unroll 1
    for (int index = threadIdx.x / kWarp * kWarp + lane; index < M * P; index += p.warps * kWarp) {
      const int k = index / P, s = index % P;
      if ((index - index % kWarp) / P >= maps) break;  // all lanes of the warp; their shares stay 0
      float a = 0;
#pragma unroll 4
      for (int w = 0; w < p.warps; ++w)
        a += parts[w * M * P + part_at<P>(k, s)];
      float share, slope = this->slope(k, a, in.logit, in.prob_grad, share);
      if (k >= maps || s0 + s >= p.S) share = slope = 0;
      const float bias = warp_sum<P>(slope);
      shares.set(k, s, share);
      shares.set(M + k, s, slope);
      if (s == 0 && k < maps) biases[k] += bias;
      in.load(index + p.warps * kWarp, s0);
    }
  }

  // dL of a pixel, and its share; a = <dpooled, X>
  __device__ float slope(int k, float a, float logit, float prob_grad, float& share) const {
    const float top = tops[k], small = std::exp(-std::abs(logit)), inverse = reciprocal(1 + small);
    const float prob = logit < 0 ? small * inverse : inverse, rest = logit < 0 ? inverse : small * inverse;
    share = (top < 0 ? std::exp(logit - top) : logit < 0 ? small : 1.f) * factors[k] * inverse * inverses[k];
    return ((a - means[k]) * share + prob_grad * prob) * rest;
  }
};

// dX of a warp's channels at a tile, in the place of X in the stage, and from there to memory; after k0 maps, added.
template <class T, bool LAST, int M, int RUN = run_of(M), int TOGETHER = sizeof(T) == 4 ? 1 : 2, class Held,
          class Grads>
__device__ void write_inputs(unsigned& lane, const MatrixPlan& p, const PwapBackwardArgs& args, unsigned char* stage,
                             const Held& shares, const Grads& grads, unsigned char* turned, const T* grad, int maps,
                             int channels, int n, int k0, int c0, int s0) {
  using Product = Products<T, LAST, M, RUN>;
  __syncwarp();  // all lanes have read X
  lane = again(lane) % kWarp;
  if constexpr (std::is_same_v<T, BFloat16>) Product::inputs(lane, stage, shares, grads, turned);
  else
    Product::template inputs<TOGETHER>(lane, stage, shares, grad + c0,
                                       static_cast<const float*>(args.weight.at) + k0 * p.C + c0, p.C, maps, channels);
  __syncwarp();
  lane = again(lane) % kWarp;
  WarpTile<T, LAST, M, RUN>::store(lane, p, static_cast<T*>(args.dx) + n * args.dx_image, args.dx_channel,
                                   args.dx_pixel, args.dx_fast, k0 > 0, c0, s0, stage);
}

//   block   the tiles of a walk, for the maps from k0 on
//   shared  the stages; the rows of gradients, and the weights, turned over; parts [warps, M, P]; shares and dL;
//   MapNumbers; of every map the sum of dL; what lines are asked for with
template <class T, bool LAST>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    pwap_backward_wide_kernel(const MatrixPlan p, const PwapBackwardArgs args, const int k0) {
  AXNET_SHARED(shared);
  constexpr int M = 16;
  using Walk = WideWalk<T, LAST, true>;
  using Product = Products<T, LAST, M, kWideRun>;
  using Row = Rows<T, M, true>;
  constexpr int P = Walk::P;
  const int warp = threadIdx.x / kWarp, c0 = warp * kWideRun, channels = p.C - c0;
  unsigned lane = threadIdx.x % kWarp;
  unsigned char *stage = shared + warp * kStage, *held = shared + p.warps * kStage;
  float* parts = reinterpret_cast<float*>(held + p.warps * kWideHeld);
  const Shares<T, P> shares{reinterpret_cast<unsigned char*>(parts + p.warps * M * P), 2 * M};
  const MapNumbers<T, M> numbers(parts + p.warps * M * P + 2 * M * (P + 8));
  float* biases = numbers.inverses + M;
  const HeldRows<Row, Product::kSlots> grads{held + warp * kWideHeld};
  unsigned char* turned = grads.at + grads.bytes;
  const int maps = p.K - k0 < M ? p.K - k0 : M, n = blockIdx.x / p.walks, first = blockIdx.x - n * p.walks;
  const int64_t map0 = static_cast<int64_t>(n) * p.K + k0;
  const Walk tiles{p, static_cast<const T*>(args.x) + n * p.image, c0, stage,
                   reinterpret_cast<unsigned char*>(biases + M) + warp * 4 * kWarp};

  const T* grad = static_cast<const T*>(args.grad_pooled) + map0 * p.C;
  {
    Row rows[Product::kSlots];
    Product::load_rows(grad + c0, p.C, maps, channels, rows);
    grads.set(rows);
  }
  typed<T>(args.weight, [&](auto from) {
    Product::turn_over(from + static_cast<int64_t>(k0) * p.C + c0, p.C, maps, channels, turned);
  });
  numbers.fill(p, args, grad, n, k0, maps);
  SlopeInputs<T, P> in(args, p, map0, maps);
  in.load(warp * kWarp + lane, first * P);
  tiles.begin(lane, first);
  if (threadIdx.x < M) biases[threadIdx.x] = 0;
  for (int i = threadIdx.x; i < 2 * M * P; i += blockDim.x)
    shares.set(i / P, i % P, 0);
  typename Product::Sums sums = {};

#pragma unroll 1
  for (int i = first; i < p.tiles; i += p.walks) {
    const int s0 = i * P;
    lane = again(lane) % kWarp;
    tiles.wait();
    lane = again(lane) % kWarp;
    Product::channels(lane, stage, grads, parts + warp * M * P);
    __syncthreads();
    lane = again(lane) % kWarp;
    numbers.weigh(lane, p, maps, s0, parts, in, shares, biases);
    __syncthreads();
    lane = again(lane) % kWarp;
    in.load(warp * kWarp + lane, s0 + p.walks * P);
    Product::pixels(lane, stage, shares, M, sums);
    if (args.dx)
      write_inputs<T, LAST, M, kWideRun>(lane, p, args, stage, shares, grads, turned, grad, maps, channels, n, k0, c0,
                                         s0);
    lane = again(lane) % kWarp;
    const auto refill = tiles.refill(lane, i + p.walks);
#pragma unroll
    for (int slot = 0; slot < Product::kSlots; ++slot)
      refill(slot);
    tiles.refilled(lane, i + p.walks);
  }
  tiles.end();

  float* partial = static_cast<float*>(args.partial) + static_cast<int64_t>(blockIdx.x) * (p.C + 1) * p.K + k0;
  if (threadIdx.x < maps) partial[p.K * p.C + threadIdx.x] = biases[threadIdx.x];
  partial += static_cast<int64_t>(k0) * (p.C - 1) + c0;
  Product::each_sum(sums, maps, channels, [&](int k, int c, float sum) { partial[k * p.C + c] = sum; });
}

//   block   the tiles of a walk, for the maps from k0 on; a warp's run of channels in each half, one after the other
//   shared  the ring; parts [warps, M, P]; MapNumbers
template <class T, bool LAST>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    pwap_backward_slopes_kernel(const MatrixPlan p, const PwapBackwardArgs args, const int k0) {
  AXNET_SHARED(shared);
  constexpr int M = 16;
  using Tile = WarpTile<T, LAST, M>;
  using Product = Products<T, LAST, M>;
  constexpr int P = Tile::P;
  const int warp = threadIdx.x / kWarp, c0 = warp * Tile::kRun, half = p.warps * Tile::kRun;
  unsigned lane = threadIdx.x % kWarp;
  unsigned char* ring = shared + warp * p.stages * kStage;
  float* parts = reinterpret_cast<float*>(shared + p.warps * p.stages * kStage);
  const MapNumbers<T, M> numbers(parts + p.warps * M * P);
  const int maps = p.K - k0 < M ? p.K - k0 : M, n = blockIdx.x / p.walks;
  const int first = (blockIdx.x - n * p.walks) * p.steps;
  const int last = first + p.steps < p.tiles ? first + p.steps : p.tiles;
  const int64_t map0 = static_cast<int64_t>(n) * p.K + k0;
  const T* x = static_cast<const T*>(args.x) + n * p.image;
  const auto fetch = [&](int piece, int stage) {  // pieces: the halves of a tile
    const int i = first + piece / 2;
    if (i < last) Tile::fetch(lane, p, x, c0 + piece % 2 * half, i * P, ring + stage * kStage);
    copies_commit();
  };
  for (int i = 0; i + 1 < p.stages; ++i)
    fetch(i, i);

  const T* grad = static_cast<const T*>(args.grad_pooled) + map0 * p.C;
  numbers.fill(p, args, grad, n, k0, maps);
  Rows<T, M, true> grads[2][Tile::kSlots];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    Product::load_rows(grad + c0 + h * half, p.C, maps, p.C - c0 - h * half, grads[h]);
  int at = 0, piece = p.stages - 1;

#pragma unroll 1
  for (int i = first; i < last; ++i) {
    const int s0 = i * P;
    lane = again(lane) % kWarp;
    // as in pwap_backward_matrix_kernel
    float logit = 0, prob_grad = 0;
    const auto load = [&](int index) {
      const int k = index / P, s = s0 + index % P;
      if (index >= M * P || k >= maps || s >= p.S) return;
      const int64_t place = (map0 + k) * p.S + s;
      logit = static_cast<const float*>(args.logits)[place];
      if (args.grad_prob) prob_grad = static_cast<float>(static_cast<const T*>(args.grad_prob)[place]);
    };
    load(warp * kWarp + lane);
    float sums[P / 8][4] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      __syncwarp();  // all lanes have done with the stage that is filled now
      fetch(piece++, at == 0 ? p.stages - 1 : at - 1);
      copies_wait(p.stages - 1);
      __syncwarp();
      lane = again(lane) % kWarp;
      Product::add_channels(lane, ring + at * kStage, grads[h], sums);
      at = at + 1 == p.stages ? 0 : at + 1;
    }
    __syncthreads();  // the parts of the tile before are no longer read
    Product::put_part(lane, sums, parts + warp * M * P);
    __syncthreads();
#pragma unroll 1
    for (int index = warp * kWarp + lane; index < maps * P; index += p.warps * kWarp) {
      const int k = index / P, s = index % P;
      float a = 0;
#pragma unroll 4
      for (int w = 0; w < p.warps; ++w)
        a += parts[w * M * P + part_at<P>(k, s)];
      float share;
      const float slope = numbers.slope(k, a, logit, prob_grad, share);
      if (s0 + s < p.S) static_cast<float2*>(args.slopes)[(map0 + k) * p.S + s0 + s] = float2{share, slope};
      load(index + p.warps * kWarp);
    }
  }
}

//   block   the tiles of a walk, for the maps from k0 on and half of the channels
//   shared  the ring; shares and dL, of two tiles in turn; of every map the sum of dL; BFloat16: the weights, turned
//   over
template <class T, bool LAST>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    pwap_backward_half_kernel(const MatrixPlan p, const PwapBackwardArgs args, const int k0) {
  AXNET_SHARED(shared);
  constexpr int M = 16;
  using Tile = WarpTile<T, LAST, M>;
  using Product = Products<T, LAST, M>;
  constexpr int P = Tile::P, kShareBytes = 4 * 2 * M * (P + 8);
  const int warp = threadIdx.x / kWarp, half = blockIdx.x % 2, c0 = (half * p.warps + warp) * Tile::kRun;
  const int channels = p.C - c0;
  unsigned lane = threadIdx.x % kWarp;
  unsigned char* ring = shared + warp * p.stages * kStage;
  unsigned char* held = shared + p.warps * p.stages * kStage;
  float* biases = reinterpret_cast<float*>(held + 2 * kShareBytes);
  const int maps = p.K - k0 < M ? p.K - k0 : M, walk = blockIdx.x / 2, n = walk / p.walks;
  const int first = (walk - n * p.walks) * p.steps;
  const int last = first + p.steps < p.tiles ? first + p.steps : p.tiles;
  const int64_t map0 = static_cast<int64_t>(n) * p.K + k0;
  const T* x = static_cast<const T*>(args.x) + n * p.image;
  const auto load = [&](int index, int i) {
    const int k = index / P, s = i * P + index % P;
    if (i >= last || k >= maps || s >= p.S) return float2{0, 0};
    return static_cast<const float2*>(args.slopes)[(map0 + k) * p.S + s];
  };
  float2 pair = load(warp * kWarp + lane, first);  // asked for a tile ahead
  for (int i = 0; i + 1 < p.stages; ++i) {
    if (first + i < last) Tile::fetch(lane, p, x, c0, (first + i) * P, ring + i * kStage);
    copies_commit();
  }

  if (threadIdx.x < M) biases[threadIdx.x] = 0;
  const T* grad = static_cast<const T*>(args.grad_pooled) + map0 * p.C;
  Rows<T, M, true> grads[Tile::kSlots];
  if constexpr (std::is_same_v<T, BFloat16>) Product::load_rows(grad + c0, p.C, maps, channels, grads);
  unsigned char* turned = reinterpret_cast<unsigned char*>(biases + M) + warp * kTurnedBytes;
  if constexpr (std::is_same_v<T, BFloat16>)
    typed<T>(args.weight, [&](auto from) {
      Product::turn_over(from + static_cast<int64_t>(k0) * p.C + c0, p.C, maps, channels, turned);
    });
  __syncthreads();
  typename Product::Sums sums = {};
  int at = 0;

#pragma unroll 1
  for (int i = first; i < last; ++i) {
    const int s0 = i * P, ahead = at == 0 ? p.stages - 1 : at - 1;
    lane = again(lane) % kWarp;
    // of two tiles in turn: all warps have done with the one before the last when one of them is through the barrier
    const Shares<T, P> shares{held + i % 2 * kShareBytes, 2 * M};
#pragma unroll 1
    for (int index = warp * kWarp + lane; index < M * P; index += p.warps * kWarp) {
      const int k = index / P, s = index % P;
      shares.set(k, s, pair.x);
      shares.set(M + k, s, pair.y);
      const float bias = warp_sum<P>(pair.y);
      if (s == 0) biases[k] += bias;
      pair = load(index + p.warps * kWarp, i);
    }
    pair = load(warp * kWarp + lane, i + 1);
    __syncwarp();  // all lanes have done with the stage that is filled now
    if (i + p.stages - 1 < last) Tile::fetch(lane, p, x, c0, s0 + (p.stages - 1) * P, ring + ahead * kStage);
    copies_commit();
    copies_wait(p.stages - 1);
    __syncthreads();
    unsigned char* stage = ring + at * kStage;
    lane = again(lane) % kWarp;
    Product::pixels(lane, stage, shares, M, sums);
    if (args.dx)
      write_inputs<T, LAST, M, run_of(M), 2>(lane, p, args, stage, shares, grads, turned, grad, maps, channels, n, k0,
                                             c0, s0);
    at = at + 1 == p.stages ? 0 : at + 1;
  }

  float* partial = static_cast<float*>(args.partial) + static_cast<int64_t>(walk) * (p.C + 1) * p.K + k0;
  if (half == 0 && threadIdx.x < maps) partial[p.K * p.C + threadIdx.x] = biases[threadIdx.x];
  partial += static_cast<int64_t>(k0) * (p.C - 1) + c0;
  Product::each_sum(sums, maps, channels, [&](int k, int c, float sum) { partial[k * p.C + c] = sum; });
}

}  // namespace axnet::cuda
