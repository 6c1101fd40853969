// masked_moments: one read of X gives the descriptors, the moments that batch normalisation needs, and the positions of
// the maxima (docs/method.md, "A3 from moments").
//
//   x' = x - c, c = 0; where |mean| >> std would cancel, the block goes over its pixels again with c = mean
//   sums  s1, s2, t_a, t2_a, q2_ab of x', m_a x', m_a x'^2, m_a m_b x'^2, and q1_ab of m_a m_b x' where c is not 0
//   max   max x, max m_a x, and the first position of each;   mass  sum m_a, sum m_a m_b           (ab: a <= b)
//
//   tile    32 channels of one image x up to 256 (float) pixels in shared memory, chunk after chunk over the pixels
//   thread  channel = lane, pixels warp, warp + 8, ...: X without bank conflicts, masks by broadcast, no shuffles
//   block   adds its 8 warps in double through shared memory, in order
//   grid    (image, 32 channels) x groups: one group of all anatomies up to three, and up to 16 where only the
//           descriptors are asked for; beyond, a group per pair (a, b)
#include "checks.h"
#include "cuda/tile.cuh"

namespace axnet::cuda {
namespace {

constexpr int kChannels = kWarp;  // channels of a block
constexpr int kTileBytes = 32 * 1024;
constexpr double kFar = 15;  // mean^2 / variance beyond which a row's sums are taken about its mean

struct MomentsPlan {
  int64_t N, C, S, channel_blocks;
  int A, chunk;  // chunk: pixels of a tile
  bool grouped;  // a group per pair of anatomies
  TilePlan tile;
  const void *x, *mask;    // T [N, C, S], acc [N, A, S]
  void* descriptors;       // acc [N, 2+2A, C]: avg, max, masked_avg_a, masked_max_a
  void* moments;           // acc [N, moment_rows(A), C] or null
  int32_t* argmax;         // [N, 1+A, C] or null
  double* mass;            // [N, A + pairs(A)]
  void *link, *coef_link;  // one element each: written zero, or null
};

// The anatomies of a group, and which of its results it is the one to write.
template <int B>
struct Group {
  int member[B];
  bool rows, single[B];  // rows: s1, s2, max x;  single[i]: what concerns member i alone

  __device__ Group(bool grouped, bool full, int A, int index) {
    rows = index == 0;
#pragma unroll
    for (int i = 0; i < B; ++i)
      member[i] = i < A ? i : 0, single[i] = i < A;
    if constexpr (B == 2) {
      if (!grouped) return;
      if (full) {  // every pair a < b
        int a = 0;
        for (; index >= A - 1 - a; ++a)
          index -= A - 1 - a;
        member[0] = a, member[1] = a + 1 + index;
        single[0] = index == 0;
        single[1] = a == A - 2;
      } else {
        member[0] = 2 * index, member[1] = 2 * index + 1 < A ? 2 * index + 1 : 2 * index;
        single[1] = member[1] != member[0];
      }
    }
  }
};

// Pixels of a thread in one go; with positions, between two looks at where its maxima are.
template <bool FULL>
constexpr int kGranule = FULL ? 8 : 2;

// The sums and maxima of one thread. SHIFTED: about a shift, with q1.
template <class T, int B, bool FULL>
struct Sums {
  using Acc = acc_t<T>;
  static constexpr int count = FULL ? 2 + 2 * B + 2 * pairs(B) : 1 + B;
  static constexpr int maxima = 1 + B;
  Acc sum[count] = {}, top[maxima];
  int at[maxima] = {};

  __device__ Sums() {
#pragma unroll
    for (int k = 0; k < maxima; ++k)
      top[k] = -std::numeric_limits<Acc>::infinity();
  }
  // order: s1, s2, t_a.., t2_a.., q1_ab.., q2_ab..   (FULL)      s1, t_a..   (else)
  template <bool SHIFTED>
  __device__ void add(Acc x, Acc shift, const Acc* m, Acc (&best)[maxima]) {
    best[0] = x > best[0] ? x : best[0];
    const Acc centred = SHIFTED ? x - shift : x;
    sum[0] += centred;
    if constexpr (FULL) sum[1] += centred * centred;
    Acc weighted[B];
#pragma unroll
    for (int a = 0; a < B; ++a) {
      const Acc value = m[a] * x;
      best[1 + a] = value > best[1 + a] ? value : best[1 + a];
      weighted[a] = SHIFTED ? m[a] * centred : value;
      sum[(FULL ? 2 : 1) + a] += weighted[a];
      if constexpr (FULL) sum[2 + B + a] += weighted[a] * centred;
    }
    if constexpr (FULL) {
#pragma unroll
      for (int a = 0; a < B; ++a)
#pragma unroll
        for (int b = a; b < B; ++b) {
          if constexpr (SHIFTED) sum[2 + 2 * B + pair_row(B, a, b)] += weighted[a] * m[b];
          sum[2 + 2 * B + pairs(B) + pair_row(B, a, b)] += weighted[a] * weighted[b];
        }
    }
  }
  // `steps` pixels of the tile from s on, kWarps apart; their maxima are looked for only where they rise.
  template <bool SHIFTED>
  __device__ void granule(const T* row, const Acc* masks, Acc shift, int s, int s0, int steps) {
    Acc best[maxima];
#pragma unroll
    for (int k = 0; k < maxima; ++k)
      best[k] = top[k];
    if (steps == kGranule<FULL>) {
#pragma unroll
      for (int i = 0; i < kGranule<FULL>; ++i)
        add<SHIFTED>(static_cast<Acc>(row[s + i * kWarps]), shift, masks + (s + i * kWarps) * B, best);
    } else {
#pragma unroll 1
      for (int i = 0; i < steps; ++i)
        add<SHIFTED>(static_cast<Acc>(row[s + i * kWarps]), shift, masks + (s + i * kWarps) * B, best);
    }
#pragma unroll
    for (int k = 0; k < maxima; ++k) {
      if constexpr (FULL) {
        if (!(best[k] > top[k])) continue;
        at[k] = s0 + s;
      }
      top[k] = best[k];
    }
  }
  // The maxima that rose since pixel s0 of the image: from the first pixel of their granule to their own. (FULL)
  __device__ void locate(const T* row, const Acc* masks, int s0, int pixels) {
#pragma unroll
    for (int k = 0; k < maxima; ++k) {
      if (at[k] < s0 || top[k] == -std::numeric_limits<Acc>::infinity()) continue;
      int s = at[k] - s0;
      auto value = [&] {
        const Acc x = static_cast<Acc>(row[s]);
        return k ? masks[s * B + (k ? k - 1 : 0)] * x : x;
      };
#pragma unroll 1
      while (s + kWarps < pixels && value() != top[k])
        s += kWarps;
      at[k] = s0 + s;
    }
  }
};

// The masses of the group's anatomies, in double by the warps in turn: mass[i], then mass of each pair.
template <class Acc, int B>
__device__ inline void weigh(const Acc* mask, int64_t S, const int (&member)[B], int quantities, double* mass) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int q = warp; q < quantities; q += kWarps) {
    int i = q, j = -1;
    if (q >= B)
      for (i = 0, j = q - B; j >= B - i; ++i)
        j -= B - i;
    const int first = i, second = j < 0 ? -1 : i + j;
    const Acc *a = mask, *b = nullptr;
#pragma unroll
    for (int k = 0; k < B; ++k) {
      if (k == first) a = mask + member[k] * S;
      if (k == second) b = mask + member[k] * S;
    }
    double total = 0;
    for (int64_t s = lane; s < S; s += kWarp)
      total += b ? static_cast<double>(a[s]) * b[s] : a[s];
    total = warp_sum(total);
    if (lane == 0) mass[q] = total;
  }
}

// A row that is not finite, in full: maxima propagate NaN, as torch's do, and -inf has a position.
template <class T>
__device__ inline void look_again(const T* x, int64_t step, const acc_t<T>* mask, int64_t S, acc_t<T>& top, int& at) {
  using Acc = acc_t<T>;
  for (int64_t s = 0; s < S; ++s) {
    const Acc v = mask ? mask[s] * static_cast<Acc>(x[s * step]) : static_cast<Acc>(x[s * step]);
    if (s == 0 || v > top) top = v, at = static_cast<int>(s);
    if (v != v) {
      top = v, at = static_cast<int>(s);
      return;
    }
  }
}

// Blocks on a multiprocessor: as many as the accumulators leave registers for without spills.
template <class T, int B, bool FULL>
constexpr int kResident = B > 3 || (B > 1 && (FULL || sizeof(T) > 2)) || sizeof(T) > 4 ? 2 : 3;
// The masses go with the moments: of many anatomies nobody asks for them without.
template <int B>
constexpr int kQuantities = B > 3 ? 0 : B + pairs(B);

template <class T, int B, bool FULL>
__global__ void __launch_bounds__(kThreads, (kResident<T, B, FULL>)) moments_kernel(const MomentsPlan p) {
  using Acc = acc_t<T>;
  using Set = Sums<T, B, FULL>;
  AXNET_SHARED(shared);
  constexpr int quantities = kQuantities<B>;
  double* mass = reinterpret_cast<double*>(shared);        // [quantities]
  Acc* masks = reinterpret_cast<Acc*>(mass + quantities);  // [chunk, B]
  T* tile = reinterpret_cast<T*>(masks + p.chunk * B);     // [32, pitch]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t n = blockIdx.x / p.channel_blocks, c0 = blockIdx.x % p.channel_blocks * kChannels;
  const int channels = static_cast<int>(p.C - c0 < kChannels ? p.C - c0 : kChannels);
  const View view = p.tile.view;
  const T* x = static_cast<const T*>(p.x) + n * view.n + c0 * view.c;
  const Acc* mask = static_cast<const Acc*>(p.mask) + n * p.A * p.S;
  const Group<B> group(p.grouped, FULL, p.A, static_cast<int>(blockIdx.y));

  weigh<Acc, B>(mask, p.S, group.member, c0 == 0 ? quantities : FULL ? B : 0, mass);

  Acc shift = 0;
  Acc* sums = masks;                                                    // [count, 8, 32], over masks and tile
  Acc* tops = sums + Set::count * kThreads;                             // [maxima, 8, 32]
  int* places = reinterpret_cast<int*>(tops + Set::maxima * kThreads);  // [maxima, 8, 32]
  auto look = [&](auto shifted) {
    constexpr bool SHIFTED = decltype(shifted)::value;
    Set set;
    for (int64_t s0 = 0; s0 < p.S; s0 += p.chunk) {
      const int pixels = static_cast<int>(p.S - s0 < p.chunk ? p.S - s0 : p.chunk);
      __syncthreads();
      stage(p.tile, x + s0 * view.s, channels, pixels, tile);
      for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
        for (int a = 0; a < B; ++a)
          masks[s * B + a] = mask[group.member[a] * p.S + s0 + s];
      __syncthreads();
      if (lane < channels) {
        const T* row = tile + lane * p.tile.pitch;
        for (int s = warp; s < pixels; s += kGranule<FULL> * kWarps) {
          const int left = (pixels - s + kWarps - 1) / kWarps;
          set.template granule<SHIFTED>(row, masks, shift, s, static_cast<int>(s0),
                                        left < kGranule<FULL> ? left : kGranule<FULL>);
        }
        if constexpr (FULL) set.locate(row, masks, static_cast<int>(s0), pixels);
      }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < Set::count; ++k)
      sums[k * kThreads + threadIdx.x] = set.sum[k];
#pragma unroll
    for (int k = 0; k < Set::maxima; ++k) {
      tops[k * kThreads + threadIdx.x] = set.top[k];
      if (FULL) places[k * kThreads + threadIdx.x] = set.at[k];
    }
    __syncthreads();
  };
  auto total = [&](int k) {
    double t = 0;
    for (int w = 0; w < kWarps; ++w)
      t += sums[k * kThreads + w * kWarp + lane];
    return t;
  };
  look(std::false_type{});
  if constexpr (FULL) {  // every warp comes to the same answer
    const double mean = total(0) / static_cast<double>(p.S), square = mean * mean;
    const bool far = lane < channels && square > kFar * (total(1) / static_cast<double>(p.S) - square);
    if (warp_max(far ? 1 : 0)) {
      shift = far ? static_cast<Acc>(mean) : Acc(0);
      look(std::true_type{});
    }
  }

  const int64_t C = p.C, c = c0 + lane;
  const double inverse = 1.0 / static_cast<double>(p.S);
  Acc* descriptors = static_cast<Acc*>(p.descriptors) + n * (2 + 2 * p.A) * C + c;
  Acc* moments = FULL && p.moments ? static_cast<Acc*>(p.moments) + n * moment_rows(p.A) * C + c : nullptr;
  int task = 0;  // results are dealt to the warps in turn
  auto mine = [&](bool owned) { return task++ % kWarps == warp && owned && lane < channels; };
  constexpr int t = FULL ? 2 : 1;
  if (mine(group.rows)) {
    const double s1 = total(0);
    descriptors[0] = static_cast<Acc>(shift + s1 * inverse);
    if (moments) moments[0] = shift, moments[C] = static_cast<Acc>(s1);
  }
#pragma unroll
  for (int a = 0; a < B; ++a)
    if (mine(group.single[a])) {
      const double t_a = total(t + a), offset = FULL ? shift * mass[a] : 0;
      descriptors[(2 + group.member[a]) * C] = static_cast<Acc>((t_a + offset) * inverse);
      if (moments) moments[(3 + group.member[a]) * C] = static_cast<Acc>(t_a);
    }
  if constexpr (FULL) {
    if (moments) {
      if (mine(group.rows)) moments[2 * C] = static_cast<Acc>(total(1));
      Acc* q1 = moments + (3 + 2 * p.A) * C;
#pragma unroll
      for (int a = 0; a < B; ++a) {
        if (mine(group.single[a])) moments[(3 + p.A + group.member[a]) * C] = static_cast<Acc>(total(2 + B + a));
#pragma unroll
        for (int b = a; b < B; ++b) {
          const bool owned = a == b ? group.single[a] : true;
          const int64_t row = pair_row(p.A, group.member[a], group.member[b]);
          const int k = 2 + 2 * B + pair_row(B, a, b);
          if (mine(owned)) q1[row * C] = static_cast<Acc>(total(k));
          if (mine(owned)) q1[(row + pairs(p.A)) * C] = static_cast<Acc>(total(k + pairs(B)));
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < Set::maxima; ++k)
    if (mine(k ? group.single[k ? k - 1 : 0] : group.rows)) {
      const int member = k ? group.member[k ? k - 1 : 0] : 0;
      Acc top = tops[k * kThreads + lane];
      int at = FULL ? places[k * kThreads + lane] : 0;
      for (int w = 1; w < kWarps; ++w) {
        const int from = k * kThreads + w * kWarp + lane;
        const Acc other = tops[from];
        const int there = FULL ? places[from] : 0;
        if (other > top || (other == top && there < at)) top = other, at = there;
      }
      const double s1 = total(0);
      if (!(s1 - s1 == 0)) look_again(x + lane * view.c, view.s, k ? mask + member * p.S : nullptr, p.S, top, at);
      descriptors[(k ? 2 + p.A + member : 1) * C] = top;
      if (FULL && p.argmax) p.argmax[(n * (1 + p.A) + (k ? 1 + member : 0)) * C + c] = at;
    }

  if constexpr (quantities > 0) {
    if (c0 == 0 && threadIdx.x < quantities) {
      double* out = p.mass + n * (p.A + pairs(p.A));
      const int q = threadIdx.x;
      int done = B;
#pragma unroll
      for (int a = 0; a < B; ++a) {
        if (q == a && group.single[a]) out[group.member[a]] = mass[a];
#pragma unroll
        for (int b = a; b < B; ++b, ++done)
          if (q == done && (a == b ? group.single[a] : true))
            out[p.A + pair_row(p.A, group.member[a], group.member[b])] = mass[q];
      }
    }
  }
  if (p.link && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    *static_cast<T*>(p.link) = T(0.f);
    *static_cast<Acc*>(p.coef_link) = Acc(0);
  }
}

template <class T, int B, bool FULL>
void launch_moments(const MomentsPlan& p, cudaStream_t stream) {
  using Acc = acc_t<T>;
  using Set = Sums<T, B, FULL>;
  const size_t head = kQuantities<B> * sizeof(double);
  const size_t tile = p.chunk * B * sizeof(Acc) + kChannels * p.tile.pitch * sizeof(T);
  const size_t reduction =
      kThreads * ((Set::count + Set::maxima) * sizeof(Acc) + (FULL ? Set::maxima * sizeof(int) : 0));
  const int groups = !p.grouped ? 1 : FULL ? p.A * (p.A - 1) / 2 : (p.A + 1) / 2;
  launch(moments_kernel<T, B, FULL>, p.N * p.channel_blocks, groups, kThreads, head + std::max(tile, reduction), stream,
         p);
}

template <class T, bool FULL>
void launch_anatomies(MomentsPlan& p, cudaStream_t stream) {
  p.grouped = p.A > (std::is_same_v<T, double> ? 2 : 3);
  if (p.A == 1) return launch_moments<T, 1, FULL>(p, stream);
  if constexpr (!std::is_same_v<T, double>) {
    if (p.A == 3) return launch_moments<T, 3, FULL>(p, stream);
    if constexpr (!FULL) {
      p.grouped = false;
      if (p.A > 8) return launch_moments<T, 16, FULL>(p, stream);
      if (p.A > 3) return launch_moments<T, 8, FULL>(p, stream);
    }
  }
  launch_moments<T, 2, FULL>(p, stream);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_moments(Tensor x_in, Tensor mask, bool second,
                                                                          bool positions, int64_t blocks) {
  check_masked_moments(x_in, mask, blocks);
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const int a = static_cast<int>(A), B = blocks > 1 ? 1 : a;
  const ScalarType acc = accumulator(x);
  Tensor descriptors = empty({N, 2 + 2 * A, C}, acc, device);
  Tensor moments = empty({second ? N : 0, moment_rows(a), C}, acc, device);
  Tensor argmax = empty({positions ? N : 0, 1 + A, C}, ScalarType::Int, device);
  Tensor mass = empty({N, A + pairs(a)}, ScalarType::Double, device);
  Tensor zero = empty({blocks ? 1 : 0}, x.scalar_type(), device), coef_zero = empty({blocks ? 1 : 0}, acc, device);
  Tensor link = blocks ? expanded(zero, {N, blocks * C, H, W}) : zero;
  Tensor coef_link = blocks ? expanded(coef_zero, {N, blocks, coef_rows(B), C}) : coef_zero;
  if (N * C == 0) return {descriptors, moments, argmax, mass, link, coef_link};

  with_type(x, [&](auto type) {
    using T = decltype(type);
    const View view = view_of(x);
    const int64_t room = kTileBytes / (kChannels * static_cast<int64_t>(sizeof(T)));
    const int chunk = static_cast<int>(std::min(S, room));
    MomentsPlan p{N,
                  C,
                  S,
                  ceil_div(C, kChannels),
                  a,
                  chunk,
                  false,
                  TilePlan(view, S, kChannels, chunk, kVector<T>),
                  data(x),
                  data(mask),
                  data(descriptors),
                  second ? data(moments) : nullptr,
                  positions ? static_cast<int32_t*>(data(argmax)) : nullptr,
                  static_cast<double*>(data(mass)),
                  blocks ? data(zero) : nullptr,
                  data(coef_zero)};
    second || positions ? launch_anatomies<T, true>(p, queue.stream()) : launch_anatomies<T, false>(p, queue.stream());
  });
  return {descriptors, moments, argmax, mass, link, coef_link};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) { m.impl("masked_moments", TORCH_BOX(&masked_moments)); }

}  // namespace axnet::cuda
