// bfloat16 and float16 as numbers of a kernel. torch's own types, whose bits these have, would bring nvcc <ostream> and
// the toolkit's headers of both: 1.4 s of a processor for every file.
#pragma once

#include <cstdint>

namespace axnet::cuda {

struct alignas(2) BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  __device__ BFloat16(float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v)); }
  __device__ operator float() const {
    float v;
#if __CUDA_ARCH__ >= 900
    asm("cvt.f32.bf16 %0, %1;" : "=f"(v) : "h"(bits));
#else
    asm("mov.b32 %0, {0, %1};" : "=f"(v) : "h"(bits));
#endif
    return v;
  }
};

struct alignas(2) Half {
  uint16_t bits;

  Half() = default;
  __device__ Half(float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v)); }
  __device__ operator float() const {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
  }
};

}  // namespace axnet::cuda
