// gate_norm_backward: one read of D and X, then the coefficients with which masked_moments_backward writes dX, and the
// gradients of the gate and of the normalisation (docs/method.md, "A3 from moments").
//
//   reduce   e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x'
//   combine  dbeta = sum_n e0;  dgamma = r sum_n (sum_s D Y - mean e0);  k1 = gamma r;
//            k3 = -gamma r^2 dgamma / NS;  k2 = -gamma r dbeta / NS - k3 mean      (running statistics: k2 = k3 = 0)
#include "checks.h"
#include "cuda/algebra.cuh"
#include "cuda/tile.cuh"

namespace axnet::cuda {
namespace {

constexpr int kChannels = kWarp;
constexpr int kTileBytes = 16 * 1024;  // of X; as much again of D

struct ReducePlan {
  int64_t N, C, S, channel_blocks;
  int A, blocks, members, chunk;
  TilePlan x, d;
  const void *x_data, *d_data;  // T [N, C, S], T [N, blocks*C, S]
  const void* mask;             // acc [N, A, S]
  const void* saved;            // acc [N, blocks, saved_rows(members), C]; row 0: the shift
  void* sums;                   // acc [N, blocks, sum_rows(members), C]
};

//   tile    32 channels of one image x up to 128 (float) pixels of X and of D in shared memory
//   thread  channel = lane, pixels warp, warp + 8, ...; the warps are added in order
//   grid    (image, 32 channels) x groups of B anatomies: the members of a block, or the blocks of fusion "concat"
template <class T, int B>
__global__ void __launch_bounds__(kThreads, (B == 1 ? 3 : 2)) reduce_kernel(const ReducePlan p) {
  using Acc = acc_t<T>;
  constexpr int count = sum_rows(B);
  AXNET_SHARED(shared);
  Acc* masks = reinterpret_cast<Acc*>(shared);        // [chunk, B]
  T* xs = reinterpret_cast<T*>(masks + p.chunk * B);  // [32, pitch]
  T* ds = xs + kChannels * p.x.pitch;                 // [32, pitch]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = static_cast<int>(blockIdx.y), o = p.blocks > 1 ? group : 0, first = group * B;
  const int member = p.blocks > 1 ? 0 : first;  // of the group's first anatomy in its block
  const int64_t n = blockIdx.x / p.channel_blocks, c0 = blockIdx.x % p.channel_blocks * kChannels, C = p.C;
  const int channels = static_cast<int>(C - c0 < kChannels ? C - c0 : kChannels);
  const View xv = p.x.view, dv = p.d.view;
  const T* x = static_cast<const T*>(p.x_data) + n * xv.n + c0 * xv.c;
  const T* d = static_cast<const T*>(p.d_data) + n * dv.n + (o * C + c0) * dv.c;
  const Acc* mask = static_cast<const Acc*>(p.mask) + (n * p.A + first) * p.S;
  const Acc* saved = static_cast<const Acc*>(p.saved) + (n * p.blocks + o) * saved_rows(p.members) * C + c0;
  const Acc shift = lane < channels ? saved[lane] : Acc(0);

  Acc sum[count] = {};
  for (int64_t s0 = 0; s0 < p.S; s0 += p.chunk) {
    const int pixels = static_cast<int>(p.S - s0 < p.chunk ? p.S - s0 : p.chunk);
    stage(p.x, x + s0 * xv.s, channels, pixels, xs);
    stage(p.d, d + s0 * dv.s, channels, pixels, ds);
    for (int s = threadIdx.x; s < pixels; s += kThreads)
#pragma unroll
      for (int a = 0; a < B; ++a)
        masks[s * B + a] = mask[a * p.S + s0 + s];
    __syncthreads();
    if (lane < channels) {
      const T *x_row = xs + lane * p.x.pitch, *d_row = ds + lane * p.d.pitch;
#pragma unroll 4
      for (int s = warp; s < pixels; s += kWarps) {
        const Acc grad = static_cast<Acc>(d_row[s]), centred = static_cast<Acc>(x_row[s]) - shift;
        sum[0] += grad;
        sum[1] += grad * centred;
#pragma unroll
        for (int a = 0; a < B; ++a) {
          const Acc weighted = grad * masks[s * B + a];
          sum[2 + a] += weighted;
          sum[2 + B + a] += weighted * centred;
        }
      }
    }
    __syncthreads();
  }
  Acc* parts = reinterpret_cast<Acc*>(shared);  // [count, 8, 32], over the tiles
#pragma unroll
  for (int k = 0; k < count; ++k)
    parts[k * kThreads + threadIdx.x] = sum[k];
  __syncthreads();
  Acc* out = static_cast<Acc*>(p.sums) + (n * p.blocks + o) * sum_rows(p.members) * C + c0 + lane;
  for (int k = warp; k < count; k += kWarps) {
    if (lane >= channels || (k < 2 && member > 0)) continue;
    double total = 0;
    for (int w = 0; w < kWarps; ++w)
      total += parts[k * kThreads + w * kWarp + lane];
    const int row = k < 2 ? k : k < 2 + B ? k + member : k - B + p.members + member;
    out[row * C] = static_cast<Acc>(total);
  }
}

struct CombinePlan {
  GateShape gate;
  const void* weight;             // acc [blocks*C] or null
  const void *mean, *var;         // acc [blocks*C]
  const void *saved, *sums;       // acc [N, blocks, saved_rows(members), C], [N, blocks, sum_rows(members), C]
  void* coef;                     // acc [N, blocks, coef_rows(members), C]
  void* gate_grad;                // acc [N, A, C]
  void *weight_grad, *bias_grad;  // acc [blocks*C]
};

template <class Acc>
__global__ void __launch_bounds__(kThreads, 1) combine_kernel(const CombinePlan p) {
  AXNET_SHARED(shared);
  double* parts = reinterpret_cast<double*>(shared);  // [8, 32]
  const GateShape& g = p.gate;
  const int warp = threadIdx.x / kWarp, o = static_cast<int>(blockIdx.y), B = g.members;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x % kWarp, C = g.C, at = o * C + c;
  const bool inside = c < C;
  auto sums_of = [&](int64_t n) { return static_cast<const Acc*>(p.sums) + (n * g.blocks + o) * sum_rows(B) * C + c; };
  auto saved_of = [&](int64_t n) {
    return static_cast<const Acc*>(p.saved) + (n * g.blocks + o) * saved_rows(B) * C + c;
  };

  const double mean = inside ? static_cast<double>(static_cast<const Acc*>(p.mean)[at]) : 0.0;
  double dgamma = 0, dbeta = 0;
  if (inside)
    for (int64_t n = warp; n < g.N; n += kWarps) {
      const Gate<Acc> gate(g, n, o, c);
      const Acc* e = sums_of(n);
      const double shift = saved_of(n)[0], e0 = e[0];
      double far = gate.b * e0, near = gate.b * e[C];
      for (int a = 0; a < B; ++a) {
        far += gate.w(a) * e[(2 + a) * C];
        near += gate.w(a) * e[(2 + B + a) * C];
      }
      dgamma += shift * far + near - mean * e0;
      dbeta += e0;
    }
  dgamma = sum_over_warps(dgamma, parts);
  dbeta = sum_over_warps(dbeta, parts);
  if (!inside) return;

  const double r = 1.0 / sqrt(static_cast<const Acc*>(p.var)[at] + g.eps);
  const double gamma = p.weight ? static_cast<double>(static_cast<const Acc*>(p.weight)[at]) : 1.0;
  const double S = static_cast<double>(g.S), total = S * static_cast<double>(g.N);
  dgamma *= r;
  if (warp == 0) {
    static_cast<Acc*>(p.weight_grad)[at] = static_cast<Acc>(dgamma);
    static_cast<Acc*>(p.bias_grad)[at] = static_cast<Acc>(dbeta);
  }
  const double k1 = gamma * r, k3 = g.batch_statistics ? -gamma * r * r * dgamma / total : 0.0;
  const double k2 = g.batch_statistics ? -gamma * r * dbeta / total - k3 * mean : 0.0;
  for (int64_t n = warp; n < g.N; n += kWarps) {
    const Gate<Acc> gate(g, n, o, c);
    const Acc *e = sums_of(n), *kept = saved_of(n);
    const double shift = kept[0];
    double sum_g = gate.b * S;
    for (int a = 0; a < B; ++a)
      sum_g += gate.w(a) * gate.mass_of(a);
    const double sum_dy = k1 * e[0] + k2 * S + k3 * (shift * sum_g + kept[(2 + B) * C]);
    const double db = shift * sum_dy + k1 * e[C] + k2 * kept[C] + k3 * kept[(3 + 2 * B) * C];
    Acc* out = static_cast<Acc*>(p.coef) + (n * g.blocks + o) * coef_rows(B) * C + c;
    out[0] = static_cast<Acc>(k1), out[C] = static_cast<Acc>(k2), out[2 * C] = static_cast<Acc>(k3);
    out[3 * C] = static_cast<Acc>(gate.b);
    Acc* gate_grad = static_cast<Acc*>(p.gate_grad) + (n * g.A + gate.first) * C + c;
    for (int a = 0; a < B; ++a) {
      out[(4 + a) * C] = static_cast<Acc>(gate.w(a));
      double sum_gm = gate.b * gate.mass_of(a);
      for (int b = 0; b < B; ++b)
        sum_gm += gate.w(b) * gate.mass_of(a, b);
      const double sum_dym = k1 * e[(2 + a) * C] + k2 * gate.mass_of(a) + k3 * (shift * sum_gm + kept[(3 + B + a) * C]);
      const double dw =
          shift * sum_dym + k1 * e[(2 + B + a) * C] + k2 * kept[(2 + a) * C] + k3 * kept[(4 + 2 * B + a) * C];
      gate_grad[a * C] = static_cast<Acc>((dw - db) * gate.share);
    }
  }
}

template <class T, int B>
void launch_reduce(const ReducePlan& p, cudaStream_t stream) {
  const size_t tiles = p.chunk * B * sizeof(acc_t<T>) + 2 * kChannels * p.x.pitch * sizeof(T);
  const size_t parts = sum_rows(B) * kThreads * sizeof(acc_t<T>);
  launch(reduce_kernel<T, B>, p.N * p.channel_blocks, p.A / B, kThreads, std::max(tiles, parts), stream, p);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_norm_backward(Tensor grad_z, Tensor x_in, Tensor mask, Tensor gate_in,
                                                              Tensor mass, std::optional<Tensor> weight, Tensor mean,
                                                              Tensor var, Tensor kept, double eps,
                                                              bool batch_statistics, bool concat) {
  check_gate_norm_backward(grad_z, x_in, mask, gate_in, mass, weight, mean, var, kept, concat);
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), S = x.size(2) * x.size(3), A = mask.size(1);
  const int64_t blocks = concat ? A : 1;
  const int a = static_cast<int>(A), B = concat ? 1 : a;
  const ScalarType acc = accumulator(x);
  Tensor coef = empty({N, blocks, coef_rows(B), C}, acc, device), gate_grad = empty({N, A, C}, acc, device);
  Tensor weight_grad = empty({blocks * C}, acc, device), bias_grad = empty({blocks * C}, acc, device);
  if (N * C == 0) {
    torch::stable::zero_(weight_grad);
    torch::stable::zero_(bias_grad);
    return {coef, gate_grad, weight_grad, bias_grad};
  }
  const Tensor d = dense(grad_z, is_channels_last(x)), gate = torch::stable::contiguous(gate_in);
  const Tensor saved = kept.size(0) ? kept : rows_again(queue, x, mask, gate, mass, concat);
  Tensor sums = empty({N, blocks, sum_rows(B), C}, acc, device);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    const int64_t room = kTileBytes / (kChannels * static_cast<int64_t>(sizeof(T)));
    const int chunk = static_cast<int>(std::min(S, room));
    const ReducePlan p{N,
                       C,
                       S,
                       ceil_div(C, kChannels),
                       a,
                       static_cast<int>(blocks),
                       B,
                       chunk,
                       TilePlan(view_of(x), S, kChannels, chunk, kVector<T>),
                       TilePlan(view_of(d), S, kChannels, chunk, kVector<T>),
                       data(x),
                       data(d),
                       data(mask),
                       data(saved),
                       data(sums)};
    if constexpr (!std::is_same_v<T, double>) {
      if (B == 2) return launch_reduce<T, 2>(p, queue.stream());
      if (B == 3) return launch_reduce<T, 3>(p, queue.stream());
    }
    launch_reduce<T, 1>(p, queue.stream());
  });
  const CombinePlan plan{{N, C, S, a, static_cast<int>(blocks), B, concat, batch_statistics, eps, data(gate),
                          static_cast<const double*>(data(mass))},
                         data(weight),
                         data(mean),
                         data(var),
                         data(saved),
                         data(sums),
                         data(coef),
                         data(gate_grad),
                         data(weight_grad),
                         data(bias_grad)};
  launch(acc == ScalarType::Double ? combine_kernel<double> : combine_kernel<float>, ceil_div(C, kWarp),
         static_cast<int>(blocks), kThreads, kThreads * sizeof(double), queue.stream(), plan);
  return {coef, gate_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) {
  m.impl("gate_norm_backward", TORCH_BOX(&gate_norm_backward));
}

}  // namespace axnet::cuda
