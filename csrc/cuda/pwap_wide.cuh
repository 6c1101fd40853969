// PWAP of 16 maps of more channels than a block has registers for beside their sums: up to 2048 instead of 1024.
//
//   rows   of weights and gradients lie in shared memory, from where the products take those of 16 channels at a time
//   stage  one tile, refilled 16 channels at a time as soon as they have been read for the last time
//   walks  of an image take its tiles in turn: in NCHW a line of 128 bytes has four tiles' pixels, which the L2 cache
//          need not keep for long then
//   lines  of later tiles come to the L2 cache meanwhile, as many for every tile: the first of four would wait for all
#pragma once

#include "cuda/pwap_args.cuh"
#include "cuda/pwap_products.cuh"

namespace axnet::cuda {

// A lane's numbers of every slot, which it reads back alone.
template <class Row, int SLOTS>
struct HeldRows {
  static constexpr int kPieces = sizeof(Row) / 16, bytes = SLOTS * kWarp * static_cast<int>(sizeof(Row));
  unsigned char* at;  // the warp's

  __device__ uint4* place(int slot, int piece) const {
    return reinterpret_cast<uint4*>(at) + (slot * kPieces + piece) * kWarp + threadIdx.x % kWarp;
  }
  __device__ void set(const Row (&rows)[SLOTS]) const {
    uint4 bits[kPieces];
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
      memcpy(bits, &rows[slot], sizeof(Row));
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        *place(slot, i) = bits[i];
    }
  }
  __device__ Row operator[](int slot) const {
    uint4 bits[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      bits[i] = *place(slot, i);
    Row row;
    memcpy(&row, bits, sizeof(row));
    return row;
  }
};

// A warp's part of the tiles of a walk: every p.walks-th of the image. LATE: lines are asked for one tile ahead and not
// up to kTiles, since what is written meanwhile would drive them out of the cache.
template <class T, bool LAST, bool LATE = false>
struct WideWalk {
  using Tile = WarpTile<T, LAST, 16, kWideRun>;
  static constexpr int V = kVector<T>, P = Tile::P, kSize = static_cast<int>(sizeof(T));
  static constexpr int kTiles = LAST ? 1 : kLine / (P * kSize);  // that a line has pixels of
  static constexpr int kColumns = LAST ? kSize : Tile::kPieces;  // pieces of a row, of 16 channels

  const MatrixPlan& p;
  const T* x;  // the image
  int c0;
  unsigned char *stage, *sink;

  // 16 channels at a time of a tile in the place of those of the tile before.
  struct Refill {
    const T* from;
    unsigned char* stage;
    int to, channels, step;  // bytes in the stage; channels of the lane, none if there is no such tile
    bool real;

    __device__ void operator()(int slot) const {
      __syncwarp();  // all lanes have read
      if (slot * 16 >= channels) return;
      const int place = LAST ? to ^ slot * kSize * 16 : to + slot * 16 * Tile::kRow;
      copy_async_if(real, stage + place, LAST ? from + slot * 16 : from + static_cast<int64_t>(slot) * step);
    }
  };
  __device__ Refill refill(int lane, int tile) const {
    const int row = lane / kColumns, column = lane % kColumns, s0 = tile * P;
    const int c = LAST ? column * V : row, s = LAST ? row : column * V;
    return {again(x + (c0 + c) * p.channel + (s0 + s) * p.pixel),
            stage,
            Tile::offset(c, s),
            p.fast && tile < p.tiles ? p.C - c0 - c : 0,
            again(16 * p.channel),
            s < p.S - s0};
  }

  // The first tile.
  __device__ void begin(int lane, int tile) const {
    Tile::fetch(lane, p, x, c0, tile * P, stage);
    copies_commit();
    ask(lane, tile);
  }
  // After all refills.
  __device__ void refilled(int lane, int tile) const {
    if (!p.fast && tile < p.tiles) {
      __syncwarp();
      Tile::fetch(lane, p, x, c0, tile * P, stage);
    }
    copies_commit();
    ask(lane, tile);
  }
  // The tile is there; what was asked for with it, for later tiles, may be under way.
  __device__ static void wait() {
    copies_wait<1>();
    __syncwarp();
  }
  // No copy is under way when a block ends.
  __device__ static void end() { copies_wait<0>(); }

 private:
  // Asks for lines of the warp's channels that a walk needs after `tile`.
  __device__ void ask(int lane, int tile) const {
    const int ahead = (tile / kTiles + (p.walks + kTiles - 1) / kTiles) * kTiles;  // the lines begin with this tile
    const int idle = LATE && p.walks < kTiles ? kTiles - p.walks : 0;              // tiles of a line ask for nothing
    for (int part = tile % kTiles - idle; part >= 0 && part < kTiles; part += idle ? p.walks : kTiles)
      ask(lane, ahead, part);
    copies_commit();
  }
  __device__ void ask(int lane, int ahead, int part) const {
    constexpr int kLines = LAST ? kWideRun * kSize / kLine : 1;  // of a pixel
    const int c = LAST ? lane % kLines * (kLine / kSize) : part * kWarp + lane;
    const int s = ahead * P + (LAST ? lane / kLines : 0);
    if (c < p.C - c0 && s < p.S) ask_ahead(sink + 4 * lane, x + (c0 + c) * p.channel + s * p.pixel);
  }
};

}  // namespace axnet::cuda
