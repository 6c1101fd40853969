// pwap: probability-weighted average pooling in one read of X, backward in one read and one write.
#include "cpu/common.h"

namespace axnet::cpu {
namespace {

// Pixels of a tile and tiles of an image. They depend on the shape alone, so results do not depend on the threads.
std::tuple<int64_t, int64_t> tiling(int64_t N, int64_t S) {
  const int64_t largest = N * S >= 2048 ? 256 : 64;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(S, largest));
  const int64_t tile = std::min(ceil_div(ceil_div(S, tiles), 16) * 16, S);
  return {tile, ceil_div(S, tile)};
}

// rows [K, C] -> columns [0, P) of out [C, step], zero beyond K
template <class Acc>
void pack(const Acc* rows, int64_t K, int64_t P, int64_t C, Acc* out, int64_t step) {
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t k = 0; k < K; ++k) out[c * step + k] = rows[k * C + c];
    for (int64_t k = K; k < P; ++k) out[c * step + k] = 0;
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pwap(Tensor x_in, Tensor weight, std::optional<Tensor> bias) {
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), S = H * W, K = weight.size(0);
  const ScalarType acc = accumulator(x);
  Tensor pooled = empty({N, K, C}, x.scalar_type()), prob = empty({N, K, H, W}, x.scalar_type());
  Tensor logits = empty({N, K, H, W}, acc), norm = empty({N, 2, K}, acc);
  if (N * C == 0) return {pooled, prob, logits, norm};
  const auto [tile, tiles] = tiling(N, S);
  const int64_t P = padded_maps(static_cast<int>(K));
  Tensor partial = empty({N * tiles, P * C + 2 * K}, acc);
  PwapArgs args{};
  args.type = type_of(x);
  args.N = N, args.C = C, args.S = S, args.K = static_cast<int>(K);
  args.x = view_of(x), args.x_data = data(x);
  args.weight = data(weight), args.bias = data(bias);
  Tensor packed = empty({C, P}, acc);
  if (acc == ScalarType::Double)
    pack(static_cast<const double*>(data(weight)), K, P, C, static_cast<double*>(data(packed)), P);
  else
    pack(static_cast<const float*>(data(weight)), K, P, C, static_cast<float*>(data(packed)), P);
  args.packed = data(packed);
  args.pooled = data(pooled), args.prob = data(prob), args.logits = data(logits), args.norm = data(norm);
  args.partial = data(partial), args.tile = tile, args.tiles = tiles;
  parallel(N * tiles, grain_of(C * tile), [&](int64_t begin, int64_t end) { kernels().pwap(args, begin, end); });
  parallel(N * K, grain_of(C * tiles), [&](int64_t begin, int64_t end) { kernels().pwap_combine(args, begin, end); });
  return {pooled, prob, logits, norm};
}

template <class Acc>
void stack_gradients(const Acc* grad, const Acc* pooled, const Acc* weight, int64_t N, int64_t K, int64_t C,
                     Acc* mean_grad, Acc* stack, Acc* packed) {
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const Acc* g = grad + (n * K + k) * C;
      const Acc* p = pooled + (n * K + k) * C;
      double total = 0;
      for (int64_t c = 0; c < C; ++c) total += static_cast<double>(g[c]) * p[c];
      mean_grad[n * K + k] = static_cast<Acc>(total);
    }
    if (stack) {
      std::copy(grad + n * K * C, grad + (n + 1) * K * C, stack + n * 2 * K * C);
      std::copy(weight, weight + K * C, stack + (n * 2 + 1) * K * C);
    }
    const int64_t P = padded_maps(static_cast<int>(K));
    pack(grad + n * K * C, K, P, C, packed + n * C * 2 * P, 2 * P);
    pack(weight, K, P, C, packed + n * C * 2 * P + P, 2 * P);
  }
}

std::tuple<Tensor, Tensor, Tensor> pwap_backward(Tensor grad_pooled, std::optional<Tensor> grad_prob, Tensor x_in,
                                                 Tensor weight, Tensor logits, Tensor norm, Tensor pooled,
                                                 bool input_grad) {
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), S = H * W, K = weight.size(0);
  const ScalarType acc = accumulator(x);
  Tensor dx = empty_features(input_grad ? N : 0, C, H, W, is_channels_last(x), x.scalar_type());
  Tensor weight_grad = empty({K, C}, acc), bias_grad = empty({K}, acc);
  if (N * C == 0) {
    torch::stable::zero_(weight_grad);
    torch::stable::zero_(bias_grad);
    return {dx, weight_grad, bias_grad};
  }
  const Tensor grad = torch::stable::contiguous(torch::stable::to(grad_pooled, acc));
  const Tensor mean = torch::stable::contiguous(torch::stable::to(pooled, acc));
  std::optional<Tensor> map_grad;
  if (grad_prob) map_grad = torch::stable::contiguous(torch::stable::to(*grad_prob, acc));
  PwapBackwardArgs args{};
  args.type = type_of(x);
  args.N = N, args.C = C, args.S = S, args.K = static_cast<int>(K);
  args.x = view_of(x), args.dx = input_grad ? view_of(dx) : args.x;
  args.x_data = data(x), args.dx_data = input_grad ? data(dx) : nullptr;
  args.logits = data(logits), args.norm = data(norm);
  const bool last = args.x.channels_last;
  const int64_t P = padded_maps(static_cast<int>(K));
  Tensor stack = empty({last ? N : 0, 2 * K, C}, acc), packed = empty({N, C, 2 * P}, acc);
  Tensor mean_grad = empty({N, K}, acc);
  if (acc == ScalarType::Double)
    stack_gradients(static_cast<const double*>(data(grad)), static_cast<const double*>(data(mean)),
                    static_cast<const double*>(data(weight)), N, K, C, static_cast<double*>(data(mean_grad)),
                    last ? static_cast<double*>(data(stack)) : nullptr, static_cast<double*>(data(packed)));
  else
    stack_gradients(static_cast<const float*>(data(grad)), static_cast<const float*>(data(mean)),
                    static_cast<const float*>(data(weight)), N, K, C, static_cast<float*>(data(mean_grad)),
                    last ? static_cast<float*>(data(stack)) : nullptr, static_cast<float*>(data(packed)));
  args.grad_stack = data(stack), args.grad_packed = data(packed), args.mean_grad = data(mean_grad);
  args.grad_prob = data(map_grad);
  std::tie(args.tile, args.tiles) = tiling(N, S);
  Tensor partial = empty({N * args.tiles, P * C + K}, acc);
  args.partial = data(partial), args.weight_grad = data(weight_grad), args.bias_grad = data(bias_grad);
  parallel(N * args.tiles, grain_of(C * args.tile),
           [&](int64_t begin, int64_t end) { kernels().pwap_backward(args, begin, end); });
  parallel(K, 1, [&](int64_t begin, int64_t end) { kernels().pwap_gather(args, begin, end); });
  return {dx, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, CPU, m) {
  m.impl("pwap", TORCH_BOX(&pwap));
  m.impl("pwap_backward", TORCH_BOX(&pwap_backward));
}

}  // namespace axnet::cpu
