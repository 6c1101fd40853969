// Z = X (b + sum_a w_a m_a) + h: one read of X, one write, long-lived threads (walk.cuh).
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

// NCHW. WHOLE: S is a multiple of the vector.
template <class T, int B, bool WHOLE>
__global__ void __launch_bounds__((WHOLE ? kWalkThreads : kThreads), 2)
    apply_rows_kernel(const ApplyPlan p, const Walk walk) {
  constexpr int V = kVector<T>;
  AXNET_SHARED(shared);
  auto* table = reinterpret_cast<Entry<B + 2>*>(shared);  // b, w_a, h of the channels that pass
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  Stand stand(walk, C);
  if constexpr (!WHOLE) split_last<V>(stand, walk, S);
  const float* fold =
      static_cast<const float*>(p.fold) + static_cast<int64_t>(stand.n) * fold_rows(B) * C + stand.first;
  for (int c = threadIdx.x; c < stand.count; c += blockDim.x)
#pragma unroll
    for (int k = 0; k < B + 2; ++k)
      table[c].at[k] = fold[k * C + c];
  __syncthreads();
  const int row = WHOLE ? 0 : stand.kept * V / S, s0 = WHOLE ? stand.kept * V : stand.kept * V % S;
  const int own = S - s0;  // pixels of the vector's first channel
  const bool splits = !WHOLE && __ballot_sync(0xffffffffu, stand.active && own < V) != 0;
  if (!stand.active) return;

  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(stand.n) * B * S;
  float m[B][V];
#pragma unroll
  for (int a = 0; a < B; ++a)
    if constexpr (WHOLE) {
      load_lanes<T>(mask + a * S + s0, V, m[a]);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        m[a][i] = mask[a * S + (i < own ? s0 + i : i - own)];
    }
  const int begin = (stand.first + row + stand.at) * S + s0;
  const T* x = static_cast<const T*>(p.x_data) + stand.n * p.x.n + begin;
  T* z = static_cast<T*>(p.z_data) + stand.n * p.z.n + begin;
  const Entry<B + 2>* entries = table + row;
  stand.count -= row;
  meet<kWalkFlight>(stand, walk, [&](auto many, int at, int step) {
    constexpr int U = decltype(many)::value;
    const int apart = step * S;
    Bits<T, V> bits[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      bits[u].load(x), x += apart;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const Entry<B + 2> q = entry_of(entries, at + u * step);
      float v[V];
      bits[u].spread(v);
      auto blend = [&](const auto& of) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          float gate = of(i, 0);
#pragma unroll
          for (int a = 0; a < B; ++a)
            gate += of(i, 1 + a) * m[a][i];
          v[i] = v[i] * gate + of(i, 1 + B);
        }
      };
      if (splits) {
        const Entry<B + 2> next = entry_of(entries, at + u * step + 1);
        blend([&](int i, int k) { return i < own ? q.at[k] : next.at[k]; });
      } else {
        blend([&](int, int k) { return q.at[k]; });
      }
      bits[u].gather(v);
      bits[u].store(z);
      z += apart;
    }
  });
}

template <class T, int B>
__global__ void __launch_bounds__(kThreads, (B < 3 ? kWalkBlocks : 2))
    apply_channels_last_kernel(const ApplyPlan p, const Walk walk) {
  constexpr int V = kVector<T>;
  AXNET_SHARED(shared);
  auto* table = reinterpret_cast<float*>(shared);  // [pixels that pass, B]
  const int C = static_cast<int>(p.C), S = static_cast<int>(p.S);
  const Stand stand(walk, S);
  const float* mask = static_cast<const float*>(p.mask) + static_cast<int64_t>(stand.n) * B * S + stand.first;
  for (int s = threadIdx.x; s < stand.count; s += blockDim.x)
#pragma unroll
    for (int a = 0; a < B; ++a)
      table[s * B + a] = mask[a * S + s];
  __syncthreads();
  if (!stand.active) return;

  const int c = stand.kept * V, x_step = static_cast<int>(p.x.s), z_step = static_cast<int>(p.z.s);
  const float* fold = static_cast<const float*>(p.fold) + static_cast<int64_t>(stand.n) * fold_rows(B) * C + c;
  float q[B + 2][V];
#pragma unroll
  for (int k = 0; k < B + 2; ++k)
    load_lanes<T>(fold + k * C, V, q[k]);
  const T* x = static_cast<const T*>(p.x_data) + stand.n * p.x.n + stand.first * p.x.s + c;
  T* z = static_cast<T*>(p.z_data) + stand.n * p.z.n + stand.first * p.z.s + c;
  meet<kWalkFlight>(stand, walk, [&](auto many, int at, int step) {
    constexpr int U = decltype(many)::value;
    Bits<T, V> bits[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      bits[u].load(x + (at + u * step) * x_step);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float v[V], m[B];
#pragma unroll
      for (int a = 0; a < B; ++a)
        m[a] = table[(at + u * step) * B + a];
      bits[u].spread(v);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        float gate = q[0][i];
#pragma unroll
        for (int a = 0; a < B; ++a)
          gate += q[1 + a][i] * m[a];
        v[i] = v[i] * gate + q[1 + B][i];
      }
      bits[u].gather(v);
      bits[u].store(z + (at + u * step) * z_step);
    }
  });
}

// Any blocks and anatomies in either layout: an element of X, all blocks of Z.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) apply_any_kernel(const ApplyPlan p, const ElementWalk walk) {
  using Acc = acc_t<T>;
  const ElementPlace place(walk, p.x.channels_last);
  if (!place.active) return;
  const int64_t n = place.n, c = place.c, s = place.s, C = p.C, S = p.S;
  const Acc x = static_cast<Acc>(static_cast<const T*>(p.x_data)[n * p.x.n + c * p.x.c + s * p.x.s]);
  const Acc* mask = static_cast<const Acc*>(p.mask) + n * p.A * S + s;
  for (int o = 0; o < p.blocks; ++o) {
    const Acc* q = static_cast<const Acc*>(p.fold) + (n * p.blocks + o) * fold_rows(p.members) * C + c;
    Acc gate = q[0];
    for (int a = 0; a < p.members; ++a)
      gate += q[(1 + a) * C] * mask[(o + a) * S];
    static_cast<T*>(p.z_data)[n * p.z.n + (o * C + c) * p.z.c + s * p.z.s] = T(x * gate + q[(1 + p.members) * C]);
  }
}

template <class T, int B>
bool launch_walk(const ApplyPlan& p, cudaStream_t stream) {
  constexpr int V = kVector<T>, element = sizeof(T);
  const bool last = p.x.channels_last;
  if (p.S > kMostOffset / kMaxAnatomies || !can_walk<T>(p.C, p.S, last, {{p.x_data, &p.x}, {p.z_data, &p.z}}))
    return false;
  if (last) {
    const Walk walk = Walk::channels_of(p.N, p.C, p.S, V, B * element);
    launch(apply_channels_last_kernel<T, B>, p.N * walk.tasks, 1, walk.threads,
           std::min<int64_t>(walk.meets, p.S) * B * sizeof(float), stream, p, walk);
    return true;
  }
  // 16 bits, 133 to 264 images of 7 x 7: one block has an image, for one beginning
  const Walk walk = Walk::rows_of(p.N, p.C, p.S, V, sizeof(Entry<B + 2>), kWalkLeast,
                                  sizeof(T) == 2 && p.N <= 264 && p.S % V ? 1 : 2);
  launch(walk.rows == 1 ? apply_rows_kernel<T, B, true> : apply_rows_kernel<T, B, false>, p.N * walk.tasks, 1,
         walk.threads, (std::min<int64_t>(walk.meets, p.C) + 1) * sizeof(Entry<B + 2>), stream, p, walk);
  return true;
}

}  // namespace

void apply(cudaStream_t stream, const ApplyPlan& p, Type of_x) {
  with_type(of_x, [&](auto type) {
    using T = decltype(type);
    const bool done = with_anatomies<T>(p.blocks > 1 ? 0 : p.A, [&](auto b) {
      if constexpr (decltype(b)::value > 0) return launch_walk<T, decltype(b)::value>(p, stream);
      return false;
    });
    if (done) return;
    const ElementWalk walk{p.N, p.C, p.S};
    launch(apply_any_kernel<T>, walk.grid(), 1, kThreads, 0, stream, p, walk);
  });
}

}  // namespace axnet::cuda
