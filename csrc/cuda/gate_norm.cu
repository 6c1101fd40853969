// gate_norm: batch statistics of the gated blend from the moments, then Z in one read of X and one write.
//
//   fold   b' = gamma r b, w'_a = gamma r w_a, h' = beta - gamma r mean                r = 1 / sqrt(var + eps)
//   apply  Z = X (b' + sum_a w'_a m_a) + h'
#include "checks.h"
#include "cuda/algebra.cuh"
#include "cuda/apply.cuh"

namespace axnet::cuda {
namespace {

struct FoldPlan {
  GateShape gate;
  const void* moments;        // acc [N, moment_rows(A), C]; null is accepted without batch statistics and saved
  const void *weight, *bias;  // acc [blocks*C] or null
  const void *given_mean, *given_var;  // acc [blocks*C]; without batch statistics
  void *mean, *var;                    // acc [blocks*C]; biased; or null
  void* fold;                          // acc [N, blocks, fold_rows(members), C]; or null: only `saved` is wanted
  void* saved;                         // acc [N, blocks, saved_rows(members), C] or null
};

// sum Y and sum Y^2 of one image; keeps what the backward pass needs.
template <class Acc>
__device__ inline void add_image(const FoldPlan& p, int64_t n, int o, int64_t c, double& sum_y, double& sum_yy) {
  const int64_t C = p.gate.C;
  const int A = p.gate.A, B = p.gate.members;
  const double S = static_cast<double>(p.gate.S);
  const Gate<Acc> gate(p.gate, n, o, c);
  const Acc* m = static_cast<const Acc*>(p.moments) + n * moment_rows(A) * C + c;
  Acc* out = p.saved ? static_cast<Acc*>(p.saved) + (n * p.gate.blocks + o) * saved_rows(B) * C + c : nullptr;
  auto keep = [&](int row, double v) {
    if (out) out[row * C] = static_cast<Acc>(v);
  };
  const double shift = m[0], s1 = m[C], s2 = m[2 * C], b = gate.b;
  const Acc *t = m + (3 + gate.first) * C, *t2 = t + A * C;
  const Acc *q1 = m + (3 + 2 * A) * C, *q2 = q1 + pairs(A) * C;
  double wm = 0, wt = 0, wt2 = 0, wwm = 0, wwq1 = 0, wwq2 = 0;
  for (int a = 0; a < B; ++a) {
    const double w = gate.w(a), t_a = t[a * C], t2_a = t2[a * C];
    double inner_m = 0, inner1 = 0, inner2 = 0;
    for (int k = 0; k < B; ++k) {
      const double w_k = gate.w(k);
      const int64_t row = gate.pair(a, k) * C;
      inner_m += w_k * gate.mass_of(a, k);
      inner1 += w_k * q1[row];
      inner2 += w_k * q2[row];
    }
    wm += w * gate.mass_of(a);
    wt += w * t_a;
    wt2 += w * t2_a;
    wwm += w * inner_m;
    wwq1 += w * inner1;
    wwq2 += w * inner2;
    const double q_a = b * t_a + inner1;
    keep(2 + a, t_a);
    keep(3 + B + a, q_a);
    keep(4 + 2 * B + a, shift * q_a + b * t2_a + inner2);
  }
  const double q0 = b * s1 + wt;
  keep(0, shift);
  keep(1, s1);
  keep(2 + B, q0);
  keep(3 + 2 * B, shift * q0 + b * s2 + wt2);
  sum_y += shift * (b * S + wm) + q0;
  sum_yy += shift * shift * (b * b * S + 2 * b * wm + wwm) + 2 * shift * (b * b * s1 + 2 * b * wt + wwq1) +
            (b * b * s2 + 2 * b * wt2 + wwq2);
}

template <class Acc>
__global__ void __launch_bounds__(kThreads, 1) fold_kernel(const FoldPlan p) {
  AXNET_SHARED(shared);
  double* parts = reinterpret_cast<double*>(shared);  // [8, 32]
  const GateShape& g = p.gate;
  const int warp = threadIdx.x / kWarp, o = static_cast<int>(blockIdx.y);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x % kWarp, C = g.C, at = o * C + c;
  const bool inside = c < C;
  double sum_y = 0, sum_yy = 0;
  if (p.moments && inside)
    for (int64_t n = warp; n < g.N; n += kWarps)
      add_image<Acc>(p, n, o, c, sum_y, sum_yy);
  if (!p.fold) return;
  double mean, var;
  if (g.batch_statistics) {
    const double total = static_cast<double>(g.S) * static_cast<double>(g.N);
    mean = sum_over_warps(sum_y, parts) / total;
    var = sum_over_warps(sum_yy, parts) / total - mean * mean;
    var = var < 0 ? 0 : var;                                     // rounding alone
    mean = static_cast<Acc>(mean), var = static_cast<Acc>(var);  // the backward pass reads them so
  } else if (inside) {
    mean = static_cast<const Acc*>(p.given_mean)[at], var = static_cast<const Acc*>(p.given_var)[at];
  }
  if (!inside) return;
  if (warp == 0 && p.mean)
    static_cast<Acc*>(p.mean)[at] = static_cast<Acc>(mean), static_cast<Acc*>(p.var)[at] = static_cast<Acc>(var);
  const double scale =
      (p.weight ? static_cast<double>(static_cast<const Acc*>(p.weight)[at]) : 1.0) / sqrt(var + g.eps);
  const double offset = (p.bias ? static_cast<double>(static_cast<const Acc*>(p.bias)[at]) : 0.0) - mean * scale;
  for (int64_t n = warp; n < g.N; n += kWarps) {
    const Gate<Acc> gate(g, n, o, c);
    Acc* out = static_cast<Acc*>(p.fold) + (n * g.blocks + o) * fold_rows(g.members) * C + c;
    out[0] = static_cast<Acc>(gate.b * scale);
    for (int a = 0; a < g.members; ++a)
      out[(1 + a) * C] = static_cast<Acc>(gate.w(a) * scale);
    out[(1 + g.members) * C] = static_cast<Acc>(offset);
  }
}

void launch_fold(const FoldPlan& plan, ScalarType acc, cudaStream_t stream) {
  launch(acc == ScalarType::Double ? fold_kernel<double> : fold_kernel<float>, ceil_div(plan.gate.C, kWarp),
         plan.gate.blocks, kThreads, kThreads * sizeof(double), stream, plan);
}

}  // namespace

Tensor fold_given(const Queue& queue, const Tensor& x, const Tensor& gate, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var, double eps) {
  const int64_t N = x.size(0), C = x.size(1), A = gate.size(1);
  const int B = static_cast<int>(A);
  Tensor fold = empty({N, 1, fold_rows(B), C}, accumulator(x), device_of(x));
  FoldPlan plan{};
  plan.gate = {N, C, x.size(2) * x.size(3), B, 1, B, false, false, eps, data(gate), nullptr};
  plan.weight = data(weight), plan.bias = data(bias);
  plan.given_mean = data(mean), plan.given_var = data(var), plan.fold = data(fold);
  launch_fold(plan, accumulator(x), queue.stream());
  return fold;
}

Tensor rows_again(const Queue& queue, const Tensor& x, const Tensor& mask, const Tensor& gate, const Tensor& mass,
                  bool concat) {
  const int64_t N = x.size(0), C = x.size(1), S = x.size(2) * x.size(3), A = mask.size(1), blocks = concat ? A : 1;
  const int a = static_cast<int>(A), B = concat ? 1 : a;
  const Tensor moments = std::get<1>(masked_moments(x, mask, true, false, 0));
  Tensor rows = empty({N, blocks, saved_rows(B), C}, accumulator(x), device_of(x));
  FoldPlan plan{};
  plan.gate = {
      N, C, S, a, static_cast<int>(blocks), B, concat, false, 0, data(gate), static_cast<const double*>(data(mass))};
  plan.moments = data(moments), plan.saved = data(rows);
  launch_fold(plan, accumulator(x), queue.stream());
  return rows;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_norm(Tensor x_in, Tensor mask, Tensor gate_in,
                                                     std::optional<Tensor> moments, Tensor mass,
                                                     std::optional<Tensor> weight, std::optional<Tensor> bias,
                                                     std::optional<Tensor> running_mean,
                                                     std::optional<Tensor> running_var, double eps, bool concat,
                                                     bool save, Tensor link, Tensor coef_link) {
  check_gate_norm(x_in, mask, gate_in, moments, mass, weight, bias, running_mean, running_var, concat, save, link,
                  coef_link);
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const int64_t blocks = concat ? A : 1;
  const int B = concat ? 1 : static_cast<int>(A);
  const ScalarType acc = accumulator(x);
  Tensor z = empty_features(N, blocks * C, H, W, is_channels_last(x), x.scalar_type(), device);
  Tensor mean = empty({blocks * C}, acc, device), var = empty({blocks * C}, acc, device);
  Tensor saved = empty({save ? N : 0, blocks, saved_rows(B), C}, acc, device);
  Tensor fold = empty({N, blocks, fold_rows(B), C}, acc, device);
  if (N * C == 0) {
    running_mean ? torch::stable::copy_(mean, *running_mean) : torch::stable::zero_(mean);
    running_var ? torch::stable::copy_(var, *running_var) : torch::stable::zero_(var);
    return {z, mean, var, saved};
  }
  const bool have_moments = moments && moments->size(0);
  STD_TORCH_CHECK(have_moments || !(!running_mean || save), "gate_norm: moments are needed for batch statistics");

  const Tensor gate = torch::stable::contiguous(gate_in);
  const FoldPlan plan{{N, C, S, static_cast<int>(A), static_cast<int>(blocks), B, concat, !running_mean, eps,
                       data(gate), static_cast<const double*>(data(mass))},
                      have_moments ? data(moments) : nullptr,
                      data(weight),
                      data(bias),
                      data(running_mean),
                      data(running_var),
                      data(mean),
                      data(var),
                      data(fold),
                      save ? data(saved) : nullptr};
  launch_fold(plan, acc, queue.stream());

  const ApplyPlan p{
      N,       C,       S,          static_cast<int>(A), static_cast<int>(blocks), B, view_of(x), view_of(z),
      data(x), data(z), data(mask), data(fold)};
  apply(queue, p, x);
  return {z, mean, var, saved};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) { m.impl("gate_norm", TORCH_BOX(&gate_norm)); }

}  // namespace axnet::cuda
