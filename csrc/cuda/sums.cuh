// The first pass of gate_norm's gradient, per (image, block, channel):
//
//   e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x'                           x' = X - the saved shift
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

// How the blocks of a fast kernel share the work.
struct SumsTiling {
  int channels, blocks, stage, pitch, parts;  // as in moments.cuh
  int width;                                  // channels that a block has at a time
  bool x_aligned, d_aligned;
  int ring;
  Divider image = Divider(1);  // by `blocks`

  // Blocks of `groups` groups of channels, of `group` each.
  void share(int64_t C, int group, int groups) {
    width = group, channels = width * groups, blocks = static_cast<int>(ceil_div(C, channels));
    image = Divider(blocks);
  }
};

// Groups of channels that a block takes one after the other, so that the blocks, two on each of 132 multiprocessors,
// end together: what a row's sums are does not depend on it.
inline int groups_of(int64_t images, int64_t groups) {
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t own = 1; own <= groups; ++own) {
    const int64_t work = ceil_div(images * ceil_div(groups, own), 264) * own;
    if (work <= least) best = own, least = work;
  }
  return static_cast<int>(best);
}

// One block of the output with its B anatomies, as a kernel's block sees it: blockIdx.y counts the blocks.
template <class T, int B>
struct SumsPlace {
  int n, c0;
  const T *x, *d;  // of the image; d: of the block's first channel
  const float *mask, *saved;
  float* sums;

  __device__ SumsPlace(const SumsPlan& p, const SumsTiling& tiling) {
    n = tiling.image.quotient(static_cast<int>(blockIdx.x));
    c0 = (static_cast<int>(blockIdx.x) - n * tiling.blocks) * tiling.channels;
    const uint32_t image = n, o = blockIdx.y;  // unsigned: less to multiply with 64 bits
    const int64_t both = static_cast<int64_t>(image) * static_cast<uint32_t>(p.blocks) + o;
    x = static_cast<const T*>(p.x_data) + image * p.x.n;
    d = static_cast<const T*>(p.d_data) + image * p.d.n + o * p.C * p.d.c;
    mask = static_cast<const float*>(p.mask) + (static_cast<int64_t>(image) * static_cast<uint32_t>(p.A) + o) * p.S;
    saved = static_cast<const float*>(p.saved) + both * saved_rows(B) * p.C;
    sums = static_cast<float*>(p.sums) + both * sum_rows(B) * p.C;
  }
};

}  // namespace axnet::cuda
