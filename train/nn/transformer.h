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
#include <string>
#include <variant>
#include <vector>

#include "train/nn/attention.h"
#include "train/nn/ffn.h"
#include "train/nn/moe.h"
#include "train/nn/norm.h"

namespace dropless::train {

struct ModelConfig {
  std::int64_t d_model = 2048;
  std::int64_t n_heads = 16;
  std::int64_t n_layers = 24;
  std::int64_t max_seq_len = 2048;
  std::int64_t vocab_size = 50368;
  bool learned_pos_emb = true;
  bool bias = true;
  bool tie_word_embeddings = true;
  NormConfig norm;
  AttentionConfig attention;
  std::variant<FfnConfig, MoELayerConfig> ffn;
  InitConfig init;

  // Reads the `model` block. Throws Error(kInvalidArgument) with the place.
  static ModelConfig from_yaml(const YamlMap& map);

  const MoELayerConfig* moe() const { return std::get_if<MoELayerConfig>(&ffn); }
};

// Parameter counts without building the model. `active`: the embedding table and top_k / E of the
// experts.
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
