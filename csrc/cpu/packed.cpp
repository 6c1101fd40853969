// Gates, weights and statistics of any floating type, read as the accumulation type.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/common.h"

namespace axnet::cpu {
namespace {

struct Rows {  // up to three axes, the outer ones first
  int64_t sizes[3] = {1, 1, 1}, strides[3] = {0, 0, 0};
};

template <class T, class Acc>
void copy_rows(const Rows& r, const T* from, Acc* to) {
  for (int64_t i = 0; i < r.sizes[0]; ++i)
    for (int64_t j = 0; j < r.sizes[1]; ++j) {
      const T* row = from + i * r.strides[0] + j * r.strides[1];
      for (int64_t k = 0; k < r.sizes[2]; ++k)
        *to++ = static_cast<Acc>(row[k * r.strides[2]]);
    }
}

template <class Acc>
void copy_as(const Rows& rows, const Tensor& t, Acc* to) {
  switch (type_of(t)) {
    case Type::f32: return copy_rows(rows, static_cast<const float*>(t.data_ptr()), to);
    case Type::f64: return copy_rows(rows, static_cast<const double*>(t.data_ptr()), to);
    case Type::bf16: return copy_rows(rows, static_cast<const c10::BFloat16*>(t.data_ptr()), to);
    case Type::f16: return copy_rows(rows, static_cast<const c10::Half*>(t.data_ptr()), to);
  }
}

}  // namespace

Tensor packed(const Tensor& t, ScalarType acc, bool fresh) {
  if (!fresh && t.scalar_type() == acc && t.is_contiguous()) return t;
  const int64_t axes = t.dim();
  std::vector<int64_t> sizes(axes);
  Rows rows;
  for (int64_t i = 0; i < axes; ++i) {
    sizes[i] = t.size(i);
    rows.sizes[3 - axes + i] = t.size(i), rows.strides[3 - axes + i] = t.stride(i);
  }
  Tensor copy = empty(sizes, acc);
  if (acc == ScalarType::Double) copy_as(rows, t, static_cast<double*>(copy.data_ptr()));
  else copy_as(rows, t, static_cast<float*>(copy.data_ptr()));
  return copy;
}

}  // namespace axnet::cpu
