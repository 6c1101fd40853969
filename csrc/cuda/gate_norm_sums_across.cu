// The sums of gate_norm's gradient on the matrix units, bfloat16 in channels_last: what gate_norm_sums_matrix.cu does
// with rows, with 64 channels of a warp, which the matrix units get turned over from shared memory.
#include "cuda/eight.cuh"
#include "cuda/ring.cuh"
#include "cuda/sums_matrix.cuh"

namespace axnet::cuda {
namespace {

constexpr int kChannels = 64, kQuads = kChannels / 16;  // of a warp
constexpr int kStageBytes = 32 * 1024;                  // of the basis

// 16 pixels of 64 channels of X and of D, ahead of the arithmetic. The 16-byte parts of pixel s are in the order of
// their number xor s % 8, as in RowRing.
struct PixelRing {
  static constexpr int depth = 2, map_bytes = kStep * kChannels * 2, piece_bytes = 2 * map_bytes;
  static constexpr int bytes = depth * piece_bytes;

  unsigned char* shared;
  const unsigned char* next[2];  // the lane's part of its first pixel of the next piece
  int to, from[kQuads];
  unsigned further[2][3];  // bytes to its other pixels

  // at: of the warp's ring; s, c: its first pixel and channel; last: of the parts that there are
  __device__ PixelRing(unsigned char* shared, int at, const T* x, const T* d, int x_step, int d_step, int s, int c,
                       int last)
      : shared(shared) {
    const int lane = threadIdx.x % kWarp, pixel = lane / 8, part = lane % 8 < last ? lane % 8 : last;
    const unsigned own = c + part * 8, x_first = (s + pixel) * x_step + own, d_first = (s + pixel) * d_step + own;
    next[0] = reinterpret_cast<const unsigned char*>(x + x_first);
    next[1] = reinterpret_cast<const unsigned char*>(d + d_first);
    to = again(at + pixel * 128 + (lane % 8 ^ pixel) * 16);
    const int first = at + (lane / 16 * 8 + lane % 8) * 128 + (lane / 8 % 2 ^ lane % 8) * 16;
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
      from[q] = again(first ^ q * 32);
#pragma unroll
    for (int i = 0; i < 3; ++i)
      further[0][i] = again((8u + 8u * i) * x_step), further[1][i] = again((8u + 8u * i) * d_step);
  }
  __device__ void move(unsigned x_bytes, unsigned d_bytes) { next[0] += x_bytes, next[1] += d_bytes; }
  // on to channels that are `channels` further, from pixels that are `x_on` and `d_on` further than the first
  __device__ void turn(int channels, int x_on, int d_on) {
    next[0] += 2 * static_cast<int64_t>(channels - x_on), next[1] += 2 * static_cast<int64_t>(channels - d_on);
  }
  // The next piece. PART: zeros for all but `pixels` of it.
  template <bool PART>
  __device__ void copy(int place, int pixels) {
    unsigned char *even = shared + (to + place), *odd = shared + ((to ^ 64) + place);
    pixels -= static_cast<int>(threadIdx.x) % kWarp / 8;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        unsigned char* at = (i % 2 ? odd : even) + m * map_bytes + i * 512;
        const unsigned char* from = i ? next[m] + further[m][i ? i - 1 : 0] : next[m];
        if (PART) copy_ahead_if(4 * i < pixels, at, from);
        else copy_ahead(at, from);
      }
  }
  // Of map m the channels from 16 q on, as products of 16 rows want them.
  __device__ void read(int place, int m, int q, uint32_t (&words)[4]) const {
    load_matrices<true>(shared + (from[q] + place) + m * map_bytes, words);
  }
};

// Adds what the other parts have to the first one's sums; their warps stand `apart`.
template <int COUNT>
__device__ inline void join(float* shared, float (&sums)[COUNT], int warp, int part, int parts, int apart) {
  float* own = shared + warp * COUNT * kWarp + threadIdx.x % kWarp;
  __syncthreads();  // what stood there has been read
  if (part > 0)
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      own[i * kWarp] = sums[i];
  __syncthreads();
  if (part > 0) return;
#pragma unroll 1
  for (int k = 1; k < parts; ++k) {
    own += apart * COUNT * kWarp;
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      sums[i] += own[i * kWarp];
  }
}

// ONE: the whole basis stands in shared memory at once, and all warps have 64 channels and begin with a whole step of
// 16 pixels. WHOLE: they end with one, too.
template <int B, bool ONE, bool WHOLE>
__global__ void __launch_bounds__(kThreads, 2) sums_across_matrix_kernel(const SumsPlan p, const SumsTiling tiling) {
  AXNET_SHARED(shared);
  const SumsPlace<T, B> place(p, tiling);
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0);  // so that the compiler knows it to be one number
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  const int part = static_cast<unsigned>(warp * tiling.parts) / kWarps;
  const int width = tiling.width, c0 = place.c0 + warp * kChannels - part * width;
  const int begin = part * kStep, apart = tiling.parts * kStep;
  const int x_step = static_cast<int>(p.x.s), d_step = static_cast<int>(p.d.s);
  int end = place.c0 + tiling.channels;
  if (end > C) end = C;
  const int c_there = c0 < C ? c0 : 0;
  PixelRing ring(shared, tiling.ring + warp * PixelRing::bytes, place.x, place.d, x_step, d_step, begin, c_there,
                 ONE ? 7 : (C - c_there) / 8 - 1);
  ring.copy<!ONE>(0, S - begin);
  copies_commit();
  const unsigned char* column = shared + (row_of<B>(g) * tiling.pitch + 4 * t) * 2;
  ChannelSums<B> sums(place, C, c0 + g, t);
  const unsigned x_on = again(2u * apart * x_step), d_on = again(2u * apart * d_step);
  int at = 0, c = c0;
  do {
    float products[kQuads][4] = {}, plain[kQuads][4] = {};
    int s = begin, s0 = 0;
    do {
      const int stop = ONE || S - s0 < tiling.stage ? S : s0 + tiling.stage;
      if (c == c0) {
        __syncthreads();
        fill_columns<B, kStep>(reinterpret_cast<uint16_t*>(shared), tiling.pitch, place.mask, S, s0, tiling.stage);
        __syncthreads();
      }
      const unsigned char* from = column + (s - s0) * 2;
      auto piece = [&](const auto& copy_next) {
        copies_wait(0);
        __syncwarp();  // the copies of all lanes are there, and the piece before has been read
        copy_next(at ^ PixelRing::piece_bytes);
        copies_commit();
        const uint2 b = *reinterpret_cast<const uint2*>(from);
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          uint32_t x[4], d[4];
          ring.read(at, 0, q, x), ring.read(at, 1, q, d);
          add_sixteen(products[q], plain[q], x, d, b.x, b.y);
          if (q % 2 == 0) __syncwarp();  // else the compiler mixes them, and moves registers
        }
        from += 2 * apart, s += apart;
        at ^= PixelRing::piece_bytes;
      };
      auto on = [&](auto partly) {  // the next piece of these channels
        return [&, partly](int to) {
          ring.move(x_on, d_on);
          ring.copy<decltype(partly)::value>(to, S - s - apart);
        };
      };
      auto last = [&](int to) {
        if (c + width >= end) return;
        ring.turn(width, (s - begin) * x_step, (s - begin) * d_step);
        ring.copy<!ONE>(to, S - begin);
      };
      if (ONE) {
#pragma unroll 1
        for (const int more = S - apart - kStep; s <= more;)
          piece(on(std::false_type{}));
        if (!WHOLE && s + apart < S) piece(on(std::true_type{}));
        piece(last);
      } else {
#pragma unroll 1
        while (s < stop)
          piece([&](int to) {
            if (s + apart < S) on(std::true_type{})(to);
            else last(to);
          });
      }
      s0 += tiling.stage;
    } while (!ONE && s0 < S);
    if (tiling.parts > 1) {
      auto* joined = reinterpret_cast<float*>(shared);
      float all[8 * kQuads];
#pragma unroll
      for (int i = 0; i < 8 * kQuads; ++i)
        all[i] = (i / 4 % 2 ? plain : products)[i / 8][i % 4];
      join(joined, all, warp, part, tiling.parts, tiling.width / kChannels);
      if (part > 0) return;
#pragma unroll
      for (int i = 0; i < 8 * kQuads; ++i)
        (i / 4 % 2 ? plain : products)[i / 8][i % 4] = all[i];
    }
    if (c >= end) return;
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
      sums.write(products[q], plain[q], t, 16 * q, ONE ? kChannels : C - c - g);
    sums.move(width), c += width;
  } while (c < end);
}

template <int B>
void launch_across(const SumsPlan& p, cudaStream_t stream) {
  constexpr int columns = 2 + 2 * B;
  SumsTiling tiling{};
  tiling.parts = parts_of(p.N * ceil_div(p.C, kChannels), p.S, 8 * kStep);
  const int width = kWarps / tiling.parts * kChannels, unit = kWarps * kStep;
  const int64_t stages = ceil_div(p.S, kStageBytes / (2 * columns) / unit * unit);
  tiling.stage = static_cast<int>(ceil_div(ceil_div(p.S, stages), unit) * unit);
  tiling.pitch = ceil_div(tiling.stage, 64) * 64 + 16;
  const bool one = stages == 1 && tiling.parts == 1 && p.C % width == 0;
  tiling.share(p.C, width, one ? groups_of(p.N * p.blocks, p.C / width) : 1);
  tiling.ring = ring_after(columns * tiling.pitch * 2);
  const bool all = stages == 1 && p.C % kChannels == 0 && p.S >= tiling.parts * kStep;
  const bool whole = all && p.S % (tiling.parts * kStep) == 0;
  launch(whole ? sums_across_matrix_kernel<B, true, true>
         : all ? sums_across_matrix_kernel<B, true, false>
               : sums_across_matrix_kernel<B, false, false>,
         p.N * tiling.blocks, p.blocks, kThreads, tiling.ring + kWarps * PixelRing::bytes, stream, p, tiling);
}

}  // namespace

bool across_sums(cudaStream_t stream, const SumsPlan& p) {
  if (p.members > 3 || !is_vector_map<T>(p.x_data, p.x, p.C, p.S) || !is_vector_map<T>(p.d_data, p.d, p.C, p.S))
    return false;
  if (p.members == 1) launch_across<1>(p, stream);
  if (p.members == 2) launch_across<2>(p, stream);
  if (p.members == 3) launch_across<3>(p, stream);
  return true;
}

}  // namespace axnet::cuda
