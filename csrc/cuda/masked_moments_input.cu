// dX in one read of D and X and one write, long-lived threads (walk.cuh). What the maxima add concerns a handful of
// elements of a channel: when a block or a warp has written its part, it writes those once more, in full.
#include "cuda/input_grad.cuh"
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

constexpr int kFlight = 2;  // vectors of X and of D in flight a thread

// NCHW. WHOLE: S is a multiple of the vector.
template <class T, int B, bool WHOLE>
__global__ void __launch_bounds__((WHOLE ? kWalkThreads : kThreads), (WHOLE || B < 3 ? 2 : 1))
    input_rows_kernel(const InputPlan p, const Walk walk) {
  constexpr int V = kVector<T>;
  using Terms = ChannelTerms<B>;
  using Row = Entry<Terms::count>;
  AXNET_SHARED(shared);
  Row* table = reinterpret_cast<Row*>(shared);
  auto* places = reinterpret_cast<int*>(table + walk.meets + 1);  // of the channels' maxima, -1: another block's
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  Stand stand(walk, C);
  if constexpr (!WHOLE) split_last<V>(stand, walk, S);
  const ElementGrad<T> element = of_image<T, B>(p, stand.n);
  const float inverse = 1.f / static_cast<float>(S);
  const int kept0 = stand.block * walk.width * V, kept = walk.width * V;
#pragma unroll 1
  for (int channel = static_cast<int>(threadIdx.x); channel < stand.count; channel += static_cast<int>(blockDim.x)) {
    const int c = stand.first + channel;
    const int32_t* from = element.at + c;
    int at[1 + B];
#pragma unroll
    for (int k = 0; k <= B; ++k)
      at[k] = from[k * C];
    Terms::rows(element, C, c,
                [&](int k, const float* of) { table[channel].at[k] = k < Terms::means ? *of : *of * inverse; });
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      const int place = at[k] + (WHOLE ? 0 : (channel & (walk.rows - 1)) * S) - kept0;
      places[channel * (1 + B) + k] = place >= 0 && place < kept ? at[k] : -1;
    }
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
  const T* x = static_cast<const T*>(p.x_data) + stand.n * p.x.n;
  const T* d = static_cast<const T*>(p.d_data) + stand.n * p.d.n;
  T* dx = static_cast<T*>(p.dx_data) + stand.n * p.dx.n;
  const bool splits = !WHOLE && __ballot_sync(0xffffffffu, stand.active && own < V) != 0;
  auto look = [&](auto blend) {
    constexpr bool BLEND = decltype(blend)::value;
    const int begin = stand.active ? (stand.first + row + stand.at) * S + s0 : 0;
    const T *next_x = x + begin, *next_d = d + begin;
    T* next_dx = dx + begin;
    const Row* entries = table + row;
    Stand rows = stand;
    rows.count = stand.active ? stand.count - row : 0;
    meet<(WHOLE || B == 1 ? kFlight : kFlight / 2)>(rows, walk, [&](auto many, int at, int step) {
      constexpr int U = decltype(many)::value;
      const int apart = step * S;
      Bits<T, V> xs[U], ds[U];
      if constexpr (BLEND)
#pragma unroll
        for (int u = 0; u < U; ++u)
          xs[u].load(next_x), ds[u].load(next_d), next_x += apart, next_d += apart;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const Row q = entry_of(entries, at + u * step);
        float v[V], grad[V];
        if constexpr (BLEND) xs[u].spread(v), ds[u].spread(grad);
        auto all = [&](const auto& of) {
#pragma unroll
          for (int i = 0; i < V; ++i) {
            float masks[B];
#pragma unroll
            for (int a = 0; a < B; ++a)
              masks[a] = m[a][i];
            v[i] = Terms::template grad<BLEND>(BLEND ? v[i] : 0.f, BLEND ? grad[i] : 0.f, masks,
                                               [&](int k) { return of(i, k); });
          }
        };
        if (splits) {
          const Row next = entry_of(entries, at + u * step + 1);
          all([&](int i, int k) { return i < own ? q.at[k] : next.at[k]; });
        } else {
          all([&](int, int k) { return q.at[k]; });
        }
        xs[u].gather(v);
        xs[u].store(next_dx);
        next_dx += apart;
      }
    });
    __syncthreads();  // what the block wrote lies before what follows: the elements where maxima stand, again
#pragma unroll 1
    for (int channel = static_cast<int>(threadIdx.x); channel < stand.count; channel += static_cast<int>(blockDim.x)) {
      const int c = stand.first + channel;
      int at[1 + B];
      T xs[1 + B], ds[1 + B];
      float masks[1 + B][B], more[1 + B];
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        at[k] = places[channel * (1 + B) + k];
        more[k] = element.delta[c + (k ? 1 + B + k : 1) * C];
        const int s = at[k] < 0 ? 0 : at[k];
        xs[k] = BLEND ? x[c * S + s] : T(0.f), ds[k] = BLEND ? d[c * S + s] : T(0.f);
#pragma unroll
        for (int a = 0; a < B; ++a)
          masks[k][a] = element.mask[a * S + s];
      }
      const Row q = entry_of(table, channel);
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        unsigned kinds = 0;
#pragma unroll
        for (int j = 0; j <= B; ++j)
          kinds |= at[j] == at[k] ? 1u << j : 0u;
        const T v = grad_of_maximum<BLEND>(kinds, xs[k], ds[k], masks[k], more, [&](int j) { return q.at[j]; });
        if (at[k] >= 0) dx[c * S + at[k]] = v;
      }
    }
  };
  p.blocks ? look(std::true_type{}) : look(std::false_type{});
}

constexpr int kChannels = 4;  // of a thread, channels_last: nine numbers of each in registers
constexpr int kRounds = 2;    // places of maxima that a thread goes back to at a time

// Where a warp's maxima stand: pixel * kPlaceUnit + lane * 16 + channel * 4 + which of them, counted from the first
// pixel and channel of that lane. It lists kPlaces at most.
constexpr unsigned kPlaceUnit = kWarp * 16;
template <int B>
constexpr int kPlaces = kWarp * kChannels * (1 + B);

// A thread meets pixels that follow each other, and a warp goes back to the maxima that it met itself: no barrier but
// the first.
template <class T, int B>
__global__ void __launch_bounds__(kThreads, (B < 3 ? kWalkBlocks : 2))
    input_channels_last_kernel(const InputPlan p, const Walk walk) {
  constexpr int V = kChannels;
  using Terms = ChannelTerms<B>;
  AXNET_SHARED(shared);
  auto* table = reinterpret_cast<float*>(shared);  // [pixels that pass, B]
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  const Stand stand(walk, S);
  const ElementGrad<T> element = of_image<T, B>(p, stand.n);
  const int c = stand.kept * V, lane = static_cast<int>(threadIdx.x) % kWarp;
  auto* places = reinterpret_cast<unsigned*>(table + walk.meets * B) + threadIdx.x / kWarp * kPlaces<B>;
  const int run = walk.run, own = stand.at * run;  // of a thread, its first pixel of the block's
  const int rest = stand.active ? stand.count - own : 0, pixels = rest < run ? rest : run;
  float q[Terms::count][V];
  Vector<int32_t> at[1 + B];
  if (stand.active) {
#pragma unroll
    for (int k = 0; k <= B; ++k)
      at[k] = load_vector(element.at + c + k * C);
    Terms::rows(element, C, c, [&](int k, const float* from) {
      const Vector<float> v = load_vector(from);
#pragma unroll
      for (int i = 0; i < V; ++i)
        q[k][i] = v.at[i];
    });
  }
#pragma unroll 1
  for (int s = static_cast<int>(threadIdx.x); s < stand.count; s += static_cast<int>(blockDim.x))
#pragma unroll
    for (int a = 0; a < B; ++a)
      table[s * B + a] = element.mask[a * S + stand.first + s];
  int listed = 0;
  {
    const unsigned origin = static_cast<unsigned>(lane) * 16 - static_cast<unsigned>(stand.first + own) * kPlaceUnit;
    const unsigned end = pixels > 0 ? static_cast<unsigned>(pixels) * kPlaceUnit : 0;
    unsigned place[V][1 + B];
#pragma unroll
    for (int i = 0; i < V; ++i)
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        place[i][k] = static_cast<unsigned>(at[k].at[i]) * kPlaceUnit + origin;
        listed += place[i][k] < end ? 1 : 0;
      }
    const int mine = listed;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int before = __shfl_up_sync(0xffffffffu, listed, step);
      if (lane >= step) listed += before;
    }
    unsigned* to = places + (listed - mine);
#pragma unroll
    for (int i = 0; i < V; ++i)
#pragma unroll
      for (int k = 0; k <= B; ++k) {
        if (place[i][k] < end) *to = place[i][k] + (i * 4 + k);
        to += place[i][k] < end ? 1 : 0;
      }
    listed = __shfl_sync(0xffffffffu, listed, kWarp - 1);
  }
  __syncthreads();
  const float inverse = 1.f / static_cast<float>(S);
#pragma unroll
  for (int i = 0; i < V; ++i)
#pragma unroll
    for (int k = Terms::means; k < Terms::count; ++k)
      q[k][i] *= inverse;
  // a product stays in a register, where the compiler widens a parameter again for each vector
  const int x_step = static_cast<int>(p.x.s) * walk.rows, d_step = static_cast<int>(p.d.s) * walk.rows,
            dx_step = static_cast<int>(p.dx.s) * walk.rows;
  const T* x = static_cast<const T*>(p.x_data) + stand.n * p.x.n;
  const T* d = static_cast<const T*>(p.d_data) + stand.n * p.d.n;
  T* dx = static_cast<T*>(p.dx_data) + stand.n * p.dx.n;
  auto look = [&](auto blend) {
    constexpr bool BLEND = decltype(blend)::value;
    const int begin = pixels > 0 ? stand.first + own : 0;
    const T *next_x = x + (begin * x_step + c), *next_d = d + (begin * d_step + c);
    T* next_dx = dx + (begin * dx_step + c);
    const float* masks = table + own * B;
    auto meet = [&](auto many) {
      constexpr int U = decltype(many)::value;
      Bits<T, V> xs[U], ds[U];
      if constexpr (BLEND)
#pragma unroll
        for (int u = 0; u < U; ++u)
          xs[u].load(next_x), ds[u].load(next_d), next_x += x_step, next_d += d_step;
      Entry<U * B> held;
      if constexpr (U % 4 == 0) {
        held = entry_of(reinterpret_cast<const Entry<U * B>*>(masks), 0);
      } else {
#pragma unroll
        for (int k = 0; k < U * B; ++k)
          held.at[k] = masks[k];
      }
      masks += U * B;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        float v[V], grad[V], m[B];
#pragma unroll
        for (int a = 0; a < B; ++a)
          m[a] = held.at[u * B + a];
        if constexpr (BLEND) xs[u].spread(v), ds[u].spread(grad);
#pragma unroll
        for (int i = 0; i < V; ++i)
          v[i] =
              Terms::template grad<BLEND>(BLEND ? v[i] : 0.f, BLEND ? grad[i] : 0.f, m, [&](int k) { return q[k][i]; });
        xs[u].gather(v);
        xs[u].store(next_dx);
        next_dx += dx_step;
      }
    };
    int left = pixels;
#pragma unroll 1
    for (; left >= kWalkFlight; left -= kWalkFlight)
      meet(std::integral_constant<int, kWalkFlight>{});
#pragma unroll 1
    for (; left > 0; --left)
      meet(std::integral_constant<int, 1>{});
    __syncwarp();  // what the warp wrote lies before what follows: the elements where maxima stand, again
    auto revisit = [&](auto many, int from) {
      constexpr int R = decltype(many)::value;
      int channel[R], row[R];
      unsigned which[R], kinds[R] = {};
      T xs[R], ds[R];
      float own[R][Terms::count], more[R][1 + B];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int i = from + r * kWarp + lane;
        const unsigned place = places[i < listed ? i : listed - 1];
        const int t = static_cast<int>(threadIdx.x) - lane + static_cast<int>(place / 16 % kWarp);
        const int side = walk.of_width.quotient(t);
        which[r] = place % 4;
        row[r] = side * run + static_cast<int>(place / kPlaceUnit);
        channel[r] = ((stand.block - side) * walk.width + t) * V + static_cast<int>(place / 4 % V);
        const int c = channel[r], s = stand.first + row[r];
        xs[r] = BLEND ? x[s * x_step + c] : T(0.f), ds[r] = BLEND ? d[s * d_step + c] : T(0.f);
        const int32_t* at = element.at + c;
        const float* delta = element.delta + c;
#pragma unroll
        for (int k = 0; k <= B; ++k) {
          kinds[r] |= at[k * C] == s ? 1u << k : 0u;
          more[r][k] = delta[(k ? 1 + B + k : 1) * C];
        }
        Terms::rows(element, C, c, [&](int k, const float* of) { own[r][k] = *of; });
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float m[B];
#pragma unroll
        for (int a = 0; a < B; ++a)
          m[a] = table[row[r] * B + a];
        const T v = grad_of_maximum<BLEND>(kinds[r], xs[r], ds[r], m, more[r],
                                           [&](int k) { return k < Terms::means ? own[r][k] : own[r][k] * inverse; });
        if (from + r * kWarp + lane < listed && (kinds[r] & ((1u << which[r]) - 1)) == 0)
          dx[(stand.first + row[r]) * dx_step + channel[r]] = v;
      }
    };
    int from = 0;
#pragma unroll 1
    for (; from + (kRounds - 1) * kWarp < listed; from += kRounds * kWarp)
      revisit(std::integral_constant<int, kRounds>{}, from);
#pragma unroll 1
    for (; from < listed; from += kWarp)
      revisit(std::integral_constant<int, 1>{}, from);
  };
  p.blocks ? look(std::true_type{}) : look(std::false_type{});
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
  if (p.blocks > 1 || p.S > kMostOffset / kMaxAnatomies || p.C > kMostOffset / kMaxAnatomies ||
      !can_walk<T>(p.C, p.S, p.x.channels_last,
                   {{p.x_data, &p.x}, {p.blocks ? p.d_data : p.x_data, &p.d}, {p.dx_data, &p.dx}}))
    return false;
  if (p.x.channels_last) {
    for (const void* rows : {p.coef, p.delta, static_cast<const void*>(p.argmax)})
      if (reinterpret_cast<uintptr_t>(rows) % 16 != 0) return false;
    if (p.S > kMostOffset / kPlaceUnit) return false;
    const Walk walk = Walk::channels_of(p.N, p.C, p.S, kChannels, B * sizeof(float), 16);
    launch(input_channels_last_kernel<T, B>, p.N * walk.tasks, 1, walk.threads,
           (walk.meets * B + walk.threads / kWarp * kPlaces<B>)*sizeof(float), stream, p, walk);
    return true;
  }
  using Row = Entry<ChannelTerms<B>::count>;
  const Walk walk = Walk::rows_of(p.N, p.C, p.S, kVector<T>, sizeof(Row), 32 / kVector<T>);
  launch(walk.rows == 1 ? input_rows_kernel<T, B, true> : input_rows_kernel<T, B, false>, p.N * walk.tasks, 1,
         walk.threads, (walk.meets + 1) * sizeof(Row) + walk.meets * (1 + B) * sizeof(int), stream, p, walk);
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
