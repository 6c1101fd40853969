// PWAP of one map in NCHW, for rows of whole aligned vectors: no products on the matrix units, which would be padded to
// eight maps, but one multiply-add an element and sum.
//
// A block walks tiles of P = Q V pixels of one image with all their channels; one barrier a tile.
// A warp has kAccesses * R channels of its own; an access is R channels by Q lanes of V pixels: rows of 128 (Q = 8) or
// 64 bytes, which memory likes.
// A lane has a queue of its own in shared memory, filled by asynchronous copies. What a lane copied it alone reads, so
// there is no barrier, no order of banks and no exchange. The tile is read from it twice, for the logits and for the
// sums; a chunk that has been read twice makes room for one kQueue chunks ahead.
#pragma once

#include <optional>

#include "cuda/pwap_args.cuh"
#include "cuda/pwap_operands.cuh"
#include "cuda/pwap_tile.cuh"
#include "cuda/walk.cuh"
#include "cuda/wrap.h"

namespace axnet::cuda {

constexpr int kAccesses = 16;                     // of a warp, a tile
constexpr int kChunk = 2;                         // accesses that are waited for and replaced together
constexpr int kChunks = kAccesses / kChunk;       // of a tile
constexpr int kChunkBytes = kChunk * kWarp * 16;  // of a warp
constexpr int kQueue = 13;                        // chunks; the least: kChunks + 1

struct OnePlan {
  int64_t image;         // elements between images
  int C, S, step, side;  // step: elements between rows; side: lanes side by side along a row (Q)
  int warps, tiles, steps, walks;
  size_t bytes;  // of shared memory: queues; parts [2, warps, P]; a double for every warp; OneRows

  static std::optional<OnePlan> of(const Tensor& x, int64_t maps) {
    const View view = view_of(x);
    const int64_t N = x.size(0), C = x.size(1), S = x.size(2) * x.size(3);
    const bool last = view.channels_last, wide = x.scalar_type() == ScalarType::Float;
    const int V = wide ? 4 : 8;
    if (maps > 1 || x.scalar_type() == ScalarType::Double || (last && !wide)) return std::nullopt;
    const int64_t along = last ? C : S, apart = last ? view.s : view.c;
    if (along % V || apart % V || view.n % V || reinterpret_cast<uintptr_t>(x.data_ptr()) % 16) return std::nullopt;
    // within an image the kernels count in 32 bits
    if (((last ? S : C) + kAccesses * kWarp) * apart + 2 * along > std::numeric_limits<int>::max()) return std::nullopt;
    const size_t limit = shared_limit(x);
    for (const int side : {kWarp, 8, 4}) {
      if ((side == kWarp) != last) continue;
      OnePlan p;
      const int P = last ? kAccesses : side * V, rows = last ? 1 : kWarp / side;
      const int held = side == 4 && !wide ? 6 : 8;  // bytes of an access and row of one in OneRows
      p.image = view.n, p.C = static_cast<int>(C), p.S = static_cast<int>(S), p.step = static_cast<int>(apart);
      p.side = side;
      p.warps = static_cast<int>(ceil_div(C, last ? kWarp * V : kAccesses * rows));
      p.tiles = static_cast<int>(ceil_div(S, P));
      p.bytes = static_cast<size_t>(p.warps) * (kQueue * kChunkBytes + 2 * P * 4 + 8 + kAccesses * rows * held);
      if (side == 8 && N * p.tiles < kMultiprocessors) continue;
      if (p.warps > kMostWarps || p.bytes > limit) continue;
      p.steps = steps_of(p.tiles, N, std::min(8, kMostWarps / p.warps));
      p.walks = static_cast<int>(ceil_div(p.tiles, p.steps));
      return p;
    }
    return std::nullopt;
  }
};

// f(integral_constant): the lanes along a row.
template <class T, class F>
void with_side(const OnePlan& p, const F& f) {
  if constexpr (sizeof(T) == 4 && !std::is_same_v<T, double>)
    if (p.side == kWarp) return f(std::integral_constant<int, kWarp>{});
  if constexpr (sizeof(T) <= 4)
    return p.side == 8 ? f(std::integral_constant<int, 8>{}) : f(std::integral_constant<int, 4>{});
}

// A lane of a warp and its queue.
template <class T, int Q>
struct OneLane {
  static constexpr bool kLast = Q == kWarp;
  static constexpr int V = kVector<T>, R = kWarp / Q, P = kLast ? kAccesses : Q * V;
  static constexpr int kPixels = kLast ? kAccesses : V, kChannels = kLast ? V : kAccesses;  // of the lane, in a tile
  // The lanes of a column share its pixels between the products: the `own` from `first` on; where there are more lanes
  // than pixels, the others repeat them.
  static constexpr int own = !kLast && V > R ? V / R : 1;
  static constexpr int kHolders = kPixels / own, kApart = kLast ? 1 : Q;  // lanes that share them, and between those

  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = lane % Q, row = lane / Q;
  const int c0 = kLast ? static_cast<int>(threadIdx.x) * V : warp * kAccesses * R + row;  // the lane's first channel
  const int first = first_of(lane);
  const bool counts = kLast ? lane < P : row < V / own;
  const int channels, row_step;  // channels: how many of the lane's there are
  unsigned char* const queue;
  int head = 0;  // bytes from the queue's begin to the tile's first chunk

  __device__ OneLane(const OnePlan& p, unsigned char* shared)
      : channels(p.C <= c0 ? 0
                 : kLast   ? V
                           : (p.C - c0 + R - 1) / R),
        row_step(p.step),
        queue(shared + warp * kQueue * kChunkBytes + lane * 16) {}

  __device__ static int first_of(int lane) { return kLast ? lane % P : lane % Q * V + lane / Q % (V / own) * own; }
  __device__ static int pixel_of(int a, int i) { return kLast ? a : i; }  // of an access and its number i
  __device__ static int channel_of(int a, int i) { return kLast ? i : a; }
  // Where the first access to the tile from s0 on lies in an image; step: between rows.
  __device__ int place(int s0, int step) const { return kLast ? s0 * step + c0 : c0 * step + s0 + column * V; }

  // i: 0 or 1 in turn; 2: what lies behind them
  __device__ static float* parts(const OnePlan& p, unsigned char* shared, int i) {
    return reinterpret_cast<float*>(shared + p.warps * kQueue * kChunkBytes) + i * p.warps * P;
  }
  __device__ unsigned char* chunk(int first, int j) const {  // first: head
    const int at = first + j * kChunkBytes;
    return queue + (at < kQueue * kChunkBytes ? at : at - kQueue * kChunkBytes);
  }
  // A tile whose copy is to start: where it lies, and how many accesses lie in the walk.
  struct Ahead {
    int at, there;
  };
  __device__ int inside(int s0, int end) const {
    if constexpr (kLast) return channels == 0 ? 0 : end - s0;
    else return s0 + column * V < end ? channels : 0;
  }
  __device__ Ahead ahead(int s0, int end) const { return {place(s0, row_step), inside(s0, end)}; }
  // Starts the copy of chunk j of a tile; zeros beyond the walk.
  __device__ void fetch(unsigned char* to, const T* x, int j, const Ahead& tile) const {
    const int step = again(R * row_step);
#pragma unroll
    for (int a = j * kChunk; a < (j + 1) * kChunk; ++a)
      copy_async_if(a < tile.there, to + a % kChunk * kWarp * 16, x + static_cast<int64_t>(tile.at + a * step));
  }
  // The queue's first chunks.
  __device__ void begin(const T* x, int s0, int end) const {
#pragma unroll
    for (int j = 0; j < kQueue; ++j) {
      const int first = s0 + j / kChunks * P;
      if (first < end) fetch(queue + j * kChunkBytes, x, j % kChunks, ahead(first, end));
      copies_commit();
    }
  }
  __device__ static void numbers(const unsigned char* chunk, int a, float (&v)[V]) {
    const uint4 bits = *reinterpret_cast<const uint4*>(chunk + a * kWarp * 16);
    Bits<T, V> piece = {{bits.x, bits.y, bits.z, bits.w}};
    piece.spread(v);
  }

  // The tile's products with weights(chunk), summed over the channels of the warp, to parts [warps, P].
  template <class F>
  __device__ void products(const F& weights, float* parts) const {
    float sums[kPixels] = {};
    products_of<0>(weights, sums);
    halve<kHolders>(sums);
#pragma unroll
    for (int apart = kHolders * kApart; apart < kWarp; apart *= 2)
      sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], apart);
    float* to = parts + warp * P + first_of(again(lane));  // `first` would take a register of the products
    if (counts)
#pragma unroll
      for (int o = 0; o < own; ++o)
        to[o] = sums[o];
  }
  // Sums of the pixels of HOLDERS lanes over these: a lane keeps half of what it has, its own pixels at last.
  template <int HOLDERS>
  __device__ void halve(float (&sums)[kPixels]) const {
    constexpr int HALF = own * HOLDERS / 2, APART = HOLDERS / 2 * kApart;
    const bool upper = lane & APART;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      const float keep = upper ? sums[i + HALF] : sums[i], give = upper ? sums[i] : sums[i + HALF];
      sums[i] = keep + __shfl_xor_sync(0xffffffffu, give, APART);
    }
    if constexpr (HOLDERS > 2) halve<HOLDERS / 2>(sums);
  }
  template <int J, class F>
  __device__ void products_of(const F& weights, float (&sums)[kPixels]) const {
    copies_wait<kQueue - 1 - J>();
    const unsigned char* at = chunk(head, J);
    const auto& of = weights(J);
#pragma unroll
    for (int a = 0; a < kChunk; ++a) {
      float v[V];
      numbers(at, a, v);
#pragma unroll
      for (int i = 0; i < V; ++i)
        sums[pixel_of(J * kChunk + a, i)] += of[channel_of(J * kChunk + a, i)] * v[i];
    }
    if constexpr (J + 1 < kChunks) products_of<J + 1>(weights, sums);
  }
  // The sums of the lane's own pixels over all warps.
  __device__ void add_parts(const float* parts, int warps, float (&sums)[own]) const {
#pragma unroll 8
    for (int w = 0; w < warps; ++w)
#pragma unroll
      for (int o = 0; o < own; ++o)
        sums[o] += parts[w * P + first + o];
  }
  // Of a number for each of the lanes' own pixels, those of all pixels of the lane.
  __device__ void spread(const float (&mine)[own], float (&all)[kPixels]) const {
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      all[i] = __shfl_sync(0xffffffffu, mine[i % own], kLast ? i : i / own * Q + column);
  }

  // The tile once more: sums += x . factors for each access, and f(chunk), which then makes room.
  template <class F>
  __device__ void pixels(const T* x, int s0, int end, const float (&factors)[kPixels], float (&sums)[kChannels],
                         const F& f) {
    const int next = s0 + kQueue / kChunks * P;
    if (next + P < end) pixels_of<2>(x, next, end, factors, sums, f);
    else if (next < end) pixels_of<1>(x, next, end, factors, sums, f);
    else pixels_of<0>(x, next, end, factors, sums, f);
  }
  // TILES: how many of the two that are copied from there still are; a walk's end has no copies to count out
  template <int TILES, class F>
  __device__ void pixels_of(const T* x, int next, int end, const float (&factors)[kPixels], float (&sums)[kChannels],
                            const F& f) {
    const Ahead tiles[2] = {ahead(next, end), ahead(next + P, end)};
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      unsigned char* at = chunk(again(head), j);
#pragma unroll
      for (int a = 0; a < kChunk; ++a) {
        float v[V];
        numbers(at, a, v);
#pragma unroll
        for (int i = 0; i < V; ++i)
          sums[channel_of(j * kChunk + a, i)] += factors[pixel_of(j * kChunk + a, i)] * v[i];
      }
      f(j);
      const int tile = (j + kQueue) / kChunks - kQueue / kChunks;
      if (tile < TILES) fetch(at, x, (j + kQueue) % kChunks, tiles[tile]);
      copies_commit();
    }
    head += kChunks * kChunkBytes;
    head -= head < kQueue * kChunkBytes ? 0 : kQueue * kChunkBytes;
  }

  __device__ int channel(int i) const { return kLast ? c0 + i : c0 + i * R; }  // of those of the lane
  // Of a row's lanes each answers for some of their channels.
  static constexpr int kAnswers = kLast ? kChannels : kChannels / Q;
  __device__ int answer(int i) const { return kLast ? i : i * Q + column; }
  // f(channel, sum): sums over the columns, of the channels that there are.
  template <class F>
  __device__ void each_sum(float (&sums)[kChannels], const F& f) const {
    if constexpr (!kLast) across<Q / 2>(sums);
#pragma unroll
    for (int i = 0; i < kAnswers; ++i)
      if (answer(i) < channels) f(channel(answer(i)), sums[i]);
  }
  // Sums over the columns: a lane keeps half of what it has, of the channels that it answers for at last.
  template <int APART, int N>
  __device__ void across(float (&sums)[N]) const {
    float half[N / 2];
    const bool upper = column & APART;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const int at = i / APART * 2 * APART + i % APART;
      const float keep = upper ? sums[at + APART] : sums[at], give = upper ? sums[at] : sums[at + APART];
      half[i] = keep + __shfl_xor_sync(0xffffffffu, give, APART);
    }
    if constexpr (APART > 1) across<APART / 2>(half);
#pragma unroll
    for (int i = 0; i < N / 2; ++i)
      sums[i] = half[i];
  }
  template <class Number>
  __device__ void load_row(const Number* row, float (&out)[kChannels]) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      out[i] = i < channels ? static_cast<float>(row[channel(i)]) : 0.f;
  }
  template <class Number>
  __device__ void load_answers(const Number* row, float (&out)[kAnswers]) const {
#pragma unroll
    for (int i = 0; i < kAnswers; ++i)
      out[i] = answer(i) < channels ? static_cast<float>(row[channel(answer(i))]) : 0.f;
  }
};

// Of the channels of a chunk.
struct OneRow {
  float at[kChunk];
  __device__ float operator[](int channel) const { return at[channel % kChunk]; }
};

// dpooled and W of every channel in shared memory, those of a chunk side by side. Beside rows of four lanes, of twice
// as many channels, there is room for T alone.
template <class T, int Q>
class OneRows {
  using Grad = std::conditional_t<Q == 4, T, float>;
  static constexpr int R = kWarp / Q, kPairs = kAccesses / kChunk * R;  // of a warp
  static_assert(kChunk == 2);
  float2* const weights;
  Grad* const grads;

 public:
  __device__ OneRows(const OneLane<T, Q>& lane, int warps, void* shared)
      : weights(static_cast<float2*>(shared) + lane.warp * kPairs + lane.row),
        grads(reinterpret_cast<Grad*>(static_cast<float2*>(shared) + warps * kPairs) +
              2 * (lane.warp * kPairs + lane.row)) {}

  __device__ void set(int i, float grad, float weight) const {
    const int at = i / 2 * 2 * R + i % 2;
    grads[at] = static_cast<Grad>(grad), reinterpret_cast<float*>(weights)[at] = weight;
  }
  __device__ OneRow grad(int chunk) const {
    if constexpr (sizeof(Grad) == 2) {
      const uint32_t pair = reinterpret_cast<const uint32_t*>(grads)[chunk * R];
      return {first_of<T>(pair), second_of<T>(pair)};
    } else {
      const float2 pair = reinterpret_cast<const float2*>(grads)[chunk * R];
      return {pair.x, pair.y};
    }
  }
  __device__ OneRow weight(int chunk) const { return {weights[chunk * R].x, weights[chunk * R].y}; }
};

// Where a block stands: its image, and the pixels it walks.
struct OneWalk {
  int n, begin, end;

  __device__ OneWalk(const OnePlan& p, int P) {
    n = static_cast<int>(blockIdx.x) / p.walks;
    begin = (static_cast<int>(blockIdx.x) - n * p.walks) * p.steps * P;
    end = p.S - begin < p.steps * P ? p.S : begin + p.steps * P;
  }
};

}  // namespace axnet::cuda
