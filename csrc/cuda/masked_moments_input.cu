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
  static constexpr int means = 4 + B,
                       count = means + 1 + B;  // k1, k2, k3, b, w_a; of means over the map: flat, slope_a

  // f(k, number) of channel c; of the means before they are divided by S
  template <class T, class F>
  __device__ static void read(const ElementGrad<T>& element, int64_t C, int64_t c, const F& f) {
    auto load = [&](auto first) {
#pragma unroll
      for (int k = decltype(first)::value; k < count; ++k)
        f(k, k < means ? element.coef[k * C + c] : element.delta[(k > means ? k - means + 1 : 0) * C + c]);
    };
    element.p.blocks ? load(std::integral_constant<int, 0>{}) : load(std::integral_constant<int, means>{});
  }
  // of(k): the number k
  template <bool BLEND, class F>
  __device__ static float grad(float x, float d, const float (&m)[B], const F& of) {
    float total = of(means), gate = BLEND ? of(3) : 0.f;
#pragma unroll
    for (int a = 0; a < B; ++a) {
      total += of(means + 1 + a) * m[a];
      if constexpr (BLEND) gate += of(4 + a) * m[a];
    }
    if constexpr (BLEND) total += (of(0) * d + (of(2) * (x * gate) + of(1))) * gate;
    return total;
  }
};

// The elements of a block where a maximum of its channels stands. Each warp lists some when the block begins, so that
// at its end a thread has one, and all that they need is on its way together.
template <int B>
class Maxima {
  struct Place {
    int channel, pixel;
    unsigned kinds;  // bit k: maximum k stands there
  };
  int* counts;  // of each warp
  Place* own;

 public:
  static size_t bytes(int channels, int threads) {
    return threads / kWarp * (sizeof(int) + room(channels) * sizeof(Place));
  }

  // channels: that a thread notes
  __device__ Maxima(void* shared, int channels)
      : counts(static_cast<int*>(shared)),
        own(reinterpret_cast<Place*>(counts + blockDim.x / kWarp) + threadIdx.x / kWarp * room(channels)) {}

  // at: of a channel, -1 where another block writes. All lanes of the warp.
  __device__ void note(int& found, int channel, const int (&at)[1 + B]) const {
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      unsigned kinds = 0;
#pragma unroll
      for (int j = 0; j <= B; ++j)
        kinds |= at[j] == at[k] ? 1u << j : 0u;
      const bool fresh = at[k] >= 0 && (kinds & ((1u << k) - 1)) == 0;
      const unsigned lanes = __ballot_sync(0xffffffffu, fresh);
      if (fresh) own[found + __popc(lanes & ((1u << threadIdx.x % kWarp) - 1))] = {channel, at[k], kinds};
      found += __popc(lanes);
    }
    if (threadIdx.x % kWarp == 0) counts[threadIdx.x / kWarp] = found;
  }
  // f(channel, pixel, kinds) after a barrier, each once.
  template <class F>
  __device__ void each(int channels, const F& f) const {
    const Place* list = reinterpret_cast<const Place*>(counts + blockDim.x / kWarp);
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    int i = static_cast<int>(threadIdx.x), total;
    do {
      int at = -1;
      total = 0;
#pragma unroll
      for (int w = 0; w < kWalkThreads / kWarp; ++w) {
        const int found = w < warps ? counts[w] : 0;
        if (i >= total && i < total + found) at = w * room(channels) + i - total;
        total += found;
      }
      if (at >= 0) f(list[at].channel, list[at].pixel, list[at].kinds);
      i += static_cast<int>(blockDim.x);
    } while (i < total);
  }

 private:
  __host__ __device__ static int room(int channels) { return kWarp * channels * (1 + B); }
};

// The elements where a maximum stands, again.
template <class T, int B>
__device__ inline void write_maxima(const InputPlan& p, const ElementGrad<T>& element, int64_t n,
                                    const Maxima<B>& maxima, int channels) {
  using Terms = ChannelTerms<B>;
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n;
  const T* d = static_cast<const T*>(p.d_data) + n * p.d.n;
  T* dx = static_cast<T*>(p.dx_data) + n * p.dx.n;
  __syncthreads();  // what the block wrote lies before what follows
  auto look = [&](auto blend) {
    constexpr bool BLEND = decltype(blend)::value;
    maxima.each(channels, [&](int c, int s, unsigned kinds) {
      const T xs = BLEND ? x[c * p.x.c + s * p.x.s] : T(0.f), ds = BLEND ? d[c * p.d.c + s * p.d.s] : T(0.f);
      float q[Terms::count], m[B], more[1 + B];
#pragma unroll
      for (int a = 0; a < B; ++a)
        m[a] = element.mask[a * p.S + s];
#pragma unroll
      for (int k = 0; k <= B; ++k)
        more[k] = element.delta[(k ? 1 + B + k : 1) * p.C + c];
      Terms::read(element, p.C, c, [&](int k, float v) { q[k] = v; });
#pragma unroll
      for (int k = Terms::means; k < Terms::count; ++k)
        q[k] *= 1.f / static_cast<float>(p.S);
      float v =
          Terms::template grad<BLEND>(static_cast<float>(xs), static_cast<float>(ds), m, [&](int k) { return q[k]; });
#pragma unroll
      for (int k = 0; k <= B; ++k)
        if (kinds >> k & 1) v += k ? more[k] * m[k - 1] : more[0];
      dx[c * p.dx.c + s * p.dx.s] = T(v);
    });
  };
  p.blocks ? look(std::true_type{}) : look(std::false_type{});
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
  const ElementGrad<T> element(p, stand.n);
  const float inverse = 1.f / static_cast<float>(S);
  const int kept0 = stand.block * walk.width, threads = static_cast<int>(blockDim.x);
  const int some = (walk.meets + threads - 1) / threads;  // channels that a thread notes
  const Maxima<B> maxima(table + walk.meets + 1, some);
  int found = 0;
  for (int i = 0; i < some; ++i) {
    const int channel = i * threads + static_cast<int>(threadIdx.x), c = stand.first + channel;
    int at[1 + B];
#pragma unroll
    for (int k = 0; k <= B; ++k)
      at[k] = channel < stand.count ? element.at[k * C + c] : -1;
    if (channel < stand.count)
      Terms::read(element, C, c, [&](int k, float v) { table[channel].at[k] = k < Terms::means ? v : v * inverse; });
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      const int kept = ((WHOLE ? 0 : channel % walk.rows * S) + at[k]) / V;
      if (kept < kept0 || kept >= kept0 + walk.width) at[k] = -1;
    }
    maxima.note(found, c, at);
  }
  float m[B][V];
  const int row = WHOLE ? 0 : stand.kept * V / S, s0 = WHOLE ? stand.kept * V : stand.kept * V % S;
  const int own = S - s0;  // pixels of the vector's first channel
  if (stand.active)
#pragma unroll
    for (int a = 0; a < B; ++a)
      if constexpr (WHOLE) {
        load_lanes<T>(element.mask + a * S + s0, V, m[a]);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i)
          m[a][i] = element.mask[a * S + (i < own ? s0 + i : i - own)];
      }
  __syncthreads();
  if (stand.active) {
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
  write_maxima<T, B>(p, element, stand.n, maxima, some);
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
  const ElementGrad<T> element(p, stand.n);
  const int c = stand.kept * V;
  const Maxima<B> maxima(table + walk.meets * B, V);
  float q[Terms::count][V];
  int at[V][1 + B], found = 0;
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int k = 0; k <= B; ++k)
      at[i][k] = stand.active && stand.at == 0 ? element.at[k * C + c + i] : -1;
    if (stand.active) Terms::read(element, C, c + i, [&](int k, float v) { q[k][i] = v; });
  }
  for (int s = threadIdx.x; s < stand.count; s += blockDim.x)
#pragma unroll
    for (int a = 0; a < B; ++a)
      table[s * B + a] = element.mask[a * S + stand.first + s];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int k = 0; k <= B; ++k)
      if (at[i][k] < stand.first || at[i][k] >= stand.first + stand.count) at[i][k] = -1;
    maxima.note(found, c + i, at[i]);
#pragma unroll
    for (int k = Terms::means; k < Terms::count; ++k)
      q[k][i] *= 1.f / static_cast<float>(S);
  }
  if (stand.active) {
    const int x_step = static_cast<int>(p.x.s), d_step = static_cast<int>(p.d.s), dx_step = static_cast<int>(p.dx.s);
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
  write_maxima<T, B>(p, element, stand.n, maxima, V);
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
           walk.meets * B * sizeof(float) + Maxima<B>::bytes(4, walk.threads), stream, p, walk);
    return true;
  }
  using Row = Entry<ChannelTerms<B>::count>;
  const Walk walk = Walk::rows_of(p.N, p.C, p.S, kVector<T>, sizeof(Row));
  launch(walk.rows == 1 ? input_rows_kernel<T, B, true> : input_rows_kernel<T, B, false>, p.N * walk.tasks, 1,
         walk.threads,
         (walk.meets + 1) * sizeof(Row) +
             Maxima<B>::bytes(static_cast<int>(ceil_div(walk.meets, walk.threads)), walk.threads),
         stream, p, walk);
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
