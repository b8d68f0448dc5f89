// What a model is: the `model` block of the config, its size, and which of its keys decide what the
// weights compute.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "train/nn/attention_config.h"
#include "train/nn/ffn_config.h"
#include "train/nn/init_config.h"
#include "train/nn/moe_config.h"
#include "train/nn/norm_config.h"

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
  double logit_scale = 1;
  double final_logit_softcap = 0;  // c: logits become c tanh(logits / c); 0: off
  bool pads_in_ffn = true;         // pads go through the feed-forward layers too
  // Of the embeddings' gradient (Ding et al. 2021, arXiv:2105.13290).
  double embedding_fraction = 1;
  // Dropout in training: of the embeddings, and of what attention and feed-forward layers add.
  double emb_pdrop = 0, resid_pdrop = 0;
  NormConfig norm;
  AttentionConfig attention;
  std::vector<std::int64_t> layer_windows;  // AttentionConfig::window of each layer; empty: alike
  std::variant<FfnConfig, MoELayerConfig> ffn;
  // Of a mixture: the layers that are dense instead, ascending, and what they are.
  std::vector<std::int64_t> dense_layers;
  FfnConfig dense_ffn;
  InitConfig init;
  std::optional<LoraConfig> lora;  // then nothing but the adapters is trained

  // Reads the `model` block. Throws Error(kInvalidArgument) with the place.
  static ModelConfig from_yaml(const YamlMap& map);

  // Those of the `model` block's peft_config, where it has one.
  void read_lora(const YamlMap& map);
  // Gives every layer these adapters, or none.
  void set_lora(const std::optional<LoraConfig>& config);

  const MoELayerConfig* moe() const { return std::get_if<MoELayerConfig>(&ffn); }
  std::variant<FfnConfig, MoELayerConfig> ffn_of(std::int64_t layer) const;
  AttentionConfig attention_of(std::int64_t layer) const;
  // Whether a training pass draws random numbers.
  bool draws_noise() const;

  // The keys that decide which function the weights compute, under their YAML paths, with defaults
  // filled in. Left out: initialisation, loss weights and backends, which a run may change when it
  // goes on.
  std::vector<std::pair<std::string, std::string>> maths() const;
};

// How many parameters a model has, by arithmetic alone: no size is too large for it.
struct ParameterEstimate {
  double total = 0;
  std::string largest;  // the part that most of them belong to, with its keys and their values
  std::string cause;    // the one of these keys that is the most above its usual size
};
ParameterEstimate estimate_parameters(const ModelConfig& config);

}  // namespace dropless::train
