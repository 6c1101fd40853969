// Build metadata of axnet, readable without torch: what `axnet info` shows when the compiled ops do not load.

#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_buildinfo, m) {
  m.doc() = "What axnet's compiled code was built from.";
#if defined(__VERSION__)
  m.attr("compiler") = __VERSION__;
#else
  m.attr("compiler") = "unknown";
#endif
  m.attr("cpp_standard") = static_cast<long>(__cplusplus);
  m.attr("torch_version") = AXNET_TORCH_VERSION;
  m.attr("flags") = AXNET_FLAGS;
  m.attr("instruction_sets") = AXNET_INSTRUCTION_SETS;
  m.attr("cuda_kernels") = AXNET_CUDA_KERNELS;
  m.attr("cuda_version") = AXNET_CUDA_VERSION;
  m.attr("cuda_architectures") = AXNET_CUDA_ARCHITECTURES;
}
