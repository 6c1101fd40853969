// matrix_gate on CUDA.
#include "checks.h"
#include "cuda/wrap.h"

namespace axnet::cuda {
namespace {

Tensor attention_gate(Tensor descriptors_in, Tensor hidden_weight, Tensor hidden_bias, Tensor gate_weight,
                      Tensor gate_bias) {
  check_attention_gate(descriptors_in, hidden_weight, hidden_bias, gate_weight, gate_bias, kMatrixGateImages,
                       "matrix_gate");
  const ScalarType type = hidden_weight.scalar_type();
  const int64_t N = descriptors_in.size(0), A = hidden_weight.size(0), H = hidden_weight.size(2),
                C = hidden_weight.size(3);
  AXNET_REQUIRE(type == ScalarType::BFloat16 || type == ScalarType::Half, "matrix_gate", ": hidden_weight is ",
                checks::name_of(type), ", expected bfloat16 or float16");
  AXNET_REQUIRE(descriptors_in.scalar_type() == ScalarType::Float, "matrix_gate",
                ": descriptors is float64, expected float32");
  AXNET_REQUIRE(C % kMatrixGateSide == 0 && H % kMatrixGateSide == 0, "matrix_gate", ": hidden_weight has shape ",
                checks::shape_of(hidden_weight), ", expected H and C to be multiples of ", kMatrixGateSide);
  const Queue queue(descriptors_in);
  const Tensor descriptors = torch::stable::contiguous(descriptors_in);
  const Device device = device_of(descriptors);
  Tensor gate = empty({N, A, C}, ScalarType::Float, device);
  if (gate.numel() == 0) return gate;
  for (Tensor* t : {&hidden_weight, &gate_weight})  // a view into a flat parameter may begin anywhere
    if (reinterpret_cast<uintptr_t>(data(*t)) % 16) *t = torch::stable::clone(*t);
  Tensor rows = empty({descriptor_rows(static_cast<int>(A)), N, C}, type, device),
         sums = empty({A, N, H}, type, device);
  const GatePlan p{static_cast<int>(N),
                   static_cast<int>(A),
                   static_cast<int>(C),
                   static_cast<int>(H),
                   static_cast<const float*>(data(descriptors)),
                   data(hidden_weight),
                   data(hidden_bias),
                   data(gate_weight),
                   data(gate_bias),
                   data(rows),
                   data(sums),
                   static_cast<float*>(data(gate))};
  matrix_gate(queue.stream(), p, type_of(type));
  return gate;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) { m.impl("matrix_gate", TORCH_BOX(&attention_gate)); }

}  // namespace axnet::cuda
