// The products of PWAP on the matrix units, for a warp's channels and a tile of P pixels:
//
//   channels  [M, P] = rows [M, channels] x tile     a warp's share; the parts of all warps are added in order
//   pixels    [channels, M] += tile x shares^T       sums in registers, tile after tile
//   inputs    tile = dpooled^T x shares + weights^T x dL: the way back
#pragma once

#include "cuda/pwap_operands.cuh"
#include "cuda/pwap_tile.cuh"

namespace axnet::cuda {

constexpr int kTurnedBytes = 2048;  // of a warp: Products::turn_over

struct Nothing {
  __device__ void operator()(int) const {}
};

template <class T, bool LAST, int M, int RUN = run_of(M)>
struct Products {
  using Tile = WarpTile<T, LAST, M, RUN>;
  static constexpr int P = Tile::P, kSlots = Tile::kSlots, kGroups = M / 8;
  // whether neighbouring numbers of a contraction are pairs in memory: the depths t and t + 4 of tf32 are then 2t, 2t +
  // 1
  static constexpr bool kPairsOfChannels = sizeof(T) == 2 || LAST, kPairsOfPixels = sizeof(T) == 2 || !LAST;
  using Sums = float[kSlots][kGroups][4];  // channels g, g + 8 of a slot; maps 8 m + 2t, + 1

  __device__ static int channel_of(int t, int i) {
    return i / 2 * 8 + (kPairsOfChannels ? 2 * t + i % 2 : t + i % 2 * 4);
  }

  // The 16 x 16 features of a slot and the pixels from 16 j on: channels 0-7, 8-15 of the pixels 0-7, then of 8-15.
  template <bool ACROSS>
  __device__ static void load(const unsigned char* stage, int base, int slot, int j, uint32_t (&r)[4]) {
    const int at = LAST ? (base ^ slot * 32) + j * 16 * Tile::kRow : (base ^ j * 32) + slot * 16 * Tile::kRow;
    load_matrices<ACROSS>(stage + at, r);
  }
  __device__ static int lane_base(int lane) {
    return LAST ? Tile::offset(lane / 8 % 2 * 8, lane % 8 + lane / 16 * 8) : Tile::offset(lane % 16, lane / 16 * 8);
  }
  __device__ static float feature(const unsigned char* stage, int c, int s) {
    return static_cast<float>(*Tile::place(const_cast<unsigned char*>(stage), c, s));
  }

  // parts [M, P] of the warp = rows x tile
  template <class OfSlots>
  __device__ static void channels(int lane, const unsigned char* stage, const OfSlots& rows, float* parts) {
    float sums[P / 8][4] = {};
    add_channels(lane, stage, rows, sums);
    put_part(lane, sums, parts);
  }
  template <class OfSlots>
  __device__ static void add_channels(int lane, const unsigned char* stage, const OfSlots& rows,
                                      float (&sums)[P / 8][4]) {
    const int g = lane / 4, t = lane % 4;
    if constexpr (sizeof(T) == 2) {
      const int base = lane_base(lane);
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const auto& row = rows[slot];
#pragma unroll
        for (int j = 0; j < P / 16; ++j) {
          uint32_t r[4];
          load<!LAST>(stage, base, slot, j, r);
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if constexpr (std::is_same_v<T, BFloat16>) {
              row.times(r[2 * e], r[2 * e + 1], sums[2 * j + e]);
            } else {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                uint32_t b[2];
                widen(r[2 * e + half], b[0], b[1]);
                row.times(half, b[0], b[1], sums[2 * j + e]);
              }
            }
        }
      }
    } else {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const auto& row = rows[slot];
#pragma unroll
        for (int j = 0; j < P / 8; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t big[2], small[2];
#pragma unroll
            for (int i = 0; i < 2; ++i)
              split_feature(feature(stage, slot * 16 + channel_of(t, 2 * half + i), j * 8 + g), big[i], small[i]);
            row.times(half, big, small, sums[j]);
          }
      }
    }
  }
  __device__ static void put_part(int lane, const float (&sums)[P / 8][4], float* parts) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < P / 8; ++j)
#pragma unroll
      for (int r = 0; r < kGroups; ++r) {
        float pair[2] = {sums[j][2 * r], sums[j][2 * r + 1]};
        if constexpr (M == 8) pair[0] += sums[j][2], pair[1] += sums[j][3];  // high and low parts of the rows
        store_pair(parts + (part_at<P>(g, 2 * t) ^ 8 * j) + 8 * r * P, pair);
      }
  }

  // sums += tile x shares^T; row0: of the shares; then(slot): the slot's features have been read for the last time
  template <class F = Nothing>
  __device__ static void pixels(int lane, const unsigned char* stage, const Shares<T, P>& shares, int row0, Sums& sums,
                                const F& then = {}) {
    const int g = lane / 4, t = lane % 4;
    if constexpr (std::is_same_v<T, BFloat16>) {
      const int base = lane_base(lane);
      const uint16_t* from = reinterpret_cast<const uint16_t*>(shares.at) +
                             (lane / 16 * shares.rows + row0 + lane % 8) * shares.kPitch + lane / 8 % 2 * 8;
#pragma unroll
      for (int j = 0; j < P / 16; ++j) {
        uint32_t b[kGroups][4];  // high parts of 16 pixels, low parts
#pragma unroll
        for (int m = 0; m < kGroups; ++m)
          load_matrices<false>(from + 8 * m * shares.kPitch + 16 * j, b[m]);
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          uint32_t a[4];
          load<LAST>(stage, base, slot, j, a);
          if (j + 1 == P / 16) then(slot);
#pragma unroll
          for (int m = 0; m < kGroups; ++m) {
            multiply_add<T>(sums[slot][m], a, b[m][2], b[m][3]);
            multiply_add<T>(sums[slot][m], a, b[m][0], b[m][1]);
          }
        }
      }
    } else {
      constexpr int kSteps = sizeof(T) == 2 ? 2 : 1;  // of 8 pixels in an access
      const int base = sizeof(T) == 2 ? lane_base(lane) : 0;
      const float* from = reinterpret_cast<const float*>(shares.at) + (row0 + g) * shares.kPitch;
#pragma unroll
      for (int j = 0; j < P / 8; j += kSteps) {
        uint32_t high[kSteps][kGroups][2], low[kSteps][kGroups][2];
#pragma unroll
        for (int u = 0; u < kSteps; ++u)
#pragma unroll
          for (int m = 0; m < kGroups; ++m)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int s = 8 * (j + u) + (kPairsOfPixels ? 2 * t + i : t + 4 * i);
              float rest;
              split(from[8 * m * shares.kPitch + s], kTf32, high[u][m][i], rest);
              low[u][m][i] = bits_of(rest);
            }
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          uint32_t big[kSteps][4], small[4];
          if constexpr (kSteps == 2) {
            uint32_t r[4];
            load<LAST>(stage, base, slot, j / 2, r);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              widen(r[i], big[i / 2][i % 2], big[i / 2][i % 2 + 2]);
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
              split_feature(
                  feature(stage, slot * 16 + g + i % 2 * 8, j * 8 + (kPairsOfPixels ? 2 * t + i / 2 : t + i / 2 * 4)),
                  big[0][i], small[i]);
          }
          if (j + kSteps == P / 8) then(slot);
#pragma unroll
          for (int u = 0; u < kSteps; ++u)
#pragma unroll
            for (int m = 0; m < kGroups; ++m) {
              if constexpr (kSteps == 1) multiply_add_tf32(sums[slot][m], small, high[u][m][0], high[u][m][1]);
              multiply_add_tf32(sums[slot][m], big[u], low[u][m][0], low[u][m][1]);
              multiply_add_tf32(sums[slot][m], big[u], high[u][m][0], high[u][m][1]);
            }
        }
      }
    }
  }

  // `maps` rows of C numbers, of which the warp's `channels`; zeros beyond. from: its first number.
  template <bool EXACT, class Number>
  __device__ static void load_rows(const Number* from, int C, int maps, int channels,
                                   Rows<T, M, EXACT> (&rows)[kSlots]) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, c0 = channel_of(lane % 4, 0);
    from += static_cast<int64_t>(g) * C + c0;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      float v[4][M / 8];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int r = 0; r < M / 8; ++r) {
          const int c = slot * 16 + channel_of(0, i);
          v[i][r] = g + 8 * r < maps && c < channels - c0 ? static_cast<float>(from[8 * r * C + c]) : 0.f;
        }
      rows[slot].set(v);
    }
  }

  __device__ static void scale(int lane, const float* factors, Sums& sums) {
    const int t = lane % 4;
#pragma unroll
    for (int m = 0; m < kGroups; ++m) {
      const float even = factors[8 * m + 2 * t], odd = factors[8 * m + 2 * t + 1];
      if (even != 1 || odd != 1)
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            sums[slot][m][e] *= e % 2 ? odd : even;
    }
  }

  // f(map, channel of the warp, sum) of those that there are
  template <class F>
  __device__ static void each_sum(const Sums& sums, int maps, int channels, const F& f) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < kGroups; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (8 * m + 2 * t + e % 2 < maps)
#pragma unroll
          for (int slot = 0; slot < kSlots; ++slot)
            if (slot * 16 + e / 2 * 8 < channels - g)
              f(8 * m + 2 * t + e % 2, slot * 16 + g + e / 2 * 8, sums[slot][m][e]);
  }

  // The weights of the way back, turned over, rounded to T = BFloat16 as dX is: of a slot and lane the channels g (e =
  // 0) and g + 8 (e = 1) and the maps 8 m + 2t, + 1 at turned_at(e + 2 m). The lane reads them back alone.
  struct alignas(M) Turned {
    uint32_t pairs[M / 4];
  };
  // In channels_last the maps of a channel are a product's operand: neighbouring registers.
  __device__ static constexpr int turned_at(int i) { return M == 8 ? i % 2 : LAST ? i % 2 * 2 + i / 2 : i; }
  template <class Number>
  __device__ static void turn_over(const Number* from, int C, int maps, int channels, unsigned char* weights) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    from += static_cast<int64_t>(2 * t) * C + g;
#pragma unroll 2
    for (int slot = 0; slot < kSlots; ++slot) {
      Turned turned;
#pragma unroll
      for (int i = 0; i < M / 4; ++i) {
        const int c = slot * 16 + i % 2 * 8;
        float pair[2];
#pragma unroll
        for (int k = 0; k < 2; ++k)
          pair[k] = 2 * t + i / 2 * 8 + k < maps && c < channels - g ? static_cast<float>(from[(i / 2 * 8 + k) * C + c])
                                                                     : 0.f;
        turned.pairs[turned_at(i)] = pair_of<T>(pair[0], pair[1]);
      }
      reinterpret_cast<Turned*>(weights)[slot * kWarp + lane] = turned;
    }
  }

  // dX in the place of X; shares: rows 0 to M - 1 shares, M to 2 M - 1 dL. T = BFloat16.
  template <class OfSlots>
  __device__ static void inputs(int lane, unsigned char* stage, const Shares<T, P>& shares, const OfSlots& grads,
                                const unsigned char* weights) {
    const int g = lane / 4, t = lane % 4;
    // the matrices come in the order in which the product wants them: registers in another order would be moved
    const int row = LAST ? lane % 8 + lane / 16 * 8 : lane % 16, column = (LAST ? lane / 8 % 2 : lane / 16) * 8;
    const uint16_t* from = reinterpret_cast<const uint16_t*>(shares.at) + row * shares.kPitch + column;
    const int low_part = shares.rows * shares.kPitch;
#pragma unroll
    for (int j = 0; j < P / 16; ++j) {
      // [shares, dL] of 16 pixels; of 8 maps both are one operand
      uint32_t high[kGroups][4], low[kGroups][4];
#pragma unroll
      for (int m = 0; m < kGroups; ++m) {
        load_matrices<true>(from + m * M * shares.kPitch + 16 * j, high[m]);
        load_matrices<true>(from + m * M * shares.kPitch + 16 * j + low_part, low[m]);
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        float out[2][4] = {};
        uint32_t grad[4], weight[4];
        const auto& row = grads[slot];
        const Turned held = reinterpret_cast<const Turned*>(weights)[slot * kWarp + lane];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          grad[i] = i < M / 4 ? turned(row.pairs[i % 2][i / 2 % kGroups]) : 0u;
          weight[i] = M == 16 ? held.pairs[turned_at(i)] : i < 2 ? grad[i] : held.pairs[i % 2];
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if constexpr (M == 16) {
            turn_product(grad, low[0], e, out[e]);
            turn_product(grad, high[0], e, out[e]);
          }
          turn_product(weight, low[kGroups - 1], e, out[e]);
          turn_product(weight, high[kGroups - 1], e, out[e]);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t pair = pair_of<T>(out[e][2 * h], out[e][2 * h + 1]);
            const int c = slot * 16 + (LAST ? 8 * e + 2 * t : g + 8 * h),
                      s = 16 * j + (LAST ? g + 8 * h : 8 * e + 2 * t);
            *reinterpret_cast<uint32_t*>(Tile::place(stage, c, s)) = pair;
          }
        }
      }
    }
  }
  // c += 16 x 8 of the two: the channels are the rows (NCHW: the pixels 8 e on) or the columns (channels 8 e on)
  __device__ static void turn_product(const uint32_t (&params)[4], const uint32_t (&share)[4], int e, float (&c)[4]) {
    if constexpr (LAST) {
      multiply_add<T>(c, share, params[e], params[e + 2]);
    } else {
      multiply_add<T>(c, params, share[2 * e], share[2 * e + 1]);
    }
  }

  // The same in tf32, for TOGETHER times 8 pixels. grads, weights: the first of the warp's channels, rows of C numbers.
  template <int TOGETHER>
  __device__ static void inputs(int lane, unsigned char* stage, const Shares<T, P>& shares, const T* grads,
                                const float* weights, int C, int maps, int channels) {
    const int g = lane / 4, t = lane % 4;
    const float* from = reinterpret_cast<const float*>(shares.at) + t * shares.kPitch + g;
#pragma unroll 1
    for (int part = 0; part < kSlots * (P / 8 / TOGETHER); ++part) {
      const int slot = part % kSlots, j0 = part / kSlots * TOGETHER;
      float out[TOGETHER][4] = {};
#pragma unroll 1
      for (int side = 0; side < 2; ++side)  // dpooled and shares, weights and dL
#pragma unroll
        for (int m = 0; m < kGroups; ++m) {
          uint32_t high[4], low[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int k = 8 * m + t + i / 2 * 4, c = slot * 16 + g + i % 2 * 8;
            float v = 0, rest;
            if (k < maps && c < channels) v = side ? weights[k * C + c] : static_cast<float>(grads[k * C + c]);
            split(v, kTf32, high[i], rest);
            low[i] = bits_of(rest);
          }
#pragma unroll
          for (int j = 0; j < TOGETHER; ++j) {
            uint32_t big[2], small[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float rest;
              split(from[(side * M + 8 * m + 4 * i) * shares.kPitch + 8 * (j0 + j)], kTf32, big[i], rest);
              small[i] = bits_of(rest);
            }
            multiply_add_tf32(out[j], low, big[0], big[1]);
            multiply_add_tf32(out[j], high, small[0], small[1]);
            multiply_add_tf32(out[j], high, big[0], big[1]);
          }
        }
#pragma unroll
      for (int j = 0; j < TOGETHER; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          *Tile::place(stage, slot * 16 + g + e / 2 * 8, 8 * (j0 + j) + 2 * t + e % 2) = narrowed<T>(out[j][e]);
    }
  }

  __device__ static void store_pair(float* to, const float (&pair)[2]) {
    struct alignas(8) Pair {
      float at[2];
    };
    *reinterpret_cast<Pair*>(to) = {{pair[0], pair[1]}};
  }
};

}  // namespace axnet::cuda
