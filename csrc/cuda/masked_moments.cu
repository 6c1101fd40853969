// masked_moments: one read of X gives the descriptors, the moments that batch normalisation needs, and the positions of
// the maxima. Which kernel takes it: masked_moments_matrix.cu, masked_moments_scalar.cu, or the one below.
#include "checks.h"
#include "cuda/algebra.cuh"
#include "cuda/moments.cuh"

namespace axnet::cuda {
namespace {

// Any type, alignment and number of anatomies: a warp for a row.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) moments_any_kernel(const __grid_constant__ MomentsPlan p, bool full) {
  if (weigh<T>(p)) return;
  const int64_t row = (blockIdx.x - p.N) * kWarps + threadIdx.x / kWarp;
  if (row < p.N * p.C) careful_row<T>(p, full, row / p.C, row % p.C);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> masked_moments(Tensor x_in, Tensor mask, bool second,
                                                                          bool positions, int64_t blocks) {
  check_masked_moments(x_in, mask, blocks);
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const int a = static_cast<int>(A), B = blocks > 1 ? 1 : a;
  const ScalarType acc = accumulator(x);
  Tensor descriptors = empty({N, 2 + 2 * A, C}, acc, device);
  Tensor moments = empty({second ? N : 0, moment_rows(a), C}, acc, device);
  Tensor argmax = empty({positions ? N : 0, 1 + A, C}, ScalarType::Int, device);
  Tensor mass = empty({N, A + pairs(a)}, ScalarType::Double, device);
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
  if (x.scalar_type() == ScalarType::BFloat16 && matrix_moments(queue, p, full))
    return {descriptors, moments, argmax, mass, link, coef_link};
  if (!scalar_moments(queue, p, x, full))
    with_type(x, [&](auto type) {
      launch(moments_any_kernel<decltype(type)>, N + ceil_div(N * C, kWarps), 1, kThreads, 0, queue.stream(), p, full);
    });
  return {descriptors, moments, argmax, mass, link, coef_link};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) { m.impl("masked_moments", TORCH_BOX(&masked_moments)); }

}  // namespace axnet::cuda
