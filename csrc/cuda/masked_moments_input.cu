// dX in one read of D and X and one write, long-lived threads (walk.cuh). What the maxima add concerns a handful of
// elements of a channel: when a block has written its part, it writes those once more, in full.
#include "cuda/input_grad.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

constexpr int kFlight = 2;  // vectors of X and of D in flight a thread

// What an element needs of its channel.
template <int B>
struct ChannelTerms {
  static constexpr int count = 5 + 2 * B;  // k1, k2, k3, b, w_a, flat, slope_a

  // f(k, number) of channel c
  template <class T, class F>
  __device__ static void read(const ElementGrad<T, B>& element, int64_t C, int64_t c, float inverse, const F& f) {
    if (element.p.blocks)
#pragma unroll
      for (int k = 0; k < 4 + B; ++k)
        f(k, element.coef[k * C + c]);
    f(4 + B, element.delta[c] * inverse);
#pragma unroll
    for (int a = 0; a < B; ++a)
      f(5 + B + a, element.delta[(2 + a) * C + c] * inverse);
  }
  // of(k): the number k
  template <bool BLEND, class F>
  __device__ static float grad(float x, float d, const float (&m)[B], const F& of) {
    float total = of(4 + B), gate = BLEND ? of(3) : 0.f;
#pragma unroll
    for (int a = 0; a < B; ++a) {
      total += of(5 + B + a) * m[a];
      if constexpr (BLEND) gate += of(4 + a) * m[a];
    }
    if constexpr (BLEND) total += (of(0) * d + (of(2) * (x * gate) + of(1))) * gate;
    return total;
  }
};

// The elements of channels [c0, c1) where a maximum stands, if mine(c, s), again.
template <class T, int B, class F>
__device__ inline void write_maxima(const InputPlan& p, const ElementGrad<T, B>& element, int64_t n, int c0, int c1,
                                    const F& mine) {
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n;
  const T* d = static_cast<const T*>(p.d_data) + n * p.d.n;
  T* dx = static_cast<T*>(p.dx_data) + n * p.dx.n;
  __syncthreads();  // what the block wrote lies before what follows
  for (int c = c0 + static_cast<int>(threadIdx.x); c < c1; c += static_cast<int>(blockDim.x)) {
    int at[1 + B];
    unsigned left = 0;
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      at[k] = element.at[k * p.C + c];
      bool fresh = mine(c, at[k]);
#pragma unroll
      for (int j = 0; j < k; ++j)
        fresh = fresh && at[j] != at[k];
      left |= fresh ? 1u << k : 0u;
    }
    while (left) {
      int s = 0;
#pragma unroll
      for (int k = B; k >= 0; --k)
        if (left >> k & 1u) s = at[k];
      left &= left - 1;
      const T* grad = d + c * p.d.c + s * p.d.s;
      dx[c * p.dx.c + s * p.dx.s] = T(element(static_cast<float>(x[c * p.x.c + s * p.x.s]), grad, 0, c, s));
    }
  }
}

// NCHW. WHOLE: S is a multiple of the vector.
template <class T, int B, bool WHOLE>
__global__ void __launch_bounds__((WHOLE ? kWalkThreads : kThreads), (WHOLE || B < 3 ? 2 : 1))
    input_rows_kernel(const InputPlan p, const Walk walk) {
  constexpr int V = kVector<T>;
  using Terms = ChannelTerms<B>;
  using Row = Entry<Terms::count>;
  AXNET_SHARED(shared);
  Row* table = reinterpret_cast<Row*>(shared);
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  const Stand stand(walk, C);
  const ElementGrad<T, B> element(p, stand.n);
  const float inverse = 1.f / static_cast<float>(S);
  for (int c = threadIdx.x; c < stand.count; c += blockDim.x)
    Terms::read(element, C, stand.first + c, inverse, [&](int k, float v) { table[c].at[k] = v; });
  __syncthreads();
  if (stand.active) {
    const int row = WHOLE ? 0 : stand.kept * V / S, s0 = WHOLE ? stand.kept * V : stand.kept * V % S;
    const int own = S - s0;  // pixels of the vector's first channel
    float m[B][V];
#pragma unroll
    for (int a = 0; a < B; ++a)
      if constexpr (WHOLE) {
        load_lanes<T>(element.mask + a * S + s0, V, m[a]);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i)
          m[a][i] = element.mask[a * S + (i < own ? s0 + i : i - own)];
      }
    const int64_t from = static_cast<int64_t>(stand.first + row) * S + s0;
    const T* x = static_cast<const T*>(p.x_data) + stand.n * p.x.n + from;
    const T* d = static_cast<const T*>(p.d_data) + stand.n * p.d.n + from;
    T* dx = static_cast<T*>(p.dx_data) + stand.n * p.dx.n + from;
    const Row* entries = table + row;
    Stand rows = stand;
    rows.count -= row;
    auto look = [&](auto blend) {
      constexpr bool BLEND = decltype(blend)::value;
      meet<(WHOLE || B == 1 ? kFlight : kFlight / 2)>(rows, walk, [&](auto many, int at, int step) {
        constexpr int U = decltype(many)::value;
        Bits<T, V> xs[U], ds[U];
        if constexpr (BLEND)
#pragma unroll
          for (int u = 0; u < U; ++u)
            xs[u].load(x + (at + u * step) * S), ds[u].load(d + (at + u * step) * S);
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const Row q = entry_of(entries, at + u * step);
          Row next;
          if constexpr (!WHOLE) next = entry_of(entries, at + u * step + 1);
          float v[V], grad[V];
          if constexpr (BLEND) xs[u].spread(v), ds[u].spread(grad);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            float masks[B];
#pragma unroll
            for (int a = 0; a < B; ++a)
              masks[a] = m[a][i];
            const bool first = WHOLE || i < own;
            v[i] = Terms::template grad<BLEND>(BLEND ? v[i] : 0.f, BLEND ? grad[i] : 0.f, masks,
                                               [&](int k) { return first ? q.at[k] : next.at[k]; });
          }
          xs[u].gather(v);
          xs[u].store(dx + (at + u * step) * S);
        }
      });
    };
    p.blocks ? look(std::true_type{}) : look(std::false_type{});
  }
  const int c_end = stand.first + stand.count, kept0 = stand.block * walk.width;
  write_maxima(p, element, stand.n, stand.first, c_end, [&](int c, int s) {
    const int kept = ((WHOLE ? 0 : (c - stand.first) % walk.rows * S) + s) / V;
    return kept >= kept0 && kept < kept0 + walk.width;
  });
}

// Four channels a thread: nine numbers of each in registers.
template <class T, int B>
__global__ void __launch_bounds__(kThreads, (B < 3 ? kWalkBlocks : 2))
    input_channels_last_kernel(const InputPlan p, const Walk walk) {
  constexpr int V = 4;
  using Terms = ChannelTerms<B>;
  AXNET_SHARED(shared);
  auto* table = reinterpret_cast<float*>(shared);  // [pixels that pass, B]
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  const Stand stand(walk, S);
  const ElementGrad<T, B> element(p, stand.n);
  for (int s = threadIdx.x; s < stand.count; s += blockDim.x)
#pragma unroll
    for (int a = 0; a < B; ++a)
      table[s * B + a] = element.mask[a * S + stand.first + s];
  __syncthreads();
  if (stand.active) {
    const int c = stand.kept * V;
    const int x_step = static_cast<int>(p.x.s), d_step = static_cast<int>(p.d.s), dx_step = static_cast<int>(p.dx.s);
    float q[Terms::count][V];
#pragma unroll
    for (int i = 0; i < V; ++i)
      Terms::read(element, C, c + i, 1.f / static_cast<float>(S), [&](int k, float v) { q[k][i] = v; });
    const T* x = static_cast<const T*>(p.x_data) + stand.n * p.x.n + stand.first * p.x.s + c;
    const T* d = static_cast<const T*>(p.d_data) + stand.n * p.d.n + stand.first * p.d.s + c;
    T* dx = static_cast<T*>(p.dx_data) + stand.n * p.dx.n + stand.first * p.dx.s + c;
    auto look = [&](auto blend) {
      constexpr bool BLEND = decltype(blend)::value;
      meet<kWalkFlight>(stand, walk, [&](auto many, int at, int step) {
        constexpr int U = decltype(many)::value;
        Bits<T, V> xs[U], ds[U];
        if constexpr (BLEND)
#pragma unroll
          for (int u = 0; u < U; ++u)
            xs[u].load(x + (at + u * step) * x_step), ds[u].load(d + (at + u * step) * d_step);
#pragma unroll
        for (int u = 0; u < U; ++u) {
          float v[V], grad[V], m[B];
#pragma unroll
          for (int a = 0; a < B; ++a)
            m[a] = table[(at + u * step) * B + a];
          if constexpr (BLEND) xs[u].spread(v), ds[u].spread(grad);
#pragma unroll
          for (int i = 0; i < V; ++i)
            v[i] = Terms::template grad<BLEND>(BLEND ? v[i] : 0.f, BLEND ? grad[i] : 0.f, m,
                                               [&](int k) { return q[k][i]; });
          xs[u].gather(v);
          xs[u].store(dx + (at + u * step) * dx_step);
        }
      });
    };
    p.blocks ? look(std::true_type{}) : look(std::false_type{});
  }
  const int c0 = stand.block * walk.width * V, c1 = c0 + walk.width * V;
  write_maxima(p, element, stand.n, c0, c1 < C ? c1 : C,
               [&](int, int s) { return s >= stand.first && s < stand.first + stand.count; });
}

// Any blocks and anatomies in either layout, element by element.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) input_any_kernel(const InputPlan p, const ElementWalk walk) {
  const ElementPlace place(walk, p.x.channels_last);
  if (!place.active) return;
  const int64_t n = place.n, c = place.c, s = place.s;
  const T* d = static_cast<const T*>(p.d_data) + n * p.d.n + c * p.d.c + s * p.d.s;
  const auto x = static_cast<acc_t<T>>(static_cast<const T*>(p.x_data)[n * p.x.n + c * p.x.c + s * p.x.s]);
  static_cast<T*>(p.dx_data)[n * p.dx.n + c * p.dx.c + s * p.dx.s] = T(ElementGrad<T>(p, n)(x, d, p.C * p.d.c, c, s));
}

template <class T, int B>
bool launch_walk(const InputPlan& p, cudaStream_t stream) {
  if (p.blocks > 1 || p.S > kMostOffset / kMaxAnatomies ||
      !can_walk<T>(p.C, p.S, p.x.channels_last,
                   {{p.x_data, &p.x}, {p.blocks ? p.d_data : p.x_data, &p.d}, {p.dx_data, &p.dx}}))
    return false;
  if (p.x.channels_last) {
    const Walk walk = Walk::channels_of(p.N, p.C, p.S, 4, B * sizeof(float));
    launch(input_channels_last_kernel<T, B>, p.N * walk.tasks, 1, walk.threads,
           std::min<int64_t>(walk.meets, p.S) * B * sizeof(float), stream, p, walk);
    return true;
  }
  using Row = Entry<ChannelTerms<B>::count>;
  const Walk walk = Walk::rows_of(p.N, p.C, p.S, kVector<T>, sizeof(Row));
  launch(walk.rows == 1 ? input_rows_kernel<T, B, true> : input_rows_kernel<T, B, false>, p.N * walk.tasks, 1,
         walk.threads, (std::min<int64_t>(walk.meets, p.C) + 1) * sizeof(Row), stream, p, walk);
  return true;
}

// dm_a = sum_c [ dY_o X w_a + delta_mavg,a X / S + [s = argmax_a] delta_mmax,a X ]
//   block   `width` pixels of one image and one anatomy; kThreads / width threads share a pixel's channels
//   width   32 in NCHW (a warp reads pixels side by side), 8 in channels_last (a warp reads channels side by side)
template <class T>
__global__ void __launch_bounds__(kThreads, 2) mask_grad_kernel(const InputPlan p, int width, int64_t tiles) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  Acc* parts = reinterpret_cast<Acc*>(shared);  // [kThreads / width, width]
  const int shares = kThreads / width, t = threadIdx.x, a = static_cast<int>(blockIdx.y);
  const int column = p.x.channels_last ? t / shares : t % width, share = p.x.channels_last ? t % shares : t / width;
  const int64_t n = blockIdx.x / tiles, s = blockIdx.x % tiles * width + column, C = p.C, S = p.S;
  const ElementGrad<T> element(p, n);
  const int o = p.blocks > 1 ? a : 0,
            first = p.blocks > 1 ? a : 0;  // the block that this anatomy is in, its first mask
  Acc total = 0;
  if (s < S) {
    const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + s * p.x.s;
    const T* d = static_cast<const T*>(p.d_data) + n * p.d.n + s * p.d.s;
    const Acc inverse = Acc(1) / static_cast<Acc>(S);
    for (int64_t c = share; c < C; c += shares) {
      const Acc xv = static_cast<Acc>(x[c * p.x.c]);
      Acc slope = element.delta[(2 + a) * C + c] * inverse;
      if (element.at[(1 + a) * C + c] == s) slope += element.delta[(2 + p.A + a) * C + c];
      if (p.blocks) {
        const Acc* q = element.coef + o * coef_rows(p.members) * C + c;
        Acc gate = q[3 * C];
        for (int k = 0; k < p.members; ++k)
          gate += q[(4 + k) * C] * element.mask[(first + k) * S + s];
        const Acc dy = q[0] * static_cast<Acc>(d[(o * C + c) * p.d.c]) + q[C] + q[2 * C] * (xv * gate);
        slope += dy * q[(4 + a - first) * C];
      }
      total += slope * xv;
    }
  }
  parts[share * width + column] = total;
  __syncthreads();
  if (share == 0 && s < S) {
    double sum = 0;
    for (int k = 0; k < shares; ++k)
      sum += parts[k * width + column];
    static_cast<Acc*>(p.mask_grad)[(n * p.A + a) * S + s] = static_cast<Acc>(sum);
  }
}

}  // namespace

void input_grad(cudaStream_t stream, const InputPlan& p, Type of_x) {
  with_type(of_x, [&](auto type) {
    using T = decltype(type);
    const bool done = with_anatomies<T>(p.A, [&](auto b) {
      if constexpr (decltype(b)::value > 0) return launch_walk<T, decltype(b)::value>(p, stream);
      return false;
    });
    if (done) return;
    const ElementWalk walk{p.N, p.C, p.S};
    launch(input_any_kernel<T>, walk.grid(), 1, kThreads, 0, stream, p, walk);
  });
}

void mask_grad(cudaStream_t stream, const InputPlan& p, Type of_x) {
  with_type(of_x, [&](auto type) {
    using T = decltype(type);
    const int width = p.x.channels_last ? 8 : 32;
    const int64_t tiles = ceil_div(p.S, width);
    launch(mask_grad_kernel<T>, p.N * tiles, p.A, kThreads, kThreads * sizeof(acc_t<T>), stream, p, width, tiles);
  });
}

}  // namespace axnet::cuda
