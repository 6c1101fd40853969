// What the kernels share: types, 16-byte pieces of memory, division by numbers known at launch, sums over a warp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda/launch.h"

namespace axnet::cuda {

// The accumulation type: float, or double for double.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

// Elements of a 16-byte access.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Vector {
  T at[kVector<T>];
};

__device__ inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class T>
__device__ inline Vector<T> load_vector(const T* p) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(p));
  Vector<T> v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

template <class T>
__device__ inline void store_vector(T* p, const Vector<T>& v) {
  uint4 bits;
  memcpy(&bits, &v, sizeof(bits));
  __stwb(reinterpret_cast<uint4*>(p), bits);  // a plain store may be split
}

// The first `count` elements at p; `fast` says that p is 16-byte aligned.
template <class T>
__device__ inline Vector<T> load_some(const T* p, int count, bool fast) {
  if (fast && count == kVector<T>) return load_vector(p);
  Vector<T> v;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i)
    v.at[i] = i < count ? p[i] : T(0.f);
  return v;
}

template <class T>
__device__ inline void store_some(T* p, const Vector<T>& v, int count, bool fast) {
  if (fast && count == kVector<T>) {
    store_vector(p, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i)
    if (i < count) p[i] = v.at[i];
}

// `count` numbers of a row of coefficients in the lanes of a vector of T; zero beyond.
template <class T, class Number>
__device__ inline void load_lanes(const Number* p, int count, Number (&out)[kVector<T>]) {
  constexpr int V = kVector<T>, step = kVector<Number>;
  if (count == V && is_aligned(p)) {
#pragma unroll
    for (int i = 0; i < V; i += step) {
      const Vector<Number> v = load_vector(p + i);
#pragma unroll
      for (int k = 0; k < step; ++k)
        out[i + k] = v.at[k];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i)
    out[i] = i < count ? p[i] : Number(0);
}

// n / divisor for n < 2^31 without a division.
struct Divider {
  uint32_t divisor, magic, shift;

  explicit Divider(int64_t d = 1) : divisor(static_cast<uint32_t>(d)), shift(0) {
    while ((uint64_t{1} << shift) < divisor)
      ++shift;
    magic = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1);
  }
  __device__ int quotient(int n) const {
    return static_cast<int>((__umulhi(static_cast<uint32_t>(n), magic) + static_cast<uint32_t>(n)) >> shift);
  }
};

// Over the warp, or over each WIDTH neighbouring lanes of it.
template <int WIDTH = kWarp, class Number>
__device__ inline Number warp_sum(Number v) {
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2)
    v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

template <int WIDTH = kWarp, class Number>
__device__ inline Number warp_max(Number v) {  // a NaN is passed over
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2) {
    const Number other = __shfl_xor_sync(0xffffffffu, v, step);
    v = other > v ? other : v;
  }
  return v;
}

template <class F>
auto with_type(Type type, const F& f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::f64: return f(double{});
    case Type::bf16: return f(BFloat16{});
    default: return f(Half{});
  }
}

}  // namespace axnet::cuda
