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
  const void* moments;            // acc [N, moment_rows(A), C]; null is accepted without batch statistics and saved
  Numbers weight, bias;           // [blocks*C] or none
  Numbers given_mean, given_var;  // [blocks*C]; without batch statistics
  void *mean, *var;               // acc [blocks*C]; biased; or null
  void* fold;                     // acc [N, blocks, fold_rows(members), C]; or null: only `saved` is wanted
  void* saved;                    // acc [N, blocks, saved_rows(members), C] or null
};

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
    mean = p.given_mean(place.at), var = p.given_var(place.at);
  }
  mean = static_cast<Acc>(mean), var = static_cast<Acc>(var);  // the backward pass reads them so
  if (!place.inside) return;
  if (place.n == 0 && p.mean)
    static_cast<Acc*>(p.mean)[place.at] = static_cast<Acc>(mean),
    static_cast<Acc*>(p.var)[place.at] = static_cast<Acc>(var);
  const double scale = (p.weight.at ? p.weight(place.at) : 1.0) / sqrt(var + g.eps);
  const double offset = (p.bias.at ? p.bias(place.at) : 0.0) - mean * scale;
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

void launch_fold(const FoldPlan& plan, ScalarType acc, cudaStream_t stream) {
  with_members(acc, plan.gate.members, [&](auto type, auto members) {
    launch(fold_kernel<decltype(type), decltype(members)::value>, ceil_div(plan.gate.C, kAlgebraChannels),
           plan.gate.blocks, kAlgebraThreads, kAlgebraShared, stream, plan);
  });
}

}  // namespace

Tensor fold_given(const Queue& queue, const Tensor& x, const Tensor& gate, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var, double eps) {
  const int64_t N = x.size(0), C = x.size(1), A = gate.size(1);
  const int B = static_cast<int>(A);
  Tensor fold = empty({N, 1, fold_rows(B), C}, accumulator(x), device_of(x));
  FoldPlan plan{};
  plan.gate = {N, C, x.size(2) * x.size(3), B, 1, B, false, false, eps, Numbers(gate), nullptr};
  plan.weight = Numbers(weight), plan.bias = Numbers(bias);
  plan.given_mean = Numbers(mean), plan.given_var = Numbers(var), plan.fold = data(fold);
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
      N, C, S, a, static_cast<int>(blocks), B, concat, false, 0, Numbers(gate), static_cast<const double*>(data(mass))};
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
                  coef_link, checks::Type::floating);
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
                       Numbers(gate), static_cast<const double*>(data(mass))},
                      have_moments ? data(moments) : nullptr,
                      Numbers(weight),
                      Numbers(bias),
                      Numbers(running_mean),
                      Numbers(running_var),
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
