// grouped_linear: out[g] = x[g] W[g]^T + bias[g] for a few rows of x.
#include "cpu/common.h"

namespace axnet::cpu {

Tensor grouped_linear(Tensor x_in, Tensor weight_in, Tensor bias_in) {
  check_grouped_linear(x_in, weight_in, bias_in, kLinearRows);
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  const Tensor bias = torch::stable::contiguous(bias_in);
  const int64_t G = x.size(0), N = x.size(1), I = x.size(2), O = weight.size(1);
  Tensor out = empty({G, N, O}, weight.scalar_type());
  const LinearArgs args{type_of(weight), N, I, O, data(x), data(weight), data(bias), data(out)};
  parallel(N ? G * ceil_div(O, kLinearOutputs) : 0, grain_of(I * kLinearOutputs),
           [&](int64_t begin, int64_t end) { kernels().linear(args, begin, end); });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(axnet, CPU, m) { m.impl("grouped_linear", TORCH_BOX(&grouped_linear)); }

}  // namespace axnet::cpu
