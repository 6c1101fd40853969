// masked_moments on CUDA: one read of X gives the descriptors, the moments that batch normalisation needs, and the
// positions of the maxima. Its gradient: dX of the whole attention block in one read of D and X and one write, because
// the gradient of the gated, normalised map arrives here (docs/method.md, "A3 from moments"); the masks' gradient where
// it is asked for.
#include "checks.h"
#include "cuda/wrap.h"

namespace axnet::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_moments(Tensor x_in, Tensor mask, bool second,
                                                                          bool positions, int64_t blocks) {
  check_masked_moments(x_in, mask, blocks);
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const int a = static_cast<int>(A), B = blocks > 1 ? 1 : a;
  const ScalarType acc = accumulator(x);
  Tensor descriptors = empty({N, descriptor_rows(a), C}, acc, device);
  Tensor moments = empty({second ? N : 0, moment_rows(a), C}, acc, device);
  Tensor argmax = empty({positions ? N : 0, 1 + A, C}, ScalarType::Int, device);
  Tensor mass = empty({N, mass_rows(a)}, ScalarType::Double, device);
  Tensor zero = empty({blocks ? 1 : 0}, x.scalar_type(), device), coef_zero = empty({blocks ? 1 : 0}, acc, device);
  Tensor link = blocks ? expanded(zero, {N, blocks * C, H, W}) : zero;
  Tensor coef_link = blocks ? expanded(coef_zero, {N, blocks, coef_rows(B), C}) : coef_zero;
  if (N * C == 0) return {descriptors, moments, argmax, mass, link, coef_link};

  const bool full = second || positions;
  const MomentsPlan p{N,
                      C,
                      S,
                      a,
                      view_of(x),
                      data(x),
                      data(mask),
                      data(descriptors),
                      second ? data(moments) : nullptr,
                      positions ? static_cast<int32_t*>(data(argmax)) : nullptr,
                      static_cast<double*>(data(mass)),
                      blocks ? data(zero) : nullptr,
                      data(coef_zero)};
  const Type type = type_of(x);
  const cudaStream_t stream = queue.stream();
  constexpr int64_t countable = int64_t{1} << 26;  // images whose rows of numbers have 32-bit indices
  const bool done =
      N < countable && ((type == Type::bf16 && matrix_moments(stream, p, full)) ||
                        (type == Type::f32 && lane_moments(stream, p, full)) || scalar_moments(stream, p, type, full));
  if (!done) any_moments(stream, p, type, full);
  return {descriptors, moments, argmax, mass, link, coef_link};
}

std::tuple<Tensor, Tensor> masked_moments_backward(Tensor x_in, Tensor mask, Tensor argmax, Tensor grad_descriptors,
                                                   std::optional<Tensor> grad_z, std::optional<Tensor> coef,
                                                   bool want_input, bool want_mask) {
  check_masked_moments_backward(x_in, mask, argmax, grad_descriptors, grad_z, coef);
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const bool last = is_channels_last(x);
  Tensor dx = empty_features(want_input ? N : 0, C, H, W, last, x.scalar_type(), device);
  Tensor dmask = empty({want_mask ? N : 0, A, H, W}, accumulator(x), device);
  if (N * C == 0) return {dx, dmask};

  const Tensor delta = torch::stable::contiguous(grad_descriptors);
  std::optional<Tensor> d, q;
  if (grad_z) {
    d = dense(*grad_z, last);
    q = torch::stable::contiguous(*coef);
  }
  InputPlan p{};
  p.N = N, p.C = C, p.S = S, p.A = static_cast<int>(A), p.blocks = d ? static_cast<int>(d->size(1) / C) : 0;
  p.members = p.blocks > 1 ? 1 : p.A;
  p.x = view_of(x), p.d = d ? view_of(*d) : p.x, p.dx = want_input ? view_of(dx) : p.x;
  p.x_data = data(x), p.d_data = data(d), p.dx_data = data(dx);
  p.mask = data(mask), p.coef = data(q), p.delta = data(delta);
  p.argmax = static_cast<const int32_t*>(data(argmax)), p.mask_grad = data(dmask);
  if (want_input) input_grad(queue.stream(), p, type_of(x));
  if (want_mask) mask_grad(queue.stream(), p, type_of(x));
  return {dx, dmask};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) {
  m.impl("masked_moments", TORCH_BOX(&masked_moments));
  m.impl("masked_moments_backward", TORCH_BOX(&masked_moments_backward));
}

}  // namespace axnet::cuda
