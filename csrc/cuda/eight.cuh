// Eight pixels of a row in float, for the sums that do without the matrix units.
#pragma once

#include "cuda/walk.cuh"

namespace axnet::cuda {

constexpr int kGranule = 8;            // pixels of a thread in one go
constexpr int kStride = 4 * kGranule;  // of four lanes side by side

// Eight pixels of a row from s on for lane t of four: two runs of four (float) or one of eight (16 bits).
template <class T>
struct Eight {
  static constexpr int runs = sizeof(T) == 4 ? 2 : 1, length = kGranule / runs;
  Bits<T, length> bits[runs];

  __device__ static int pixel(int t, int i) { return i / length * 4 * length + t * length + i % length; }
  // first: the lane's own first pixel, pixel(t, 0) of the four lanes'
  __device__ void load(const T* first, bool aligned) {
    if (aligned) {
#pragma unroll
      for (int r = 0; r < runs; ++r)
        bits[r].load(first + pixel(0, r * length));
      return;
    }
#pragma unroll
    for (int r = 0; r < runs; ++r) {
      T v[length];
#pragma unroll
      for (int i = 0; i < length; ++i)
        v[i] = first[pixel(0, r * length + i)];
      memcpy(bits[r].at, v, sizeof(v));
    }
  }
  __device__ void spread(float (&out)[kGranule]) const {
#pragma unroll
    for (int r = 0; r < runs; ++r) {
      float v[length];
      bits[r].spread(v);
#pragma unroll
      for (int i = 0; i < length; ++i)
        out[r * length + i] = v[i];
    }
  }
};

// Eight masks that belong to them; `first` at the lane's own first pixel.
template <class T>
__device__ inline void load_masks(const float* first, float (&out)[kGranule]) {
#pragma unroll
  for (int i = 0; i < kGranule; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(first + Eight<T>::pixel(0, i));
    out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
  }
}

// Pixels whose masks stand in shared memory at a time, of `bytes` each: as many as `limit` bytes hold, in equal shares.
inline int stage_of(int64_t S, int bytes, int limit) {
  const int64_t most = limit / bytes / kStride * kStride;
  return static_cast<int>(std::min(ceil_div(ceil_div(S, ceil_div(S, most)), kStride) * kStride, most));
}

// Warps of a block side by side over the pixels: as many as there are multiprocessors to fill, while each has `least`
// pixels to do. By the shape alone, so that sums keep their order.
inline int parts_of(int64_t warps, int64_t S, int64_t least) {
  int parts = 1;
  while (parts < kWarps && warps * parts < 2048 && S / (2 * parts) >= least)
    parts *= 2;
  return parts;
}

}  // namespace axnet::cuda
