// The one place where kernels meet the CUDA runtime: device and stream of the caller, shared memory, launch, its
// errors. tests/cuda_host has a header of this name that runs the same kernels on the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <string>
#include <tuple>
#include <utility>

#include "tensors.h"

#define AXNET_DISPATCH_KEY CUDA
// Dynamic shared memory of the block, 16-byte aligned.
#define AXNET_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

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

// "8.0, 8.6, 9.0" from nvcc's list 800,860,900.
inline std::string built_for() {
  std::string text;
  for (int arch : {__CUDA_ARCH_LIST__})
    text += (text.empty() ? "" : ", ") + std::to_string(arch / 100) + "." + std::to_string(arch / 10 % 10);
  return text;
}

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string reason = cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    reason = "they were built for compute capability " + built_for() + "; this GPU is " + std::to_string(major) + "." +
             std::to_string(minor) +
             " (set TORCH_CUDA_ARCH_LIST to it and install axnet again, or use backend='triton')";
  }
  STD_TORCH_CHECK(false, "axnet's CUDA kernels cannot run: ", reason);
}

// Bytes of shared memory that a block may have on x's device.
inline size_t shared_limit(const Tensor& x) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, x.get_device_index()));
  return static_cast<size_t>(bytes);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int groups, int threads, size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  std::tuple<Parameters...> values{std::forward<Arguments>(arguments)...};
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        check(cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks), groups), dim3(threads), pointers,
                               shared_bytes, stream));
      },
      values);
  check(cudaGetLastError());
}

}  // namespace axnet::cuda
