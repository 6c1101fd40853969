// The sums of gate_norm's gradient on the matrix units, bfloat16: D, and D X as two bfloat16, times the basis 1, m_a.
// How rows and pixels are shared: masked_moments_matrix.cu, masked_moments_across.cu. The shift is taken off at the
// end: what X resolves of itself at a mean far above its spread is coarser than the difference.
#include "cuda/eight.cuh"
#include "cuda/ring.cuh"
#include "cuda/sums_matrix.cuh"

namespace axnet::cuda {
namespace {

constexpr int kRows = 16;               // of a warp, NCHW
constexpr int kStageBytes = 32 * 1024;  // with two pieces of rings 99 KB hold it
using Ahead = RowRing<2, kSumsRing>;

// The row of Basis for column k of a product.
template <int B>
__device__ inline int row_of_column(int k) {
  return k / 2 > B ? Basis<B, false>::rows : k / 2 + k % 2 * Basis<B, false>::rows;
}

template <int B>
__global__ void __launch_bounds__(kThreads, 2) sums_rows_matrix_kernel(const SumsPlan p, const SumsTiling tiling) {
  using Shape = Basis<B, false>;
  AXNET_SHARED(shared);
  const Shape basis(shared, tiling.pitch, tiling.stage);
  const SumsPlace<T, B> place(p, tiling);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), c0 = place.c0 + warp * kRows;
  const T *x[2], *d[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t c = c0 + 8 * r + g < C ? c0 + 8 * r + g : C - 1;
    x[r] = place.x + c * p.x.c, d[r] = place.d + c * p.d.c;
  }
  Ahead ahead(shared, tiling.ring + warp * Ahead::bytes, {place.x + c0 * p.x.c, place.d + c0 * p.d.c},
              {static_cast<int>(p.x.c), static_cast<int>(p.d.c)}, C - 1 - c0);
  float products[4] = {}, plain[4] = {};
  const uint16_t* column = basis.row(row_of_column<B>(g)) + 8 * t;
  auto take = [&](const uint32_t (&xs)[2][4], const uint32_t (&ds)[2][4], int s) {  // as of masked_moments_matrix.cu
    uint32_t b[4];
    load_shared(column + s, b);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      add_sixteen(products, plain, xs[h], ds[h], b[2 * h], b[2 * h + 1]);
  };
  for (int s0 = 0; s0 < S; s0 += tiling.stage) {
    const int pixels = S - s0 < tiling.stage ? S - s0 : tiling.stage;
    __syncthreads();
    basis.fill(place.mask, B, S, s0, tiling.stage, Order::matrices, [&] {
      if (tiling.ring && s0 == 0) ahead.begin(0, S);
    });
    __syncthreads();
    int s = 0;
    if (tiling.ring)
      ahead.walk(s0, s0 + pixels, [&](int piece, int) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t xs[2][4], ds[2][4];
#pragma unroll
          for (int h = 0; h < 2; ++h)
            ahead.read(piece, 0, 2 * half + h, xs[h]), ahead.read(piece, 1, 2 * half + h, ds[h]);
          take(xs, ds, s + half * kChunk);
        }
        s += Ahead::reach;
      });
    auto chunk = [&](const auto& load) {
      uint32_t xs[2][4], ds[2][4], eight[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load(i / 2 ? d[i % 2] : x[i % 2], i / 2 ? tiling.d_aligned : tiling.x_aligned, eight);
        arrange(eight, i % 2, i / 2 ? ds : xs);
      }
      take(xs, ds, s);
    };
#pragma unroll 1
    for (; s + kChunk <= pixels; s += kChunk)
      chunk([&](const T* row, bool aligned, uint32_t (&out)[4]) {
        load_eight<Order::matrices>(row + s0, s, t, aligned, out);
      });
    if (s < pixels)
      chunk([&](const T* row, bool, uint32_t (&out)[4]) { load_last<Order::matrices>(row, s0 + s, t, S, out); });
  }
  const int c = c0 + g;
  auto write = [&](const SumsPlace<T, B>& at) { ChannelSums<B>(at, C, c, t).write(products, plain, t, 0, C - c); };
  if (B < 3) write(place);
  else write(SumsPlace<T, B>(p, tiling));  // found anew: registers are short
}

// The same of maps that are whole pieces of the ring, whose basis stands in shared memory at once: for it a block takes
// several groups of channels, one after the other, and the copies of the next one begin before one ends.
template <int B>
__global__ void __launch_bounds__(kThreads, 2) sums_pieces_matrix_kernel(const SumsPlan p, const SumsTiling tiling) {
  AXNET_SHARED(shared);
  const SumsPlace<T, B> place(p, tiling);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S), c0 = place.c0 + warp * kRows;
  const int x_step = static_cast<int>(p.x.c), d_step = static_cast<int>(p.d.c);
  Ahead ahead(shared, tiling.ring + warp * Ahead::bytes, {place.x + c0 * p.x.c, place.d + c0 * p.d.c}, {x_step, d_step},
              kRows - 1);
  int end = place.c0 + tiling.channels;
  if (end > C) end = C;
  ahead.start(0);
  if (c0 < end) ahead.copy(0);
  copies_commit();
  fill_columns<B, kChunk>(reinterpret_cast<uint16_t*>(shared), tiling.pitch, place.mask, S, 0, S);
  __syncthreads();
  const unsigned char* column = shared + (row_of<B>(g) * tiling.pitch + 8 * t) * 2;
  ChannelSums<B> sums(place, C, c0 + g, t);
  int at = 0, from_of[4];  // of the piece, in the ring
  for (int i = 0; i < 4; ++i)
    from_of[i] = again(ahead.from ^ i * 32);
#pragma unroll 1
  for (int c = c0; c < end; c += kWarps * kRows) {
    float products[4] = {}, plain[4] = {};
    const unsigned char* from = column;
    auto piece = [&](bool more) {
      copies_wait(0);
      __syncwarp();  // the copies of all lanes are there, and the piece before has been read
      if (more) ahead.copy(at ^ Ahead::piece_bytes);
      copies_commit();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t b[4];
        load_shared(from + half * kChunk * 2, b);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t x[4], d[4];
          const unsigned char* words = shared + (from_of[2 * half + h] + at);
          load_matrices<false>(words, x), load_matrices<false>(words + Ahead::map_bytes, d);
          add_sixteen(products, plain, x, d, b[2 * h], b[2 * h + 1]);
        }
      }
      from += Ahead::reach * 2;
      at ^= Ahead::piece_bytes;
    };
#pragma unroll 1
    for (int s = Ahead::reach; s < S; s += Ahead::reach)
      piece(true);
    ahead.next[0] += kWarps * kRows * x_step - S, ahead.next[1] += kWarps * kRows * d_step - S;
    piece(c + kWarps * kRows < end);
    sums.write(products, plain, t, 0, kRows);
    sums.move(kWarps * kRows);
  }
}

// X and D of 128 channels of 7 x 7, as they stand in memory.
struct SevenRun {
  static constexpr int S = 49, eights = 7, channels = 128, depth = 2;
  static constexpr int map_bytes = channels * S * 2, piece_bytes = 2 * map_bytes;

  unsigned char* shared;
  const unsigned char *x, *d;  // the thread's first 16 bytes of the next piece
  int from, last;

  __device__ SevenRun(unsigned char* shared, const T* x_first, const T* d_first) : shared(shared) {
    const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
    x = reinterpret_cast<const unsigned char*>(x_first) + 16 * thread;
    d = reinterpret_cast<const unsigned char*>(d_first) + 16 * thread;
    const int row = lane % 16 * (8 * S * 2) + warp * S * 2 / 16 * 16;
    from = row + lane / 16 * 16, last = row + (eights - 1) * 16 + lane / 16 * map_bytes;
  }
  __device__ void copy(int place) {
    constexpr int pass = 16 * kThreads, passes = map_bytes / pass;
    static_assert(map_bytes - passes * pass == 16 * 16);
    unsigned char* to = shared + (place + static_cast<int>(threadIdx.x) * 16);
#pragma unroll
    for (int i = 0; i < passes; ++i)
      copy_ahead(to + i * pass, x + i * pass), copy_ahead(to + map_bytes + i * pass, d + i * pass);
    if (threadIdx.x < kWarp) {  // the last 16 pieces of each map
      const bool second = threadIdx.x >= 16;
      copy_ahead(to + (passes * pass + (second ? map_bytes - 256 : 0)), (second ? d - 256 : x) + passes * pass);
    }
    x += map_bytes, d += map_bytes;
  }
  // Of map m the eights j and j + 1 of the warp's 16 rows, as products of 16 rows want them.
  __device__ void read(int place, int m, int j, uint32_t (&words)[4]) const {
    load_matrices<false>(shared + (from + place) + m * map_bytes + j * 16, words);
  }
  // The last eight of X, then of D.
  __device__ void read_last(int place, uint32_t (&words)[4]) const {
    load_matrices<false>(shared + (last + place), words);
  }
};

// Maps of 7 x 7. Eight rows of 49 are whole 16-byte pieces, and those of 128 channels one run, which is copied as it
// stands. A warp takes every eighth row: all its rows begin equally far behind a 16-byte piece, so that one basis,
// which begins as far behind, stands in its registers for all groups of channels.
template <int B>
__global__ void __launch_bounds__(kThreads, 2) sums_seven_matrix_kernel(const SumsPlan p, const SumsTiling tiling) {
  using Run = SevenRun;
  AXNET_SHARED(shared);
  const SumsPlace<T, B> place(p, tiling);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int C = static_cast<int>(p.C), behind = warp;  // 49 r % 8 of the warp's rows r
  int groups = tiling.channels / Run::channels;
  if (groups > (C - place.c0) / Run::channels) groups = (C - place.c0) / Run::channels;
  Run run(shared, place.x + place.c0 * Run::S, place.d + place.c0 * Run::S);
  for (int k = 0; k < Run::depth; ++k) {
    if (k < groups) run.copy(k * Run::piece_bytes);
    copies_commit();
  }

  uint32_t basis[Run::eights];
  const float* mask = place.mask + (g < 2 ? 0 : g / 2 - 1 < B ? g / 2 - 1 : B - 1) * Run::S + (2 * t - behind);
#pragma unroll
  for (int j = 0; j < Run::eights; ++j) {
    float m[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int s = 8 * j + 2 * t + i - behind;
      const bool there = (j > 0 || s >= 0) && (j + 1 < Run::eights || s < Run::S);
      m[i] = there ? g < 2 ? 1.f : mask[8 * j + i] : 0.f;
    }
    basis[j] = pair_of<T>(m[0], m[1]);
    if (g % 2) basis[j] = pair_of<T>(m[0] - first_of<T>(basis[j]), m[1] - second_of<T>(basis[j]));
  }
  // the neighbours' pixels in a row's first and last eight
  auto own_bits = [&](int k) {
    const int s = k + 2 * t - behind;
    return (s >= 0 && s < Run::S ? 0xffffu : 0u) | (s + 1 >= 0 && s + 1 < Run::S ? 0xffff0000u : 0u);
  };
  const uint32_t first = again(own_bits(0)), last = again(own_bits(8 * (Run::eights - 1)));

  // [plain, products; of a lane of four; channels]
  float* results = reinterpret_cast<float*>(shared + Run::depth * Run::piece_bytes);
  constexpr int half = 4 * Run::channels;
  float *to = results + (t * Run::channels + warp + 8 * g), *from = results + (warp * Run::channels + 4 * lane);
  const float* shift = place.saved + place.c0 + 4 * lane;
  float *plain_to = place.sums + (warp ? 1 + warp : 0) * C + place.c0 + 4 * lane,
        *product_to = place.sums + (warp ? 1 + B + warp : 1) * C + place.c0 + 4 * lane;
  int at = 0;
#pragma unroll 1
  for (; groups > 0; --groups) {
    copies_wait<Run::depth - 1>();
    __syncthreads();  // the copies of all are there
    float products[4] = {}, plain[4] = {};
    uint32_t x[4], d[4], ends[4];
    run.read_last(at, ends);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      ends[i] &= last;
    const uint32_t b = basis[Run::eights - 1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // the rounded ones and what was left out, side by side
      x[i] = product(ends[2 + i], ends[i]), x[2 + i] = left_out(ends[2 + i], ends[i], x[i]);
      d[i] = ends[2 + i], d[2 + i] = 0;
    }
    multiply_add<T>(plain, d, b, b);
    multiply_add<T>(products, x, b, b);
#pragma unroll
    for (int j = Run::eights - 3; j >= 0; j -= 2) {
      run.read(at, 0, j, x), run.read(at, 1, j, d);
      if (j == 0) x[0] &= first, x[1] &= first, d[0] &= first, d[1] &= first;
      add_sixteen(products, plain, x, d, basis[j], basis[j + 1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      to[64 * i] = plain[2 * i] + plain[2 * i + 1], to[half + 64 * i] = products[2 * i] + products[2 * i + 1];
    __syncthreads();  // the piece has been read, and its results are written
    if (groups > Run::depth) run.copy(at);
    copies_commit();
    at = Run::piece_bytes - at;
    if (warp > B) continue;
    const float4 e = *reinterpret_cast<const float4*>(from), v = *reinterpret_cast<const float4*>(shift);
    float4 f = *reinterpret_cast<const float4*>(from + half);
    f.x -= v.x * e.x, f.y -= v.y * e.y, f.z -= v.z * e.z, f.w -= v.w * e.w;
    *reinterpret_cast<float4*>(plain_to) = e, *reinterpret_cast<float4*>(product_to) = f;
    shift += Run::channels, plain_to += Run::channels, product_to += Run::channels;
  }
}

template <int B>
bool launch_seven(const SumsPlan& p, cudaStream_t stream) {
  using Run = SevenRun;
  auto whole = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  if (p.S != Run::S || p.C % Run::channels || p.x.c != p.S || p.d.c != p.S || !whole(p.saved) || !whole(p.sums) ||
      !is_aligned_map<T>(p.x_data, p.x, p.C * p.S) || !is_aligned_map<T>(p.d_data, p.d, p.C * p.S))
    return false;
  SumsTiling tiling{};
  tiling.share(p.C, Run::channels, groups_of(p.N * p.blocks, p.C / Run::channels));
  launch(sums_seven_matrix_kernel<B>, p.N * tiling.blocks, p.blocks, kThreads,
         Run::depth * Run::piece_bytes + 8 * Run::channels * sizeof(float), stream, p, tiling);
  return true;
}

template <int B>
void launch_rows(const SumsPlan& p, cudaStream_t stream) {
  using Shape = Basis<B, false>;
  constexpr int width = kWarps * kRows;
  SumsTiling tiling{};
  tiling.stage = Shape::stage(p.S, kStageBytes, false);
  tiling.pitch = Shape::pitch_of(tiling.stage, false);
  tiling.x_aligned = is_aligned_map<T>(p.x_data, p.x, p.x.c);
  tiling.d_aligned = is_aligned_map<T>(p.d_data, p.d, p.d.c);
  const size_t basis = ring_after(Shape::bytes(tiling.pitch, tiling.stage, false));
  if (tiling.x_aligned && tiling.d_aligned && p.S >= Ahead::reach && p.C <= kMostOffset / p.S)
    tiling.ring = static_cast<int>(basis);
  const bool pieces = tiling.ring && p.S % Ahead::reach == 0 && tiling.stage == p.S && p.C % kRows == 0;
  tiling.share(p.C, width, pieces ? groups_of(p.N * p.blocks, ceil_div(p.C, width)) : 1);
  launch(pieces ? sums_pieces_matrix_kernel<B> : sums_rows_matrix_kernel<B>, p.N * tiling.blocks, p.blocks, kThreads,
         basis + (tiling.ring ? Ahead::bytes * kWarps : 0), stream, p, tiling);
}

template <int B>
void launch_matrix(const SumsPlan& p, cudaStream_t stream) {
  if (!launch_seven<B>(p, stream)) launch_rows<B>(p, stream);
}

}  // namespace

bool matrix_sums(cudaStream_t stream, const SumsPlan& p) {
  if (p.S > kMostOffset / kMaxAnatomies || p.members > 3) return false;
  if (p.x.channels_last) return across_sums(stream, p);
  if (p.members == 1) launch_matrix<1>(p, stream);
  if (p.members == 2) launch_matrix<2>(p, stream);
  if (p.members == 3) launch_matrix<3>(p, stream);
  return true;
}

}  // namespace axnet::cuda
