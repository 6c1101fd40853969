// Where kernels meet the CUDA runtime: shared memory, launch, its errors. tests/cuda_host has a header of this name
// that runs the same kernels on the CPU. No header of torch's that knows tensors: nvcc reads each three times for a
// file.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>
#include <tuple>
#include <utility>

#include "cuda/halves.h"
#include "cuda/plans.h"

// Dynamic shared memory of the block, 16-byte aligned.
#define AXNET_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace axnet::cuda {

// Throws: what failed and, where there is no code for the GPU, what there is code for (nvcc's list: 800, 860, 900).
[[noreturn]] void cannot_run(cudaError_t error, std::initializer_list<int> built_for);

inline void check(cudaError_t error) {
  if (error != cudaSuccess) cannot_run(error, {__CUDA_ARCH_LIST__});
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
