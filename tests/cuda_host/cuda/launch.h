// csrc/cuda/launch.h for a machine without a GPU: found first on the include path, it lets g++ compile csrc/cuda/*.cu
// as they are and runs them for CPU tensors. The threads of a block are fibers of one thread; shared memory starts as
// NaN and ends where the launch said; a barrier that not all threads reach ends the process.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <utility>

#include "cuda/plans.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define AXNET_SHARED(name) unsigned char* name = axnet::host::shared()

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace axnet::host {

unsigned char* shared();
void barrier();
using Slot = unsigned char[32];
// Calls read(slots) once every lane of the warp has put its bytes into slots[lane].
void gather(const void* mine, size_t bytes, const std::function<void(const Slot*)>& read);
void run(int64_t blocks, int groups, int threads, size_t shared_bytes, const std::function<void()>& kernel);
// With AXNET_RECORD_LAUNCHES naming a file, launches are written there and no kernel runs (benchmarks/cuda_model.py).
bool recording();
void record(const void* kernel, int64_t blocks, int groups, int threads, size_t shared_bytes, const std::string& bytes);

// The arguments as a kernel on the device finds them: each at its own alignment.
template <class... Parameters>
std::string argument_bytes(const std::tuple<Parameters...>& values) {
  std::string bytes;
  std::apply(
      [&](const auto&... value) {
        auto add = [&](const auto& v) {
          bytes.resize((bytes.size() + alignof(decltype(v)) - 1) / alignof(decltype(v)) * alignof(decltype(v)));
          bytes.append(reinterpret_cast<const char*>(&v), sizeof(v));
        };
        (add(value), ...);
      },
      values);
  return bytes;
}

}  // namespace axnet::host

inline void __syncthreads() { axnet::host::barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T v, int mask) {
  T other;
  axnet::host::gather(&v, sizeof(T), [&](const axnet::host::Slot* slots) {
    std::memcpy(&other, slots[(threadIdx.x % 32) ^ static_cast<unsigned>(mask)], sizeof(T));
  });
  return other;
}

template <class T>
T __shfl_sync(unsigned, T v, int lane) {
  T other;
  axnet::host::gather(&v, sizeof(T),
                      [&](const axnet::host::Slot* slots) { std::memcpy(&other, slots[lane % 32], sizeof(T)); });
  return other;
}

template <class T>
T __shfl_up_sync(unsigned, T v, unsigned lanes) {
  const unsigned lane = threadIdx.x % 32;
  return __shfl_sync(0xffffffffu, v, static_cast<int>(lane < lanes ? lane : lane - lanes));
}

inline unsigned __ballot_sync(unsigned, bool mine) {
  unsigned all = 0;
  axnet::host::gather(&mine, sizeof(mine), [&](const axnet::host::Slot* slots) {
    for (int lane = 0; lane < 32; ++lane)
      all |= slots[lane][0] ? 1u << lane : 0u;
  });
  return all;
}

inline int __reduce_max_sync(unsigned, int v) {
  for (int lanes = 1; lanes < 32; lanes *= 2)
    v = std::max(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  return v;
}
inline int __reduce_min_sync(unsigned, int v) { return -__reduce_max_sync(0xffffffffu, -v); }

inline void __syncwarp() { __ballot_sync(0xffffffffu, true); }

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __float_as_int(float v) { return __builtin_bit_cast(int, v); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = a | static_cast<uint64_t>(b) << 32;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i)
    r |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
}

template <class T>
T __ldg(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) std::fputs("misaligned load\n", stderr), std::abort();
  return *p;
}

template <class T>
T __ldcs(const T* p) {
  return __ldg(p);
}

template <class T>
void __stwb(T* p, T v) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) std::fputs("misaligned store\n", stderr), std::abort();
  *p = v;
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

namespace axnet::cuda {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int groups, int threads, size_t shared_bytes, cudaStream_t,
            Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> values{std::forward<Arguments>(arguments)...};
  if (host::recording())
    return host::record(reinterpret_cast<const void*>(kernel), blocks, groups, threads, shared_bytes,
                        host::argument_bytes(values));
  host::run(blocks, groups, threads, shared_bytes, [&] { std::apply(kernel, values); });
}

}  // namespace axnet::cuda
