#include "train/nn/attention.h"

#include "dropless/error.h"

namespace dropless::train {

AttentionConfig AttentionConfig::from_yaml(const YamlMap& map, std::int64_t d_model,
                                           std::int64_t n_heads,
                                           std::optional<std::int64_t> head_dim, bool bias,
                                           const NormConfig& norm) {
  AttentionConfig config;
  config.d_model = d_model;
  config.n_heads = n_heads;
  config.bias = bias;
  config.norm = norm;
  config.head_dim = head_dim.value_or(d_model / n_heads);

  const std::string type = map.get<std::string>("attn_type", "multihead_attention");
  const auto kv_heads = map.find<std::int64_t>("kv_n_heads");
  if (type == "multihead_attention") {
    config.kv_n_heads = n_heads;
  } else if (type == "multiquery_attention") {
    config.kv_n_heads = 1;
  } else if (type == "grouped_query_attention") {
    if (!kv_heads) map.fail("attn_type", "grouped_query_attention needs kv_n_heads");
    config.kv_n_heads = *kv_heads;
  } else {
    map.fail("attn_type", "unknown attn_type " + type,
             "one of: multihead_attention, multiquery_attention, grouped_query_attention");
  }
  if (kv_heads && *kv_heads != config.kv_n_heads) {
    map.fail("kv_n_heads", "kv_n_heads " + std::to_string(*kv_heads) + " does not fit " + type);
  }
  if (config.kv_n_heads < 1 || n_heads % config.kv_n_heads != 0) {
    map.fail("kv_n_heads", "n_heads " + std::to_string(n_heads) +
                               " is not a multiple of kv_n_heads " +
                               std::to_string(config.kv_n_heads));
  }
  config.clip_qkv = map.non_negative<double>("clip_qkv", 0.0);
  const bool qk_ln = map.get<bool>("qk_ln", false), qk_gn = map.get<bool>("qk_gn", false);
  if (qk_ln && qk_gn) map.fail("qk_gn", "qk_ln and qk_gn exclude each other", "keep one of them");
  if (qk_ln) config.qk_norm = QkNorm::kWhole;
  if (qk_gn) config.qk_norm = QkNorm::kPerHead;
  config.softmax_scale = map.find_positive<double>("softmax_scale");
  config.rope = map.get<bool>("rope", false);
  config.rope_theta = map.positive<double>("rope_theta", config.rope_theta);
  if (!config.rope) map.no_effect("rope_theta", "rope is off");
  if (config.rope && config.head_dim % 2 != 0) {
    map.fail("rope", "rope needs an even head dimension; it is " + std::to_string(config.head_dim));
  }
  map.refuse("attn_pdrop", map.get<double>("attn_pdrop", 0.0) != 0.0, "set it to 0");
  map.no_effect("attn_impl", "libtorch picks the fused attention kernel");
  map.no_effect("rope_impl", "dail and hf are the same rotation");
  map.finish();
  return config;
}

Attention::Attention(const AttentionConfig& config, const std::string& name, ParameterMaker& maker,
                     at::Device device)
    : config_(config) {
  const std::int64_t q_width = config.n_heads * config.head_dim;
  const std::int64_t qkv_width = q_width + 2 * config.kv_n_heads * config.head_dim;
  qkv_weight_ = maker.linear(name + ".Wqkv.weight", qkv_width, config.d_model);
  if (config.bias) qkv_bias_ = maker.constant(name + ".Wqkv.bias", qkv_width, 0.0);
  out_weight_ = maker.linear(name + ".out_proj.weight", config.d_model, q_width, /*residual=*/true);
  if (config.bias) out_bias_ = maker.constant(name + ".out_proj.bias", config.d_model, 0.0);
  if (config.qk_norm != QkNorm::kNone) {
    const bool whole = config.qk_norm == QkNorm::kWhole;
    const std::int64_t kv_width = config.kv_n_heads * config.head_dim;
    q_norm_.emplace(config.norm, name + ".q_ln", whole ? q_width : config.head_dim, maker);
    k_norm_.emplace(config.norm, name + ".k_ln", whole ? kv_width : config.head_dim, maker);
  }
  if (config.rope) rope_.emplace(config.head_dim, config.rope_theta, device);
}

at::Tensor Attention::forward(const at::Tensor& x_BSD, KeyValueCache* cache) {
  const std::int64_t B = x_BSD.size(0), S = x_BSD.size(1);
  const std::int64_t H = config_.n_heads, G = config_.kv_n_heads, hd = config_.head_dim;
  const std::int64_t past = cache && cache->keys.defined() ? cache->keys.size(2) : 0;
  if (past > 0 && S != 1) {
    throw Error(ErrorKind::kInternal, "a filled key/value cache takes one token at a time");
  }

  at::Tensor qkv = at::linear(x_BSD, qkv_weight_, qkv_bias_);
  if (config_.clip_qkv > 0) qkv = qkv.clamp(-config_.clip_qkv, config_.clip_qkv);
  // One split, whose gradient is one concatenation; narrowing would add up three padded tensors.
  const auto parts = at::split_with_sizes(qkv, {H * hd, G * hd, G * hd}, 2);
  const auto heads_of = [&](const at::Tensor& part, const std::optional<Norm>& norm,
                            std::int64_t heads) {
    const bool whole = config_.qk_norm == QkNorm::kWhole;
    at::Tensor x_BSHd = norm && whole ? norm->forward(part).to(qkv.scalar_type()) : part;
    x_BSHd = x_BSHd.view({B, S, heads, hd});
    if (norm && !whole) x_BSHd = norm->forward(x_BSHd).to(qkv.scalar_type());
    return (rope_ ? rope_->forward(x_BSHd, past) : x_BSHd).transpose(1, 2);
  };
  const at::Tensor q = heads_of(parts[0], q_norm_, H);
  at::Tensor k = heads_of(parts[1], k_norm_, G);
  at::Tensor v = parts[2].view({B, S, G, hd}).transpose(1, 2);
  if (cache) {
    cache->keys = past > 0 ? at::cat({cache->keys, k}, 2) : k;
    cache->values = past > 0 ? at::cat({cache->values, v}, 2) : v;
    k = cache->keys;
    v = cache->values;
  }
  const at::Tensor out =
      at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                       /*is_causal=*/past == 0 && S > 1, config_.softmax_scale,
                                       /*enable_gqa=*/H != G);
  return at::linear(out.transpose(1, 2).reshape({B, S, H * hd}), out_weight_, out_bias_);
}

}  // namespace dropless::train
