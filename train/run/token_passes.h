// Generation's passes: after the prompts', one new token of each row a pass.
//
// On a GPU a pass of few rows is hundreds of short kernels, and queuing them takes longer than running
// them. There the pass is captured into a CUDA graph once and launched for every token.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "train/bridge/device_graph.h"
#include "train/nn/transformer.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

class TokenPasses {
 public:
  // Under the caller's NoGradGuard and AutocastGuard of `precision`, which must live as long. At most
  // `tokens` follow each prompt.
  TokenPasses(Transformer& model, Precision precision, const at::Tensor& pads_B,
              std::int64_t tokens);

  // The pass over the prompts [B, S]: logits [B, S, V] on the device.
  at::Tensor read_prompts(const at::Tensor& tokens_BS);
  // One more token of each row, ids [B]: logits [B, V] on the CPU, which the next call may overwrite. Throws
  // Error(kInvalidArgument) when learned positions run out.
  at::Tensor read_tokens(const std::vector<TokenId>& ids);

 private:
  at::Tensor run(const at::Tensor& tokens_B1);
  void capture();

  Transformer& model_;
  PassOptions options_;
  bool captures_;
  std::int64_t most_;        // positions that may be read in all
  std::int64_t length_ = 0;  // and that were so far
  ModelCache cache_;
  at::Tensor host_;  // int64 [B + 1]: the ids of a pass, and its position
  // Of the graph, which reads inputs_ and writes logits_BV_.
  std::optional<OwnStream> stream_;
  at::Tensor inputs_, logits_BV_, host_logits_BV_;
  std::unique_ptr<DeviceGraph> graph_;
};

}  // namespace dropless::train
