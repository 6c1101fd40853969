// What the CPU wrappers hand to the kernels of the instruction set that this machine has.
//
// Shapes are row-major; "acc" is the accumulation type (float, or double for double). N images, C channels, S pixels,
// A anatomies. Fusion "concat" has A output blocks of one anatomy each, "mean" has one block of all: B anatomies a
// block.
#pragma once

#include <cstdint>

#include "rows.h"

namespace axnet::cpu {

constexpr int64_t kChannelBlock = 64;       // channels that one channels_last task reduces, at least
constexpr int64_t kWideChannelBlock = 512;  // and at most: more in a row read faster, fewer make more tasks
// Whether so many anatomies have code of their own, which takes wide blocks (isa.inl.h). float64, in which gradients
// are checked, is not worth the compiler's time.
constexpr bool has_own_code(Type type, int anatomies) { return type != Type::f64 && anatomies <= 3; }
constexpr int64_t kPixelGroup = 8;     // pixels that one channels_last task maps
constexpr int64_t kGateChannels = 16;  // channels that one task of the gate's algebra holds

struct MomentsArgs {
  Type type;
  int64_t N, C, S;
  int A;
  View x;
  int64_t block;  // channels of a channels_last task
  const void* x_data;
  const void* mask;         // acc [N, A, S]
  const double* mask_sums;  // [N, A]: sum_s m_a
  void* descriptors;        // acc [N, 2+2A, C]: avg, max, masked_avg_a, masked_max_a
  void* moments;            // acc [N, moment_rows(A), C] or null
  int32_t* argmax;          // [N, 1+A, C] or null
};

struct GateArgs {
  Type type;  // of acc
  int64_t N, C, S;
  int A;
  bool concat, batch_statistics;
  double eps;
  const void* gate;     // acc [N, A, C]
  const void* moments;  // acc [N, moment_rows(A), C]; null is accepted without batch statistics and saved
  const double* mass;   // [N, A + pairs(A)]: sum_s m_a, sum_s m_a m_b
  const void* weight;   // acc [blocks*C] or null
  const void* bias;     // acc [blocks*C] or null
  void* mean;           // acc [blocks*C]: written with batch statistics, read without
  void* var;            // the same; biased
  void* fold;           // acc [N, blocks, fold_rows(B), C]; null: only `saved` is wanted, mean and var are not touched
  void* saved;          // acc [N, blocks, saved_rows(B), C] or null
};

struct GateBackwardArgs {
  Type type;
  int64_t N, C, S;
  int A;
  bool concat, batch_statistics;
  double eps;
  const void* gate;
  const double* mass;
  const void* weight;
  const void* mean;
  const void* var;
  const void* saved;
  const void* sums;   // acc [N, blocks, sum_rows(B), C]
  void* coef;         // acc [N, blocks, coef_rows(B), C]
  void* gate_grad;    // acc [N, A, C]
  void* weight_grad;  // acc [blocks*C]
  void* bias_grad;    // acc [blocks*C]
};

// Z = X (b + sum_a w_a m_a) + h, one block.
struct ApplyArgs {
  Type type;
  int64_t N, C, S;
  int B;
  View x, z;
  const void* x_data;
  void* z_data;
  const void* mask;  // of the block's first anatomy
  int64_t mask_stride;
  const void* fold;
  int64_t fold_stride;
  bool stream;  // write past the caches
};

// e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x', one block.
struct ReduceArgs {
  Type type;
  int64_t N, C, S;
  int B;
  View x, d;
  int64_t block;  // channels of a channels_last task
  const void* x_data;
  const void* d_data;
  const void* mask;
  int64_t mask_stride;
  const void* shift;  // row 0 of saved
  int64_t shift_stride;
  void* sums;
  int64_t sums_stride;
};

// dX = sum_o (k1 D_o + k2 + k3 X G_o) G_o + delta_avg/S + sum_a delta_mavg,a m_a/S
//      + [s = argmax] delta_max + sum_a [s = argmax_a] delta_mmax,a m_a
struct InputArgs {
  Type type;
  int64_t N, C, S;
  int A;
  int blocks;  // 0: the descriptors' part alone; 1: "mean"; A: "concat"
  View x, d, dx;
  const void* x_data;
  const void* d_data;
  void* dx_data;
  const void* mask;   // acc [N, A, S]
  const void* coef;   // acc [N, blocks, coef_rows(B), C]
  const void* delta;  // acc [N, 2+2A, C]: gradient of the descriptors
  const int32_t* argmax;
  void* mask_grad;  // acc [N, A, S]; of input_mask only
  bool stream;
};

// PWAP holds many maps in the lanes of vectors, padded to P columns; a few it takes one by one.
constexpr bool maps_in_lanes(int k) { return k >= 6; }
constexpr int kMaxMaps = 64;
constexpr int64_t kMaxTile = 256;          // pixels of a tile, at most
constexpr int64_t kCombineChannels = 128;  // channels that one task merges from the tiles
constexpr int padded_maps(int k) { return maps_in_lanes(k) ? (k + 15) / 16 * 16 : k; }

struct PwapArgs {
  Type type;
  int64_t N, C, S;
  int K;
  View x;
  const void* x_data;
  const void* packed;  // acc [C, P]: the weights by channel, padded with zeros
  const void* weight;  // acc [K, C]
  const void* bias;    // acc [K] or null
  void* pooled;        // x type [N, K, C]
  void* prob;          // x type [N, K, S]
  void* logits;        // acc [N, K, S]
  void* norm;          // acc [N, 2, K]: largest logit, sum of p / p(largest logit)
  void* partial;       // acc [N, tiles, P*C + 2*K]: numerators, largest logit, denominator
  void* scratch;       // double [2, kMaxMaps, kMaxTile] of this thread; null for float
  int64_t tile, tiles;
};

struct PwapBackwardArgs {
  Type type;
  int64_t N, C, S;
  int K;
  View x, dx;
  const void* x_data;
  void* dx_data;          // or null
  const void* logits;     // acc [N, K, S]
  const void* norm;       // acc [N, 2, K]
  const void* grad;       // acc [N, K, C]: gradient of pooled
  const void* pooled;     // acc [N, K, C]
  const void* weight;     // acc [K, C]
  void* grad_packed;      // acc [N, C, P]: the gradient by channel, padded with zeros
  void* weight_packed;    // acc [C, P]: the weights by channel
  void* mean_grad;        // acc [N, K]: <grad_pooled_k, pooled_k>
  const void* grad_prob;  // acc [N, K, S] or null
  void* partial;          // acc [N, tiles, P*C + K]: of the weight's and the bias's gradient
  void* weight_grad;      // acc [K, C]
  void* bias_grad;        // acc [K]
  void* scratch;          // double [2, 2 kMaxMaps, kMaxTile] of this thread; null for float
  int64_t tile, tiles;
};

constexpr int64_t kLinearRows = 8;      // rows of x that grouped_linear takes, at most (axnet/nn/grouped.py)
constexpr int64_t kLinearOutputs = 16;  // outputs of one of its tasks

struct LinearArgs {
  Type type;  // of weight, bias and out
  int64_t N, I, O;
  const void* x;       // acc [G, N, I]
  const void* weight;  // [G, O, I]
  const void* bias;    // [G, O]
  void* out;           // [G, N, O], of type or, where `wide`, of acc
  bool wide;
};

struct Kernels {
  const char* name;
  void (*moments)(const MomentsArgs&, int64_t begin, int64_t end);    // NCHW: rows (n, c); else (n, channel block)
  void (*gate_forward)(const GateArgs&, int64_t begin, int64_t end);  // groups of kGateChannels
  void (*apply)(const ApplyArgs&, int64_t begin, int64_t end);        // NCHW: rows; else (n, pixel group)
  void (*reduce)(const ReduceArgs&, int64_t begin, int64_t end);      // as moments
  void (*gate_backward)(const GateBackwardArgs&, int64_t begin, int64_t end);
  void (*input)(const InputArgs&, int64_t begin, int64_t end);                 // as apply
  void (*input_mask)(const InputArgs&, int64_t begin, int64_t end);            // images
  void (*pwap)(const PwapArgs&, int64_t begin, int64_t end);                   // (n, tile)
  void (*pwap_combine)(const PwapArgs&, int64_t begin, int64_t end);           // (n, kCombineChannels channels)
  void (*pack_maps)(Type, const void* rows, int K, int64_t C, void* out);      // acc [K, C] -> [C, P]
  void (*pwap_prepare)(const PwapBackwardArgs&, int64_t begin, int64_t end);   // images, and the weights as task N
  void (*pwap_backward)(const PwapBackwardArgs&, int64_t begin, int64_t end);  // (n, tile)
  void (*pwap_gather)(const PwapBackwardArgs&, int64_t begin, int64_t end);    // kCombineChannels channels
  void (*linear)(const LinearArgs&, int64_t begin, int64_t end);               // (group, kLinearOutputs outputs)
};

const Kernels& kernels();  // of the best instruction set here; AXNET_CPU_ISA names another

}  // namespace axnet::cpu
