// The layer's forward for few tokens, in two kernels: the router, then everything else. What
// kernels.h says of its entries holds here. At most kSmallBatchTokens tokens, 1024 experts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/activation.h"
#include "dropless/view.h"
#include "src/cuda/small_batch_config.h"

namespace dropless::cuda {

struct SmallBatch {
  std::int64_t tokens = 0, top_k = 0, d_model = 0, d_ffn = 0, num_experts = 0;
  bool glu = true;
  Activation activation = Activation::kSilu;
  bool normalize = false;  // weights divided by their sum
  ConstTensorView x_TD = {}, router_ED = {}, w1_EFD = {}, v1_EFD = {}, w2_EFD = {};
  TensorView gate_RF = {}, up_RF = {};  // may be absent
  float* weights_TK = nullptr;
  std::int32_t *indices_TK = nullptr, *rows_TK = nullptr;
  std::int64_t* offsets_E1 = nullptr;
  float* losses_2 = nullptr;                    // may be null
  std::int32_t* tokens_per_expert_E = nullptr;  // may be null
  TensorView out_TD = {};
};

// Whether the router's kernel has the memory for so many logits and rows.
bool small_batch_fits(std::int64_t tokens, std::int64_t num_experts, std::int64_t top_k);

std::size_t small_batch_workspace_bytes(const SmallBatchPlan& plan, std::int64_t tokens,
                                        std::int64_t top_k, std::int64_t d_model,
                                        std::int64_t d_ffn, std::int64_t num_experts);
void small_batch_forward(const SmallBatchPlan& plan, const SmallBatch& layer, void* workspace,
                         Stream stream);

}  // namespace dropless::cuda
