// What the kernels of masked_moments share: the order of a row's sums, what is written from them, and the one
// careful way, by a warp for a row, which any row, type and number of anatomies can take (docs/method.md, "A3 from
// moments"):
//
//   x' = x - c, c = 0; where |mean| >> std would cancel, a row is gone over again with c = mean
//   sums  s1, s2, t_a, t2_a, q2_ab of x', m_a x', m_a x'^2, m_a m_b x'^2, and q1_ab of m_a m_b x' where c is not 0
//   max   max x, max m_a x, and the first position of each;   mass  sum m_a, sum m_a m_b           (ab: a <= b)
#pragma once

#include "cuda/device.cuh"
#include "cuda/matrix.h"

namespace axnet::cuda {

constexpr double kFar = 15;  // mean^2 / variance beyond which a row's sums are taken about its mean

// How the blocks of a fast kernel share the work; the first ones of a grid take the images' masses.
struct Tiling {
  int channels, blocks;  // channels of a block, blocks of an image
  int stage, pitch;      // pixels whose masks stand in shared memory at a time; elements of a row of them
  int parts;             // channels_last: warps side by side over the pixels
  bool aligned;          // NCHW: rows of X can be read in 16 bytes
  int ring;              // bfloat16: where the warps' rings begin in shared memory, or 0: nothing is copied ahead
  int parts_log = 0;     // of two
  int turns = 1;         // groups of channels that a block takes one after another
  int results = 0;       // where they stand in shared memory
  Divider of_blocks = Divider(1);
};

// f(row, number) of a row's sums: s1, t_a, and with FULL s2, t2_a, q2_ab
template <int B, bool FULL>
struct RowSums {
  static constexpr int count = FULL ? 2 + 2 * B + pairs(B) : 1 + B;
  static constexpr int maxima = 1 + B;
  static constexpr int t(int a) { return 1 + a; }
  static constexpr int s2 = 1 + B;
  static constexpr int t2(int a) { return 2 + B + a; }
  static constexpr int q2(int ab) { return 2 + 2 * B + ab; }
};

// Row `row` of rows that are `bytes` apart.
template <class Number>
__device__ inline Number* row_at(Number* rows, int row, int bytes) {
  using Byte = std::conditional_t<std::is_const_v<Number>, const char, char>;
  return reinterpret_cast<Number*>(reinterpret_cast<Byte*>(rows) + static_cast<int64_t>(row) * bytes);
}

// Writes a row about c = 0; whether it must be gone over again carefully. A: anatomies, at most B. bytes: from a row of
// numbers by channel to the next; inverse: 1 / S
template <int B, bool FULL>
__device__ inline bool write_row(const MomentsPlan& p, int bytes, float inverse, int n, int c,
                                 const float (&sum)[RowSums<B, FULL>::count], const float (&top)[1 + B],
                                 const int (&at)[1 + B]) {
  using Sums = RowSums<B, FULL>;
  const int A = B > 3 ? p.A : B;
  auto put = [&](auto* rows, int row, auto v) { *row_at(rows, row, bytes) = v; };
  float* descriptors = row_at(static_cast<float*>(p.descriptors), n * (2 + 2 * A), bytes) + c;
  float finite = sum[0] - sum[0];  // 0, or NaN
  put(descriptors, 0, sum[0] * inverse), put(descriptors, 1, top[0]);
#pragma unroll
  for (int a = 0; a < B; ++a)
    if (a < A) {
      put(descriptors, 2 + a, sum[Sums::t(a)] * inverse), put(descriptors, 2 + A + a, top[1 + a]);
      finite += sum[Sums::t(a)] - sum[Sums::t(a)];
    }
  bool again = !(finite == 0);
  if constexpr (FULL) {
    const float mean = sum[0] * inverse, square = mean * mean;
    again = again || square > static_cast<float>(kFar) * (sum[Sums::s2] * inverse - square);
    if (p.moments) {
      float* m = row_at(static_cast<float*>(p.moments), n * moment_rows(B), bytes) + c;
      put(m, 0, 0.f), put(m, 1, sum[0]), put(m, 2, sum[Sums::s2]);
#pragma unroll
      for (int a = 0; a < B; ++a)
        put(m, 3 + a, sum[Sums::t(a)]), put(m, 3 + B + a, sum[Sums::t2(a)]);
#pragma unroll
      for (int k = 0; k < pairs(B); ++k)
        put(m, 3 + 2 * B + k, 0.f), put(m, 3 + 2 * B + pairs(B) + k, sum[Sums::q2(k)]);
    }
    if (p.argmax) {
      int32_t* places = row_at(p.argmax, n * (1 + B), bytes) + c;
#pragma unroll
      for (int k = 0; k <= B; ++k)
        put(places, k, at[k]);
    }
  }
  return again;
}
template <int B, bool FULL>
__device__ inline bool write_row(const MomentsPlan& p, int n, int c, const float (&sum)[RowSums<B, FULL>::count],
                                 const float (&top)[1 + B], const int (&at)[1 + B]) {
  const int bytes = again(static_cast<int>(p.C) * 4);
  return write_row<B, FULL>(p, bytes, 1.f / static_cast<float>(p.S), n, c, sum, top, at);
}

// Writes the rows of four neighbouring channels from c on about c = 0, as write_row does; C is a multiple of four.
template <int B, bool FULL>
class RowsTo {
 public:
  using Four = Vector<float>;

  __device__ RowsTo(const MomentsPlan& p, int n, int c)
      : C(static_cast<int>(p.C)), A(B > 3 ? p.A : B), inverse(1.f / static_cast<float>(p.S)) {
    descriptors = static_cast<float*>(p.descriptors) + n * (2 + 2 * A) * p.C + c;
    if constexpr (FULL) {
      moments = p.moments ? static_cast<float*>(p.moments) + n * moment_rows(B) * p.C + c : nullptr;
      argmax = p.argmax ? reinterpret_cast<float*>(p.argmax) + n * (1 + B) * p.C + c : nullptr;
      put(moments, 0, Four{});
    }
  }
  __device__ void s1(const Four& v) { describe(0, v), put(moments, 1, v), first = v; }
  __device__ void t(int a, const Four& v) {
    if (a < A) describe(2 + a, v), put(moments, 3 + a, v);
  }
  __device__ void s2(const Four& v) { put(moments, 2, v), second = v; }
  __device__ void t2(int a, const Four& v) { put(moments, 3 + B + a, v); }
  __device__ void q2(int k, const Four& v) {
    put(moments, 3 + 2 * B + k, Four{}), put(moments, 3 + 2 * B + pairs(B) + k, v);
  }
  __device__ void maximum(int k, const Four& top, const Four& at) {
    if (k <= A) put(descriptors, k ? 1 + A + k : 1, top);
    if constexpr (FULL) put(argmax, k, at);
  }
  // Bits of the channels that must be gone over again carefully.
  __device__ unsigned again() const {
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      bool far = !(finite.at[j] == 0);
      if constexpr (FULL) {
        const float mean = first.at[j] * inverse, square = mean * mean;
        far = far || square > static_cast<float>(kFar) * (second.at[j] * inverse - square);
      }
      bits |= far ? 1u << j : 0u;
    }
    return bits;
  }

 private:
  int C, A;
  float inverse;
  float *descriptors, *moments = nullptr, *argmax = nullptr;
  Four first, second, finite = {};  // finite: zeros, or NaN

  __device__ void put(float* rows, int row, const Four& v) const {
    if (rows) store_vector(rows + static_cast<int64_t>(row) * C, v);
  }
  __device__ void describe(int row, const Four& v) {
    Four mean;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      mean.at[j] = v.at[j] * inverse, finite.at[j] += v.at[j] - v.at[j];
    put(descriptors, row, mean);
  }
};

// The largest value seen and its first position; a NaN is larger than all, as in torch.
template <class Acc>
struct Largest {
  Acc top = -std::numeric_limits<Acc>::infinity();
  int at = std::numeric_limits<int>::max();

  __device__ void see(Acc v, int s) {
    const bool nan = v != v, kept = top != top;
    const bool more = nan ? !kept : v > top, same = nan ? kept : v == top;
    if (more || (same && s < at)) top = v, at = s;
  }
};

// The careful way's reductions over a warp. Not inlined: the compiler gives each shuffle a second form for lanes that
// have gone apart, and every kernel would have both fifteen times.
template <class Number>
__device__ __noinline__ Number careful_sum(Number v) {
  return warp_sum(v);
}
template <class Acc>
__device__ __noinline__ Largest<Acc> largest_of_warp(Largest<Acc> found) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Acc v = __shfl_xor_sync(0xffffffffu, found.top, step);
    const int s = __shfl_xor_sync(0xffffffffu, found.at, step);
    found.see(v, s);
  }
  return found;
}

// Everything of one row by a warp. Not inlined: rows that need it are rare, and every kernel has it.
template <class T>
__device__ __noinline__ void careful_row(const MomentsPlan& p, bool full, int64_t n, int64_t c) {
  using Acc = acc_t<T>;
  const int lane = threadIdx.x % kWarp, A = p.A;
  const int64_t C = p.C, S = p.S;
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + c * p.x.c;
  const Acc* masks = static_cast<const Acc*>(p.mask) + n * A * S;
  Acc* descriptors = static_cast<Acc*>(p.descriptors) + n * (2 + 2 * A) * C + c;
  Acc* moments = p.moments ? static_cast<Acc*>(p.moments) + n * moment_rows(A) * C + c : nullptr;
  const double inverse = 1.0 / static_cast<double>(S);
  Acc shift = 0;
  auto each = [&](const auto& f) {  // f(s, x, x')
#pragma unroll 1
    for (int64_t s = lane; s < S; s += kWarp) {
      const Acc v = static_cast<Acc>(x[s * p.x.s]);
      f(static_cast<int>(s), v, v - shift);
    }
  };
  auto put = [&](Acc* rows, int row, double v) {
    if (lane == 0 && rows) rows[row * C] = static_cast<Acc>(v);
  };

  Largest<Acc> largest;
  double s1 = 0, s2 = 0;
  auto look = [&] {
    Acc first = 0, second = 0;
    each([&](int s, Acc v, Acc centred) {
      first += centred, second += centred * centred;
      largest.see(v, s);
    });
    s1 = careful_sum(static_cast<double>(first)), s2 = careful_sum(static_cast<double>(second));
  };
  look();
  const double mean = s1 * inverse, square = mean * mean;
  if (full && square > kFar * (s2 * inverse - square)) {  // the same answer in every lane
    shift = static_cast<Acc>(mean);
    look();
  }
  auto put_largest = [&](const Largest<Acc>& own, int descriptor, int k) {
    const Largest<Acc> found = largest_of_warp(own);
    if (lane != 0) return;
    descriptors[descriptor * C] = found.top;
    if (p.argmax) p.argmax[(n * (1 + A) + k) * C + c] = found.at;
  };
  put_largest(largest, 1, 0);
  put(descriptors, 0, shift + s1 * inverse);
  put(moments, 0, shift), put(moments, 1, s1), put(moments, 2, s2);

#pragma unroll 1
  for (int a = 0; a < A; ++a) {
    const Acc* mask = masks + a * S;
    Largest<Acc> masked;
    Acc first = 0, second = 0, weight = 0;
    each([&](int s, Acc v, Acc centred) {
      const Acc m = mask[s];
      masked.see(m * v, s);
      weight += m, first += m * centred, second += m * centred * centred;
    });
    const double t = careful_sum(static_cast<double>(first)), mass = careful_sum(static_cast<double>(weight));
    put(descriptors, 2 + a, (t + shift * mass) * inverse);
    put_largest(masked, 2 + A + a, 1 + a);
    if (!moments) continue;
    put(moments, 3 + a, t), put(moments, 3 + A + a, careful_sum(static_cast<double>(second)));
    constexpr int K = 4;  // pairs in one go
#pragma unroll 1
    for (int b = a; b < A; b += K) {
      Acc q1[K] = {}, q2[K] = {};
      each([&](int s, Acc, Acc centred) {
        const Acc weighted = mask[s] * centred;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const Acc m = masks[(b + k < A ? b + k : a) * S + s];
          q1[k] += weighted * m, q2[k] += weighted * (m * centred);
        }
      });
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const double first_moment = careful_sum(static_cast<double>(q1[k]));
        const double second_moment = careful_sum(static_cast<double>(q2[k]));
        if (b + k >= A) continue;
        const int row = 3 + 2 * A + pair_row(A, a, b + k);
        put(moments, row, shift == 0 ? 0 : first_moment), put(moments, row + pairs(A), second_moment);
      }
    }
  }
}

// The rows of this warp's lanes for which `again` holds.
template <class T>
__device__ inline void mend_rows(const MomentsPlan& p, bool full, bool again, int64_t n, int64_t c) {
  unsigned left = __ballot_sync(0xffffffffu, again);
  __syncwarp();  // what was written of them lies before what follows
#pragma unroll 1
  for (; left; left &= left - 1) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    careful_row<T>(p, full, n, __shfl_sync(0xffffffffu, static_cast<int>(c), lane));
  }
}

// The first blocks of a grid: the images' masses. A warp takes an image after another; with many anatomies it takes a
// mass of the block's image after another.
constexpr int kMassImages = 2 * kWarps;

__host__ __device__ inline int mass_blocks(const MomentsPlan& p) {
  const unsigned N = static_cast<unsigned>(p.N);
  return static_cast<int>(p.A <= 3 ? (N + kMassImages - 1) / kMassImages : N);
}

// All masses of an image with B anatomies, in double, by a warp; many loads are in flight, since other blocks wait for
// its place.
template <int B, class Acc>
__device__ inline void weigh_image(const Acc* masks, int64_t S, double* mass) {
  constexpr int flight = 8;
  const int lane = threadIdx.x % kWarp;
  double total[B + pairs(B)] = {};
#pragma unroll 1
  for (int64_t s = lane; s < S; s += flight * kWarp) {
    Acc v[B][flight];
#pragma unroll
    for (int a = 0; a < B; ++a)
#pragma unroll
      for (int i = 0; i < flight; ++i)
        v[a][i] = s + i * kWarp < S ? masks[a * S + s + i * kWarp] : Acc(0);
#pragma unroll
    for (int i = 0; i < flight; ++i)
#pragma unroll
      for (int a = 0; a < B; ++a) {
        total[a] += static_cast<double>(v[a][i]);
#pragma unroll
        for (int b = a; b < B; ++b)
          total[B + pair_row(B, a, b)] += static_cast<double>(v[a][i]) * v[b][i];
      }
  }
#pragma unroll
  for (int q = 0; q < B + pairs(B); ++q) {
    const double sum = warp_sum(total[q]);
    if (lane == 0) mass[q] = sum;
  }
}

// The q-th mass of an image with any number of anatomies.
template <class Acc>
__device__ inline void weigh_one(const Acc* masks, int A, int64_t S, int q, double* mass) {
  const int lane = threadIdx.x % kWarp;
  int a = q, b = -1;
  if (q >= A)
    for (a = 0, b = q - A; b >= A - a; ++a)
      b -= A - a;
  const Acc *first = masks + a * S, *second = b < 0 ? nullptr : masks + (a + b) * S;
  double total = 0;
#pragma unroll 12
  for (int64_t s = lane; s < S; s += kWarp)
    total += second ? static_cast<double>(first[s]) * second[s] : static_cast<double>(first[s]);
  total = warp_sum(total);
  if (lane == 0) mass[q] = total;
}

// Whether this is a block of masses. B: the number of anatomies if it is known, else not one of 1 to 3.
template <class T, int B>
__device__ inline bool weigh(const MomentsPlan& p) {
  using Acc = acc_t<T>;
  if (p.link && blockIdx.x == 0 && threadIdx.x == 0)
    *static_cast<T*>(p.link) = T(0.f), *static_cast<Acc*>(p.coef_link) = Acc(0);
  if (static_cast<int>(blockIdx.x) >= mass_blocks(p)) return false;
  if (!p.mass) return true;
  const int A = p.A, numbers = A + pairs(A), warp = threadIdx.x / kWarp;
  constexpr bool whole = 1 <= B && B <= 3;  // a warp has all numbers of an image, else one
  const int images = A <= 3 ? kMassImages : 1, tasks = whole ? images : images * numbers;
#pragma unroll 1
  for (int task = warp; task < tasks; task += kWarps) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * images + (whole ? task : task / numbers);
    if (n >= p.N) break;
    const Acc* masks = static_cast<const Acc*>(p.mask) + n * A * p.S;
    double* mass = p.mass + n * numbers;
    if constexpr (whole) weigh_image<B>(masks, p.S, mass);
    else weigh_one(masks, A, p.S, task % numbers, mass);
  }
  return true;
}

// The part of matrix_moments in channels_last (masked_moments_across.cu).
bool matrix_moments_across(cudaStream_t stream, const MomentsPlan& plan, bool full);

}  // namespace axnet::cuda
