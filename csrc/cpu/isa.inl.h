// The kernels of one instruction set. Each isa_*.cpp sets AXNET_ISA and AXNET_VECTOR_BYTES, opens the target pragma and
// includes this file once. Nothing from the standard library is instantiated here: such code would be shared between
// the instruction sets by the linker.

namespace axnet::cpu::AXNET_ISA {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class F>
inline void with_type(Type type, const F& f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::f64: return f(double{});
    case Type::bf16: return f(BFloat16{});
    case Type::f16: return f(Half{});
  }
}

template <int A>
struct Anatomies {
  static constexpr int value = A;
};

// Up to three anatomies are unrolled where has_own_code says so; 0 is the code for any number.
template <class T, class F>
inline void with_anatomies(int a, const F& f) {
  if constexpr (!std::is_same_v<T, double>) {
    if (a == 1) return f(Anatomies<1>{});
    if (a == 2) return f(Anatomies<2>{});
    if (a == 3) return f(Anatomies<3>{});
  }
  f(Anatomies<0>{});
}

#include "cpu/simd.h"

#include "cpu/maxima.inl.h"

#include "cpu/moments.inl.h"

#include "cpu/moments_channels.inl.h"

#include "cpu/algebra.inl.h"

#include "cpu/blend.inl.h"

#include "cpu/blend_backward.inl.h"

#include "cpu/microkernels.inl.h"

#include "cpu/pwap.inl.h"

#include "cpu/linear.inl.h"

}  // namespace

extern const Kernels table;
const Kernels table = {
    AXNET_STRING(AXNET_ISA),
    moments,
    gate_forward,
    apply,
    reduce,
    gate_backward,
    input,
    input_mask,
    pwap,
    pwap_combine,
    pack_maps,
    pwap_prepare,
    pwap_backward,
    pwap_gather,
    linear,
};

}  // namespace axnet::cpu::AXNET_ISA
