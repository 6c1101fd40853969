// The arguments of PWAP's kernels.
#pragma once

#include "cuda/numbers.cuh"

namespace axnet::cuda {

struct PwapArgs {
  const void* x;
  Numbers weight, bias;     // [K, C], [K] or none
  void *pooled, *prob;      // T [N, K, C], T [N, K, S]
  void *logits, *norm;      // acc [N, K, S]; acc [N, 2, K]: largest logit, sum of p / p(largest logit)
  void* partial;            // acc [N, tiles, K*C + 2*K]: numerators, largest logits, denominators
  const void *mask, *fold;  // acc [N, A, S], acc [N, fold_rows(A), C]; null: pool X itself
  int A;
};

struct PwapBackwardArgs {
  const void* x;
  void* dx;                          // or null
  const void *grad_pooled, *pooled;  // T [N, K, C]
  const void* grad_prob;             // T [N, K, S] or null
  Numbers weight;                    // [K, C]
  const void *logits, *norm;         // acc [N, K, S], [N, 2, K]
  void* partial;                     // acc [N, tiles, K*C + K]
  void* slopes;                      // float [N, K, S, 2]: share, dL; where the channels come in halves
  void *weight_grad, *bias_grad;     // acc [K, C], acc [K]
  int64_t dx_image;                  // elements between images of dx, and between its channels and pixels
  int dx_channel, dx_pixel;
  bool dx_fast;  // every 16-byte piece of dx is aligned and lies in one row
};

}  // namespace axnet::cuda
