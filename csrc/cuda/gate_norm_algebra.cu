// gate_norm between its passes over X: batch statistics of the gated blend from the moments, and what its gradient
// needs from the sums (docs/method.md, "A3 from moments").
//
//   fold     b' = gamma r b, w'_a = gamma r w_a, h' = beta - gamma r mean                r = 1 / sqrt(var + eps)
//   combine  dbeta = sum_n e0;  dgamma = r sum_n (sum_s D Y - mean e0);  k1 = gamma r;
//            k3 = -gamma r^2 dgamma / NS;  k2 = -gamma r dbeta / NS - k3 mean      (running statistics: k2 = k3 = 0)
#include "cuda/algebra.cuh"

namespace axnet::cuda {
namespace {

// The moments of one image, block and V channels.
template <class Acc, int B>
struct Moments {
  int A, first;
  Column<Acc, B ? moment_rows(B) : 0> rows;

  template <class G>
  __device__ Moments(const FoldPlan& p, const G& gate, int64_t n, int64_t c)
      : A(p.gate.A), first(gate.first), rows(p.moments, n * (moment_rows(A) * p.gate.C), p.gate.C, c, [&](int k) {
          if constexpr (B != 1) return k;  // all anatomies are members
          const int pair = gate.pair(0, 0);
          const int of_one[] = {0, 1, 2, 3 + first, 3 + A + first, 3 + 2 * A + pair, 3 + 2 * A + pairs(A) + pair};
          return of_one[k];
        }) {}
  __device__ double operator()(int k, int j) const { return rows(k, j); }
  __device__ double t(int a, int j) const { return rows(3 + a, 3 + first + a, j); }
  __device__ double t2(int a, int j) const { return rows(3 + B + a, 3 + A + first + a, j); }
  template <class G>
  __device__ double q1(const G& gate, int a, int k, int j) const {
    return rows(3 + 2 * B + own_pair(a, k), 3 + 2 * A + gate.pair(a, k), j);
  }
  template <class G>
  __device__ double q2(const G& gate, int a, int k, int j) const {
    return rows(3 + 2 * B + pairs(B) + own_pair(a, k), 3 + 2 * A + pairs(A) + gate.pair(a, k), j);
  }

 private:
  __device__ static int own_pair(int a, int k) { return a < k ? pair_row(B, a, k) : pair_row(B, k, a); }
};

// Adds sum Y and sum Y^2 of one image; keeps what the backward pass needs.
template <class Acc, int B>
__device__ inline void add_image(const FoldPlan& p, int64_t n, int o, int64_t c, double (&sum_y)[Algebra<B>::V],
                                 double (&sum_yy)[Algebra<B>::V]) {
  const double S = static_cast<double>(p.gate.S);
  const int members = B ? B : p.gate.members;
  Gate<B> gate(p.gate, n, o, c);
  gate.load_masses();
  const Moments<Acc, B> m(p, gate, n, c);
  const int rows = saved_rows(members);
  Written<Acc, B ? saved_rows(B) : 0> saved(p.saved, (n * p.gate.blocks + o) * rows * p.gate.C, p.gate.C, c);
#pragma unroll
  for (int j = 0; j < Algebra<B>::V; ++j) {
    const double shift = m(0, j), s1 = m(1, j), s2 = m(2, j), b = gate.b[j];
    double wm = 0, wt = 0, wt2 = 0, wwm = 0, wwq1 = 0, wwq2 = 0;
#pragma unroll
    for (int a = 0; a < members; ++a) {
      const double w = gate.w(a, j), t_a = m.t(a, j), t2_a = m.t2(a, j);
      double inner_m = 0, inner1 = 0, inner2 = 0;
#pragma unroll
      for (int k = 0; k < members; ++k) {
        const double w_k = gate.w(k, j);
        inner_m += w_k * gate.mass_of(a, k);
        inner1 += w_k * m.q1(gate, a, k, j);
        inner2 += w_k * m.q2(gate, a, k, j);
      }
      wm += w * gate.mass_of(a);
      wt += w * t_a;
      wt2 += w * t2_a;
      wwm += w * inner_m;
      wwq1 += w * inner1;
      wwq2 += w * inner2;
      const double q_a = b * t_a + inner1;
      saved.put(2 + a, j, t_a);
      saved.put(3 + members + a, j, q_a);
      saved.put(4 + 2 * members + a, j, shift * q_a + b * t2_a + inner2);
    }
    const double q0 = b * s1 + wt;
    saved.put(0, j, shift);
    saved.put(1, j, s1);
    saved.put(2 + members, j, q0);
    saved.put(3 + 2 * members, j, shift * q0 + b * s2 + wt2);
    sum_y[j] += shift * (b * S + wm) + q0;
    sum_yy[j] += shift * shift * (b * b * S + 2 * b * wm + wwm) + 2 * shift * (b * b * s1 + 2 * b * wt + wwq1) +
                 (b * b * s2 + 2 * b * wt2 + wwq2);
  }
  saved.store();
}

template <class Acc, int B>
__global__ void __launch_bounds__(Algebra<B>::threads, 1) fold_kernel(const FoldPlan p) {
  constexpr int V = Algebra<B>::V;
  AXNET_SHARED(shared);
  const ChannelNumbers<B> numbers{reinterpret_cast<double*>(shared)};
  const GateShape& g = p.gate;
  const AlgebraPlace<B> place(g);
  const ChannelOfBlock own(g);
  const EarlyNumber weight(p.weight, own.at, own.inside), bias(p.bias, own.at, own.inside),
      given_mean(p.given_mean, own.at, own.inside), given_var(p.given_var, own.at, own.inside);
  const int members = B ? B : g.members;
  double sum_y[V] = {}, sum_yy[V] = {};
  if (p.moments && place.inside)
    for (int64_t n = place.n; n < g.N; n += place.images)
      add_image<Acc, B>(p, n, place.o, place.c, sum_y, sum_yy);
  if (!p.fold) return;
  double mean = 0, var = 0;
  if (g.batch_statistics) numbers.add(sum_y, sum_yy, mean, var);
  if (own.inside) {
    if (g.batch_statistics) {
      const double total = static_cast<double>(g.S) * static_cast<double>(g.N);
      mean /= total;
      var = var / total - mean * mean;
      var = var < 0 ? 0 : var;  // rounding alone
    } else {
      mean = given_mean(), var = given_var();
    }
    mean = static_cast<Acc>(mean), var = static_cast<Acc>(var);  // the backward pass reads them so
    if (p.mean)
      static_cast<Acc*>(p.mean)[own.at] = static_cast<Acc>(mean),
      static_cast<Acc*>(p.var)[own.at] = static_cast<Acc>(var);
    const double scale = (p.weight.at ? weight() : 1.0) / sqrt(var + g.eps);
    numbers.put(0, scale);
    numbers.put(1, (p.bias.at ? bias() : 0.0) - mean * scale);
  }
  __syncthreads();
  if (!place.inside) return;
  const int rows = fold_rows(members);
  for (int64_t n = place.n; n < g.N; n += place.images) {
    const Gate<B> gate(g, n, place.o, place.c);
    Written<Acc, B ? fold_rows(B) : 0> out(p.fold, (n * g.blocks + place.o) * rows * g.C, g.C, place.c);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const double scale = numbers(0, j);
      out.put(0, j, gate.b[j] * scale);
#pragma unroll
      for (int a = 0; a < members; ++a)
        out.put(1 + a, j, gate.w(a, j) * scale);
      out.put(1 + members, j, numbers(1, j));
    }
    out.store();
  }
}

template <class Acc, int M>
__global__ void __launch_bounds__(Algebra<M>::threads, 1) combine_kernel(const CombinePlan p) {
  constexpr int V = Algebra<M>::V;
  AXNET_SHARED(shared);
  const ChannelNumbers<M> numbers{reinterpret_cast<double*>(shared)};
  const GateShape& g = p.gate;
  const AlgebraPlace<M> place(g);
  const ChannelOfBlock own(g);
  const EarlyNumber weight(p.weight, own.at, own.inside), given_mean(p.mean, own.at, own.inside),
      given_var(p.var, own.at, own.inside);
  const int o = place.o, B = M ? M : g.members;
  const int64_t C = g.C, c = place.c;
  auto before = [&](int64_t n, int rows) { return (n * g.blocks + o) * rows * C; };
  using Sums = Column<Acc, M ? sum_rows(M) : 0>;
  using Saved = Column<Acc, M ? saved_rows(M) : 0>;

  double products[V] = {}, plain[V] = {};  // sums of D Y, of D
  if (place.inside)
    for (int64_t n = place.n; n < g.N; n += place.images) {
      const Sums e(p.sums, before(n, sum_rows(B)), C, c);
      const Column<Acc, M ? 1 : 0> shift(p.saved, before(n, saved_rows(B)), C, c);
      const Gate<M> gate(g, n, o, c);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        double far = gate.b[j] * e(0, j), near = gate.b[j] * e(1, j);
#pragma unroll
        for (int a = 0; a < B; ++a) {
          far += gate.w(a, j) * e(2 + a, j);
          near += gate.w(a, j) * e(2 + B + a, j);
        }
        products[j] += shift(0, j) * far + near;
        plain[j] += e(0, j);
      }
    }
  double dgamma, dbeta;
  numbers.add(products, plain, dgamma, dbeta);
  const double S = static_cast<double>(g.S);
  if (own.inside) {
    const double mean = given_mean(), total = S * static_cast<double>(g.N);
    const double r = 1.0 / sqrt(given_var() + g.eps);
    const double k1 = (p.weight.at ? weight() : 1.0) * r;
    dgamma = r * (dgamma - mean * dbeta);
    static_cast<Acc*>(p.weight_grad)[own.at] = static_cast<Acc>(dgamma);
    static_cast<Acc*>(p.bias_grad)[own.at] = static_cast<Acc>(dbeta);
    const double k3 = g.batch_statistics ? -k1 * r * dgamma / total : 0.0;
    numbers.put(0, k1);
    numbers.put(1, g.batch_statistics ? -k1 * dbeta / total - k3 * mean : 0.0);
    numbers.put(2, k3);
  }
  __syncthreads();
  if (!place.inside) return;
  for (int64_t n = place.n; n < g.N; n += place.images) {
    const Sums e(p.sums, before(n, sum_rows(B)), C, c);
    const Saved kept(p.saved, before(n, saved_rows(B)), C, c);
    Gate<M> gate(g, n, o, c);
    gate.load_masses();
    Written<Acc, M ? coef_rows(M) : 0> out(p.coef, before(n, coef_rows(B)), C, c);
    Written<Acc, M> gate_grad(p.gate_grad, (n * g.A + gate.first) * C, C, c);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const double k1 = numbers(0, j), k2 = numbers(1, j), k3 = numbers(2, j), b = gate.b[j], shift = kept(0, j);
      double sum_g = b * S;
#pragma unroll
      for (int a = 0; a < B; ++a)
        sum_g += gate.w(a, j) * gate.mass_of(a);
      const double sum_dy = k1 * e(0, j) + k2 * S + k3 * (shift * sum_g + kept(2 + B, j));
      const double db = shift * sum_dy + k1 * e(1, j) + k2 * kept(1, j) + k3 * kept(3 + 2 * B, j);
      out.put(0, j, k1), out.put(1, j, k2), out.put(2, j, k3), out.put(3, j, b);
#pragma unroll
      for (int a = 0; a < B; ++a) {
        out.put(4 + a, j, gate.w(a, j));
        double sum_gm = b * gate.mass_of(a);
#pragma unroll
        for (int k = 0; k < B; ++k)
          sum_gm += gate.w(k, j) * gate.mass_of(a, k);
        const double sum_dym = k1 * e(2 + a, j) + k2 * gate.mass_of(a) + k3 * (shift * sum_gm + kept(3 + B + a, j));
        const double dw = shift * sum_dym + k1 * e(2 + B + a, j) + k2 * kept(2 + a, j) + k3 * kept(4 + 2 * B + a, j);
        gate_grad.put(a, j, (dw - db) * gate.share);
      }
    }
    out.store();
    gate_grad.store();
  }
}

template <int B, class Plan>
void launch_algebra(void (*kernel)(Plan), cudaStream_t stream, const Plan& plan) {
  const int threads = Algebra<B>::launched(plan.gate.N);
  launch(kernel, ceil_div(plan.gate.C, kAlgebraChannels), plan.gate.blocks, threads, Algebra<B>::shared_bytes(threads),
         stream, plan);
}

}  // namespace

void fold_gate(cudaStream_t stream, const FoldPlan& plan, Type acc) {
  with_members(acc, plan.gate, {plan.moments, plan.fold, plan.saved}, [&](auto type, auto members) {
    launch_algebra<decltype(members)::value>(fold_kernel<decltype(type), decltype(members)::value>, stream, plan);
  });
}

void combine(cudaStream_t stream, const CombinePlan& plan, Type acc) {
  with_members(acc, plan.gate, {plan.saved, plan.sums, plan.coef, plan.gate_grad}, [&](auto type, auto members) {
    launch_algebra<decltype(members)::value>(combine_kernel<decltype(type), decltype(members)::value>, stream, plan);
  });
}

}  // namespace axnet::cuda
