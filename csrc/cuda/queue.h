// Device and stream of the caller. tests/cuda_host has a header of this name for the CPU.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "tensors.h"

#define AXNET_DISPATCH_KEY CUDA

namespace axnet::cuda {

// Makes a tensor's device current and holds the caller's stream on it.
class Queue {
 public:
  explicit Queue(const Tensor& x) : guard_(x.get_device_index()) {
    void* handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &handle));
    stream_ = static_cast<cudaStream_t>(handle);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Bytes of shared memory that a block may have on x's device.
inline size_t shared_limit(const Tensor& x) {
  int bytes = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, x.get_device_index());
  STD_TORCH_CHECK(error == cudaSuccess, "axnet's CUDA kernels cannot run: ", cudaGetErrorString(error));
  return static_cast<size_t>(bytes);
}

}  // namespace axnet::cuda
