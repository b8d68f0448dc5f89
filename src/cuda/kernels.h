// Entries of the CUDA kernels. Nothing of CUDA shows here: builds without it link unavailable.cc,
// whose definitions throw.
//
// Every pointer is device memory of the current device, every call is asynchronous on `stream`, and
// none allocates or waits. R routed rows sorted by expert; offsets_E1: int64 [E + 1], rows of
// expert e are [offsets[e], offsets[e + 1]). Widths are multiples of 8. The matrix products take bf16
// or fp16, one of them in a call; fp32 where it says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "dropless/activation.h"
#include "dropless/backend.h"
#include "dropless/block_sparse.h"
#include "dropless/route.h"
#include "dropless/view.h"
#include "src/cuda/gemm_config.h"

namespace dropless::cuda {

// ---- router, dispatch order, permute, combine: semantics in include/dropless/{route,permute}.h
// ---- At most 1024 experts. fp32 logits, weights and losses. losses_2, tokens_per_expert_E,
// d_losses_2, tokens_R, weights_R may be null (weights_TK too, with weights_R). `pitch`: floats
// from one token's logits (and d_logits) to the next's. bias_E: the selection bias, or null. A given
// index outside [0, E) has no expert: weight 0 (0 / 0 if all of its token's are).

// Whether a router without a selection bias is softmax, top-k and at most a division by the sum: those have kernels of their
// own, and few tokens a path of their own.
inline bool plain_router(const RouteConfig& config) {
  return config == RouteConfig{} || config == RouteConfig{.normalize_p = 1};
}

std::size_t route_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts);
void route_forward(const RouteConfig& config, const float* bias_E, const float* logits_TE,
                   std::int64_t pitch, std::int64_t num_tokens, std::int64_t num_experts,
                   std::int64_t top_k, float* weights_TK, std::int32_t* indices_TK, float* losses_2,
                   std::int32_t* tokens_per_expert_E, void* workspace, Stream stream);
void route_backward(const RouteConfig& config, const float* logits_TE, std::int64_t pitch,
                    std::int64_t num_tokens, std::int64_t num_experts, std::int64_t top_k,
                    const std::int32_t* indices_TK, const std::int32_t* tokens_per_expert_E,
                    const float* d_weights_TK, const float* d_losses_2, float* d_logits_TE,
                    Stream stream);

// Also tokens_R[row] = t and weights_R[row] = weights_TK[t, k]. An index outside [0, E) has no row,
// nor has one beyond its expert's `capacity` (below 0: there is none): its rows_TK is -1.
std::size_t dispatch_order_workspace_bytes(std::int64_t num_tokens, std::int64_t top_k,
                                           std::int64_t num_experts);
void dispatch_order(const std::int32_t* indices_TK, const float* weights_TK,
                    std::int64_t num_tokens, std::int64_t top_k, std::int64_t num_experts,
                    std::int32_t* rows_TK, std::int64_t* offsets_E1, std::int32_t* tokens_R,
                    float* weights_R, void* workspace, Stream stream, std::int64_t capacity = -1);

// bf16, fp16 or fp32 rows, contiguous but for gather's x_TD and combine's out_TD: they may be columns
// of wider rows. Without weights combine is gather's backward; `add`: to what out_TD holds. Entries
// of rows_TK may be -1 in gather, and with `dropped` in combine.
void gather(ConstTensorView x_TD, const std::int32_t* rows_TK, std::int64_t top_k, TensorView x_RD,
            Stream stream);
void combine(ConstTensorView y_RD, const float* weights_TK, const std::int32_t* rows_TK,
             std::int64_t top_k, bool add, TensorView out_TD, Stream stream, bool dropped = false);
void combine_backward(ConstTensorView y_RD, const float* weights_TK, const std::int32_t* rows_TK,
                      std::int64_t top_k, ConstTensorView d_out_TD, TensorView d_y_RD,
                      float* d_weights_TK, Stream stream);

// ---- matrix products
// ------------------------------------------------------------------------------

// Row tiles: the experts' rows cut into tiles of at most block_m rows, in an order that serves the products: row_tiles.cu.
// At most 1024 experts. Memory: a count, then {expert, row, rows} records of 16 bytes.
std::size_t row_tiles_bytes(std::int64_t max_rows, std::int64_t num_experts, int block_m);
void build_row_tiles(const std::int64_t* offsets_E1, std::int64_t num_experts, int block_m,
                     void* row_tiles, Stream stream);

// A gather (above) that a product carries out beside itself, on warps that it leaves idle, or before itself where it
// cannot: x_RD holds the rows when the product is done. It writes nothing that the product reads or writes.
struct GatherBeside {
  ConstTensorView x_TD;
  const std::int32_t* rows_TK = nullptr;
  std::int64_t top_k = 0;
  TensorView x_RD;
  explicit operator bool() const { return static_cast<bool>(x_RD); }
};

// out_RN = a_RK b_e^T for weights b [E, N, K], or a_RK b_e for weights b [E, K, N] (b_is_EKN).
// For weights [E, N, K] also fp32 outputs, for [E, K, N] also a bias, added to the rows of its expert
// before they are rounded. Rows, batches and pitches as the views say.
// row_tiles: of config.block_m. Rows outside the experts' ranges are not written.
void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream,
                  ConstTensorView bias_EN = {}, const GatherBeside& beside = {});

// out_RN = a_RK b_e + a2_RK b2_e, rounded once.
void grouped_gemm_two_terms(ConstTensorView a_RK, ConstTensorView b_EKN, ConstTensorView a2_RK,
                            ConstTensorView b2_EKN, const void* row_tiles, TensorView out_RN,
                            const GemmConfig& config, Stream stream,
                            const GatherBeside& beside = {});

// out_e [M, N] = a_e^T b_e over the rows of expert e: the weight gradient. Also fp32 outputs;
// `accumulate` adds into out (fp32 only). Experts without rows give zeros (or add nothing).
void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              const std::int64_t* offsets_E1, TensorView out_EMN, bool accumulate,
                              const GemmConfig& config, Stream stream,
                              const GatherBeside& beside = {});

// Up projection with its activation: gate = x w1^T, up = x v1^T, act = activation(gate) * up;
// without v1 act = activation(gate). gate and up may be absent (nothing is saved for backward).
// w1 and v1 may be halves of one tensor. b1 (and with v1 bv1) are added to gate and up. row_tiles:
// of block_m = 128. With list_R row r of x is
// row list_R[r] of the given, contiguous x; without, x's rows are in order.
void grouped_gemm_activation(Activation activation, ConstTensorView x, const std::int32_t* list_R,
                             ConstTensorView w1_EFD, ConstTensorView v1_EFD, const void* row_tiles,
                             TensorView gate_RF, TensorView up_RF, TensorView act_RF, Stream stream,
                             ConstTensorView b1_EF = {}, ConstTensorView bv1_EF = {});

// The gradient through the down and the activation, for rows whose outputs the router weighs by
// scores: with t[r] = w2 d_out[tokens_R[r]] (d_out_TD contiguous, not weighed),
//   gate <- scores t up activation'(gate)      up <- scores t activation(gate)      in place
//   act  =  scores activation(gate) up         for d_w2 = act^T d_out
//   d_scores_NR[i, r] = the part of <t, activation(gate) up> in columns 256 i .. 256 i + 255
// without up: plain activations. The partial sums, ceil(F / 256) rows of R, add up in order of i.
inline constexpr int kActivationGradColumns = 256;
void grouped_gemm_activation_grad(Activation activation, ConstTensorView d_out_TD,
                                  const std::int32_t* tokens_R, ConstTensorView w2_EFD,
                                  const float* scores_R, const void* row_tiles, TensorView gate_RF,
                                  TensorView up_RF, TensorView act_RF, float* d_scores_NR,
                                  Stream stream);

// ---- block-sparse products and topologies: semantics in include/dropless/block_sparse.h
// ---- Blocks of 128 x 128, bf16 or fp16. The topologies' arrays too are device memory; offsets may
// end below the number of blocks that there is room for.

// dense_size > 0: with room to cut the walks of dsd and dds into parts, where that is faster.
std::size_t block_sparse_workspace_bytes(std::int64_t block_rows, std::int64_t block_columns,
                                         std::int64_t blocks, std::int64_t dense_size = 0);
void sdd(ConstTensorView a, bool transpose_a, ConstTensorView b, bool transpose_b,
         const BlockTopology& topology, TensorView out_data, void* workspace, Stream stream);
void dsd(ConstTensorView a_data, bool transpose_a, const BlockTopology& a_topology,
         ConstTensorView b, bool transpose_b, TensorView out, void* workspace,
         std::size_t workspace_bytes, Stream stream);
void dds(ConstTensorView a, bool transpose_a, ConstTensorView b_data, bool transpose_b,
         const BlockTopology& b_topology, TensorView out, void* workspace,
         std::size_t workspace_bytes, Stream stream);

// Of any block size. Rows for which the topology has no room are left out.
void expert_topology(const std::int64_t* offsets_E1, std::int64_t num_experts, std::int64_t d_ffn,
                     std::int64_t* padded_offsets_E1, const BlockTopology& topology, Stream stream);
void transpose_topology(const BlockTopology& topology, Stream stream);

// ---- router products
// ---------------------------------------------------------------------------------

// Floats from one token's logits to the next's: the matrix products store whole 16 bytes.
constexpr std::int64_t router_pitch(std::int64_t num_experts) { return (num_experts + 7) / 8 * 8; }

// Of router_logits and router_backward alike, on any GPU.
std::size_t router_workspace_bytes(std::int64_t num_tokens, std::int64_t d_model,
                                   std::int64_t num_experts);

// logits[t, e] = <x[t], router[e]>: fp32 sums and result.
void router_logits(ConstTensorView x_TD, ConstTensorView router_ED, float* logits_TP,
                   void* workspace, Stream stream);

// d_x = d_logits router and d_router = d_logits^T x, both overwritten. d_logits enter as sums of two
// numbers of x's type: 16 significant bits of bf16, 22 of fp16 within its range.
void router_backward(ConstTensorView x_TD, ConstTensorView router_ED, const float* d_logits_TP,
                     TensorView d_x_TD, TensorView d_router_ED, void* workspace, Stream stream);

// ---- between the parts of the layer's backward pass
// --------------------------------------------------

// weights_R[rows[t, k]] = weights[t, k], tokens_R[rows[t, k]] = t, where there is such a row, and how
// often each expert was chosen, in a row or not.
void prepare_backward(const float* weights_TK, const std::int32_t* indices_TK,
                      const std::int32_t* rows_TK, std::int64_t num_rows, std::int64_t top_k,
                      std::int64_t num_experts, float* weights_R, std::int32_t* tokens_R,
                      std::int32_t* tokens_per_expert_E, Stream stream);

// d_weights[t, k] = sum over parts i, in order, of d_scores[i, rows[t, k]]; where there is an added_TP
// of that pitch, to added[t, indices[t, k]]. 0 without a row.
void sum_score_gradients(const float* d_scores_NR, std::int64_t parts, const std::int32_t* rows_TK,
                         std::int64_t num_rows, std::int64_t top_k, const float* added_TP,
                         std::int64_t pitch, const std::int32_t* indices_TK, float* d_weights_TK,
                         Stream stream);

// The gradient of an expert's bias: out[e] = sum of the rows of expert e, each weighed by weights_R
// where there is one, in a fixed order in fp32. row_tiles: of block_m = kColumnSumRows.
inline constexpr int kColumnSumRows = 128;
std::size_t column_sums_workspace_bytes(std::int64_t max_rows, std::int64_t num_experts,
                                        std::int64_t width);
void column_sums(ConstTensorView rows_RN, const float* weights_R, const std::int64_t* offsets_E1,
                 const void* row_tiles, TensorView out_EN, void* workspace, Stream stream);

// ---- device
// ------------------------------------------------------------------------------------------

// Makes device `index` the calling thread's for its lifetime.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int index_;
  int previous_;
};

// Why these kernels cannot run on device `index`; empty where they can.
std::string device_problem(int index);

// Whether device `index` takes the matrix products made for every GPU instead of Hopper's (path.h),
// and none of small_batch.h.
bool portable_path(int index);

}  // namespace dropless::cuda
