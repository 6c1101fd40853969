// csrc/cuda/queue.h for a machine without a GPU: CPU tensors, and the shared memory that tests/cuda_host grants a
// block.
#pragma once

#include "cuda/plans.h"
#include "tensors.h"

#define AXNET_DISPATCH_KEY CPU

namespace axnet::host {

size_t shared_limit();

}  // namespace axnet::host

namespace axnet::cuda {

class Queue {
 public:
  explicit Queue(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

inline size_t shared_limit(const Tensor&) { return host::shared_limit(); }

}  // namespace axnet::cuda
