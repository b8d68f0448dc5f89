// Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685). Beside a frozen matrix W [out, in],
//
//   y = x W^T + s drop(x) A^T B^T,      s = alpha / r, or alpha / sqrt(r) with use_rslora,
//
// where A [r, in] is drawn and B [out, r] begins at 0, so that training starts at the model as it was.
// An expert has an A and a B for each of its matrices.
#pragma once

#include <cstdint>
#include <string>

#include "train/nn/init.h"
#include "train/nn/lora_config.h"

namespace dropless::train {

// The adapter of one matrix, or, where config or targets lack it, of none.
class LoraAdapter {
 public:
  LoraAdapter() = default;
  // Parameters NAME.lora_A.weight [r, in] and NAME.lora_B.weight [out, r].
  LoraAdapter(const LoraConfig& config, const std::string& name, std::int64_t out, std::int64_t in,
              ParameterMaker& maker);
  explicit operator bool() const { return a_.defined(); }
  // y + s drop(x) A^T B^T; y itself where there is no adapter. x [..., in], y [..., out].
  at::Tensor add_to(const at::Tensor& y, const at::Tensor& x, bool training) const;

 private:
  at::Tensor a_, b_;
  double scale_ = 0, dropout_ = 0;
};

// The adapters of one matrix of every expert: a [E, r, in] and b [E, out, r].
struct ExpertAdapter {
  at::Tensor a, b;  // undefined: none
};

// Those of all the matrices of a mixture. For w2 `in` is F and `out` is D, as of a linear layer.
struct ExpertAdapters {
  ExpertAdapter w1, v1, w2;
  double scale = 0, dropout = 0;
  bool any() const { return w1.a.defined() || v1.a.defined() || w2.a.defined(); }
};

// Parameters NAME.w1.lora_A [E * r, in] and NAME.w1.lora_B [E * out, r], v1 (`glu`) and w2 alike.
ExpertAdapters make_expert_adapters(const LoraConfig& config, const std::string& name,
                                    std::int64_t num_experts, std::int64_t d_model,
                                    std::int64_t d_ffn, bool glu, ParameterMaker& maker);

}  // namespace dropless::train
