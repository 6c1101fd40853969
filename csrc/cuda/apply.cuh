// The pass that writes Z = X (b + sum_a w_a m_a) + h (gate_norm_apply.cu).
#pragma once

#include "cuda/device.cuh"

namespace axnet::cuda {

struct ApplyPlan {
  int64_t N, C, S;
  int A, blocks, members;
  View x, z;
  const void* x_data;
  void* z_data;
  const void *mask, *fold;  // acc [N, A, S], acc [N, blocks, fold_rows(members), C]
};

void apply(const Queue& queue, const ApplyPlan& plan, const Tensor& x);

}  // namespace axnet::cuda
