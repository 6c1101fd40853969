// Checks of every argument of every op, for the wrappers of every device: a kernel reads what it is given as what it
// expects, so that a wrong type, size, stride or device would be a wrong number or a crash. One sentence each, as in
// axnet/checks.py; below a microsecond a call.
#pragma once

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "tensors.h"

namespace axnet {

constexpr int64_t kMaxMaps = 64;
constexpr int64_t kMaxPixels = int64_t{1} << 31;  // positions of maxima are int32

namespace checks {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str() + ".");
}

// The sentence is made only when it is needed.
#define AXNET_REQUIRE(condition, ...)                       \
  do {                                                      \
    if (!(condition)) ::axnet::checks::refuse(__VA_ARGS__); \
  } while (false)

// What the elements of an argument may be: of x's type, of the accumulation type, of any floating type.
enum class Type { of_x, acc, floating, int32, float64 };

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    default: return "another type";
  }
}

inline bool is_feature_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i)
    text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

// The checks of one call: the op's name and the features that the other arguments have to fit.
class Call {
 public:
  Call(const char* op, const Tensor& x) : op_(op), type_(x.scalar_type()), device_(device_of(x)) {
    AXNET_REQUIRE(is_feature_type(type_), op, ": x is ", name_of(type_),
                  ", expected float32, float64, bfloat16 or float16");
    AXNET_REQUIRE(x.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op, ": x has shape ", shape_of(x),
                  ", expected [N, C, H, W] with at least one channel and one pixel");
    AXNET_REQUIRE(x.size(2) * x.size(3) < kMaxPixels, op, ": x has shape ", shape_of(x),
                  ", expected fewer than 2^31 pixels");
    acc_ = accumulator(x);
  }

  // One argument: element type, sizes, device, and dense in row-major order where the kernels take it as it is.
  void operator()(const char* name, const Tensor& t, Type type, std::initializer_list<int64_t> sizes,
                  bool dense = true) const {
    on_device(name, t);
    const ScalarType found = t.scalar_type();
    AXNET_REQUIRE(type == Type::floating ? is_feature_type(found) : found == expected(type), op_, ": ", name, " is ",
                  name_of(found), ", expected ", type == Type::floating ? "a floating type" : name_of(expected(type)));
    bool fits = t.dim() == static_cast<int64_t>(sizes.size());
    int64_t i = 0;
    for (const int64_t size : sizes)
      fits = fits && t.size(i++) == size;
    if (!fits) {
      std::string wanted = "[";
      for (const int64_t size : sizes)
        wanted += (wanted.size() > 1 ? ", " : "") + std::to_string(size);
      refuse(op_, ": ", name, " has shape ", shape_of(t), ", expected ", wanted, "]");
    }
    AXNET_REQUIRE(!dense || t.is_contiguous(), op_, ": ", name, " has gaps or another order, expected it contiguous");
  }
  void operator()(const char* name, const std::optional<Tensor>& t, Type type, std::initializer_list<int64_t> sizes,
                  bool dense = true) const {
    if (t) (*this)(name, *t, type, sizes, dense);
  }

  void on_device(const char* name, const Tensor& t) const {
    const Device found = device_of(t);
    AXNET_REQUIRE(found.type == device_.type && found.index == device_.index, op_, ": ", name,
                  " is on another device than x");
  }

  void mask(const Tensor& x, const Tensor& m) const {
    AXNET_REQUIRE(m.dim() == 4 && m.size(1) >= 1 && m.size(1) <= kMaxAnatomies, op_, ": mask has shape ", shape_of(m),
                  ", expected [N, A, H, W] with 1 to ", kMaxAnatomies, " anatomies");
    (*this)("mask", m, Type::acc, {x.size(0), m.size(1), x.size(2), x.size(3)});
  }

  void maps(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, Type type) const {
    AXNET_REQUIRE(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(0) <= kMaxMaps, op_, ": weight has shape ",
                  shape_of(weight), ", expected [K, C] with 1 to ", kMaxMaps, " maps");
    (*this)("weight", weight, type, {weight.size(0), x.size(1)});
    (*this)("bias", bias, type, {weight.size(0)});
  }

  // What has a row of images, or no images where the op did without it.
  void optional_images(const char* name, const Tensor& t, Type type, int64_t images,
                       std::initializer_list<int64_t> sizes) const {
    if (t.dim() > 0 && t.size(0) == 0) images = 0;
    int64_t all[4] = {images};
    std::copy(sizes.begin(), sizes.end(), all + 1);
    if (sizes.size() == 2) (*this)(name, t, type, {all[0], all[1], all[2]});
    else (*this)(name, t, type, {all[0], all[1], all[2], all[3]});
  }

  [[noreturn]] void fail(const char* sentence) const { refuse(op_, ": ", sentence); }

 private:
  ScalarType expected(Type type) const {
    return type == Type::of_x    ? type_
           : type == Type::acc   ? acc_
           : type == Type::int32 ? ScalarType::Int
                                 : ScalarType::Double;
  }

  const char* op_;
  ScalarType type_, acc_ = ScalarType::Float;
  Device device_;
};

}  // namespace checks

// `given` is the type that the wrappers of a device accept for gate, weights and statistics.
inline void check_masked_moments(const Tensor& x, const Tensor& mask, int64_t blocks) {
  const checks::Call check("masked_moments", x);
  check.mask(x, mask);
  if (blocks != 0 && blocks != 1 && blocks != mask.size(1)) check.fail("blocks is not 0, 1 or the number of anatomies");
}

inline void check_masked_moments_backward(const Tensor& x, const Tensor& mask, const Tensor& argmax,
                                          const Tensor& grad_descriptors, const std::optional<Tensor>& grad_z,
                                          const std::optional<Tensor>& coef) {
  using checks::Type;
  const checks::Call check("masked_moments_backward", x);
  check.mask(x, mask);
  const int64_t N = x.size(0), C = x.size(1), A = mask.size(1);
  check("argmax", argmax, Type::int32, {N, 1 + A, C});
  check("grad_descriptors", grad_descriptors, Type::acc, {N, descriptor_rows(static_cast<int>(A)), C}, false);
  if (grad_z.has_value() != coef.has_value()) check.fail("grad_z and coef come together or not at all");
  if (!grad_z) return;
  const int64_t blocks = grad_z->dim() == 4 && grad_z->size(1) != C ? A : 1;
  check("grad_z", *grad_z, Type::of_x, {N, blocks * C, x.size(2), x.size(3)}, false);
  check("coef", *coef, Type::acc, {N, blocks, coef_rows(blocks > 1 ? 1 : static_cast<int>(A)), C}, false);
}

inline void check_gate_norm(const Tensor& x, const Tensor& mask, const Tensor& gate,
                            const std::optional<Tensor>& moments, const Tensor& mass,
                            const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
                            bool concat, bool save, const Tensor& link, const Tensor& coef_link,
                            checks::Type given = checks::Type::acc) {
  using checks::Type;
  const checks::Call check("gate_norm", x);
  check.mask(x, mask);
  const int64_t N = x.size(0), C = x.size(1), A = mask.size(1), rows = (concat ? A : 1) * C;
  check("gate", gate, given, {N, A, C}, false);
  if (moments) check.optional_images("moments", *moments, Type::acc, N, {moment_rows(static_cast<int>(A)), C});
  check("mass", mass, Type::float64, {N, mass_rows(static_cast<int>(A))});
  check("weight", weight, given, {rows});
  check("bias", bias, given, {rows});
  check("running_mean", running_mean, given, {rows});
  check("running_var", running_var, given, {rows});
  check.on_device("link", link);
  check.on_device("coef_link", coef_link);
  if (running_mean.has_value() != running_var.has_value())
    check.fail("running_mean and running_var come together or not at all");
  if ((save || !running_mean) && N > 0 && !(moments && moments->size(0)))
    check.fail("moments are needed for batch statistics and for saved rows");
}

inline void check_gate_norm_backward(const Tensor& grad_z, const Tensor& x, const Tensor& mask, const Tensor& gate,
                                     const Tensor& mass, const std::optional<Tensor>& weight, const Tensor& mean,
                                     const Tensor& var, const Tensor& saved, bool concat,
                                     checks::Type given = checks::Type::acc) {
  using checks::Type;
  const checks::Call check("gate_norm_backward", x);
  check.mask(x, mask);
  const int64_t N = x.size(0), C = x.size(1), A = mask.size(1), blocks = concat ? A : 1;
  check("grad_z", grad_z, Type::of_x, {N, blocks * C, x.size(2), x.size(3)}, false);
  check("gate", gate, given, {N, A, C}, false);
  check("mass", mass, Type::float64, {N, mass_rows(static_cast<int>(A))});
  check("weight", weight, given, {blocks * C});
  check("mean", mean, Type::acc, {blocks * C});
  check("var", var, Type::acc, {blocks * C});
  check.optional_images("saved", saved, Type::acc, N, {blocks, saved_rows(concat ? 1 : static_cast<int>(A)), C});
}

inline void check_pwap(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       checks::Type given = checks::Type::acc) {
  checks::Call("pwap", x).maps(x, weight, bias, given);
}

inline void check_gated_pwap(const Tensor& x, const Tensor& mask, const Tensor& gate,
                             const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                             const Tensor& mean, const Tensor& var, const Tensor& weight,
                             const std::optional<Tensor>& bias, checks::Type given = checks::Type::acc) {
  const checks::Call check("gated_pwap", x);
  check.mask(x, mask);
  const int64_t C = x.size(1);
  check("gate", gate, given, {x.size(0), mask.size(1), C}, false);
  check("norm_weight", norm_weight, given, {C});
  check("norm_bias", norm_bias, given, {C});
  check("mean", mean, given, {C});
  check("var", var, given, {C});
  check.maps(x, weight, bias, given);
}

inline void check_pwap_backward(const Tensor& grad_pooled, const std::optional<Tensor>& grad_prob, const Tensor& x,
                                const Tensor& weight, const Tensor& logits, const Tensor& norm, const Tensor& pooled,
                                checks::Type given = checks::Type::acc) {
  using checks::Type;
  const checks::Call check("pwap_backward", x);
  check.maps(x, weight, std::nullopt, given);
  const int64_t N = x.size(0), C = x.size(1), K = weight.size(0);
  check("grad_pooled", grad_pooled, Type::floating, {N, K, C}, false);
  check("grad_prob", grad_prob, Type::floating, {N, K, x.size(2), x.size(3)}, false);
  check("logits", logits, Type::acc, {N, K, x.size(2), x.size(3)});
  check("norm", norm, Type::acc, {N, 2, K});
  check("pooled", pooled, Type::floating, {N, K, C}, false);
}

inline void check_attention_gate(const Tensor& descriptors, const Tensor& hidden_weight, const Tensor& hidden_bias,
                                 const Tensor& gate_weight, const Tensor& gate_bias, int64_t most_images,
                                 const char* op = "attention_gate") {
  const ScalarType acc = descriptors.scalar_type(), type = hidden_weight.scalar_type();
  AXNET_REQUIRE(acc == ScalarType::Float || acc == ScalarType::Double, op, ": descriptors is ", checks::name_of(acc),
                ", expected float32 or float64");
  AXNET_REQUIRE(hidden_weight.dim() == 4 && hidden_weight.size(0) >= 1 && hidden_weight.size(0) <= kMaxAnatomies &&
                    hidden_weight.size(1) == 4,
                op, ": hidden_weight has shape ", checks::shape_of(hidden_weight), ", expected [A, 4, H, C] with 1 to ",
                kMaxAnatomies, " anatomies");
  const int64_t A = hidden_weight.size(0), H = hidden_weight.size(2), C = hidden_weight.size(3);
  AXNET_REQUIRE(descriptors.dim() == 3 && descriptors.size(0) <= most_images &&
                    descriptors.size(1) == descriptor_rows(static_cast<int>(A)) && descriptors.size(2) == C,
                op, ": descriptors has shape ", checks::shape_of(descriptors), ", expected [N, ",
                descriptor_rows(static_cast<int>(A)), ", ", C, "] with at most ", most_images, " images");
  AXNET_REQUIRE(
      hidden_bias.dim() == 3 && hidden_bias.size(0) == A && hidden_bias.size(1) == 4 && hidden_bias.size(2) == H, op,
      ": hidden_bias has shape ", checks::shape_of(hidden_bias), ", expected [", A, ", 4, ", H, "]");
  AXNET_REQUIRE(
      gate_weight.dim() == 3 && gate_weight.size(0) == A && gate_weight.size(1) == C && gate_weight.size(2) == H, op,
      ": gate_weight has shape ", checks::shape_of(gate_weight), ", expected [", A, ", ", C, ", ", H, "]");
  AXNET_REQUIRE(gate_bias.dim() == 2 && gate_bias.size(0) == A && gate_bias.size(1) == C, op, ": gate_bias has shape ",
                checks::shape_of(gate_bias), ", expected [", A, ", ", C, "]");
  AXNET_REQUIRE(checks::is_feature_type(type), op, ": hidden_weight is ", checks::name_of(type),
                ", expected a floating type");
  for (const Tensor* t : {&hidden_bias, &gate_weight, &gate_bias})
    AXNET_REQUIRE(t->scalar_type() == type, op, ": one weight is ", checks::name_of(t->scalar_type()),
                  ", expected the type of hidden_weight, ", checks::name_of(type));
  const Device device = device_of(descriptors);
  for (const Tensor* t : {&hidden_weight, &hidden_bias, &gate_weight, &gate_bias}) {
    const Device found = device_of(*t);
    AXNET_REQUIRE(found.type == device.type && found.index == device.index, op,
                  ": a weight is on another device than descriptors");
    AXNET_REQUIRE(t->is_contiguous(), op, ": a weight has gaps or another order, expected it contiguous");
  }
}

// x [G, N, I] of the accumulation type of weight [G, O, I]; bias [G, O].
inline void check_grouped_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t most_rows) {
  const char* op = "grouped_linear";
  AXNET_REQUIRE(checks::is_feature_type(weight.scalar_type()) && bias.scalar_type() == weight.scalar_type(), op,
                ": weight is ", checks::name_of(weight.scalar_type()), " and bias ",
                checks::name_of(bias.scalar_type()), ", expected one floating type");
  AXNET_REQUIRE(x.scalar_type() == accumulator(weight), op, ": x is ", checks::name_of(x.scalar_type()),
                ", expected the accumulation type of weight, ", checks::name_of(accumulator(weight)));
  AXNET_REQUIRE(x.dim() == 3 && x.size(1) <= most_rows, op, ": x has shape ", checks::shape_of(x),
                ", expected [G, N, I] with at most ", most_rows, " rows");
  AXNET_REQUIRE(weight.dim() == 3 && weight.size(0) == x.size(0) && weight.size(2) == x.size(2), op,
                ": weight has shape ", checks::shape_of(weight), ", expected [G, O, I] for x of shape ",
                checks::shape_of(x));
  AXNET_REQUIRE(bias.dim() == 2 && bias.size(0) == weight.size(0) && bias.size(1) == weight.size(1), op,
                ": bias has shape ", checks::shape_of(bias), ", expected [G, O] for weight of shape ",
                checks::shape_of(weight));
}

}  // namespace axnet
