// Training moments in float32 and NCHW, and descriptors of 7 x 7 pixels: a lane has a row of X to itself, so that at
// its end nothing is shared out. The 32 rows of a warp come to shared memory by copies that run ahead, in whole lines;
// masks are read by all lanes at once.
#include "cuda/row_moments.cuh"
#include "cuda/scalar_row.cuh"

namespace axnet::cuda {
namespace {

constexpr int kPiece = 32;          // pixels of a row that come together
constexpr int kPitch = kPiece + 4;  // of a row in shared memory: eight lanes' vectors lie in different banks
constexpr int kPieceBytes = kWarp * kPitch * 4;
constexpr int kMostPixels = 48 * 48;  // three masks fit beside the pieces in what a block of any GPU may have, 99 KB

constexpr int kOddPixels = 7 * 7;
constexpr int kRun = kWarp * kOddPixels;  // elements

struct LaneTiling {
  int channels, blocks,
      groups;              // of a block at a time; of an image; of channels, which a block takes one after another
  int row_bytes, x_bytes;  // from a row of numbers by channel to the next; from a row of X
  float inverse;           // 1 / S
  Divider of_blocks{1};

  // A lane's sums do not depend on it: fewer warps of a block have rows where there are few blocks, one of each of a
  // GPU's multiprocessors (132 of an H200).
  LaneTiling(const MomentsPlan& p, bool grouped)
      : channels(kThreads),
        groups(1),
        row_bytes(static_cast<int>(p.C * 4)),
        x_bytes(static_cast<int>(p.x.c * 4)),
        inverse(1.f / static_cast<float>(p.S)) {
    while (channels > kWarp && p.N * ceil_div(p.C, channels) < 132)
      channels /= 2;
    if (grouped && p.C % channels == 0) groups = groups_for_a_basis(p.N, p.C / channels);
    blocks = static_cast<int>(ceil_div(p.C, channels * groups));
    of_blocks = Divider(blocks);
  }
};

// ALIGNED: for vectors.
template <bool ALIGNED>
__device__ inline void load_granule(const float* from, float (&out)[kGranule]) {
#pragma unroll
  for (int i = 0; i < kGranule; i += 4) {
    if constexpr (ALIGNED) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
    } else {
      out[i] = from[i], out[i + 1] = from[i + 1], out[i + 2] = from[i + 2], out[i + 3] = from[i + 3];
    }
  }
}

// A lane's row.
template <int B, bool FULL>
struct LaneRow : Row<B, FULL> {
  using Row<B, FULL>::top, Row<B, FULL>::at;

  template <int P>
  __device__ void add(const float (&x)[P], const float (&m)[B][P], int here) {
    Row<B, FULL>::add(x, [&](int a, int i) { return m[a][i]; }, here);
  }
  // From the granules to the pixels, which may be the only ones of theirs. x: the row; masks: [S / 8, B, 8]
  template <bool ALIGNED>
  __device__ void find(const float* x, const float* masks) {
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      float v[kGranule], m[kGranule];
      load_granule<ALIGNED>(x + at[k], v);
      if (k > 0) load_granule<true>(masks + at[k] * B + (k - 1) * kGranule, m);
      int found = 0;
#pragma unroll
      for (int i = kGranule - 1; i >= 0; --i)
        if ((k > 0 ? m[i] * v[i] : v[i]) == top[k]) found = i;
      at[k] += found;
    }
  }
};

// Rows of whole pieces.
template <int B>
__global__ void __launch_bounds__(kThreads, 2)
    moments_lanes_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ LaneTiling tiling) {
  AXNET_SHARED(shared);
  if (weigh<float, B>(p)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, S = static_cast<int>(p.S);
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = tiling.of_blocks.quotient(block);
  const int c = (block - n * tiling.blocks) * tiling.channels + threadIdx.x;
  const bool busy = threadIdx.x < tiling.channels && c < p.C;  // all of a warp or none
  const float* image = static_cast<const float*>(p.x_data) + static_cast<unsigned>(n) * p.x.n;
  const int own = again((warp * 2 * kWarp + lane) * kPitch * 4);
  // a lane copies two vectors, half a piece apart, of rows lane / 4, 8 further, ...
  const int to = again((warp * 2 * kWarp + lane / 4) * kPitch * 4 + lane % 4 * 16);
  const float* from[4] = {again(row_at(image, c - lane + lane / 4, tiling.x_bytes) + lane % 4 * 4)};
#pragma unroll
  for (int i = 1; i < 4; ++i)
    from[i] = again(row_at(from[i - 1], 8, tiling.x_bytes));
  auto copy = [&](int place, int s) {
    unsigned char* there = shared + (to + place);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      copy_ahead(there + i * 8 * kPitch * 4, from[i] + s);
      copy_ahead(there + i * 8 * kPitch * 4 + kPiece * 2, from[i] + s + kPiece / 2);
    }
    copies_commit();
  };
  if (busy) copy(0, 0), copy(kPieceBytes, kPiece);
  constexpr int rings = kWarps * 2 * kPieceBytes;
  float* masks = reinterpret_cast<float*>(shared + rings);  // [S / 8, B, 8]
  const float* mask = row_at(static_cast<const float*>(p.mask), n * B, 4 * S);
#pragma unroll 1
  for (unsigned s = 4 * threadIdx.x; s < S; s += 4 * kThreads)
#pragma unroll
    for (int a = 0; a < B; ++a)
      *reinterpret_cast<float4*>(masks + (s / kGranule * B + a) * kGranule + s % kGranule) =
          *reinterpret_cast<const float4*>(mask + a * S + s);
  __syncthreads();
  if (!busy) return;
  LaneRow<B, true> row;
  int s = 0, place = 0, weights = again(rings);
#pragma unroll 1
  do {
    copies_wait<1>();
    __syncwarp();  // those of all lanes
#pragma unroll
    for (int u = 0; u < kPiece; u += kGranule) {
      float v[kGranule], m[B][kGranule];
      load_granule<true>(reinterpret_cast<const float*>(shared + (own + place)) + u, v);
#pragma unroll
      for (int a = 0; a < B; ++a)
        load_granule<true>(reinterpret_cast<const float*>(shared + weights) + u * B + a * kGranule, m[a]);
      row.add(v, m, s + u);
    }
    __syncwarp();  // the piece has been read
    const int ahead = again(s + 2 * kPiece);
    if (ahead < S) copy(place, ahead);
    else copies_commit();
    weights += kPiece * B * 4, place ^= kPieceBytes, s += kPiece;
  } while (s < S);
  row.template find<true>(row_at(image, c, tiling.x_bytes), masks);
  const bool again = write_row<B, true>(p, tiling.row_bytes, tiling.inverse, n, c, row.sum, row.top, row.at);
  mend_rows<float>(p, true, again, n, c);
}

// 7 x 7 pixels: rows are no whole vectors, but 32 of them are one run of memory, where a lane's row begins at a bank of
// its own.
template <int B, bool FULL>
__global__ void __launch_bounds__(kThreads, 2)
    moments_runs_kernel(const __grid_constant__ MomentsPlan p, const __grid_constant__ LaneTiling tiling) {
  constexpr int S = kOddPixels, vectors = kRun / 4;
  AXNET_SHARED(shared);
  if (weigh<float, B>(p)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int block = static_cast<int>(blockIdx.x) - mass_blocks(p), n = tiling.of_blocks.quotient(block);
  int c = (block - n * tiling.blocks) * tiling.groups * tiling.channels + threadIdx.x;
  const bool busy = threadIdx.x < tiling.channels && c < p.C;
  const float* next =
      static_cast<const float*>(p.x_data) + static_cast<unsigned>(n) * p.x.n + (c - lane) * S + lane * 4;
  float* runs = reinterpret_cast<float*>(shared) + warp * 2 * kRun;
  auto copy = [&](int to) {
#pragma unroll
    for (int i = 0; i < vectors; i += kWarp)
      if (i + kWarp <= vectors || lane + i < vectors) copy_ahead(runs + to + (lane + i) * 4, next + i * 4);
    next += tiling.channels * S;
  };
  if (busy) copy(0);
  copies_commit();
  float* masks = reinterpret_cast<float*>(shared) + kWarps * 2 * kRun;  // [S / 8, B, 8]
  const float* mask = row_at(static_cast<const float*>(p.mask), n * B, 4 * S);
  for (unsigned i = threadIdx.x; i < B * S; i += kThreads)
    masks[(i % S / kGranule * B + i / S) * kGranule + i % S % kGranule] = mask[i];
  __syncthreads();
  if (!busy) return;
  int place = 0;
#pragma unroll 1
  for (int group = tiling.groups; group > 0; --group) {
    if (group > 1) copy(kRun - place);
    copies_commit();
    copies_wait<1>();
    __syncwarp();  // those of all lanes
    const float* own = runs + place + lane * S;
    LaneRow<B, FULL> row;
#pragma unroll
    for (int s = 0; s + kGranule <= S; s += kGranule) {
      float v[kGranule], m[B][kGranule];
      load_granule<false>(own + s, v);
#pragma unroll
      for (int a = 0; a < B; ++a)
        load_granule<true>(masks + s * B + a * kGranule, m[a]);
      row.add(v, m, s);
    }
    static_assert(S % kGranule == 1);
    const float last[1] = {own[S - 1]};
    float m[B][1];
#pragma unroll
    for (int a = 0; a < B; ++a)
      m[a][0] = masks[(S - 1) * B + a * kGranule];
    row.add(last, m, S - 1);
    if constexpr (FULL) row.template find<false>(own, masks);
    const bool again = write_row<B, FULL>(p, tiling.row_bytes, tiling.inverse, n, c, row.sum, row.top, row.at);
    __syncwarp();  // the run has been read
    mend_rows<float>(p, FULL, again, n, c);
    c += tiling.channels, place = kRun - place;
  }
}

template <int B, bool FULL>
void launch_lanes(const MomentsPlan& p, cudaStream_t stream) {
  const bool odd = p.S == kOddPixels;
  const LaneTiling tiling(p, odd);
  const size_t own = kWarps * 2 * (odd ? kRun * sizeof(float) : kPieceBytes);
  const size_t bytes = own + ceil_div(p.S, kGranule) * kGranule * B * sizeof(float);
  auto* kernel = moments_runs_kernel<B, FULL>;
  if constexpr (FULL)
    if (!odd) kernel = moments_lanes_kernel<B>;
  launch(kernel, mass_blocks(p) + p.N * tiling.blocks, 1, kThreads, bytes, stream, p, tiling);
}

bool takes(const MomentsPlan& p, bool full) {
  constexpr int V = kVector<float>;
  if (p.x.channels_last || p.C % kWarp || p.C > kMostOffset / kMostPixels) return false;
  if (p.S == kOddPixels) return p.x.c == p.S && is_aligned_map<float>(p.x_data, p.x, V);
  const bool aligned =
      full && is_aligned_map<float>(p.x_data, p.x, p.x.c) && reinterpret_cast<uintptr_t>(p.mask) % 16 == 0;
  return aligned && p.S % kPiece == 0 && p.S >= 2 * kPiece && p.S <= kMostPixels && p.x.c <= kMostOffset / V;
}

}  // namespace

bool lane_moments(cudaStream_t stream, const MomentsPlan& p, bool full) {
  if (!takes(p, full)) return false;
  switch (p.A) {
    case 1: full ? launch_lanes<1, true>(p, stream) : launch_lanes<1, false>(p, stream); return true;
    case 2: full ? launch_lanes<2, true>(p, stream) : launch_lanes<2, false>(p, stream); return true;
    case 3: full ? launch_lanes<3, true>(p, stream) : launch_lanes<3, false>(p, stream); return true;
  }
  return false;
}

}  // namespace axnet::cuda
