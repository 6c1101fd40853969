// The first pass of gate_norm's gradient, per (image, block, channel):
//
//   e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x'                           x' = X - the saved shift
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

// How the blocks of a fast kernel share the work.
struct SumsTiling {
  int channels, blocks, stage, pitch, parts;  // as in moments.cuh
  bool x_aligned, d_aligned;
  int ring;
};

// One block of the output with its B anatomies, as a kernel's block sees it: blockIdx.y counts the blocks.
template <class T, int B>
struct SumsPlace {
  int n, c0;
  const T *x, *d;  // of the image; d: of the block's first channel
  const float *mask, *saved;
  float* sums;

  __device__ SumsPlace(const SumsPlan& p, const SumsTiling& tiling) {
    const int o = static_cast<int>(blockIdx.y);
    n = static_cast<int>(blockIdx.x) / tiling.blocks;
    c0 = static_cast<int>(blockIdx.x) % tiling.blocks * tiling.channels;
    x = static_cast<const T*>(p.x_data) + n * p.x.n;
    d = static_cast<const T*>(p.d_data) + n * p.d.n + o * p.C * p.d.c;
    mask = static_cast<const float*>(p.mask) + (static_cast<int64_t>(n) * p.A + o) * p.S;
    saved = static_cast<const float*>(p.saved) + (static_cast<int64_t>(n) * p.blocks + o) * saved_rows(B) * p.C;
    sums = static_cast<float*>(p.sums) + (static_cast<int64_t>(n) * p.blocks + o) * sum_rows(B) * p.C;
  }
};

}  // namespace axnet::cuda
