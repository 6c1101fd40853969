// PWAP on the matrix units: the work of a block and the way of X into shared memory.
//
//   block   walks tiles of P pixels of one image with all their channels, for M maps (8 or 16)
//   warp    has kRun channels of its own (128 or 64), from the copy to the sums: no other warp reads them, so that the
//           tile needs no barrier of the block
//   ring    4 KB a warp and stage, filled by asynchronous copies `stages - 1` tiles ahead. A row is a channel's P
//           pixels (NCHW) or a pixel's kRun channels (channels_last); its 16-byte pieces lie in turned order, which
//           puts eight rows of a matrix in different banks
#pragma once

#include <optional>

#include "cuda/device.cuh"
#include "cuda/matrix.h"
#include "cuda/wrap.h"

namespace axnet::cuda {

constexpr int kMostWarps = 16;  // of a block
constexpr int kStage = 4096;    // bytes of a warp's part of a tile
constexpr int kMostStages = 3;
constexpr int kMapNumbers = 5;
constexpr int kMultiprocessors = 132;  // of a large GPU

constexpr int run_of(int maps) { return maps == 8 ? 128 : 64; }  // channels of a warp
constexpr int kWideRun = 128;                                    // and of 16 maps in pwap_wide.cuh's kernels
constexpr int kWideHeld = 8192;                                  // bytes of the rows that a warp holds there
constexpr int kLine = 128;                                       // bytes that come from DRAM together

// Tiles of a block, of those of an image: rounds of blocks times tiles of a block, whose beginning and end cost about
// as much as two. together: images (and groups of maps) side by side; resident: blocks on a multiprocessor.
inline int steps_of(int tiles, int64_t together, int64_t resident) {
  resident *= kMultiprocessors;
  int64_t least = std::numeric_limits<int64_t>::max();
  int steps = tiles;
  for (int64_t n = std::min<int64_t>(tiles, 2 * resident / together + 1); n > 0; --n) {
    const int64_t length = ceil_div(tiles, n);
    const int64_t cost = ceil_div(together * ceil_div(tiles, length), resident) * (length + 2);
    if (cost <= least) least = cost, steps = static_cast<int>(length);
  }
  return steps;
}

// The tiling depends on shapes alone, apart from whether 16 maps fit on the GPU; the stages change no result.
struct MatrixPlan {
  int64_t image;       // elements between images
  int channel, pixel;  // and between channels, pixels
  int C, S, K;
  int maps, warps, groups, stages;  // maps of a block; warps of a block; groups of maps; tiles in its ring
  int tiles, steps, walks;          // tiles of an image; of a block; blocks of an image for a group
  int halves;                       // 2: a block has half of the channels, and pwap_slopes.cuh's kernels take the plan
  bool wide;                        // blocks of pwap_wide.cuh
  bool last, fast;                  // fast: every 16-byte piece is aligned and lies in one row
  size_t bytes;                     // of shared memory

  // None where the kernels of pooling.cuh take over. rows: of shares, for one map; held: bytes that a warp keeps beside
  // its ring; halved: whether blocks may have half of the channels.
  static std::optional<MatrixPlan> of(const Tensor& x, int64_t maps, int rows, int held, bool halved = false) {
    const View view = view_of(x);
    const int64_t N = x.size(0), C = x.size(1), S = x.size(2) * x.size(3);
    MatrixPlan p;
    if (x.scalar_type() == ScalarType::Double || C > kMostWarps * run_of(8)) return std::nullopt;
    // within an image the kernels count in 32 bits
    if ((C + 2 * run_of(8)) * view.c + (S + 2 * kStage) * view.s > std::numeric_limits<int>::max()) return std::nullopt;
    p.image = view.n, p.channel = static_cast<int>(view.c), p.pixel = static_cast<int>(view.s);
    p.C = static_cast<int>(C), p.S = static_cast<int>(S), p.K = static_cast<int>(maps), p.last = view.channels_last;
    const int size = x.scalar_type() == ScalarType::Float ? 4 : 2, vector = 16 / size;
    const bool half = x.scalar_type() == ScalarType::Half;  // its kernels of 8 maps would need too many registers
    const size_t limit = shared_limit(x);
    const auto fits = [&](int of_block, int halves, bool wide = false) {
      p.maps = of_block, p.halves = halves, p.wide = wide;
      return p.fit(size, rows, held, limit);
    };
    const int most = maps > 8 || half ? 16 : 8;
    const bool wide = most == 16 && !half && !(halved && size == 4);  // the way back of float has no room
    if (!fits(most, 1) && !(wide && fits(16, 1, true)) && !(halved && most == 16 && fits(16, 2)) &&
        (half || !fits(8, 1)))
      return std::nullopt;
    p.groups = static_cast<int>(ceil_div(maps, p.maps));
    const int64_t along = p.last ? C : S, step = p.last ? view.s : view.c;
    p.fast = along % vector == 0 && step % vector == 0 && view.n % vector == 0 &&
             reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
    p.tiles = static_cast<int>(ceil_div(S, kStage / p.run() / size));
    p.walk(N * p.groups * p.halves);
    return p;
  }

  // Of the kernel before a plan of halves: all channels, no weights and no shares in shared memory.
  MatrixPlan of_slopes(const Tensor& x) const {
    MatrixPlan p = *this;
    p.fill(slopes_bytes(x.scalar_type() == ScalarType::Float ? 4 : 2), shared_limit(x));
    p.walk(x.size(0));
    return p;
  }

  // Beside the ring: parts [warps, M, P]; shares (pwap_products.cuh); numbers of every map.
  static size_t fixed_bytes(int maps, int warps, int P, int rows) {
    return static_cast<size_t>(4) * maps * (warps * P + rows * (P + 8) + kMapNumbers);
  }

 private:
  int run() const { return wide ? kWideRun : run_of(maps); }
  int resident() const { return std::min(8, kMostWarps / warps); }  // blocks on a multiprocessor, by their registers
  size_t slopes_bytes(int size) const { return fixed_bytes(maps, warps, kStage / run_of(maps) / size, 0); }

  void walk(int64_t together) {
    steps = steps_of(tiles, together, resident());
    walks = static_cast<int>(ceil_div(tiles, steps));
  }

  // Whether a block of that many maps has enough threads and shared memory.
  bool fit(int size, int rows, int held, size_t limit) {
    warps = static_cast<int>(ceil_div(C, run() * halves));
    if (warps > kMostWarps) return false;
    const int P = kStage / run() / size;
    if (wide) {
      stages = 1;
      bytes = fixed_bytes(maps, warps, P, rows) + warps * (kStage + kWideHeld + 4 * kWarp);
      return bytes <= limit;
    }
    if (halves == 1) return fill(fixed_bytes(maps, warps, P, rows) + warps * held, limit);
    return fill(slopes_bytes(size), limit) && fill(fixed_bytes(maps, 0, P, 2 * rows) + warps * held, limit);
  }

  // The ring beside the rest: as many stages as leave room for the blocks beside it.
  bool fill(size_t rest, size_t limit) {
    const size_t ring = static_cast<size_t>(warps) * kStage;
    for (stages = kMostStages; stages > 1; --stages)
      if (resident() * (rest + stages * ring + 1024) <= limit + 1024) break;
    bytes = rest + stages * ring;
    return bytes <= limit;
  }
};

// A warp's part of a tile.
template <class T, bool LAST, int M, int RUN = run_of(M)>
struct WarpTile {
  static constexpr int V = kVector<T>, kRun = RUN, kSlots = kRun / 16;
  static constexpr int P = kStage / kRun / static_cast<int>(sizeof(T));
  static constexpr int kRow = (LAST ? kRun : P) * static_cast<int>(sizeof(T));  // bytes
  static constexpr int kPieces = kRow / 16, kStep = kWarp / kPieces;            // of a row; rows of a warp's access
  static constexpr int kAccesses = 8, kMaps = M;
  static constexpr bool kLast = LAST;

  // Which of its pieces a row begins with (exclusive or). Of kStep * i alone it is a constant: a permutation of bits.
  __device__ static constexpr int turn(int row) {
    return LAST ? row % 4 * 2 + row / 4 % 2 : RUN == 128 ? row / 4 % 2 : row / 2 % 2 * 2 + row / 4 % 2;
  }
  // Bytes from the stage's begin to channel c, pixel s.
  __device__ static int offset(int c, int s) {
    const int row = LAST ? s : c, column = LAST ? c : s;
    return row * kRow + ((column / V ^ turn(row)) * 16) + column % V * static_cast<int>(sizeof(T));
  }
  __device__ static T* place(unsigned char* stage, int c, int s) { return reinterpret_cast<T*>(stage + offset(c, s)); }

  __device__ static Vector<T> piece(const unsigned char* at) {  // in one access
    const uint4 bits = *reinterpret_cast<const uint4*>(at);
    Vector<T> v;
    memcpy(&v, &bits, sizeof(v));
    return v;
  }
  __device__ static void set_piece(unsigned char* at, const Vector<T>& v) {
    uint4 bits;
    memcpy(&bits, &v, sizeof(bits));
    *reinterpret_cast<uint4*>(at) = bits;
  }

  // f(i, byte offset, channel, pixel) of the lane's pieces.
  template <int UNROLL = kAccesses, class F>
  __device__ static void each_piece(int lane, const F& f) {
    const int row0 = lane / kPieces, column = lane % kPieces;
    const int base = row0 * kRow + ((column ^ turn(row0)) * 16);
#pragma unroll UNROLL
    for (int i = 0; i < kAccesses; ++i) {
      const int row = row0 + i * kStep, at = (base ^ turn(i * kStep) * 16) + i * kStep * kRow;
      f(i, at, LAST ? column * V : row, LAST ? row : column * V);
    }
  }
  // Where the lane's first piece of the channels from c0 and the pixels from s0 on lies in an image.
  __device__ static int first(int lane, int c0, int s0, int channel, int pixel) {
    return c0 * channel + s0 * pixel + lane / kPieces * (LAST ? pixel : channel) + lane % kPieces * V;
  }

  // Starts the copy of the channels from c0 and the pixels from s0 on of an image x; zeros beyond it.
  __device__ static void fetch(int lane, const MatrixPlan& p, const T* x, int c0, int s0, unsigned char* stage) {
    const T* from = x + first(lane, c0, s0, p.channel, p.pixel);
    const int channels = p.C - c0, pixels = p.S - s0, step = again(kStep * (LAST ? p.pixel : p.channel));
    if (p.fast && channels >= kRun && pixels >= P)
      each_piece(lane, [&](int i, int at, int, int) { copy_async(stage + at, from + static_cast<int64_t>(i) * step); });
    else if (p.fast)
      each_piece(lane, [&](int i, int at, int c, int s) {
        copy_async_if(c < channels && s < pixels, stage + at, from + static_cast<int64_t>(i) * step);
      });
    else
      each_piece<2>(lane, [&](int i, int at, int c, int s) {
        const int count = real(c, s, channels, pixels);
        set_piece(stage + at, load_some(from + static_cast<int64_t>(i) * step, count, false));
      });
  }
  // Of the piece at (c, s), how many elements there are.
  __device__ static int real(int c, int s, int channels, int pixels) {
    const int count = LAST ? channels - c : pixels - s;
    return (LAST ? s >= pixels : c >= channels) || count < 0 ? 0 : count < V ? count : V;
  }

  // The way back, to an image. add: to what is there; fast: every piece is aligned and lies in one row.
  __device__ static void store(int lane, const MatrixPlan& p, T* image, int channel, int pixel, bool fast, bool add,
                               int c0, int s0, const unsigned char* stage) {
    T* to = image + first(lane, c0, s0, channel, pixel);
    const int channels = p.C - c0, pixels = p.S - s0, step = again(kStep * (LAST ? pixel : channel));
    if (fast && !add && channels >= kRun && pixels >= P)
      each_piece(
          lane, [&](int i, int at, int, int) { store_vector(to + static_cast<int64_t>(i) * step, piece(stage + at)); });
    else
      each_piece<1>(lane, [&](int i, int at, int c, int s) {
        const int count = real(c, s, channels, pixels);
        T* row = to + static_cast<int64_t>(i) * step;
        Vector<T> v = piece(stage + at);
        if (add)
#pragma unroll
          for (int k = 0; k < V; ++k)
            if (k < count) v.at[k] = T(static_cast<float>(v.at[k]) + static_cast<float>(row[k]));
        store_some(row, v, count, fast);
      });
  }
};

// f(tile) for the layout and the maps of a block.
template <class T, class F>
void with_warp_tile(const MatrixPlan& p, const F& f) {
  if constexpr (sizeof(T) <= 4) {
    if constexpr (!std::is_same_v<T, Half>)
      if (p.maps == 8) return p.last ? f(WarpTile<T, true, 8>{}) : f(WarpTile<T, false, 8>{});
    return p.last ? f(WarpTile<T, true, 16>{}) : f(WarpTile<T, false, 16>{});
  }
}

}  // namespace axnet::cuda
