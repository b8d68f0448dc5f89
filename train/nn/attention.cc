#include "train/nn/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "train/bridge/views.h"
#include "train/nn/linear.h"
#include "train/nn/precision.h"

namespace dropless::train {

at::Tensor alibi_slopes(std::int64_t n_heads, double alibi_bias_max) {
  std::int64_t power = 1;
  while (power < n_heads) power *= 2;
  const at::Tensor h = at::arange(1, power + 1, at::kDouble);
  const at::Tensor slopes = at::pow(2.0, h * (-alibi_bias_max / static_cast<double>(power)));
  if (power == n_heads) return slopes;
  return at::cat({slopes.slice(0, 1, power, 2), slopes.slice(0, 0, power, 2)})
      .narrow(0, 0, n_heads);
}

Attention::Attention(const AttentionConfig& config, const std::string& name, ParameterMaker& maker,
                     at::Device device)
    : config_(config), device_(device) {
  const std::int64_t q_width = config.n_heads * config.head_dim;
  const std::int64_t kv_width = config.kv_n_heads * config.head_dim;
  const auto bias = [&](const std::string& part, std::int64_t size) {
    biases_.push_back(config.bias ? maker.constant(name + part + ".bias", size, 0.0)
                                  : at::Tensor());
  };
  if (config.fused_qkv) {
    weights_.push_back(
        maker.fused(name + ".Wqkv.weight", {q_width, kv_width, kv_width}, config.d_model));
    bias(".Wqkv", q_width + 2 * kv_width);
  } else {
    const std::pair<const char*, std::int64_t> parts[] = {
        {".Wq", q_width}, {".Wk", kv_width}, {".Wv", kv_width}};
    for (const auto& [part, width] : parts) {
      weights_.push_back(maker.linear(name + part + ".weight", width, config.d_model));
      bias(part, width);
    }
  }
  out_weight_ = maker.linear(name + ".out_proj.weight", config.d_model, q_width, /*residual=*/true);
  if (config.out_bias) out_bias_ = maker.constant(name + ".out_proj.bias", config.d_model, 0.0);
  if (config.qk_norm != QkNorm::kNone) {
    const bool whole = config.qk_norm == QkNorm::kWhole;
    q_norm_.emplace(config.norm, name + ".q_ln", whole ? q_width : config.head_dim, maker);
    k_norm_.emplace(config.norm, name + ".k_ln", whole ? kv_width : config.head_dim, maker);
  }
  if (config.lora) make_adapters(name, maker);
  if (config.rope) {
    rope_.emplace(config.head_dim, config.rope_theta, config.rope_scaling, device, maker.type());
  }
  if (config.alibi) {
    slopes_H11_ = alibi_slopes(config.n_heads, config.alibi_bias_max)
                      .to(maker.type())
                      .view({config.n_heads, 1, 1})
                      .to(device);
  }
}

void Attention::make_adapters(const std::string& name, ParameterMaker& maker) {
  const std::int64_t D = config_.d_model, q_width = config_.n_heads * config_.head_dim;
  const std::int64_t kv_width = config_.kv_n_heads * config_.head_dim;
  const auto make = [&](LoraTarget target, std::int64_t out, std::int64_t in) {
    if (!config_.lora->has(target)) return LoraAdapter();
    return LoraAdapter(*config_.lora, name + "." + lora_target_name(target), out, in, maker);
  };
  qkv_adapter_ = make(LoraTarget::kWqkv, q_width + 2 * kv_width, D);
  q_adapter_ = make(LoraTarget::kQ, q_width, D);
  k_adapter_ = make(LoraTarget::kK, kv_width, D);
  v_adapter_ = make(LoraTarget::kV, kv_width, D);
  out_adapter_ = make(LoraTarget::kOut, D, q_width);
}

Attention::Projected Attention::project(const at::Tensor& x_BSD, bool training) const {
  const auto product = [&](std::size_t i) { return linear_layer(x_BSD, weights_[i], biases_[i]); };
  at::Tensor q, k, v;
  if (config_.fused_qkv || qkv_adapter_) {
    const at::Tensor qkv =
        config_.fused_qkv ? product(0) : at::cat({product(0), product(1), product(2)}, 2);
    // One split, whose gradient is one concatenation; narrowing would add up three padded tensors.
    const std::int64_t q_width = config_.n_heads * config_.head_dim;
    const std::int64_t kv_width = config_.kv_n_heads * config_.head_dim;
    const auto parts = at::split_with_sizes(qkv_adapter_.add_to(qkv, x_BSD, training),
                                            {q_width, kv_width, kv_width}, 2);
    q = parts[0], k = parts[1], v = parts[2];
  } else {
    q = product(0), k = product(1), v = product(2);
  }
  const auto finished = [&](const at::Tensor& y, const LoraAdapter& adapter) {
    const at::Tensor sum = adapter.add_to(y, x_BSD, training);
    return config_.clip_after_norm ? sum : clipped(sum);
  };
  return {finished(q, q_adapter_), finished(k, k_adapter_), finished(v, v_adapter_)};
}

at::Tensor Attention::clipped(const at::Tensor& x) const {
  return config_.clip_qkv > 0 ? x.clamp(-config_.clip_qkv, config_.clip_qkv) : x;
}

// For the queries at positions past .. past + S - 1 and the keys from first_key on: which are seen
// (bool), or with ALiBi what is added to their scores, broadcast to [B, H, S, keys]. Undefined where
// nothing is needed beyond causality from position 0, or everything is seen.
at::Tensor Attention::make_mask(std::int64_t past, std::int64_t first_key, std::int64_t S,
                                const AttentionPass& pass) const {
  const bool documents = config_.sequence_ids && pass.sequence_ids_BS.defined();
  const bool windowed = config_.window >= 0 && config_.window < past + S - 1 - first_key && S > 1;
  const bool padded = pass.pads_B.defined();
  const bool causal_only = !documents && !windowed && !padded && !config_.alibi;
  if (causal_only && (S == 1 || (past == 0 && config_.logit_softcap == 0))) return {};
  const auto options = at::TensorOptions(at::kLong).device(device_);
  return mask_of(at::arange(past, past + S, options), at::arange(first_key, past + S, options),
                 pass);
}

// Of a cache with room for `keys`, of which those behind the query's position are not seen.
at::Tensor Attention::make_mask_at(const at::Tensor& position_1, std::int64_t keys,
                                   const AttentionPass& pass) const {
  return mask_of(position_1, at::arange(keys, position_1.options()), pass);
}

// Of queries at positions i [S] and keys at positions `key` [keys].
at::Tensor Attention::mask_of(const at::Tensor& i, const at::Tensor& key,
                              const AttentionPass& pass) const {
  const at::Tensor distance = key - i.unsqueeze(1);  // [S, keys]
  at::Tensor seen = distance <= 0;
  if (config_.window >= 0) seen = seen & (distance >= -config_.window);
  seen = seen.unsqueeze(0).unsqueeze(0);
  if (config_.sequence_ids && pass.sequence_ids_BS.defined()) {
    const at::Tensor& ids = pass.sequence_ids_BS;
    seen = seen & (ids.unsqueeze(2) == ids.unsqueeze(1)).unsqueeze(1);
  }
  if (pass.pads_B.defined()) {
    // Padding sees itself: a softmax over nothing is no number.
    seen = seen & ((key >= pass.pads_B.view({-1, 1, 1, 1})) | (distance == 0));
  }
  if (!config_.alibi) return seen;
  const at::Tensor bias = (distance.to(slopes_H11_.scalar_type()) * slopes_H11_).unsqueeze(0);
  return bias.masked_fill(~seen, -std::numeric_limits<double>::infinity());
}

at::Tensor Attention::fused_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& mask, double dropout) const {
  const auto run = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    const std::optional<at::Tensor> optional = mask.defined() ? std::optional(mask) : std::nullopt;
    return at::scaled_dot_product_attention(q, k, v, optional, dropout,
                                            /*is_causal=*/!optional && q.size(2) > 1,
                                            config_.softmax_scale,
                                            /*enable_gqa=*/config_.n_heads != config_.kv_n_heads);
  };
  const bool narrow = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  if (!narrow || !q.is_cpu() || q.size(2) == 1) return run(q, k, v);
  // libtorch's CPU kernel is a quarter slower in bf16 than in fp32, most of it backward. A single
  // query would pay for its whole cache instead.
  const NoAutocastGuard no_autocast(q.device());
  return run(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat)).to(q.scalar_type());
}

void Attention::write_cache(KeyValueCache& cache, const at::Tensor& k, const at::Tensor& v,
                            const AttentionPass& pass) const {
  for (const auto& [into, now] : {std::pair(&cache.keys, &k), std::pair(&cache.values, &v)}) {
    if (pass.position_1.defined()) {
      into->index_copy_(2, pass.position_1, now->to(into->scalar_type()));
    } else {
      *into = into->defined() ? at::cat({*into, *now}, 2) : *now;
    }
  }
}

// q [B, H, S, d]; k, v [B, G, keys, d] -> [B, H, S, d].
at::Tensor Attention::attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& mask, double dropout) const {
  const std::int64_t H = config_.n_heads, G = config_.kv_n_heads;
  if (config_.logit_softcap == 0) return fused_attention(q, k, v, mask, dropout);
  // No fused kernel caps its scores.
  const auto shared = [&](const at::Tensor& t) {
    return H == G ? t : at::repeat_interleave(t, H / G, 1);
  };
  const double scale = config_.softmax_scale.value_or(1 / std::sqrt(double(config_.head_dim)));
  const double cap = config_.logit_softcap;
  const at::Tensor products = at::matmul(q, shared(k).transpose(2, 3));
  at::Tensor scores = products.to(sum_type(products.scalar_type())) * (scale / cap);
  scores = at::tanh(scores) * cap;
  if (mask.defined() && mask.scalar_type() == at::kBool) {
    scores = scores.masked_fill(~mask, -std::numeric_limits<double>::infinity());
  } else if (mask.defined()) {
    scores = scores + mask;
  }
  at::Tensor weights = at::softmax(scores, -1).to(v.scalar_type());
  if (dropout > 0) weights = at::dropout(weights, dropout, /*train=*/true);
  return at::matmul(weights, shared(v));
}

at::Tensor Attention::forward(const at::Tensor& x_BSD, KeyValueCache* cache, AttentionPass& pass) {
  const std::int64_t B = x_BSD.size(0), S = x_BSD.size(1);
  const std::int64_t H = config_.n_heads, G = config_.kv_n_heads, hd = config_.head_dim;
  const bool has_room = pass.position_1.defined();
  const std::int64_t past = cache && cache->keys.defined() && !has_room ? cache->keys.size(2) : 0;

  const Projected parts = project(x_BSD, pass.training);
  const auto heads_of = [&](const at::Tensor& part, const std::optional<Norm>& norm,
                            std::int64_t heads) {
    const bool whole = config_.qk_norm == QkNorm::kWhole;
    at::Tensor x_BSHd = norm && whole ? norm->forward(part).to(part.scalar_type()) : part;
    x_BSHd = x_BSHd.view({B, S, heads, hd});
    if (norm && !whole) x_BSHd = norm->forward(x_BSHd).to(part.scalar_type());
    if (config_.clip_after_norm) x_BSHd = clipped(x_BSHd);
    if (rope_) {
      x_BSHd = has_room ? rope_->forward_at(x_BSHd, pass.position_1, cache->keys.size(2))
                        : rope_->forward(x_BSHd, past);
    }
    return x_BSHd.transpose(1, 2);
  };
  const at::Tensor q = heads_of(parts.q, q_norm_, H);
  at::Tensor k = heads_of(parts.k, k_norm_, G);
  const at::Tensor values = config_.clip_after_norm ? clipped(parts.v) : parts.v;
  at::Tensor v = values.view({B, S, G, hd}).transpose(1, 2);
  if (cache) {
    write_cache(*cache, k, v, pass);
    k = cache->keys;
    v = cache->values;
  }
  // A single query needs no key before its window.
  const std::int64_t first_key = S == 1 && config_.window >= 0 && !has_room
                                     ? std::max<std::int64_t>(0, past - config_.window)
                                     : 0;
  if (first_key > 0) {
    k = k.narrow(2, first_key, past + S - first_key);
    v = v.narrow(2, first_key, past + S - first_key);
  }
  const auto [entry, is_new] = pass.masks.try_emplace(config_.window);
  if (is_new) {
    entry->second = has_room ? make_mask_at(pass.position_1, k.size(2), pass)
                             : make_mask(past, first_key, S, pass);
  }
  at::Tensor out = attend(q, k, v, entry->second, pass.training ? config_.dropout : 0.0);
  if (past == 0 && !has_room && !at::GradMode::is_enabled()) {
    // libtorch's kernels make numbers of scores that are none, and a ruined weight would go unseen. One such
    // score of the prompt gives itself away here.
    out = out + ((q.sum(at::kFloat) + k.sum(at::kFloat)) * 0).to(out.scalar_type());
  }
  const at::Tensor heads = out.transpose(1, 2).reshape({B, S, H * hd});
  return out_adapter_.add_to(linear_layer(heads, out_weight_, out_bias_), heads, pass.training);
}

bool Attention::decodes(at::ScalarType type) const {
  return has_decode_kernels(type, device_, config_.d_model, config_.head_dim) &&
         config_.fused_qkv && !config_.lora && !config_.sequence_ids;
}

at::Tensor Attention::decode(const at::Tensor& x_BD, KeyValueCache& cache,
                             const AttentionPass& pass) {
  DecodeAttentionTensors tensors;
  tensors.heads = config_.n_heads;
  tensors.groups = config_.kv_n_heads;
  tensors.head_dim = config_.head_dim;
  tensors.clip = config_.clip_qkv;
  tensors.clip_after_norm = config_.clip_after_norm;
  if (q_norm_) tensors.q_norm = q_norm_->tensors();
  if (k_norm_) tensors.k_norm = k_norm_->tensors();
  if (rope_) std::tie(tensors.cos_PI, tensors.sin_PI) = rope_->tables(cache.keys.size(2));
  tensors.scale = config_.softmax_scale.value_or(1 / std::sqrt(double(config_.head_dim)));
  tensors.softcap = config_.logit_softcap;
  tensors.window = config_.window;
  if (slopes_H11_.defined()) tensors.slopes_H = slopes_H11_.view({config_.n_heads});
  const at::Tensor qkv_BN = linear_layer(x_BD, weights_[0], biases_[0]);
  const at::Tensor heads_BN =
      decode_attention(tensors, qkv_BN, pass.position_1, pass.pads_B, cache.keys, cache.values);
  return linear_layer(heads_BN, out_weight_, out_bias_);
}

}  // namespace dropless::train
