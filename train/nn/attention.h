// Causal self-attention with H query heads sharing G key/value heads (multi-head: G = H,
// multi-query: G = 1, grouped-query between; Ainslie et al. 2023, arXiv:2305.13245), by libtorch's
// fused kernels.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "train/nn/init.h"
#include "train/nn/norm.h"
#include "train/nn/rope.h"

namespace dropless::train {

// What normalises queries and keys before RoPE, so that scores cannot grow without bound (Dehghani
// et al. 2023, arXiv:2302.05442): kWhole over all heads of a token at once (MPT's qk_ln), kPerHead
// over each head (qk_gn).
enum class QkNorm { kNone, kWhole, kPerHead };

struct AttentionConfig {
  std::int64_t d_model = 0;
  std::int64_t n_heads = 0;
  std::int64_t kv_n_heads = 0;
  std::int64_t head_dim = 0;
  double clip_qkv = 0;  // 0: off; else q, k and v are clamped to [-clip, clip] before RoPE
  std::optional<double> softmax_scale;  // absent: 1 / sqrt(head_dim)
  bool rope = false;
  double rope_theta = 10000;
  bool bias = true;
  QkNorm qk_norm = QkNorm::kNone;
  NormConfig norm;  // of queries and keys, where qk_norm asks for it

  // Reads `attn_config`; the model's sizes and norm are the caller's. Throws
  // Error(kInvalidArgument).
  static AttentionConfig from_yaml(const YamlMap& map, std::int64_t d_model, std::int64_t n_heads,
                                   std::optional<std::int64_t> head_dim, bool bias,
                                   const NormConfig& norm);
};

// Keys and values of the tokens seen so far, [B, G, S, head_dim].
struct KeyValueCache {
  at::Tensor keys, values;
};

class Attention {
 public:
  // Parameters NAME.Wqkv [(H + 2G) head_dim, D] (q rows, then k, then v), NAME.out_proj [D, H
  // head_dim]; with a norm of queries and keys NAME.q_ln and NAME.k_ln.
  Attention(const AttentionConfig& config, const std::string& name, ParameterMaker& maker,
            at::Device device);
  // x [B, S, D] -> [B, S, D]. With a cache: x are the tokens after the cached ones, which it then
  // holds too; after the first call S must be 1.
  at::Tensor forward(const at::Tensor& x_BSD, KeyValueCache* cache);

 private:
  AttentionConfig config_;
  at::Tensor qkv_weight_, qkv_bias_, out_weight_, out_bias_;
  std::optional<Norm> q_norm_, k_norm_;
  std::optional<Rope> rope_;
};

}  // namespace dropless::train
