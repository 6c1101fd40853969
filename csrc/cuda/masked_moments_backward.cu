// masked_moments_backward: dX of the whole attention block in one read of D and X and one write, because the gradient
// of the gated, normalised map arrives here (docs/method.md, "A3 from moments"); the masks' gradient where it is asked
// for.
#include "checks.h"
#include "cuda/input_grad.cuh"

namespace axnet::cuda {
namespace {

// dm_a = sum_c [ dY_o X w_a + delta_mavg,a X / S + [s = argmax_a] delta_mmax,a X ]
//   block   `width` pixels of one image and one anatomy; kThreads / width threads share a pixel's channels
//   width   32 in NCHW (a warp reads pixels side by side), 8 in channels_last (a warp reads channels side by side)
template <class T>
__global__ void __launch_bounds__(kThreads, 2) mask_grad_kernel(const InputPlan p, int width, int64_t tiles) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  Acc* parts = reinterpret_cast<Acc*>(shared);  // [kThreads / width, width]
  const int shares = kThreads / width, t = threadIdx.x, a = static_cast<int>(blockIdx.y);
  const int column = p.x.channels_last ? t / shares : t % width, share = p.x.channels_last ? t % shares : t / width;
  const int64_t n = blockIdx.x / tiles, s = blockIdx.x % tiles * width + column, C = p.C, S = p.S;
  const ElementGrad<T> element(p, n);
  const int o = p.blocks > 1 ? a : 0,
            first = p.blocks > 1 ? a : 0;  // the block that this anatomy is in, its first mask
  Acc total = 0;
  if (s < S) {
    const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + s * p.x.s;
    const T* d = static_cast<const T*>(p.d_data) + n * p.d.n + s * p.d.s;
    const Acc inverse = Acc(1) / static_cast<Acc>(S);
    for (int64_t c = share; c < C; c += shares) {
      const Acc xv = static_cast<Acc>(x[c * p.x.c]);
      Acc slope = element.delta[(2 + a) * C + c] * inverse;
      if (element.at[(1 + a) * C + c] == s) slope += element.delta[(2 + p.A + a) * C + c];
      if (p.blocks) {
        const Acc* q = element.coef + o * coef_rows(p.members) * C + c;
        Acc gate = q[3 * C];
        for (int k = 0; k < p.members; ++k)
          gate += q[(4 + k) * C] * element.mask[(first + k) * S + s];
        const Acc dy = q[0] * static_cast<Acc>(d[(o * C + c) * p.d.c]) + q[C] + q[2 * C] * (xv * gate);
        slope += dy * q[(4 + a - first) * C];
      }
      total += slope * xv;
    }
  }
  parts[share * width + column] = total;
  __syncthreads();
  if (share == 0 && s < S) {
    double sum = 0;
    for (int k = 0; k < shares; ++k)
      sum += parts[k * width + column];
    static_cast<Acc*>(p.mask_grad)[(n * p.A + a) * S + s] = static_cast<Acc>(sum);
  }
}

}  // namespace

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
  if (want_input) input_grad(queue, p, x);
  if (want_mask)
    with_type(x, [&](auto type) {
      using T = decltype(type);
      const int width = p.x.channels_last ? 8 : 32;
      const int64_t tiles = ceil_div(S, width);
      launch(mask_grad_kernel<T>, N * tiles, p.A, kThreads, kThreads * sizeof(acc_t<T>), queue.stream(), p, width,
             tiles);
    });
  return {dx, dmask};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) {
  m.impl("masked_moments_backward", TORCH_BOX(&masked_moments_backward));
}

}  // namespace axnet::cuda
