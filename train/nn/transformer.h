// The decoder-only language model: MPT's block order and LLM Foundry's names.
//
//   x = wte[token] (+ wpe[position]);  per block: x += attn(norm_1(x)); x += ffn(norm_2(x))
//   logits = norm_f(x) wte^T, or lm_head where embeddings are untied
//
// Shape legend: B rows, S positions, D model width, V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "train/nn/model_config.h"

namespace dropless::train {

// `active`: the embedding table and top_k / E of the experts.
struct ParameterCount {
  std::int64_t total = 0;
  std::int64_t active = 0;
};

// One cache per layer; filled by Transformer::forward.
using ModelCache = std::vector<KeyValueCache>;

class Transformer {
 public:
  // Weights drawn from `seed`.
  Transformer(const ModelConfig& config, std::uint64_t seed, at::Device device);
  ~Transformer();

  // tokens_BS int64 -> logits [B, S, V]. With a cache, the tokens follow those it holds. Throws
  // Error(kInvalidArgument) when learned positions run out.
  at::Tensor forward(const at::Tensor& tokens_BS, RouterRecord& record,
                     ModelCache* cache = nullptr);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  const ModelConfig& config() const { return config_; }
  at::Device device() const { return device_; }
  ParameterCount count() const;

 private:
  struct Block;

  ModelConfig config_;
  at::Device device_;
  std::vector<Parameter> parameters_;
  at::Tensor wte_, wpe_, lm_head_;
  std::vector<Block> blocks_;
  std::optional<Norm> norm_f_;
};

// Sum of -log softmax(logits)[label] over the positions whose label is not -100; a scalar, fp32
// (fp64 for fp64 logits). logits_BSV [B, S, V]; labels_BS int64: each position's next token.
at::Tensor cross_entropy_sum(const at::Tensor& logits_BSV, const at::Tensor& labels_BS);

}  // namespace dropless::train
