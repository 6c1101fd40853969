// PWAP of one map in NCHW of 7 x 7 pixels, whose rows are no whole vectors: an image, one flat run, is copied to shared
// memory as a whole and read twice there. Its sums need no other block.
//
//   warp      kRun channels of its own, from the copy to the sums, in runs of S words: a channel of float, or two of
//             16 bits
//   products  lane = a word of every run and the one 32 behind it; of the runs that are there, others are under way
//   pixels    lane = a run. S is odd, so that runs begin in different banks.
#pragma once

#include <optional>

#include "cuda/pwap_args.cuh"
#include "cuda/pwap_operands.cuh"
#include "cuda/pwap_tile.cuh"
#include "cuda/walk.cuh"
#include "cuda/wrap.h"

namespace axnet::cuda {

constexpr int kImagePixels = 49;
constexpr int kImageWarps = 32;   // of a block, at most
constexpr int kLaneWords = 2;     // of a lane in the products
constexpr int kImageParts = 4;    // of a warp's copies, waited for one after the other
constexpr int kImageTable = 100;  // numbers of the elements of a run

struct ImagePlan {
  int64_t image;  // elements between images
  int C, warps;
  size_t bytes;  // shared: features, weights [warps, run], parts [warps, 32, words], two tables, a double of each warp

  static std::optional<ImagePlan> of(const Tensor& x, int64_t maps) {
    const View view = view_of(x);
    const int64_t C = x.size(1), S = x.size(2) * x.size(3);
    const int size = x.scalar_type() == ScalarType::Float ? 4 : 2, V = 16 / size, N = 4 / size, run = kWarp * N;
    if (maps > 1 || S != kImagePixels || x.scalar_type() == ScalarType::Double || view.channels_last || view.c != S)
      return std::nullopt;
    if (C % V || view.n % V || reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 || C > kImageWarps * run)
      return std::nullopt;
    ImagePlan p;
    p.image = view.n, p.C = static_cast<int>(C), p.warps = static_cast<int>(ceil_div(C, run));
    p.bytes = p.warps * (run * (S * size + 4) + kLaneWords * kWarp * N * 4 + 8) + 2 * kImageTable * 4;
    if (p.bytes > static_cast<size_t>(shared_limit(x))) return std::nullopt;
    return p;
  }
};

template <class T>
struct ImageWarp {
  static constexpr int S = kImagePixels, V = kVector<T>, N = 4 / static_cast<int>(sizeof(T));  // N: channels of a run
  static constexpr int kRun = kWarp * N, kVectors = kRun * S / V, kAccesses = (kVectors + kWarp - 1) / kWarp;
  static constexpr int kPitch = kLaneWords * kWarp * N;

  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps, c0 = warp * kRun + lane * N, channels;  // c0: the first of the lane's run; channels: of the warp
  uint32_t* const features;                                // of the warp
  float *const weights, *const parts, *const tables;       // weights: of the warp
  double* const totals;                                    // a number of every warp

  __device__ ImageWarp(const ImagePlan& p, unsigned char* shared)
      : warps(p.warps),
        channels(p.C - warp * kRun < kRun ? p.C - warp * kRun : kRun),
        features(reinterpret_cast<uint32_t*>(shared) + warp * kWarp * S),
        weights(reinterpret_cast<float*>(shared) + warps * kWarp * S + warp * kRun),
        parts(reinterpret_cast<float*>(shared) + warps * (kWarp * S + kRun)),
        tables(parts + warps * kPitch),
        totals(reinterpret_cast<double*>(tables + 2 * kImageTable)) {}

  __device__ bool real() const { return lane * N < channels; }  // C is a multiple of N
  // f(0..N - 1, its channel) of the lane's run, where there are such
  template <class F>
  __device__ void each_channel(const F& f) const {
    if (!real()) return;
#pragma unroll
    for (int e = 0; e < N; ++e)
      f(e, c0 + e);
  }
  // Accesses of the first `part` parts of the copies, and the channels that are there with them.
  __device__ static constexpr int accesses(int part) { return (part * kAccesses + kImageParts - 1) / kImageParts; }
  __device__ static constexpr int ready(int part) {
    return part == kImageParts ? kRun : accesses(part) * kWarp * V / S / 4 * 4;
  }
  // Starts the copies of the warp's features; zeros beyond the channels.
  __device__ void begin(const T* image) const {
    const T* from = image + warp * kRun * S + lane * V;
    uint32_t* to = features + lane * 4;
    const int count = channels * S / V - lane;
#pragma unroll
    for (int part = 0; part < kImageParts; ++part) {
#pragma unroll
      for (int i = accesses(part) * kWarp; i < accesses(part + 1) * kWarp; i += kWarp)
        if (i + kWarp <= kVectors || i + lane < kVectors) copy_async_if(i < count, to + i * 4, from + i * V);
      copies_commit();
    }
  }
  // The way back, to `image`.
  __device__ void store(T* image) const {
    T* to = image + warp * kRun * S + lane * V;
    const int count = channels * S / V - lane;
#pragma unroll
    for (int i = 0; i < kVectors; i += kWarp)
      if (i < count)
        __stwb(reinterpret_cast<uint4*>(to + i * V), reinterpret_cast<const uint4*>(features + lane * 4)[i]);
  }

  // parts = sums of weight x over the warp's channels, for each element of a run
  __device__ void products() const {
    float sums[kLaneWords][N] = {};
    products_of<0>(sums);
#pragma unroll
    for (int i = 0; i < kLaneWords; ++i)
#pragma unroll
      for (int e = 0; e < N; ++e)
        parts[warp * kPitch + (i * kWarp + lane) * N + e] = sums[i][e];
  }
  template <int PART>
  __device__ void products_of(float (&sums)[kLaneWords][N]) const {
    copies_wait<kImageParts - 1 - PART>();
    __syncwarp();  // the copies of all lanes are there
#pragma unroll
    for (int c = ready(PART); c < ready(PART + 1); c += 4) {
      const float4 four = *reinterpret_cast<const float4*>(weights + c);
      const float weight[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int k = 0; k < 4; k += N)
#pragma unroll
        for (int i = 0; i < kLaneWords; ++i) {
          float v[N];
          Bits<T, N>{{features[(c + k) / N * S + i * kWarp + lane]}}.spread(v);  // words beyond the run are not used
#pragma unroll
          for (int e = 0; e < N; ++e) {
            // where the lane's element belongs to the second channel of the run
            const bool second = N == 2 && (i * kWarp * N >= S || lane * N + e >= S - i * kWarp * N);
            sums[i][e] += (second ? weight[k + N - 1] : weight[k]) * v[e];
          }
        }
    }
    if constexpr (PART + 1 < kImageParts) products_of<PART + 1>(sums);
  }
  // Of a pixel, the parts of all warps.
  __device__ float sum_of(int s) const {
    float sums[N] = {};
#pragma unroll 8
    for (int w = 0; w < warps; ++w)
#pragma unroll
      for (int e = 0; e < N; ++e)
        sums[e] += parts[w * kPitch + e * S + s];
    return sums[0] + (N == 2 ? sums[N - 1] : 0.f);
  }
  __device__ void set(int table, int s, float v) const {
#pragma unroll
    for (int e = 0; e < N; ++e)
      tables[table * kImageTable + e * S + s] = v;
  }
  // f(word, its first element in the lane's run, numbers of the tables for its elements)
  template <int TABLES, class F>
  __device__ void each_word(const F& f) const {
    constexpr int kTogether = 4 / N;  // words
    uint32_t* run = features + lane * S;
#pragma unroll
    for (int i = 0; i < S; i += kTogether) {
      float table[TABLES][4];
#pragma unroll
      for (int t = 0; t < TABLES; ++t) {
        const float4 four = *reinterpret_cast<const float4*>(tables + t * kImageTable + i * N);
        table[t][0] = four.x, table[t][1] = four.y, table[t][2] = four.z, table[t][3] = four.w;
      }
#pragma unroll
      for (int k = 0; k < kTogether && i + k < S; ++k) {
        float numbers[TABLES][N];
#pragma unroll
        for (int t = 0; t < TABLES; ++t)
#pragma unroll
          for (int e = 0; e < N; ++e)
            numbers[t][e] = table[t][k * N + e];
        f(run[i + k], (i + k) * N, numbers);
      }
    }
  }
};

//   block   an image
template <class T>
__global__ void __launch_bounds__(kImageWarps* kWarp, 1) pwap_image_kernel(const ImagePlan p, const PwapArgs args) {
  AXNET_SHARED(shared);
  using Image = ImageWarp<T>;
  constexpr int S = Image::S, N = Image::N;
  const Image image(p, shared);
  const int64_t n = blockIdx.x;
  // asked for before the copies, behind which it would wait
  float weights[N] = {}, bias = 0;
  typed<T>(args.weight, [&](auto from) { image.each_channel([&](int e, int c) { weights[e] = from[c]; }); });
  if (image.warp == 0 && args.bias.at) bias = static_cast<float>(number(args.bias, 0));
  image.begin(static_cast<const T*>(args.x) + n * p.image);
#pragma unroll
  for (int e = 0; e < N; ++e)
    image.weights[image.lane * N + e] = weights[e];
  image.products();
  __syncthreads();
  float* mass = image.tables + kImageTable;
  if (image.warp == 0) {
    float logits[kLaneWords], top = -std::numeric_limits<float>::infinity(), part = 0;
#pragma unroll
    for (int i = 0; i < kLaneWords; ++i) {
      const int s = i * kWarp + image.lane;
      logits[i] = bias + image.sum_of(s < S ? s : 0);
      if (logits[i] > top) top = logits[i];
    }
    top = warp_max(top);
    if (!(top - top == 0)) top = 0;  // as in pwap_tile_kernel
    const float factor = 1 + std::exp(-std::abs(top));
#pragma unroll
    for (int i = 0; i < kLaneWords; ++i) {
      const int s = i * kWarp + image.lane;
      if (s >= S) continue;
      // as probability(), of which `factor` is kept
      const float logit = logits[i], small = std::exp(-std::abs(logit)), inverse = reciprocal(1 + small);
      const float share = (top < 0 ? std::exp(logit - top) : logit < 0 ? small : 1.f) * factor * inverse;
      image.set(0, s, share);
      part += share;
      static_cast<float*>(args.logits)[n * S + s] = logit;
      static_cast<T*>(args.prob)[n * S + s] = narrowed<T>(logit < 0 ? small * inverse : inverse);
    }
    part = warp_sum(part);
    if (image.lane == 0) {
      float* norm = static_cast<float*>(args.norm) + 2 * n;
      *mass = part, norm[0] = top, norm[1] = part;
    }
  }
  __syncthreads();
  float sums[N] = {};
  image.template each_word<1>([&](uint32_t word, int first, const float (&shares)[1][N]) {
    float v[N];
    Bits<T, N>{{word}}.spread(v);
#pragma unroll
    for (int e = 0; e < N; ++e)
      sums[(first + e) / S] += shares[0][e] * v[e];
  });
  T* pooled = static_cast<T*>(args.pooled) + n * p.C;
  const float scale = reciprocal(*mass);
  image.each_channel([&](int e, int c) { pooled[c] = narrowed<T>(sums[e] * scale); });
}

//   block   an image; dX takes the place of X
template <class T>
__global__ void __launch_bounds__(kImageWarps* kWarp, 1)
    pwap_backward_image_kernel(const ImagePlan p, const PwapBackwardArgs args) {
  AXNET_SHARED(shared);
  using Image = ImageWarp<T>;
  constexpr int S = Image::S, N = Image::N;
  const Image image(p, shared);
  const int64_t n = blockIdx.x;
  const T *grad = static_cast<const T*>(args.grad_pooled) + n * p.C,
          *pooled = static_cast<const T*>(args.pooled) + n * p.C;
  // asked for before the copies, behind which they would wait
  float grads[N] = {}, weights[N] = {}, means[N] = {}, logits[kLaneWords] = {}, prob_grads[kLaneWords] = {};
  float top = 0, denominator = 1;
  typed<T>(args.weight, [&](auto from) { image.each_channel([&](int e, int c) { weights[e] = from[c]; }); });
  image.each_channel(
      [&](int e, int c) { grads[e] = static_cast<float>(grad[c]), means[e] = static_cast<float>(pooled[c]); });
  if (image.warp == 0) {
    const float* norm = static_cast<const float*>(args.norm) + 2 * n;
    top = norm[0], denominator = norm[1];
#pragma unroll
    for (int i = 0; i < kLaneWords; ++i) {
      const int s = i * kWarp + image.lane;
      if (s >= S) continue;
      logits[i] = static_cast<const float*>(args.logits)[n * S + s];
      if (args.grad_prob) prob_grads[i] = static_cast<float>(static_cast<const T*>(args.grad_prob)[n * S + s]);
    }
  }
  image.begin(static_cast<const T*>(args.x) + n * p.image);
  double product = 0;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    product += static_cast<double>(grads[e]) * means[e];
    image.weights[image.lane * N + e] = grads[e];
  }
  product = warp_sum(product);
  if (image.lane == 0) image.totals[image.warp] = product;
  image.products();
  __syncthreads();
  float* partial = static_cast<float*>(args.partial) + n * (p.C + 1);
  if (image.warp == 0) {
    product = warp_sum(image.lane < p.warps ? image.totals[image.lane] : 0.);
    const float mean = static_cast<float>(product), factor = (1 + std::exp(-std::abs(top))) / denominator;
    float bias = 0;
#pragma unroll
    for (int i = 0; i < kLaneWords; ++i) {
      const int s = i * kWarp + image.lane;
      if (s >= S) continue;
      const float logit = logits[i], small = std::exp(-std::abs(logit)), inverse = reciprocal(1 + small);
      const float prob = logit < 0 ? small * inverse : inverse, rest = logit < 0 ? inverse : small * inverse;
      const float share = (top < 0 ? std::exp(logit - top) : logit < 0 ? small : 1.f) * factor * inverse;
      const float slope = ((image.sum_of(s) - mean) * share + prob_grads[i] * prob) * rest;
      image.set(0, s, slope);
      image.set(1, s, share);
      bias += slope;
    }
    bias = warp_sum(bias);
    if (image.lane == 0) partial[p.C] = bias;
  }
  __syncthreads();
  float sums[N] = {};
  image.template each_word<2>([&](uint32_t& word, int first, const float (&of)[2][N]) {
    float v[N];
    Bits<T, N> bits = {{word}};
    bits.spread(v);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const int c = (first + e) / S;
      sums[c] += of[0][e] * v[e];
      v[e] = of[1][e] * grads[c] + of[0][e] * weights[c];
    }
    bits.gather(v);
    word = bits.at[0];
  });
  image.each_channel([&](int e, int c) { partial[c] = sums[e]; });
  if (!args.dx) return;
  __syncwarp();  // all lanes have written theirs
  image.store(static_cast<T*>(args.dx) + n * args.dx_image);
}

}  // namespace axnet::cuda
