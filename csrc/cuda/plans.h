// What the CUDA wrappers (*.cpp) hand to the kernels (*.cu), and the functions that launch these: no tensors, so that
// nvcc need not read torch's headers.
//
// Shapes are row-major; "acc" is the accumulation type (float, or double for double), T the type of X. N images,
// C channels, S pixels, A anatomies; `blocks` of the output with `members` anatomies each.
#pragma once

#include <cstdint>

#include "rows.h"

typedef struct CUstream_st* cudaStream_t;

namespace axnet::cuda {

// Parameters in whatever floating type they have (numbers.cuh), or none.
struct Numbers {
  const void* at = nullptr;
  Type type = Type::f32;
};

struct MomentsPlan {
  int64_t N, C, S;
  int A;
  View x;
  const void *x_data, *mask;  // T [N, C, S], acc [N, A, S]
  void* descriptors;          // acc [N, 2+2A, C]: avg, max, masked_avg_a, masked_max_a
  void* moments;              // acc [N, moment_rows(A), C] or null
  int32_t* argmax;            // [N, 1+A, C] or null
  double* mass;               // [N, A + pairs(A)] or null
  void *link, *coef_link;     // one element each: written zero, or null
};

struct GateShape {
  int64_t N, C, S;
  int A, blocks, members;  // output blocks of `members` anatomies each
  bool concat, batch_statistics;
  double eps;
  Numbers gate;        // [N, A, C]
  const double* mass;  // [N, A + pairs(A)]
};

// gate_norm: the folded coefficients.
struct FoldPlan {
  GateShape gate;
  const void* moments;            // acc [N, moment_rows(A), C]; null is accepted without batch statistics and saved
  Numbers weight, bias;           // [blocks*C] or none
  Numbers given_mean, given_var;  // [blocks*C]; without batch statistics
  void *mean, *var;               // acc [blocks*C]; biased; or null
  void* fold;                     // acc [N, blocks, fold_rows(members), C]; or null: only `saved` is wanted
  void* saved;                    // acc [N, blocks, saved_rows(members), C] or null
};

// Z = X (b + sum_a w_a m_a) + h.
struct ApplyPlan {
  int64_t N, C, S;
  int A, blocks, members;
  View x, z;
  const void* x_data;
  void* z_data;
  const void *mask, *fold;  // acc [N, A, S], acc [N, blocks, fold_rows(members), C]
};

// The first pass of gate_norm's gradient (sums.cuh).
struct SumsPlan {
  int64_t N, C, S;
  int A, blocks, members;
  View x, d;
  const void *x_data, *d_data;  // T [N, C, S], T [N, blocks*C, S]
  const void* mask;             // acc [N, A, S]
  const void* saved;            // acc [N, blocks, saved_rows(members), C]; row 0: the shift
  void* sums;                   // acc [N, blocks, sum_rows(members), C]
};

// The second: coefficients of dX, gradients of the parameters.
struct CombinePlan {
  GateShape gate;
  Numbers weight;                 // [blocks*C] or none
  Numbers mean, var;              // [blocks*C]
  const void *saved, *sums;       // acc [N, blocks, saved_rows(members), C], [N, blocks, sum_rows(members), C]
  void* coef;                     // acc [N, blocks, coef_rows(members), C]
  void* gate_grad;                // acc [N, A, C]
  void *weight_grad, *bias_grad;  // acc [blocks*C]
};

// dX, and the masks' gradient (input_grad.cuh).
struct InputPlan {
  int64_t N, C, S;
  int A, blocks, members;  // blocks of Z (0: the descriptors' part alone) of `members` anatomies each
  View x, d, dx;
  const void *x_data, *d_data;
  void* dx_data;
  const void* mask;       // acc [N, A, S]
  const void* coef;       // acc [N, blocks, coef_rows(members), C]: k1, k2, k3, b, w_a
  const void* delta;      // acc [N, 2+2A, C]: gradient of the descriptors
  const int32_t* argmax;  // [N, 1+A, C]
  void* mask_grad;        // acc [N, A, S]
};

constexpr int kMatrixGateImages = 64, kMatrixGateSide = 128;  // twins in axnet/ops/linear.py

struct GatePlan {
  int N, A, C, H;
  const float* descriptors;                                           // [N, 2+2A, C]
  const void *hidden_weight, *hidden_bias, *gate_weight, *gate_bias;  // T
  void* rows;                                                         // T [2+2A, N, C]
  void* sums;                                                         // T [A, N, H]
  float* gate;                                                        // [N, A, C]
};

// In `stream`, for X of type T (acc: in that accumulation type). Those that return bool say whether they took the plan.
bool scalar_moments(cudaStream_t stream, const MomentsPlan& plan, Type of_x, bool full);
bool matrix_moments(cudaStream_t stream, const MomentsPlan& plan, bool full);  // bfloat16
bool lane_moments(cudaStream_t stream, const MomentsPlan& plan, bool full);    // float32, NCHW
void any_moments(cudaStream_t stream, const MomentsPlan& plan, Type of_x, bool full);

void fold_gate(cudaStream_t stream, const FoldPlan& plan, Type acc);
void apply(cudaStream_t stream, const ApplyPlan& plan, Type of_x);

bool scalar_sums(cudaStream_t stream, const SumsPlan& plan, Type of_x);
bool matrix_sums(cudaStream_t stream, const SumsPlan& plan);  // bfloat16, NCHW
bool across_sums(cudaStream_t stream, const SumsPlan& plan);  // bfloat16, channels_last
void any_sums(cudaStream_t stream, const SumsPlan& plan, Type of_x);
void combine(cudaStream_t stream, const CombinePlan& plan, Type acc);

void input_grad(cudaStream_t stream, const InputPlan& plan, Type of_x);
void mask_grad(cudaStream_t stream, const InputPlan& plan, Type of_x);

void matrix_gate(cudaStream_t stream, const GatePlan& plan, Type of_weights);

}  // namespace axnet::cuda
