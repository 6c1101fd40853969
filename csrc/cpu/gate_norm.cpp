// gate_norm: batch statistics of the gated blend from the moments, then Z in one read and one write; its backward reads
// D and X once and leaves the coefficients of dX to masked_moments_backward. Where the forward pass saved no rows, X is
// read once more for its moments.
#include "cpu/common.h"

namespace axnet::cpu {

namespace {

// The rows that gate_norm saves, from X, mask and gate alone.
Tensor rows_again(const Tensor& x, const Tensor& mask, const Tensor& gate, const Tensor& mass, bool concat) {
  const int64_t N = x.size(0), C = x.size(1), A = mask.size(1), blocks = concat ? A : 1;
  const int B = concat ? 1 : static_cast<int>(A);
  const Tensor moments = std::get<1>(masked_moments(x, mask, true, false, 0));
  const ScalarType acc = accumulator(x);
  Tensor rows = empty({N, blocks, saved_rows(B), C}, acc);
  GateArgs args{};
  args.type = type_of(acc);
  args.N = N, args.C = C, args.S = x.size(2) * x.size(3), args.A = static_cast<int>(A);
  args.concat = concat, args.gate = data(gate), args.moments = data(moments);
  args.mass = static_cast<const double*>(mass.data_ptr());
  args.saved = data(rows);
  parallel(ceil_div(C, kGateChannels), grain_of(N * kGateChannels * 8),
           [&](int64_t begin, int64_t end) { kernels().gate_forward(args, begin, end); });
  return rows;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_norm(Tensor x_in, Tensor mask, Tensor gate_in,
                                                     std::optional<Tensor> moments, Tensor mass,
                                                     std::optional<Tensor> weight, std::optional<Tensor> bias,
                                                     std::optional<Tensor> running_mean,
                                                     std::optional<Tensor> running_var, double eps, bool concat,
                                                     bool save, Tensor link, Tensor coef_link) {
  check_gate_norm(x_in, mask, gate_in, moments, mass, weight, bias, running_mean, running_var, concat, save, link,
                  coef_link, checks::Type::floating);
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const int64_t blocks = concat ? A : 1;
  const int B = concat ? 1 : static_cast<int>(A);
  const ScalarType acc = accumulator(x);
  const bool last = is_channels_last(x);
  Tensor z = empty_features(N, blocks * C, H, W, last, x.scalar_type());
  Tensor mean = empty({blocks * C}, acc), var = empty({blocks * C}, acc);
  Tensor saved = empty({save ? N : 0, blocks, saved_rows(B), C}, acc);
  Tensor fold = empty({N, blocks, fold_rows(B), C}, acc);
  if (running_mean) {
    mean = packed(*running_mean, acc, true);
    var = packed(*running_var, acc, true);
  }
  if (N * C == 0) {
    if (!running_mean) {
      torch::stable::zero_(mean);
      torch::stable::zero_(var);
    }
    return {z, mean, var, saved};
  }
  const Tensor gate = packed(gate_in, acc);
  const std::optional<Tensor> scale = packed(weight, acc), offset = packed(bias, acc);
  GateArgs args{};
  args.type = type_of(acc);
  args.N = N, args.C = C, args.S = S, args.A = static_cast<int>(A);
  args.concat = concat, args.batch_statistics = !running_mean, args.eps = eps;
  args.gate = data(gate);
  args.moments = moments && moments->size(0) ? data(moments) : nullptr;
  args.mass = static_cast<const double*>(mass.data_ptr());
  args.weight = data(scale), args.bias = data(offset), args.mean = data(mean), args.var = data(var);
  args.fold = data(fold), args.saved = save ? data(saved) : nullptr;
  parallel(ceil_div(C, kGateChannels), grain_of(N * kGateChannels * 8),
           [&](int64_t begin, int64_t end) { kernels().gate_forward(args, begin, end); });

  const char* z_data = static_cast<const char*>(z.data_ptr());
  for (int64_t o = 0; o < blocks; ++o) {
    ApplyArgs a{};
    a.type = type_of(x);
    a.N = N, a.C = C, a.S = S, a.B = B;
    a.x = view_of(x), a.z = view_of(z);
    a.x_data = data(x);
    const int64_t skip = o * C * (last || S == 1 ? 1 : S) * static_cast<int64_t>(x.element_size());
    a.z_data = const_cast<char*>(z_data + skip);
    const int64_t acc_bytes = acc == ScalarType::Double ? 8 : 4;
    a.mask = static_cast<const char*>(data(mask)) + o * S * acc_bytes;
    a.mask_stride = A * S;
    a.fold = static_cast<const char*>(data(fold)) + o * fold_rows(B) * C * acc_bytes;
    a.fold_stride = blocks * fold_rows(B) * C;
    a.stream = stream_output(z.numel() * static_cast<int64_t>(z.element_size()));
    const bool by_channels = a.x.channels_last;
    parallel(by_channels ? N * ceil_div(S, kPixelGroup) : N * C, grain_of(by_channels ? C * kPixelGroup : S),
             [&](int64_t begin, int64_t end) { kernels().apply(a, begin, end); });
  }
  return {z, mean, var, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_norm_backward(Tensor grad_z, Tensor x_in, Tensor mask, Tensor gate_in,
                                                              Tensor mass, std::optional<Tensor> weight, Tensor mean,
                                                              Tensor var, Tensor kept, double eps,
                                                              bool batch_statistics, bool concat) {
  check_gate_norm_backward(grad_z, x_in, mask, gate_in, mass, weight, mean, var, kept, concat, checks::Type::floating);
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), S = x.size(2) * x.size(3), A = mask.size(1);
  const int64_t blocks = concat ? A : 1;
  const int B = concat ? 1 : static_cast<int>(A);
  const ScalarType acc = accumulator(x);
  Tensor coef = empty({N, blocks, coef_rows(B), C}, acc), gate_grad = empty({N, A, C}, acc);
  Tensor weight_grad = empty({blocks * C}, acc), bias_grad = empty({blocks * C}, acc);
  if (N * C == 0) {
    torch::stable::zero_(weight_grad);
    torch::stable::zero_(bias_grad);
    return {coef, gate_grad, weight_grad, bias_grad};
  }
  const bool last = is_channels_last(x);
  const Tensor d = walkable(grad_z, last), gate = packed(gate_in, acc);
  const std::optional<Tensor> scale = packed(weight, acc);
  const Tensor saved = kept.size(0) ? kept : rows_again(x, mask, gate, mass, concat);
  Tensor sums = empty({N, blocks, sum_rows(B), C}, acc);
  const int64_t acc_bytes = acc == ScalarType::Double ? 8 : 4;
  for (int64_t o = 0; o < blocks; ++o) {
    ReduceArgs a{};
    a.type = type_of(x);
    a.N = N, a.C = C, a.S = S, a.B = B;
    a.x = view_of(x), a.d = view_of(d), a.block = has_own_code(a.type, B) ? channel_block(N, C) : kChannelBlock;
    a.x_data = data(x);
    a.d_data = static_cast<const char*>(data(d)) + o * C * a.d.c * static_cast<int64_t>(d.element_size());
    a.mask = static_cast<const char*>(data(mask)) + o * S * acc_bytes;
    a.mask_stride = A * S;
    a.shift = static_cast<const char*>(data(saved)) + o * saved_rows(B) * C * acc_bytes;
    a.shift_stride = blocks * saved_rows(B) * C;
    a.sums = static_cast<char*>(data(sums)) + o * sum_rows(B) * C * acc_bytes;
    a.sums_stride = blocks * sum_rows(B) * C;
    const bool by_channels = a.x.channels_last;
    parallel(by_channels ? N * ceil_div(C, a.block) : N * C, grain_of(by_channels ? S * a.block : S),
             [&](int64_t begin, int64_t end) { kernels().reduce(a, begin, end); });
  }
  GateBackwardArgs args{};
  args.type = type_of(acc);
  args.N = N, args.C = C, args.S = S, args.A = static_cast<int>(A);
  args.concat = concat, args.batch_statistics = batch_statistics, args.eps = eps;
  args.gate = data(gate), args.mass = static_cast<const double*>(mass.data_ptr());
  args.weight = data(scale), args.mean = data(mean), args.var = data(var), args.saved = data(saved);
  args.sums = data(sums), args.coef = data(coef), args.gate_grad = data(gate_grad);
  args.weight_grad = data(weight_grad), args.bias_grad = data(bias_grad);
  parallel(ceil_div(C, kGateChannels), grain_of(N * kGateChannels * 8),
           [&](int64_t begin, int64_t end) { kernels().gate_backward(args, begin, end); });
  return {coef, gate_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, CPU, m) {
  m.impl("gate_norm", TORCH_BOX(&gate_norm));
  m.impl("gate_norm_backward", TORCH_BOX(&gate_norm_backward));
}

}  // namespace axnet::cpu
