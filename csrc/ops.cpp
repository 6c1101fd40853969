// Schemas of axnet's ops: one contract for every device. Shapes: x [N, C, H, W]; mask [N, A, H, W] and everything
// between the passes in the accumulation type (float32, or float64 for float64). axnet/ops adds shape inference and
// autograd; argument errors are raised above, in axnet.functional.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

namespace axnet::cpu {
std::string instruction_set();
}

namespace {

std::string cpu_instruction_set() { return axnet::cpu::instruction_set(); }

}  // namespace

STABLE_TORCH_LIBRARY(axnet, m) {
  // blocks: output blocks of the gate_norm that follows (0 none, 1 "mean", A "concat"); link [N, blocks*C, H, W] and
  // coef_link stand for x there: gate_norm's gradient arrives through them.
  m.def(
      "masked_moments(Tensor x, Tensor mask, bool second, bool positions, int blocks) -> (Tensor descriptors, "
      "Tensor moments, Tensor argmax, Tensor mass, Tensor link, Tensor coef_link)");
  m.def(
      "masked_moments_backward(Tensor x, Tensor mask, Tensor argmax, Tensor grad_descriptors, Tensor? grad_z, "
      "Tensor? coef, bool input_grad, bool mask_grad) -> (Tensor grad_x, Tensor grad_mask)");
  m.def(
      "gate_norm(Tensor x, Tensor mask, Tensor gate, Tensor? moments, Tensor mass, Tensor? weight, Tensor? bias, "
      "Tensor? running_mean, Tensor? running_var, float eps, bool concat, bool save, Tensor link, Tensor coef_link) "
      "-> (Tensor z, Tensor mean, Tensor var, Tensor saved)");
  // saved may be empty: x is then read once more for its moments.
  m.def(
      "gate_norm_backward(Tensor grad_z, Tensor x, Tensor mask, Tensor gate, Tensor mass, Tensor? weight, "
      "Tensor mean, Tensor var, Tensor saved, float eps, bool batch_statistics, bool concat) -> (Tensor coef, "
      "Tensor grad_gate, Tensor grad_weight, Tensor grad_bias)");
  m.def("pwap(Tensor x, Tensor weight, Tensor? bias) -> (Tensor pooled, Tensor prob, Tensor logits, Tensor norm)");
  m.def(
      "pwap_backward(Tensor grad_pooled, Tensor? grad_prob, Tensor x, Tensor weight, Tensor logits, Tensor norm, "
      "Tensor pooled, bool input_grad) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  // gate_norm under given statistics and pwap of its result, which is never written; on CUDA alone.
  m.def(
      "gated_pwap(Tensor x, Tensor mask, Tensor gate, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, "
      "Tensor var, float eps, Tensor weight, Tensor? bias) -> (Tensor pooled, Tensor prob)");
  // out[g] = x[g] W[g]^T + bias[g]; x [G, N, I] in the accumulation type, weight [G, O, I], bias [G, O]; CPU, N <= 8.
  m.def("grouped_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  // The gate of A3 without gradients, from masked_moments' descriptors [N, 2+2A, C] and weights of any floating type:
  // hidden_weight [A, 4, H, C], hidden_bias [A, 4, H], gate_weight [A, C, H], gate_bias [A, C]; CPU, N <= 8.
  m.def(
      "attention_gate(Tensor descriptors, Tensor hidden_weight, Tensor hidden_bias, Tensor gate_weight, "
      "Tensor gate_bias) -> Tensor");
  // The same on CUDA, N <= 64, of bfloat16 or float16 weights whose H and C are multiples of 128.
  m.def(
      "matrix_gate(Tensor descriptors, Tensor hidden_weight, Tensor hidden_bias, Tensor gate_weight, "
      "Tensor gate_bias) -> Tensor");
  m.def("cpu_instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(axnet, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
}

// Importing axnet._C loads the library, whose initialisers register the ops.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
