// gate_norm_backward: one read of D and X, then the coefficients with which masked_moments_backward writes dX, and the
// gradients of the gate and of the normalisation (docs/method.md, "A3 from moments").
//
//   reduce   e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x'
//   combine  dbeta = sum_n e0;  dgamma = r sum_n (sum_s D Y - mean e0);  k1 = gamma r;
//            k3 = -gamma r^2 dgamma / NS;  k2 = -gamma r dbeta / NS - k3 mean      (running statistics: k2 = k3 = 0)
#include "checks.h"
#include "cuda/algebra.cuh"
#include "cuda/sums.cuh"

namespace axnet::cuda {
namespace {

struct CombinePlan {
  GateShape gate;
  Numbers weight;                 // [blocks*C] or none
  Numbers mean, var;              // [blocks*C]
  const void *saved, *sums;       // acc [N, blocks, saved_rows(members), C], [N, blocks, sum_rows(members), C]
  void* coef;                     // acc [N, blocks, coef_rows(members), C]
  void* gate_grad;                // acc [N, A, C]
  void *weight_grad, *bias_grad;  // acc [blocks*C]
};

// Rows of one (image, block, channel).
template <class Acc, int K>
struct Column {
  const Acc* at;
  int64_t C;
  Kept<K> kept;

  __device__ Column(const void* rows, int64_t first, int64_t C, int64_t c)
      : at(static_cast<const Acc*>(rows) + first * C + c), C(C) {
    kept.load([&](int k) { return at[k * C]; });
  }
  __device__ double operator()(int k) const { return K ? kept.at[K ? k : 0] : at[k * C]; }
};

template <class Acc, int M>
__global__ void __launch_bounds__(kAlgebraThreads, 1) combine_kernel(const CombinePlan p) {
  AXNET_SHARED(shared);
  const GateShape& g = p.gate;
  const AlgebraPlace place(g);
  const int o = place.o, B = M ? M : g.members;
  const int64_t C = g.C, c = place.c;
  auto sums_of = [&](int64_t n) {
    return Column<Acc, M ? sum_rows(M) : 0>(p.sums, (n * g.blocks + o) * sum_rows(B), C, c);
  };

  const double mean = place.inside ? p.mean(place.at) : 0.0;
  double dgamma = 0, dbeta = 0;
  if (place.inside)
    for (int64_t n = place.n; n < g.N; n += kAlgebraImages) {
      const auto e = sums_of(n);
      const Gate<M> gate(g, n, o, c);
      const double shift = static_cast<const Acc*>(p.saved)[(n * g.blocks + o) * saved_rows(B) * C + c];
      double far = gate.b * e(0), near = gate.b * e(1);
#pragma unroll
      for (int a = 0; a < B; ++a) {
        far += gate.w(a) * e(2 + a);
        near += gate.w(a) * e(2 + B + a);
      }
      dgamma += shift * far + near - mean * e(0);
      dbeta += e(0);
    }
  add_images(dgamma, dbeta, reinterpret_cast<double*>(shared));
  if (!place.inside) return;

  const double r = 1.0 / sqrt(p.var(place.at) + g.eps), gamma = p.weight.at ? p.weight(place.at) : 1.0;
  const double S = static_cast<double>(g.S), total = S * static_cast<double>(g.N);
  dgamma *= r;
  if (place.n == 0) {
    static_cast<Acc*>(p.weight_grad)[place.at] = static_cast<Acc>(dgamma);
    static_cast<Acc*>(p.bias_grad)[place.at] = static_cast<Acc>(dbeta);
  }
  const double k1 = gamma * r, k3 = g.batch_statistics ? -gamma * r * r * dgamma / total : 0.0;
  const double k2 = g.batch_statistics ? -gamma * r * dbeta / total - k3 * mean : 0.0;
  for (int64_t n = place.n; n < g.N; n += kAlgebraImages) {
    const auto e = sums_of(n);
    const Column<Acc, M ? saved_rows(M) : 0> kept(p.saved, (n * g.blocks + o) * saved_rows(B), C, c);
    Gate<M> gate(g, n, o, c);
    gate.load_masses();
    const double shift = kept(0);
    double sum_g = gate.b * S;
#pragma unroll
    for (int a = 0; a < B; ++a)
      sum_g += gate.w(a) * gate.mass_of(a);
    const double sum_dy = k1 * e(0) + k2 * S + k3 * (shift * sum_g + kept(2 + B));
    const double db = shift * sum_dy + k1 * e(1) + k2 * kept(1) + k3 * kept(3 + 2 * B);
    Acc* out = static_cast<Acc*>(p.coef) + (n * g.blocks + o) * coef_rows(B) * C + c;
    out[0] = static_cast<Acc>(k1), out[C] = static_cast<Acc>(k2), out[2 * C] = static_cast<Acc>(k3);
    out[3 * C] = static_cast<Acc>(gate.b);
    Acc* gate_grad = static_cast<Acc*>(p.gate_grad) + (n * g.A + gate.first) * C + c;
#pragma unroll
    for (int a = 0; a < B; ++a) {
      out[(4 + a) * C] = static_cast<Acc>(gate.w(a));
      double sum_gm = gate.b * gate.mass_of(a);
#pragma unroll
      for (int b = 0; b < B; ++b)
        sum_gm += gate.w(b) * gate.mass_of(a, b);
      const double sum_dym = k1 * e(2 + a) + k2 * gate.mass_of(a) + k3 * (shift * sum_gm + kept(3 + B + a));
      const double dw = shift * sum_dym + k1 * e(2 + B + a) + k2 * kept(2 + a) + k3 * kept(4 + 2 * B + a);
      gate_grad[a * C] = static_cast<Acc>((dw - db) * gate.share);
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_norm_backward(Tensor grad_z, Tensor x_in, Tensor mask, Tensor gate_in,
                                                              Tensor mass, std::optional<Tensor> weight, Tensor mean,
                                                              Tensor var, Tensor kept, double eps,
                                                              bool batch_statistics, bool concat) {
  check_gate_norm_backward(grad_z, x_in, mask, gate_in, mass, weight, mean, var, kept, concat, checks::Type::floating);
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
  const SumsPlan pass{N,          C,           S,          a,       static_cast<int>(blocks),
                      B,          view_of(x),  view_of(d), data(x), data(d),
                      data(mask), data(saved), data(sums)};
  const bool halves = x.scalar_type() == ScalarType::BFloat16;
  if (!(halves ? matrix_sums(queue, pass) : scalar_sums(queue, pass, x))) any_sums(queue, pass, x);
  const CombinePlan plan{{N, C, S, a, static_cast<int>(blocks), B, concat, batch_statistics, eps, Numbers(gate),
                          static_cast<const double*>(data(mass))},
                         Numbers(weight),
                         Numbers(mean),
                         Numbers(var),
                         data(saved),
                         data(sums),
                         data(coef),
                         data(gate_grad),
                         data(weight_grad),
                         data(bias_grad)};
  with_members(acc, B, [&](auto type, auto members) {
    launch(combine_kernel<decltype(type), decltype(members)::value>, ceil_div(C, kAlgebraChannels),
           static_cast<int>(blocks), kAlgebraThreads, kAlgebraShared, queue.stream(), plan);
  });
  return {coef, gate_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) {
  m.impl("gate_norm_backward", TORCH_BOX(&gate_norm_backward));
}

}  // namespace axnet::cuda
