#include <cuda_runtime_api.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

namespace axnet::cuda {

[[noreturn]] void cannot_run(cudaError_t error, std::initializer_list<int> built_for) {
  std::string reason = cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    std::string list;  // "8.0, 8.6, 9.0"
    for (const int arch : built_for)
      list += (list.empty() ? "" : ", ") + std::to_string(arch / 100) + "." + std::to_string(arch / 10 % 10);
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    reason = "they were built for compute capability " + list + "; this GPU is " + std::to_string(major) + "." +
             std::to_string(minor) +
             " (set TORCH_CUDA_ARCH_LIST to it and install axnet again, or use backend='triton')";
  }
  throw std::runtime_error("axnet's CUDA kernels cannot run: " + reason);
}

}  // namespace axnet::cuda
