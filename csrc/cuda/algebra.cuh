// The numbers between A3's passes, per (image, channel) in double (docs/method.md, "A3 from moments"):
//
//   G = b + sum_a w_a m_a,  Y = X G,  x' = x - c
//   sum G   = b S + sum w_a M_a            sum G^2 = b^2 S + 2b sum w_a M_a + sum w_a w_b M_ab
//   sum Gx' = b s1 + sum w_a t_a = Q_0     sum Y   = c sum G + Q_0
//   sum Y^2 = c^2 sum G^2 + 2c (b^2 s1 + 2b sum w t + sum ww q1) + (b^2 s2 + 2b sum w t2 + sum ww q2)
//   Q_a = b t_a + sum_b w_b q1_ab          E_0 = sum Y x' = c Q_0 + b s2 + sum w t2
//   E_a = sum Y m_a x' = c Q_a + b t2_a + sum_b w_b q2_ab
//
//   thread  two neighbouring channels of one output block, in 8-byte loads, and one image (or every 128th); all it
//           needs of them is on the way before the first use. One channel where the members of a block are not known
//           at compile time, and of channels that 8 bytes do not divide
//   block   8 channels and up to 128 images, whose sums are added in order; what concerns a channel alone is computed
//           by one thread
#pragma once

#include <initializer_list>

#include "cuda/numbers.cuh"

namespace axnet::cuda {

constexpr int kAlgebraChannels = 8;  // of a block

// Of kernels for blocks of B members, or for any number of them (B = 0). V: channels of a thread.
template <int B>
struct Algebra {
  static constexpr int V = B ? kTogether : 1, threads = 512, across = kAlgebraChannels / V;

  // Threads of a block: as many images at once as there are.
  static int launched(int64_t images) {
    return static_cast<int>(std::min<int64_t>(ceil_div(images * across, kWarp) * kWarp, threads));
  }
  static size_t shared_bytes(int launched) { return 2 * launched * V * sizeof(double); }
};

// Rows of numbers of V neighbouring channels: K of them, read at once, or (K = 0) any number, read in place.
template <class Acc, int K>
struct Column {
  using Index = std::conditional_t<(K > 0), int, int64_t>;
  const Acc* at;
  Index C;
  Together<Acc> kept[K > 0 ? K : 1];

  // row(k): where row k lies
  template <class F>
  __device__ Column(const void* rows, int64_t before, int64_t C, int64_t c, const F& row)
      : at(static_cast<const Acc*>(rows) + before + c), C(static_cast<Index>(C)) {
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        kept[k] = load_together(at + row(k) * this->C);
    }
  }
  __device__ Column(const void* rows, int64_t before, int64_t C, int64_t c)
      : Column(rows, before, C, c, [](int k) { return k; }) {}
  // Row k, of channel j of the thread's; `row`: where it lies.
  __device__ double operator()(int k, int row, int j) const {
    if constexpr (K > 0) return kept[k].at[j];
    return at[row * C];
  }
  __device__ double operator()(int k, int j) const { return (*this)(k, k, j); }
};

// The same to write, or nothing where rows is null.
template <class Acc, int K>
struct Written {
  using Index = std::conditional_t<(K > 0), int, int64_t>;
  Acc* at;
  Index C;
  Together<Acc> kept[K > 0 ? K : 1];

  __device__ Written(void* rows, int64_t before, int64_t C, int64_t c)
      : at(rows ? static_cast<Acc*>(rows) + before + c : nullptr), C(static_cast<Index>(C)) {}
  __device__ void put(int k, int j, double v) {
    if constexpr (K > 0) kept[k].at[j] = static_cast<Acc>(v);
    else if (at) at[k * C] = static_cast<Acc>(v);
  }
  __device__ void store() const {
    if constexpr (K > 0) {
      if (!at) return;
#pragma unroll
      for (int k = 0; k < K; ++k)
        store_together(at + k * C, kept[k]);
    }
  }
};

// The gates of one image, block and V channels. B: members of a block, or 0 for any number.
template <int B>
struct Gate {
  static constexpr int V = Algebra<B>::V;
  const GateShape& shape;
  const double* mass;
  int64_t row;  // of the block's first anatomy, at the first channel
  int first, members;
  double share, b[V], weights[B ? B : 1][V], masses[B ? B : 1], pair_masses[B ? pairs(B) : 1];

  __device__ Gate(const GateShape& g, int64_t n, int o, int64_t c)
      : shape(g),
        mass(g.mass + n * mass_rows(g.A)),
        row((n * g.A + (g.concat ? o : 0)) * g.C + c),
        first(g.concat ? o : 0),
        members(B ? B : g.members),
        share(g.concat || B == 1 ? 1.0
              : B == 2           ? 0.5
                                 : 1.0 / members) {
    if constexpr (B > 0) {
#pragma unroll
      for (int a = 0; a < B; ++a) {
        numbers_at(g.gate, row + a * static_cast<int>(g.C), weights[a]);
#pragma unroll
        for (int j = 0; j < V; ++j)
          weights[a][j] *= share;
      }
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      b[j] = 1;
#pragma unroll
      for (int a = 0; a < members; ++a)
        b[j] -= w(a, j);
    }
  }
  __device__ void load_masses() {
#pragma unroll
    for (int a = 0; a < B; ++a) {
      masses[a] = mass[first + a];
#pragma unroll
      for (int k = a; k < B; ++k)
        pair_masses[pair_row(B, a, k)] = mass[shape.A + pair(a, k)];
    }
  }
  __device__ double w(int a, int j) const {
    if constexpr (B > 0) return weights[a][j];
    return number(shape.gate, row + a * shape.C) * share;
  }
  // Row of a pair of members among all pairs.
  __device__ int pair(int a, int k) const {
    return a < k ? pair_row(shape.A, first + a, first + k) : pair_row(shape.A, first + k, first + a);
  }
  __device__ double mass_of(int a) const {
    if constexpr (B > 0) return masses[a];
    return mass[first + a];
  }
  __device__ double mass_of(int a, int k) const {
    if constexpr (B > 0) return pair_masses[a < k ? pair_row(B, a, k) : pair_row(B, k, a)];
    return mass[shape.A + pair(a, k)];
  }
};

// Where a thread stands: its channels, and the first of its images.
template <int B>
struct AlgebraPlace {
  int64_t c;  // the first of its channels
  int n, o, images;
  bool inside;

  __device__ explicit AlgebraPlace(const GateShape& g)
      : c(static_cast<int64_t>(blockIdx.x) * kAlgebraChannels + threadIdx.x % Algebra<B>::across * Algebra<B>::V),
        n(static_cast<int>(threadIdx.x) / Algebra<B>::across),
        o(static_cast<int>(blockIdx.y)),
        images(static_cast<int>(blockDim.x) / Algebra<B>::across),
        inside(c < g.C) {}
};

// The first threads of a block are each one of its channels', as what concerns those alone is computed.
struct ChannelOfBlock {
  int64_t at;  // among the channels of all blocks
  bool inside;

  __device__ explicit ChannelOfBlock(const GateShape& g) {
    const int64_t c = static_cast<int64_t>(blockIdx.x) * kAlgebraChannels + threadIdx.x;
    at = static_cast<int64_t>(blockIdx.y) * g.C + c, inside = threadIdx.x < kAlgebraChannels && c < g.C;
  }
};

// What the threads of a block tell each other of its channels, in shared memory.
template <int B>
struct ChannelNumbers {
  static constexpr int V = Algebra<B>::V;
  double* at;  // [threads * 2 V]

  // Sums of two numbers of a thread's channels over the images, in order. The thread whose number `channel` is gets
  // those of a channel.
  __device__ void add(const double (&first)[V], const double (&second)[V], double& first_sum,
                      double& second_sum) const {
    constexpr int both = 2 * kAlgebraChannels;
    const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    double* mine = at + t / Algebra<B>::across * both + t % Algebra<B>::across * V;
#pragma unroll
    for (int j = 0; j < V; ++j)
      mine[j] = first[j], mine[kAlgebraChannels + j] = second[j];
    __syncthreads();
    double sum = 0;
#pragma unroll
    for (int k = 0; k < 2 * V; ++k)
      sum += at[t + k * threads];
    at[t] = sum;
    __syncthreads();
    first_sum = second_sum = 0;
    if (t >= kAlgebraChannels) return;
#pragma unroll 4
    for (int i = t; i < threads; i += both)
      first_sum += at[i], second_sum += at[i + kAlgebraChannels];
  }
  // Number k of channel `channel` of the block: written by the thread of that number, which alone still reads there.
  __device__ void put(int k, double v) const { at[k * kAlgebraChannels + threadIdx.x] = v; }
  // After a barrier: of channel j of the thread's.
  __device__ double operator()(int k, int j) const {
    return at[k * kAlgebraChannels + threadIdx.x % Algebra<B>::across * V + j];
  }
};

// f(integral_constant): the members of a block for which the algebra has kernels of its own, else 0. rows: what
// these read and write in 8 bytes, besides the gates.
template <class F>
void with_members(Type acc, const GateShape& g, std::initializer_list<const void*> rows, const F& f) {
  if (acc == Type::f64) return f(double{}, std::integral_constant<int, 0>{});
  bool together = g.C % kTogether == 0 && g.C <= std::numeric_limits<int32_t>::max() / moment_rows(g.A) &&
                  reinterpret_cast<uintptr_t>(g.gate.at) % sizeof(uint2) == 0;
  for (const void* at : rows)
    together = together && reinterpret_cast<uintptr_t>(at) % sizeof(uint2) == 0;
  if (together && g.members == 1) return f(float{}, std::integral_constant<int, 1>{});
  if (together && g.members == 2) return f(float{}, std::integral_constant<int, 2>{});
  f(float{}, std::integral_constant<int, 0>{});
}

}  // namespace axnet::cuda
