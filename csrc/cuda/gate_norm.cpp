// gate_norm and its gradient on CUDA.
#include "checks.h"
#include "cuda/wrap.h"

namespace axnet::cuda {

static GateShape gate_shape(const Tensor& x, const Tensor& gate, const std::optional<Tensor>& mass, bool concat,
                            bool batch_statistics, double eps) {
  const int A = static_cast<int>(gate.size(1));
  return {x.size(0),
          x.size(1),
          x.size(2) * x.size(3),
          A,
          concat ? A : 1,
          concat ? 1 : A,
          concat,
          batch_statistics,
          eps,
          numbers_of(gate),
          static_cast<const double*>(data(mass))};
}

Tensor fold_given(const Queue& queue, const Tensor& x, const Tensor& gate, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var, double eps) {
  const int64_t N = x.size(0), C = x.size(1), A = gate.size(1);
  const int B = static_cast<int>(A);
  Tensor fold = empty({N, 1, fold_rows(B), C}, accumulator(x), device_of(x));
  FoldPlan plan{};
  plan.gate = gate_shape(x, gate, std::nullopt, false, false, eps);
  plan.weight = numbers_of(weight), plan.bias = numbers_of(bias);
  plan.given_mean = numbers_of(mean), plan.given_var = numbers_of(var), plan.fold = data(fold);
  fold_gate(queue.stream(), plan, type_of(accumulator(x)));
  return fold;
}

// The rows that gate_norm saves, from X, mask and gate alone: one more read of X.
static Tensor rows_again(const Queue& queue, const Tensor& x, const Tensor& mask, const Tensor& gate,
                         const Tensor& mass, bool concat) {
  const int64_t N = x.size(0), C = x.size(1), A = mask.size(1), blocks = concat ? A : 1;
  const int B = concat ? 1 : static_cast<int>(A);
  const Tensor moments = std::get<1>(masked_moments(x, mask, true, false, 0));
  Tensor rows = empty({N, blocks, saved_rows(B), C}, accumulator(x), device_of(x));
  FoldPlan plan{};
  plan.gate = gate_shape(x, gate, mass, concat, false, 0);
  plan.moments = data(moments), plan.saved = data(rows);
  fold_gate(queue.stream(), plan, type_of(accumulator(x)));
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
  const Tensor gate = torch::stable::contiguous(gate_in);
  const FoldPlan plan{gate_shape(x, gate, mass, concat, !running_mean, eps),
                      have_moments ? data(moments) : nullptr,
                      numbers_of(weight),
                      numbers_of(bias),
                      numbers_of(running_mean),
                      numbers_of(running_var),
                      data(mean),
                      data(var),
                      data(fold),
                      save ? data(saved) : nullptr};
  fold_gate(queue.stream(), plan, type_of(acc));

  const ApplyPlan p{
      N,       C,       S,          static_cast<int>(A), static_cast<int>(blocks), B, view_of(x), view_of(z),
      data(x), data(z), data(mask), data(fold)};
  apply(queue.stream(), p, type_of(x));
  return {z, mean, var, saved};
}

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
  const Type type = type_of(x);
  const cudaStream_t stream = queue.stream();
  if (!(type == Type::bf16 ? matrix_sums(stream, pass) : scalar_sums(stream, pass, type))) any_sums(stream, pass, type);
  const CombinePlan plan{gate_shape(x, gate, mass, concat, batch_statistics, eps),
                         numbers_of(weight),
                         numbers_of(mean),
                         numbers_of(var),
                         data(saved),
                         data(sums),
                         data(coef),
                         data(gate_grad),
                         data(weight_grad),
                         data(bias_grad)};
  combine(stream, plan, type_of(acc));
  return {coef, gate_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) {
  m.impl("gate_norm", TORCH_BOX(&gate_norm));
  m.impl("gate_norm_backward", TORCH_BOX(&gate_norm_backward));
}

}  // namespace axnet::cuda
