// gate_norm between its passes over X: batch statistics of the gated blend from the moments, and what its gradient
// needs from the sums (docs/method.md, "A3 from moments").
//
//   fold     b' = gamma r b, w'_a = gamma r w_a, h' = beta - gamma r mean                r = 1 / sqrt(var + eps)
//   combine  dbeta = sum_n e0;  dgamma = r sum_n (sum_s D Y - mean e0);  k1 = gamma r;
//            k3 = -gamma r^2 dgamma / NS;  k2 = -gamma r dbeta / NS - k3 mean      (running statistics: k2 = k3 = 0)
#include "cuda/algebra.cuh"

namespace axnet::cuda {
namespace {

// The moments of one (image, block, channel): shift, s1, s2 and those of the members.
template <class Acc, int B>
struct Moments {
  const Acc* at;
  int64_t C;
  int A, first;
  Kept<B ? 3 : 0> head;
  Kept<B> sums, squares;
  Kept<pairs(B)> firsts, seconds;

  template <class G>
  __device__ Moments(const FoldPlan& p, const G& gate, int64_t n, int64_t c)
      : at(static_cast<const Acc*>(p.moments) + n * moment_rows(p.gate.A) * p.gate.C + c),
        C(p.gate.C),
        A(p.gate.A),
        first(gate.first) {
    head.load([&](int k) { return at[k * C]; });
    sums.load([&](int a) { return at[(3 + first + a) * C]; });
    squares.load([&](int a) { return at[(3 + A + first + a) * C]; });
#pragma unroll
    for (int a = 0; a < B; ++a)
#pragma unroll
      for (int k = a; k < B; ++k) {
        firsts.at[pair_row(B, a, k)] = at[(3 + 2 * A + gate.pair(a, k)) * C];
        seconds.at[pair_row(B, a, k)] = at[(3 + 2 * A + pairs(A) + gate.pair(a, k)) * C];
      }
  }
  __device__ double operator()(int k) const { return B ? head.at[B ? k : 0] : at[k * C]; }
  __device__ double t(int a) const { return B ? sums.at[B ? a : 0] : at[(3 + first + a) * C]; }
  __device__ double t2(int a) const { return B ? squares.at[B ? a : 0] : at[(3 + A + first + a) * C]; }
  template <class G>
  __device__ double q1(const G& gate, int a, int k) const {
    if constexpr (B > 0) return firsts.at[a < k ? pair_row(B, a, k) : pair_row(B, k, a)];
    return at[(3 + 2 * A + gate.pair(a, k)) * C];
  }
  template <class G>
  __device__ double q2(const G& gate, int a, int k) const {
    if constexpr (B > 0) return seconds.at[a < k ? pair_row(B, a, k) : pair_row(B, k, a)];
    return at[(3 + 2 * A + pairs(A) + gate.pair(a, k)) * C];
  }
};

// sum Y and sum Y^2 of one image; keeps what the backward pass needs.
template <class Acc, int B>
__device__ inline void add_image(const FoldPlan& p, int64_t n, int o, int64_t c, double& sum_y, double& sum_yy) {
  const int64_t C = p.gate.C;
  const double S = static_cast<double>(p.gate.S);
  Gate<B> gate(p.gate, n, o, c);
  gate.load_masses();
  const Moments<Acc, B> m(p, gate, n, c);
  const int members = B ? B : p.gate.members;
  Acc* out = p.saved ? static_cast<Acc*>(p.saved) + (n * p.gate.blocks + o) * saved_rows(members) * C + c : nullptr;
  auto keep = [&](int row, double v) {
    if (out) out[row * C] = static_cast<Acc>(v);
  };
  const double shift = m(0), s1 = m(1), s2 = m(2), b = gate.b;
  double wm = 0, wt = 0, wt2 = 0, wwm = 0, wwq1 = 0, wwq2 = 0;
#pragma unroll
  for (int a = 0; a < members; ++a) {
    const double w = gate.w(a), t_a = m.t(a), t2_a = m.t2(a);
    double inner_m = 0, inner1 = 0, inner2 = 0;
#pragma unroll
    for (int k = 0; k < members; ++k) {
      const double w_k = gate.w(k);
      inner_m += w_k * gate.mass_of(a, k);
      inner1 += w_k * m.q1(gate, a, k);
      inner2 += w_k * m.q2(gate, a, k);
    }
    wm += w * gate.mass_of(a);
    wt += w * t_a;
    wt2 += w * t2_a;
    wwm += w * inner_m;
    wwq1 += w * inner1;
    wwq2 += w * inner2;
    const double q_a = b * t_a + inner1;
    keep(2 + a, t_a);
    keep(3 + members + a, q_a);
    keep(4 + 2 * members + a, shift * q_a + b * t2_a + inner2);
  }
  const double q0 = b * s1 + wt;
  keep(0, shift);
  keep(1, s1);
  keep(2 + members, q0);
  keep(3 + 2 * members, shift * q0 + b * s2 + wt2);
  sum_y += shift * (b * S + wm) + q0;
  sum_yy += shift * shift * (b * b * S + 2 * b * wm + wwm) + 2 * shift * (b * b * s1 + 2 * b * wt + wwq1) +
            (b * b * s2 + 2 * b * wt2 + wwq2);
}

template <class Acc, int B>
__global__ void __launch_bounds__(kAlgebraThreads, 1) fold_kernel(const FoldPlan p) {
  AXNET_SHARED(shared);
  const GateShape& g = p.gate;
  const AlgebraPlace place(g);
  const int members = B ? B : g.members;
  double sum_y = 0, sum_yy = 0;
  if (p.moments && place.inside)
    for (int64_t n = place.n; n < g.N; n += kAlgebraImages)
      add_image<Acc, B>(p, n, place.o, place.c, sum_y, sum_yy);
  if (!p.fold) return;
  double mean = 0, var = 1;
  if (g.batch_statistics) {
    const double total = static_cast<double>(g.S) * static_cast<double>(g.N);
    add_images(sum_y, sum_yy, reinterpret_cast<double*>(shared));
    mean = sum_y / total;
    var = sum_yy / total - mean * mean;
    var = var < 0 ? 0 : var;  // rounding alone
  } else if (place.inside) {
    mean = number(p.given_mean, place.at), var = number(p.given_var, place.at);
  }
  mean = static_cast<Acc>(mean), var = static_cast<Acc>(var);  // the backward pass reads them so
  if (!place.inside) return;
  if (place.n == 0 && p.mean)
    static_cast<Acc*>(p.mean)[place.at] = static_cast<Acc>(mean),
    static_cast<Acc*>(p.var)[place.at] = static_cast<Acc>(var);
  const double scale = (p.weight.at ? number(p.weight, place.at) : 1.0) / sqrt(var + g.eps);
  const double offset = (p.bias.at ? number(p.bias, place.at) : 0.0) - mean * scale;
  for (int64_t n = place.n; n < g.N; n += kAlgebraImages) {
    const Gate<B> gate(g, n, place.o, place.c);
    Acc* out = static_cast<Acc*>(p.fold) + (n * g.blocks + place.o) * fold_rows(members) * g.C + place.c;
    out[0] = static_cast<Acc>(gate.b * scale);
#pragma unroll
    for (int a = 0; a < members; ++a)
      out[(1 + a) * g.C] = static_cast<Acc>(gate.w(a) * scale);
    out[(1 + members) * g.C] = static_cast<Acc>(offset);
  }
}

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

  const double mean = place.inside ? number(p.mean, place.at) : 0.0;
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

  const double r = 1.0 / sqrt(number(p.var, place.at) + g.eps), gamma = p.weight.at ? number(p.weight, place.at) : 1.0;
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

void fold_gate(cudaStream_t stream, const FoldPlan& plan, Type acc) {
  with_members(acc, plan.gate.members, [&](auto type, auto members) {
    launch(fold_kernel<decltype(type), decltype(members)::value>, ceil_div(plan.gate.C, kAlgebraChannels),
           plan.gate.blocks, kAlgebraThreads, kAlgebraShared, stream, plan);
  });
}

void combine(cudaStream_t stream, const CombinePlan& plan, Type acc) {
  with_members(acc, plan.gate.members, [&](auto type, auto members) {
    launch(combine_kernel<decltype(type), decltype(members)::value>, ceil_div(plan.gate.C, kAlgebraChannels),
           plan.gate.blocks, kAlgebraThreads, kAlgebraShared, stream, plan);
  });
}

}  // namespace axnet::cuda
