// pwap: probability-weighted average pooling in one read of X, backward in one read and one write.
#include "cpu/common.h"

namespace axnet::cpu {
namespace {

// Pixels of a tile and tiles of an image. They depend on the shape alone, so results do not depend on the threads.
std::tuple<int64_t, int64_t> tiling(int64_t N, int64_t S) {
  const int64_t largest = N * S >= 2048 ? kMaxTile : 64;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(S, largest));
  const int64_t tile = std::min(ceil_div(ceil_div(S, tiles), 16) * 16, S);
  return {tile, ceil_div(S, tile)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pwap(Tensor x_in, Tensor weight_in, std::optional<Tensor> bias_in) {
  check_pwap(x_in, weight_in, bias_in, checks::Type::floating);
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), S = H * W, K = weight_in.size(0);
  const ScalarType acc = accumulator(x);
  const Tensor weight = packed(weight_in, acc);
  const std::optional<Tensor> bias = packed(bias_in, acc);
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
  kernels().pack_maps(type_of(acc), data(weight), args.K, C, data(packed));
  args.packed = data(packed);
  args.pooled = data(pooled), args.prob = data(prob), args.logits = data(logits), args.norm = data(norm);
  args.partial = data(partial), args.tile = tile, args.tiles = tiles;
  parallel(N * tiles, grain_of(C * tile), [&](int64_t begin, int64_t end) {
    const Tensor scratch = empty({acc == ScalarType::Double ? 2 : 0, kMaxMaps, kMaxTile}, acc);
    PwapArgs own = args;
    own.scratch = data(scratch);
    kernels().pwap(own, begin, end);
  });
  parallel(N * ceil_div(C, kCombineChannels), grain_of(kCombineChannels * P * tiles),
           [&](int64_t begin, int64_t end) { kernels().pwap_combine(args, begin, end); });
  return {pooled, prob, logits, norm};
}

std::tuple<Tensor, Tensor, Tensor> pwap_backward(Tensor grad_pooled, std::optional<Tensor> grad_prob, Tensor x_in,
                                                 Tensor weight_in, Tensor logits, Tensor norm, Tensor pooled,
                                                 bool input_grad) {
  check_pwap_backward(grad_pooled, grad_prob, x_in, weight_in, logits, norm, pooled, checks::Type::floating);
  const Tensor x = walkable(x_in);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), S = H * W, K = weight_in.size(0);
  const ScalarType acc = accumulator(x);
  const Tensor weight = packed(weight_in, acc);
  Tensor dx = empty_features(input_grad ? N : 0, C, H, W, is_channels_last(x), x.scalar_type());
  Tensor weight_grad = empty({K, C}, acc), bias_grad = empty({K}, acc);
  if (N * C == 0) {
    torch::stable::zero_(weight_grad);
    torch::stable::zero_(bias_grad);
    return {dx, weight_grad, bias_grad};
  }
  const Tensor grad = packed(grad_pooled, acc);
  const Tensor mean = packed(pooled, acc);
  std::optional<Tensor> map_grad;
  if (grad_prob) map_grad = torch::stable::contiguous(torch::stable::to(*grad_prob, acc));
  PwapBackwardArgs args{};
  args.type = type_of(x);
  args.N = N, args.C = C, args.S = S, args.K = static_cast<int>(K);
  args.x = view_of(x), args.dx = input_grad ? view_of(dx) : args.x;
  args.x_data = data(x), args.dx_data = input_grad ? data(dx) : nullptr;
  args.logits = data(logits), args.norm = data(norm);
  const int64_t P = padded_maps(static_cast<int>(K));
  Tensor grad_packed = empty({N, C, P}, acc), weight_packed = empty({C, P}, acc), mean_grad = empty({N, K}, acc);
  args.grad = data(grad), args.pooled = data(mean), args.weight = data(weight);
  args.grad_packed = data(grad_packed), args.weight_packed = data(weight_packed), args.mean_grad = data(mean_grad);
  args.grad_prob = data(map_grad);
  std::tie(args.tile, args.tiles) = tiling(N, S);
  Tensor partial = empty({N * args.tiles, P * C + K}, acc);
  args.partial = data(partial), args.weight_grad = data(weight_grad), args.bias_grad = data(bias_grad);
  parallel(N + 1, grain_of(C * P), [&](int64_t begin, int64_t end) { kernels().pwap_prepare(args, begin, end); });
  parallel(N * args.tiles, grain_of(C * args.tile), [&](int64_t begin, int64_t end) {
    const Tensor scratch = empty({acc == ScalarType::Double ? 2 : 0, 2 * kMaxMaps, kMaxTile}, acc);
    PwapBackwardArgs own = args;
    own.scratch = data(scratch);
    kernels().pwap_backward(own, begin, end);
  });
  parallel(ceil_div(C, kCombineChannels), grain_of(kCombineChannels * P * N),
           [&](int64_t begin, int64_t end) { kernels().pwap_gather(args, begin, end); });
  return {dx, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, CPU, m) {
  m.impl("pwap", TORCH_BOX(&pwap));
  m.impl("pwap_backward", TORCH_BOX(&pwap_backward));
}

}  // namespace axnet::cpu
