// Copies of bfloat16 maps that run ahead of the arithmetic, through a ring in shared memory which belongs to one warp,
// so that no barrier of the block is needed. Memory is asked for in whole lines of the cache.
#pragma once

#include "cuda/basis.cuh"

namespace axnet::cuda {

// Pieces of a ring: one is worked on, the others are on their way.
constexpr int kMomentsRing = 3, kSumsRing = 2;

// Where the rings begin behind `bytes` of shared memory: parts within 128 bytes are addressed by exclusive or.
inline int ring_after(size_t bytes) { return static_cast<int>((bytes + 127) / 128 * 128); }

// What rings share. Own has a piece's `reach` in pixels from its first to beyond its last, the `stride` to the next
// piece, piece_bytes, start(s), copy(place), which begins the lane's part of the copies of the next piece, from start's
// s on, and, where there are several runs of pixels, turn(pixels), which goes from the end of a run to the next one.
template <int DEPTH, class Own>
class Ring {
 public:
  // The first copies of the whole pieces of [s, end). All lanes of the warp.
  __device__ void begin(int s, int end) {
    const int whole = end - own().reach;
    last = whole - (DEPTH - 1) * own().stride, place = 0, before = (DEPTH - 1) * Own::piece_bytes;
    own().start(s);
#pragma unroll
    for (int k = 0; k < DEPTH - 1; ++k) {
      if (s + k * own().stride <= whole) own().copy(k * Own::piece_bytes);
      copies_commit();
    }
  }
  // The same where `more` runs of [0, end) follow, of other rows; a run has no less than DEPTH - 1 pieces.
  __device__ void begin_runs(int end, int more) {
    begin(0, end);
    left = more;
    if (end < DEPTH * own().stride) own().turn(end);
  }
  // f(place, s) for each of them from s to `stop`, where none crosses; where the next one begins. Copies run on beyond.
  template <class F>
  __device__ int walk(int s, int stop, const F& f) {
#pragma unroll 1
    for (; s + own().reach <= stop; s += own().stride)
      step(s, s <= last, f);
    return s;
  }
  // The same over one of several runs, of the pixels [0, stop), while copies go on to the next.
  template <class F>
  __device__ void walk_run(int stop, const F& f) {
    const bool more = left-- > 0;
    const int before_turn = stop - DEPTH * own().stride, turning = before_turn < 0 ? before_turn + stop : before_turn;
    int s = 0;
#pragma unroll 1
    do {
      step(s, more || s <= last, f);
      if (s == turning) own().turn(stop);
      s += own().stride;
    } while (s < stop);
  }

 private:
  int last, place, before, left;  // where the last piece before which copies go on may begin; bytes: where the next one
                                  // stands, and the one before it; runs to come

  __device__ Own& own() { return *static_cast<Own*>(this); }
  template <class F>
  __device__ void step(int s, bool ask, const F& f) {
    copies_wait(DEPTH - 2);
    __syncwarp();  // the copies of all lanes are there, and the piece before has been read
    if (ask) own().copy(before);
    copies_commit();
    f(place, s);
    before = place;
    place = place < (DEPTH - 1) * Own::piece_bytes ? place + Own::piece_bytes : 0;
  }
};

// NCHW: 64 pixels of 16 rows of MAPS maps, which come out as fragments of a product of 16 rows. The eight 16-byte parts
// of row r are in the order of their number xor r % 8: eight rows' parts of the same pixels lie in different banks.
template <int MAPS, int DEPTH>
struct RowRing : Ring<DEPTH, RowRing<MAPS, DEPTH>> {
  static constexpr int reach = 64, stride = reach, rows = 16, map_bytes = rows * reach * 2;
  static constexpr int piece_bytes = MAPS * map_bytes, bytes = DEPTH * piece_bytes;  // bytes: of a warp

  unsigned char* shared;
  const BFloat16 *map[MAPS], *next[MAPS];
  int to, from, step[MAPS];
  unsigned offset[MAPS][3];

  // at: of the warp's ring in shared memory. maps: at the first row; of the rows, `steps` apart, `last` is the last one
  // that there is
  __device__ RowRing(unsigned char* shared, int at, const BFloat16* const (&maps)[MAPS], const int (&steps)[MAPS],
                     int last)
      : shared(shared) {
    const int lane = threadIdx.x % kWarp, row = lane / 8;
    auto clamped = [&](int r) { return r < last ? r : last; };
    to = again(at + row * 128 + (lane % 8 ^ row) * 16);
    from = again(at + lane % 16 * 128 + (lane / 16 ^ lane % 8) * 16);
#pragma unroll
    for (int m = 0; m < MAPS; ++m) {
      step[m] = steps[m];
      map[m] = maps[m] + (lane % 8 * 8 + clamped(row) * steps[m]);
#pragma unroll
      for (int i = 1; i < 4; ++i)
        offset[m][i - 1] = again(static_cast<unsigned>((clamped(row + 4 * i) - clamped(row)) * steps[m]));
    }
  }
  __device__ void start(int s) {
#pragma unroll
    for (int m = 0; m < MAPS; ++m)
      next[m] = map[m] + s;
  }
  __device__ void turn(int pixels) {  // all of the next rows are there
#pragma unroll
    for (int m = 0; m < MAPS; ++m)
      next[m] += static_cast<unsigned>(rows * step[m] - pixels);
  }
  __device__ void copy(int place) {
    unsigned char *even = shared + (to + place), *odd = shared + ((to ^ 64) + place);
#pragma unroll
    for (int m = 0; m < MAPS; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        copy_ahead((i % 2 ? odd : even) + m * map_bytes + i * 512, i ? next[m] + offset[m][i ? i - 1 : 0] : next[m]);
      next[m] += stride;
    }
  }
  // 16 pixels of the 16 rows, from pixel 16 step on: rows g and g + 8 at 2 t, then at 2 t + 8.
  __device__ void read(int place, int m, int step, uint32_t (&words)[4]) const {
    load_matrices<false>(shared + ((from ^ step * 32) + place) + m * map_bytes, words);
  }
};

// channels_last: 32 channels of two steps of 16 pixels; of `parts` warps each takes such a piece in turn. The pixels of
// a step stand in the order 4 t + i for t, i: 0 0, 1 0, 2 0, 3 0, 0 1, ... ; of the last two t the 16-byte parts are
// swapped by two, of odd i by one, so that what lanes read together, either way, lies in different banks.
template <int DEPTH>
struct ChannelRing : Ring<DEPTH, ChannelRing<DEPTH>> {
  static constexpr int channels = 32, step_bytes = kStep * channels * 2, piece_bytes = 2 * step_bytes;
  static constexpr int reach = 2 * kStep;
  static constexpr int bytes = DEPTH * piece_bytes;  // of a warp

  unsigned char* shared;
  const unsigned char *map, *next;
  int to, from, columns;
  int stride, pixel, eight, further;  // bytes: from a pixel to the next, to the eighth, from a piece's last to the next

  // x: at the first channel; of its groups of eight `last` is the last one that there is; step: elements of a pixel
  __device__ ChannelRing(unsigned char* shared, int at, const BFloat16* x, int step, int last, int parts)
      : shared(shared), stride(again(parts * reach)), pixel(2 * step) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, row = lane % 8, second = lane / 16;
    map = reinterpret_cast<const unsigned char*>(x + (lane / 4 * step + (t < last ? t : last) * 8));
    eight = again(8 * pixel), further = again((stride - 24) * pixel);
    to = again(at + (g % 4 * 4 + g / 4) * 64 + (t ^ g % 2) * 16);
    from = again(at + t * 64 + (g / 2 ^ t / 2 * 2) * 16 + g % 2 * 8);
    columns = again(at + (row % 2 + 2 * second) * 256 + row / 2 * 64 + (lane / 8 % 2 ^ row / 4 * 2 ^ row % 2) * 16);
  }
  __device__ void start(int s) { next = again(map) + static_cast<int64_t>(s) * pixel; }
  __device__ void copy(int place) {
    unsigned char *low = shared + (to + place), *high = shared + ((to ^ 32) + place) + 128;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      copy_ahead((i % 2 ? high : low) + i / 2 * step_bytes, next);
      next = again(next + static_cast<unsigned>(i < 3 ? eight : further));
    }
  }
  // The pixels from s on of the S that there are, its last one again for those beyond.
  __device__ void copy_rest(int place, int s, int S) {
    const int own = static_cast<int>(again(threadIdx.x % kWarp)) / 4;  // rare: nothing is kept for it
    const unsigned char* map = again(this->map);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = s + own + 8 * i, there = p < S ? p : S - 1;
      copy_ahead(shared + ((i % 2 ? to ^ 32 : to) + place + i % 2 * 128) + i / 2 * step_bytes,
                 map + static_cast<int64_t>(there - own) * pixel);
    }
    copies_commit();
  }
  // Their place, once they and all copies before them are there.
  __device__ int came(int place) const {
    copies_wait(0);
    __syncwarp();
    return place;
  }
  __device__ int rest(int s, int S) {
    came(0);  // the pieces before have been read
    copy_rest(0, s, S);
    return came(0);
  }
  // Four channels from 4 g on of pixel 4 t + i of step u.
  __device__ uint2 read(int place, int u, int i) const {
    return *reinterpret_cast<const uint2*>(shared + ((i % 2 ? from ^ 16 : from) + place) + u * step_bytes + i * 256);
  }
  // Of step u 16 channels, or the 16 others with `upper`, as products of 16 rows want them: channels g and g + 8 at
  // pixel 4 t, then at 4 t + 2.
  __device__ void read_rows(int place, int u, int upper, uint32_t (&words)[4]) const {
    load_matrices<true>(shared + ((upper ? columns ^ 32 : columns) + place) + u * step_bytes, words);
  }
};

}  // namespace axnet::cuda
