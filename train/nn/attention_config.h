// The `attn_config` of a model.
#pragma once

#include <cstdint>
#include <optional>

#include "train/base/yaml.h"
#include "train/nn/lora_config.h"
#include "train/nn/norm_config.h"
#include "train/nn/rope_config.h"

namespace dropless::train {

// What normalises queries and keys before RoPE, so that scores cannot grow without bound (Dehghani
// et al. 2023, arXiv:2302.05442): kWhole over all heads of a token at once (MPT's qk_ln), kPerHead
// over each head (qk_gn).
enum class QkNorm { kNone, kWhole, kPerHead };

// What `attn_config` leaves to the model around it.
struct AttentionShape {
  std::int64_t d_model = 0, n_heads = 0;
  std::optional<std::int64_t> head_dim;  // absent: d_model / n_heads
  std::int64_t max_seq_len = 0;
  bool bias = true;
  NormConfig norm;
};

// A probability of dropping, below 1.
double dropout_from_yaml(const YamlMap& map, const char* key);

// sliding_window_size, AttentionConfig::window.
std::int64_t window_from_yaml(const YamlMap& map, std::int64_t fallback);

struct AttentionConfig {
  std::int64_t d_model = 0;
  std::int64_t n_heads = 0;
  std::int64_t kv_n_heads = 0;
  std::int64_t head_dim = 0;
  double clip_qkv = 0;           // 0: off; else q, k and v are clamped to [-clip, clip] before RoPE
  bool clip_after_norm = false;  // behind qk_norm, as OLMoE does; else before it, as LLM Foundry
  std::optional<double> softmax_scale;  // absent: 1 / sqrt(head_dim)
  bool rope = false;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  // Attention with linear biases (Press et al. 2021, arXiv:2108.12409); the largest slope is
  // 2^(-alibi_bias_max / n_heads), for n_heads a power of two.
  bool alibi = false;
  double alibi_bias_max = 8;
  std::int64_t window = -1;  // -1: off; else keys before a token that it sees (itself too, always)
  bool sequence_ids = false;
  double logit_softcap = 0;  // 0: off
  double dropout = 0;        // of the softmax, in training
  bool fused_qkv = true;     // one matrix Wqkv, or three
  bool bias = true;          // of q, k and v
  bool out_bias = true;
  QkNorm qk_norm = QkNorm::kNone;
  NormConfig norm;  // of queries and keys, where qk_norm asks for it
  std::optional<LoraConfig> lora;

  // Reads `attn_config`. Throws Error(kInvalidArgument).
  static AttentionConfig from_yaml(const YamlMap& map, const AttentionShape& shape);
};

}  // namespace dropless::train
