// Views of feature maps and the rows of the arrays between the passes: one definition for every device;
// axnet/ops/rows.py is its twin for shape inference and Triton.
#pragma once

#include <cstdint>

namespace axnet {

// A dense [N, C, S] view in elements: either pixels are adjacent (NCHW: a row of pixels per channel, s == 1) or
// channels are (channels_last: a row of channels per pixel, c == 1).
struct View {
  int64_t n, c, s;
  bool channels_last;
};

// Element types, as kernels are told.
enum class Type : int8_t { f32, f64, bf16, f16 };

constexpr int kMaxAnatomies = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int pairs(int a) { return a * (a + 1) / 2; }
// Row of the pair a <= b among the pairs of A anatomies.
constexpr int pair_row(int A, int a, int b) { return a * A - a * (a - 1) / 2 + (b - a); }
// Rows of the descriptors [N, rows, C]: avg, max, masked_avg_a, masked_max_a.
constexpr int descriptor_rows(int a) { return 2 + 2 * a; }
// Rows of the masses [N, rows]: sum_s m_a, sum_s m_a m_b.
constexpr int mass_rows(int a) { return a + pairs(a); }
// Rows of the moments [N, rows, C]: shift c, s1, s2, t_a, t2_a, q1_ab, q2_ab of x' = x - c (ab: a <= b).
constexpr int moment_rows(int a) { return 3 + 2 * a + 2 * pairs(a); }
// Rows saved per block for the backward pass: c, s1, t_a, Q_0, Q_a, E_0, E_a (docs/method.md, "A3 from moments").
constexpr int saved_rows(int b) { return 1 + 3 * (1 + b); }
// Rows of the sums of the first backward pass: e0, e1, h_a, f_a.
constexpr int sum_rows(int b) { return 2 + 2 * b; }
// Rows of the folded forward coefficients: b, w_a, h.
constexpr int fold_rows(int b) { return 2 + b; }
// Rows of the backward coefficients: k1, k2, k3, b, w_a.
constexpr int coef_rows(int b) { return 4 + b; }

}  // namespace axnet
