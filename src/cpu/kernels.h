// Entries of the CPU kernels. Each exists twice with the same arguments and the same results up to
// rounding:
//
//   cpu::reference::op   plain single-threaded loops; the math as comments
//   (src/cpu/reference/op.cc) cpu::op              threaded and vectorised (src/cpu/op.cc over
//   src/cpu/simd/)
//
// Callers (src/ops) have checked shapes, types and contiguity: nothing is checked again here. Raw
// pointers point to contiguous row-major arrays; a null pointer is an absent tensor. Shape legend:
// T tokens, D model width, F expert width, E experts, K experts per token, R = T K routed rows;
// "accumulator" is the type sums are made in: double for fp64 tensors, else float.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/activation.h"
#include "dropless/backend.h"
#include "dropless/dtype.h"
#include "dropless/route.h"

namespace dropless::cpu {

// Sums over tokens are made per chunk, then over chunks in order: chunks depend on T only, so the
// result does not depend on the number of threads.
inline constexpr std::int64_t kMaxTokenChunks = 64;

constexpr std::int64_t token_chunk(std::int64_t tokens) {
  const std::int64_t chunk = (tokens + kMaxTokenChunks - 1) / kMaxTokenChunks;
  return chunk < 32 ? 32 : chunk;
}

struct RouteForwardArgs {
  RouteConfig config;
  DType dtype;  // of logits, bias, weights, losses
  std::int64_t tokens, experts, top_k;
  const void* logits_TE;
  const void* bias_E;  // may be null
  void* weights_TK;
  std::int32_t* indices_TK;  // read for RouteSelection::kGiven
  void* losses_2;            // may be null
  std::int32_t* tokens_per_expert_E;
  void* partials;  // route_partials_bytes()
};

struct RouteBackwardArgs {
  RouteConfig config;
  DType dtype;
  std::int64_t tokens, experts, top_k;
  const void* logits_TE;
  const std::int32_t* indices_TK;
  const std::int32_t* tokens_per_expert_E;  // may be null where d_losses_2 is
  const void* d_weights_TK;
  const void* d_losses_2;  // may be null
  void* d_logits_TE;       // not logits_TE
};

// Scores that sum to less are not divided (by a norm, or to p). Far above where exp stops in the
// threaded loops (1e-38), so that both implementations agree on what has underflowed.
inline constexpr double kRouteTiny = 1e-30;

// What the threaded router keeps of one chunk of tokens: accumulators and counts, and scratch of one
// token.
struct RouteChunk {
  void* sums_E1;   // of p, then of logsumexp^2
  void* scores_E;  // scratch, as all below but counts
  void* choice_E;  // c of route.h
  void* values_E;  // of the groups; there are at most E
  std::int32_t* counts_E;
  std::int32_t* order_E;  // the best groups
  std::int32_t* marks_E;  // of the best groups
};

// Of one chunk's arrays together.
constexpr std::size_t route_chunk_bytes(std::int64_t experts, std::size_t accumulator_bytes) {
  const std::size_t bytes = static_cast<std::size_t>(4 * experts + 1) * accumulator_bytes +
                            static_cast<std::size_t>(3 * experts) * sizeof(std::int32_t);
  return (bytes + 63) / 64 * 64;
}

constexpr std::size_t route_partials_bytes(std::int64_t experts, DType accumulator) {
  return kMaxTokenChunks * route_chunk_bytes(experts, dtype_bytes(accumulator));
}

struct RouteJitterArgs {
  DType dtype;
  std::int64_t size;
  double epsilon;
  std::uint64_t seed, stream;
  const void* x;
  void* out;  // may be x
};

struct DispatchOrderArgs {
  std::int64_t tokens, experts, top_k;
  const std::int32_t* indices_TK;
  std::int32_t* rows_TK;
  std::int64_t* offsets_E1;
  std::int32_t* tokens_R;  // may be null
  std::int32_t* partials;  // [kMaxTokenChunks, E] row counts
  // Rows an expert keeps, the first ones; the others' entries of rows_TK are -1. Negative: all.
  std::int64_t capacity = -1;
};

// tokens_R[rows[t, k]] = t; -1 in rows_TK (a dropped row) is passed over, here and below.
struct InvertRowsArgs {
  std::int64_t tokens, top_k;
  const std::int32_t* rows_TK;
  std::int32_t* tokens_R;
};

struct GatherArgs {
  DType dtype;
  std::int64_t tokens, top_k, width;
  const void* x_TD;
  const std::int32_t* rows_TK;
  void* x_RD;
  std::int64_t zero_rows = 0;  // rows of x_RD to clear first: some are named by no (t, k)
};

// out[t] = sum_k weights[t, k] * y[rows[t, k]] + base_scale * base[t]
struct CombineArgs {
  DType dtype;
  std::int64_t tokens, top_k, width;
  const void* y_RD;
  const void* weights_TK;  // accumulator type; null: all 1
  const std::int32_t* rows_TK;
  const void* base_TD;  // accumulator type; null: 0
  void* out_TD;
  double base_scale = 1;
};

struct CombineBackwardArgs {
  DType dtype;
  std::int64_t tokens, top_k, width;
  const void* y_RD;
  const void* weights_TK;
  const std::int32_t* rows_TK;
  const void* d_out_TD;
  void* d_y_RD;
  void* d_weights_TK;
  std::int64_t zero_rows = 0;  // of d_y_RD, as of a gather
};

struct HistogramArgs {
  std::int64_t entries, bins;
  const std::int32_t* indices_N;
  std::int32_t* counts_E;
};

struct CumsumArgs {
  DType dtype;  // int32 or int64
  std::int64_t batch, entries;
  bool inclusive;
  const void* x_BN;
  void* out_BN;  // may be x_BN
};

struct PaddedOffsetsArgs {
  std::int64_t bins, block_size;
  const std::int64_t* offsets_E1;
  std::int64_t* padded_E1;
};

struct TileTableArgs {
  std::int64_t bins, tile_rows;
  const std::int64_t* offsets_E1;
  std::int32_t* tiles_N3;
};

struct ReplicateArgs {
  DType dtype;
  std::int64_t batch, bins, entries;
  const void* x_BE;
  const std::int64_t* offsets_E1;
  void* out_BN;
};

struct ReplicateBackwardArgs {
  DType dtype;
  std::int64_t batch, bins, entries;
  const void* d_out_BN;
  const std::int64_t* offsets_E1;
  void* d_x_BE;
};

// Expert e's slots are [slot_offsets[e], slot_offsets[e + 1]) or, without slot_offsets, capacity
// ones from e * capacity on.
struct AssignSlotsArgs {
  std::int64_t entries;
  const std::int32_t* indices_TK;
  const std::int32_t* rows_TK;
  const std::int64_t* offsets_E1;
  const std::int64_t* slot_offsets_E1;  // may be null
  std::int64_t capacity;
  std::int32_t* slots_TK;
};

// One product a B_e of a grouped GEMM; a and out may be of the storage type of b or of its
// accumulator.
struct GroupedGemmTerm {
  const void* a = nullptr;
  DType a_dtype{};
  const std::int32_t* a_rows =
      nullptr;  // row r of the product reads row a_rows[r] of a; null: row r
  const void* b = nullptr;
  DType b_dtype{};
  std::int64_t b_stride = 0;  // elements from one group's matrix to the next; 0: n k
};

// out[r] = sum over terms of a[r] B_e (transpose_b: a[r] B_e^T), r in group e. The terms share
// offsets, n, k.
struct GroupedGemmArgs {
  std::int64_t groups, n, k;
  const std::int64_t* offsets;  // [groups + 1]
  bool transpose_b;
  int num_terms;
  GroupedGemmTerm terms[2];
  void* out;
  DType out_dtype;
  void* workspace;  // at least kGemmSlotBytes; each multiplying thread uses as much
  std::size_t workspace_bytes;
  // Both for k > 0.
  const void* bias = nullptr;  // [groups, n], b's type: row e is added to e's sums
  bool accumulate = false;     // adds to `out`, which has the accumulator's type
};

// out_e = sum over rows r of group e of a[r]^T b[b_rows ? b_rows[r] : r]
struct GroupedGemmWeightGradArgs {
  std::int64_t groups, m, n;
  const std::int64_t* offsets;
  const void* a;
  DType a_dtype;
  const void* b;
  DType b_dtype;
  const std::int32_t* b_rows;
  void* out;
  DType out_dtype;
  void* workspace;
  std::size_t workspace_bytes;
  std::int64_t out_stride = 0;  // elements from one group's matrix to the next; 0: m n
  bool accumulate = false;      // adds to `out`, which has the accumulator's type
};

// One way through the blocks of a block-sparse matrix: its block rows, or its block columns. Line l
// has the blocks n in [offsets[l], offsets[l + 1]); block n stands at indices[n] of the other
// dimension, in increasing order, and is stored as block blocks[n] (null: n) of the data.
struct BlockWalk {
  std::int64_t lines;
  const std::int32_t* offsets;
  const std::int32_t* indices;
  const std::int32_t* blocks;
};

// out block n = rows of block row_indices[n] of A [rows, depth] times columns of block
// column_indices[n] of B [depth, cols]; `out` [blocks, block_size, block_size].
struct SddArgs {
  DType dtype;
  std::int64_t block_size, blocks, rows, cols, depth;
  const std::int32_t* row_indices;
  const std::int32_t* column_indices;
  const void* a;
  bool transpose_a;  // stored as [depth, rows]
  const void* b;
  bool transpose_b;  // stored as [cols, depth]
  void* out;
  void* workspace;  // as of a grouped GEMM
  std::size_t workspace_bytes;
};

// A sparse matrix times a dense one. dsd: the walk's lines are block rows of out [lines *
// block_size, dense_size], indices block rows of the dense [depth, dense_size]. dds: the lines are
// block columns of out [dense_size, lines * block_size], indices block columns of the dense
// [dense_size, depth]. A line without blocks is zero.
struct SparseDenseArgs {
  DType dtype;
  std::int64_t block_size;
  BlockWalk walk;
  const void* data;       // [blocks, block_size, block_size]
  bool transpose_blocks;  // each block is used as its transpose
  const void* dense;
  bool transpose_dense;  // stored as the transpose
  std::int64_t dense_size, depth;
  void* out;
  void* workspace;
  std::size_t workspace_bytes;
};

// The block-diagonal topology of experts whose rows are padded to blocks; each has blocks_per_row
// block columns.
struct ExpertTopologyArgs {
  std::int64_t experts, block_size, blocks_per_row;
  const std::int64_t* offsets_E1;
  std::int64_t* padded_offsets_E1;
  std::int32_t* row_indices;
  std::int32_t* column_indices;
  std::int32_t* offsets;
};

// The column walk (BlockWalk: columns, offsets_t, column_indices_t, block_offsets_t) of a row walk.
struct TransposeTopologyArgs {
  std::int64_t blocks, columns;
  const std::int32_t* row_indices;
  const std::int32_t* column_indices;
  std::int32_t* column_indices_t;
  std::int32_t* offsets_t;
  std::int32_t* block_offsets_t;
};

// Packing buffers of one thread that multiplies matrices.
inline constexpr std::size_t kGemmSlotBytes = 1280 * 1024;

struct ActivationForwardArgs {
  DType dtype;
  Activation activation;
  std::int64_t size;
  const void* gate;
  const void* up;  // may be null
  void* a;
};

struct ActivationBackwardArgs {
  DType dtype;
  Activation activation;
  std::int64_t size;
  const void* gate;
  const void* up;  // null together with d_up
  const void* d_a;
  void* d_gate;
  void* d_up;
};

// The elementwise middle of the layer's backward pass, one pass over memory. With g = d_out W2^T
// (not yet multiplied by the routing weight) and h = act(gate) * up, for each (t, k) and its row r
// = rows[t, k]:
//
//   d_weights[t, k] = <h[r], g[r]>             = <y[r], d_out[t]>, without recomputing y = h W2
//   scaled_h[r]     = weights[t, k] * h[r]     W2's gradient is scaled_h^T d_out
//   d_h             = weights[t, k] * g[r];    d_gate[r] = d_h * up * act'(gate), d_up[r] = d_h *
//   act(gate)
struct ExpertBackwardArgs {
  DType dtype;
  Activation activation;
  std::int64_t tokens, top_k, width;
  const void* gate_RF;
  const void* up_RF;       // null together with d_up_RF
  const void* weights_TK;  // accumulator type
  const std::int32_t* rows_TK;
  const void* g_RF;
  void* d_gate_RF;  // may be g_RF
  void* d_up_RF;
  void* scaled_h_RF;
  void* d_weights_TK;  // accumulator type
};

// The entries of one implementation.
struct KernelTable {
  void (*route_forward)(const RouteForwardArgs& args);
  void (*route_backward)(const RouteBackwardArgs& args);
  void (*route_jitter)(const RouteJitterArgs& args);
  void (*dispatch_order)(const DispatchOrderArgs& args);
  void (*invert_rows)(const InvertRowsArgs& args);
  void (*histogram)(const HistogramArgs& args);
  void (*cumsum)(const CumsumArgs& args);
  void (*padded_offsets)(const PaddedOffsetsArgs& args);
  void (*tile_table)(const TileTableArgs& args);
  void (*replicate)(const ReplicateArgs& args);
  void (*replicate_backward)(const ReplicateBackwardArgs& args);
  void (*assign_slots)(const AssignSlotsArgs& args);
  void (*gather)(const GatherArgs& args);
  void (*combine)(const CombineArgs& args);
  void (*combine_backward)(const CombineBackwardArgs& args);
  void (*grouped_gemm)(const GroupedGemmArgs& args);
  void (*grouped_gemm_weight_grad)(const GroupedGemmWeightGradArgs& args);
  void (*sdd)(const SddArgs& args);
  void (*dsd)(const SparseDenseArgs& args);
  void (*dds)(const SparseDenseArgs& args);
  void (*expert_topology)(const ExpertTopologyArgs& args);
  void (*transpose_topology)(const TransposeTopologyArgs& args);
  void (*activation_forward)(const ActivationForwardArgs& args);
  void (*activation_backward)(const ActivationBackwardArgs& args);
  void (*expert_backward)(const ExpertBackwardArgs& args);
};

const KernelTable& kernels(Backend backend);

// Threads that a parallel region started now would have.
int max_threads();

void route_forward(const RouteForwardArgs& args);
void route_backward(const RouteBackwardArgs& args);
void route_jitter(const RouteJitterArgs& args);
void dispatch_order(const DispatchOrderArgs& args);
void invert_rows(const InvertRowsArgs& args);
void histogram(const HistogramArgs& args);
void cumsum(const CumsumArgs& args);
void replicate(const ReplicateArgs& args);
void replicate_backward(const ReplicateBackwardArgs& args);
void assign_slots(const AssignSlotsArgs& args);
void gather(const GatherArgs& args);
void combine(const CombineArgs& args);
void combine_backward(const CombineBackwardArgs& args);
void grouped_gemm(const GroupedGemmArgs& args);
void grouped_gemm_weight_grad(const GroupedGemmWeightGradArgs& args);
void sdd(const SddArgs& args);
void dsd(const SparseDenseArgs& args);
void dds(const SparseDenseArgs& args);
void activation_forward(const ActivationForwardArgs& args);
void activation_backward(const ActivationBackwardArgs& args);
void expert_backward(const ExpertBackwardArgs& args);

namespace reference {
void route_forward(const RouteForwardArgs& args);
void route_backward(const RouteBackwardArgs& args);
void route_jitter(const RouteJitterArgs& args);
void dispatch_order(const DispatchOrderArgs& args);
void invert_rows(const InvertRowsArgs& args);
void histogram(const HistogramArgs& args);
void cumsum(const CumsumArgs& args);
void padded_offsets(const PaddedOffsetsArgs& args);
void tile_table(const TileTableArgs& args);
void replicate(const ReplicateArgs& args);
void replicate_backward(const ReplicateBackwardArgs& args);
void assign_slots(const AssignSlotsArgs& args);
void gather(const GatherArgs& args);
void combine(const CombineArgs& args);
void combine_backward(const CombineBackwardArgs& args);
void grouped_gemm(const GroupedGemmArgs& args);
void grouped_gemm_weight_grad(const GroupedGemmWeightGradArgs& args);
void sdd(const SddArgs& args);
void dsd(const SparseDenseArgs& args);
void dds(const SparseDenseArgs& args);
void expert_topology(const ExpertTopologyArgs& args);
void transpose_topology(const TransposeTopologyArgs& args);
void activation_forward(const ActivationForwardArgs& args);
void activation_backward(const ActivationBackwardArgs& args);
void expert_backward(const ExpertBackwardArgs& args);
}  // namespace reference

}  // namespace dropless::cpu
