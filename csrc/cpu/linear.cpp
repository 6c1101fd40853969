// grouped_linear: out[g] = x[g] W[g]^T + bias[g] for a few rows of x; attention_gate: A3's gate from two of them.
#include <cmath>

#include "cpu/common.h"

namespace axnet::cpu {

Tensor grouped_linear(Tensor x_in, Tensor weight_in, Tensor bias_in) {
  check_grouped_linear(x_in, weight_in, bias_in, kLinearRows);
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  const Tensor bias = torch::stable::contiguous(bias_in);
  const int64_t G = x.size(0), N = x.size(1), I = x.size(2), O = weight.size(1);
  Tensor out = empty({G, N, O}, weight.scalar_type());
  const LinearArgs args{type_of(weight), N, I, O, data(x), data(weight), data(bias), data(out), false};
  parallel(N ? G * ceil_div(O, kLinearOutputs) : 0, grain_of(I * kLinearOutputs),
           [&](int64_t begin, int64_t end) { kernels().linear(args, begin, end); });
  return out;
}

namespace {

void run_linear(const LinearArgs& args, int64_t groups) {
  parallel(groups * ceil_div(args.O, kLinearOutputs), grain_of(args.I * kLinearOutputs),
           [&](int64_t begin, int64_t end) { kernels().linear(args, begin, end); });
}

// avg, max, mmax_a, mavg_a of every anatomy: [A, 4, N, C] from descriptors [N, 2+2A, C].
template <class Acc>
void sort_descriptors(const Acc* from, int64_t N, int64_t A, int64_t C, Acc* to) {
  for (int64_t a = 0; a < A; ++a)
    for (const int64_t row : {int64_t{0}, int64_t{1}, 2 + A + a, 2 + a})
      for (int64_t n = 0; n < N; ++n, to += C)
        std::copy_n(from + (n * (2 + 2 * A) + row) * C, C, to);
}

// sum_j LeakyReLU_0.2(hidden_j): [A, 4, size] to [A, size].
template <class Acc>
void sum_hidden(const Acc* hidden, int64_t A, int64_t size, Acc* out) {
  for (int64_t a = 0; a < A; ++a)
    for (int64_t i = 0; i < size; ++i) {
      Acc sum = 0;
      for (int64_t j = 0; j < 4; ++j) {
        const Acc h = hidden[(a * 4 + j) * size + i];
        sum += h > 0 ? h : h * Acc(0.2);
      }
      out[a * size + i] = sum;
    }
}

// sigmoid, and [A, N, C] to [N, A, C].
template <class Acc>
void gates(const Acc* from, int64_t N, int64_t A, int64_t C, Acc* to) {
  for (int64_t n = 0; n < N; ++n)
    for (int64_t a = 0; a < A; ++a, to += C)
      for (int64_t c = 0; c < C; ++c)
        to[c] = Acc(1) / (Acc(1) + std::exp(-from[(a * N + n) * C + c]));
}

template <class Acc>
Tensor gate_of(const Tensor& descriptors, const Tensor& hidden_weight, const Tensor& hidden_bias,
               const Tensor& gate_weight, const Tensor& gate_bias) {
  const int64_t N = descriptors.size(0), A = hidden_weight.size(0), H = hidden_weight.size(2),
                C = hidden_weight.size(3);
  Tensor gate = empty({N, A, C}, descriptors.scalar_type());
  if (gate.numel() == 0) return gate;
  std::vector<Acc> rows(4 * A * N * C), hidden(4 * A * N * H), sums(A * N * H), second(A * N * C);
  const Type type = type_of(hidden_weight);
  sort_descriptors(static_cast<const Acc*>(data(descriptors)), N, A, C, rows.data());
  run_linear({type, N, C, H, rows.data(), data(hidden_weight), data(hidden_bias), hidden.data(), true}, 4 * A);
  sum_hidden(hidden.data(), A, N * H, sums.data());
  run_linear({type, N, H, C, sums.data(), data(gate_weight), data(gate_bias), second.data(), true}, A);
  gates(second.data(), N, A, C, static_cast<Acc*>(data(gate)));
  return gate;
}

}  // namespace

Tensor attention_gate(Tensor descriptors_in, Tensor hidden_weight, Tensor hidden_bias, Tensor gate_weight,
                      Tensor gate_bias) {
  check_attention_gate(descriptors_in, hidden_weight, hidden_bias, gate_weight, gate_bias, kLinearRows);
  const ScalarType acc = accumulator(hidden_weight);  // float64 weights take float64 rows
  const Tensor descriptors = packed(descriptors_in, acc);
  const auto of = acc == ScalarType::Double ? gate_of<double> : gate_of<float>;
  return packed(of(descriptors, hidden_weight, hidden_bias, gate_weight, gate_bias), descriptors_in.scalar_type());
}

STABLE_TORCH_LIBRARY_IMPL(axnet, CPU, m) {
  m.impl("grouped_linear", TORCH_BOX(&grouped_linear));
  m.impl("attention_gate", TORCH_BOX(&attention_gate));
}

}  // namespace axnet::cpu
