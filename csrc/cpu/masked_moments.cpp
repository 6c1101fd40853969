// masked_moments: descriptors, moments and positions of the maxima in one read; its backward writes dX of the whole
// attention block, because the gradient of the gated, normalised map arrives here through `link` (docs/method.md).
#include "cpu/common.h"

namespace axnet::cpu {

// sum_s m_a and sum_s m_a m_b, in double: [N, A + pairs(A)]
template <class Acc>
double product_sum(const Acc* a, const Acc* b, int64_t S) {  // b null: sum of a; eight chains hide the adder's latency
  double part[8] = {};
  int64_t s = 0;
  for (; s + 8 <= S; s += 8)
    for (int i = 0; i < 8; ++i)
      part[i] += b ? static_cast<double>(a[s + i]) * b[s + i] : a[s + i];
  for (; s < S; ++s)
    part[s % 8] += b ? static_cast<double>(a[s]) * b[s] : a[s];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

template <class Acc>
void mask_mass(const Acc* mask, int64_t N, int64_t A, int64_t S, double* out) {
  for (int64_t n = 0; n < N; ++n) {
    const Acc* m = mask + n * A * S;
    double* row = out + n * mass_rows(static_cast<int>(A));
    int64_t ab = A;
    for (int64_t a = 0; a < A; ++a) {
      row[a] = product_sum<Acc>(m + a * S, nullptr, S);
      for (int64_t b = a; b < A; ++b, ++ab)
        row[ab] = product_sum(m + a * S, m + b * S, S);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_moments(Tensor x_in, Tensor mask, bool second,
                                                                          bool positions, int64_t blocks) {
  check_masked_moments(x_in, mask, blocks);
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const int a = static_cast<int>(A), B = blocks > 1 ? 1 : a;
  const ScalarType acc = accumulator(x);
  Tensor descriptors = empty({N, descriptor_rows(a), C}, acc);
  Tensor moments = empty({second ? N : 0, moment_rows(a), C}, acc);
  Tensor argmax = empty({positions ? N : 0, 1 + A, C}, ScalarType::Int);
  Tensor mass = empty({N, mass_rows(a)}, ScalarType::Double);
  Tensor link = blocks ? zero_strided({N, blocks * C, H, W}, x.scalar_type()) : empty({0}, x.scalar_type());
  Tensor coef_link = blocks ? zero_strided({N, blocks, coef_rows(B), C}, acc) : empty({0}, acc);
  if (N * C == 0) return {descriptors, moments, argmax, mass, link, coef_link};

  double* mass_data = static_cast<double*>(mass.data_ptr());
  if (acc == ScalarType::Double) mask_mass(static_cast<const double*>(mask.data_ptr()), N, A, S, mass_data);
  else mask_mass(static_cast<const float*>(mask.data_ptr()), N, A, S, mass_data);
  std::vector<double> sums(N * A);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < A; ++k)
      sums[n * A + k] = mass_data[n * mass_rows(a) + k];

  MomentsArgs args{type_of(x),
                   N,
                   C,
                   S,
                   a,
                   view_of(x),
                   has_own_code(type_of(x), a) ? channel_block(N, C) : kChannelBlock,
                   data(x),
                   data(mask),
                   sums.data(),
                   data(descriptors),
                   second ? data(moments) : nullptr,
                   positions ? static_cast<int32_t*>(argmax.data_ptr()) : nullptr};
  const bool last = args.x.channels_last;
  parallel(last ? N * ceil_div(C, args.block) : N * C, grain_of(last ? S * args.block : S),
           [&](int64_t begin, int64_t end) { kernels().moments(args, begin, end); });
  return {descriptors, moments, argmax, mass, link, coef_link};
}

std::tuple<Tensor, Tensor> masked_moments_backward(Tensor x_in, Tensor mask, Tensor argmax, Tensor grad_descriptors,
                                                   std::optional<Tensor> grad_z, std::optional<Tensor> coef,
                                                   bool input_grad, bool mask_grad) {
  check_masked_moments_backward(x_in, mask, argmax, grad_descriptors, grad_z, coef);
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const ScalarType acc = accumulator(x);
  const bool last = is_channels_last(x);
  Tensor dx = empty_features(input_grad ? N : 0, C, H, W, last, x.scalar_type());
  Tensor dmask = empty({mask_grad ? N : 0, A, H, W}, acc);
  if (N * C == 0) return {dx, dmask};

  const Tensor delta = torch::stable::contiguous(grad_descriptors);
  std::optional<Tensor> d, q;
  if (grad_z) {
    d = walkable(*grad_z, last);
    q = torch::stable::contiguous(*coef);
  }
  const int blocks = grad_z ? static_cast<int>(grad_z->size(1) / C) : 0;
  InputArgs args{};
  args.type = type_of(x);
  args.N = N, args.C = C, args.S = S, args.A = static_cast<int>(A), args.blocks = blocks;
  args.x = view_of(x), args.d = d ? view_of(*d) : args.x, args.dx = input_grad ? view_of(dx) : args.x;
  args.x_data = data(x), args.d_data = data(d), args.dx_data = data(dx);
  args.mask = data(mask), args.coef = data(q), args.delta = data(delta);
  args.argmax = static_cast<const int32_t*>(argmax.data_ptr());
  args.mask_grad = data(dmask);
  args.stream = stream_output(N * C * S * static_cast<int64_t>(x.element_size()));
  const bool by_channels = args.x.channels_last;
  if (input_grad)
    parallel(by_channels ? N * ceil_div(S, kPixelGroup) : N * C, grain_of(by_channels ? C * kPixelGroup : S),
             [&](int64_t begin, int64_t end) { kernels().input(args, begin, end); });
  if (mask_grad) parallel(N, 1, [&](int64_t begin, int64_t end) { kernels().input_mask(args, begin, end); });
  return {dx, dmask};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, CPU, m) {
  m.impl("masked_moments", TORCH_BOX(&masked_moments));
  m.impl("masked_moments_backward", TORCH_BOX(&masked_moments_backward));
}

}  // namespace axnet::cpu
