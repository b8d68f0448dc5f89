// Causal self-attention with H query heads sharing G key/value heads (multi-head: G = H,
// multi-query: G = 1, grouped-query between; Ainslie et al. 2023, arXiv:2305.13245), by libtorch's
// fused kernels.
//
//   z_ij = scale q_i . k_j;   with a soft cap c:  c tanh(z_ij / c);   with ALiBi:  + m_h (j - i)
//   out_i = sum_j softmax_j(z_ij) v_j      over j <= i, with a window W only i - W <= j, with
//                                          sequence ids only those of i's document
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "train/nn/attention_config.h"
#include "train/nn/init.h"
#include "train/nn/lora.h"
#include "train/nn/norm.h"
#include "train/nn/rope.h"

namespace dropless::train {

// Keys and values of the tokens seen so far, [B, G, S, head_dim]; of a pass with a position_1 with room for
// more behind them.
struct KeyValueCache {
  at::Tensor keys, values;
};

// What all layers of one pass over [B, S] tokens share.
struct AttentionPass {
  at::Tensor sequence_ids_BS;                // int64; undefined: a row is one document
  bool training = false;                     // dropout is on
  at::Tensor pads_B;                         // as PassOptions::pads_B
  at::Tensor position_1;                     // as PassOptions::position_1
  std::map<std::int64_t, at::Tensor> masks;  // by window; made by the first layer that has it
};

// m_h, [H]: 2^(-alibi_bias_max h / P), h = 1..P, with P the next power of two; where H < P, those of
// even h first, then those of odd h, cut to H.
at::Tensor alibi_slopes(std::int64_t n_heads, double alibi_bias_max);

class Attention {
 public:
  // Parameters NAME.Wqkv [(H + 2G) head_dim, D] (q rows, then k, then v) or NAME.Wq, NAME.Wk and
  // NAME.Wv, and NAME.out_proj [D, H head_dim]; with a norm of queries and keys NAME.q_ln and
  // NAME.k_ln; of adapters NAME.Wqkv.lora_A.weight ..., NAME.q_proj.lora_A.weight ... (LoraAdapter).
  Attention(const AttentionConfig& config, const std::string& name, ParameterMaker& maker,
            at::Device device);
  // x [B, S, D] -> [B, S, D]. With a cache: x are the tokens after the cached ones, which it then
  // holds too.
  at::Tensor forward(const at::Tensor& x_BSD, KeyValueCache* cache, AttentionPass& pass);
  // A pass through this layer alone.
  at::Tensor forward(const at::Tensor& x_BSD, KeyValueCache* cache) {
    AttentionPass pass;
    return forward(x_BSD, cache, pass);
  }
  // Whether decode() computes this layer, with products in `type`.
  bool decodes(at::ScalarType type) const;
  // The same as forward() with a position_1, in the kernels that a GPU has for it: x [B, D] -> [B, D].
  at::Tensor decode(const at::Tensor& x_BD, KeyValueCache& cache, const AttentionPass& pass);

 private:
  struct Projected {
    at::Tensor q, k, v;  // [B, S, heads head_dim]
  };
  void make_adapters(const std::string& name, ParameterMaker& maker);
  Projected project(const at::Tensor& x_BSD, bool training) const;
  at::Tensor clipped(const at::Tensor& x) const;
  void write_cache(KeyValueCache& cache, const at::Tensor& k, const at::Tensor& v,
                   const AttentionPass& pass) const;
  at::Tensor make_mask(std::int64_t past, std::int64_t first_key, std::int64_t S,
                       const AttentionPass& pass) const;
  at::Tensor make_mask_at(const at::Tensor& position_1, std::int64_t keys,
                          const AttentionPass& pass) const;
  at::Tensor mask_of(const at::Tensor& i, const at::Tensor& key, const AttentionPass& pass) const;
  at::Tensor fused_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& mask, double dropout) const;
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const at::Tensor& mask, double dropout) const;

  AttentionConfig config_;
  at::Device device_;
  std::vector<at::Tensor> weights_, biases_;  // of Wqkv, or of Wq, Wk and Wv
  at::Tensor out_weight_, out_bias_, slopes_H11_;
  LoraAdapter qkv_adapter_, q_adapter_, k_adapter_, v_adapter_, out_adapter_;
  std::optional<Norm> q_norm_, k_norm_;
  std::optional<Rope> rope_;
};

}  // namespace dropless::train
