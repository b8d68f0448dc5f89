#include "train/nn/transformer.h"

#include <algorithm>
#include <string>
#include <utility>
#include <variant>

#include "dropless/error.h"
#include "train/bridge/views.h"
#include "train/nn/linear.h"
#include "train/nn/recompute.h"

namespace dropless::train {

struct Transformer::Block {
  Norm norm_1;
  Attention attention;
  Norm norm_2;
  std::variant<Ffn, MoE> ffn;
};

namespace {

std::variant<Ffn, MoE> make_ffn(const std::variant<FfnConfig, MoELayerConfig>& config,
                                const std::string& name, ParameterMaker& maker) {
  if (const auto* moe = std::get_if<MoELayerConfig>(&config)) return MoE(*moe, name, maker);
  return Ffn(std::get<FfnConfig>(config), name, maker);
}

// `feed` of some of the tokens of x [B, S, D]; 0 for the others.
template <class Feed>
at::Tensor feed_kept(const at::Tensor& x_BSD, const at::Tensor& kept_R, const Feed& feed) {
  const at::Tensor x_TD = x_BSD.reshape({-1, x_BSD.size(2)});
  const at::Tensor y_1RD = feed(x_TD.index_select(0, kept_R).unsqueeze(0));
  return at::zeros(x_TD.sizes(), y_1RD.options())
      .index_copy(0, kept_R, y_1RD.squeeze(0))
      .view(x_BSD.sizes());
}

at::Tensor drop(const at::Tensor& x, double p) {
  return p > 0 ? at::dropout(x, p, /*train=*/true) : x;
}

}  // namespace

std::uint64_t mix_seed(std::uint64_t seed, std::uint64_t stream) {
  std::uint64_t z = seed + (stream + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

Transformer::Transformer(const ModelConfig& config, std::uint64_t seed, at::Device device,
                         WeightOptions weights)
    : config_(config), device_(device), stream_type_(weights.type) {
  ParameterMaker maker(config.init, config.d_model, config.n_layers, seed, device, weights);
  wte_ = maker.embedding("transformer.wte.weight", config.vocab_size, config.d_model);
  if (config.learned_pos_emb) {
    wpe_ = maker.embedding("transformer.wpe.weight", config.max_seq_len, config.d_model);
  }
  blocks_.reserve(config.n_layers);
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const std::string name = "transformer.blocks." + std::to_string(i);
    // Braces: evaluated left to right, so parameters are made in the order of the pass.
    blocks_.push_back(Block{Norm(config.norm, name + ".norm_1", config.d_model, maker),
                            Attention(config.attention_of(i), name + ".attn", maker, device),
                            Norm(config.norm, name + ".norm_2", config.d_model, maker),
                            make_ffn(config.ffn_of(i), name + ".ffn", maker)});
  }
  norm_f_.emplace(config.norm, "transformer.norm_f", config.d_model, maker);
  if (!config.tie_word_embeddings) {
    lm_head_ = maker.linear("lm_head.weight", config.vocab_size, config.d_model);
  }
  parameters_ = maker.take();
  if (!config.lora) return;
  for (Parameter& parameter : parameters_) {
    if (!parameter.adapter) parameter.value.set_requires_grad(false);
  }
}

Transformer::~Transformer() = default;

at::Tensor Transformer::embed(const at::Tensor& tokens_BS, std::int64_t first,
                              const PassOptions& options) const {
  const bool training = options.noise_seed.has_value();
  const auto embedding = [&](const at::Tensor& table, const at::Tensor& ids) {
    return at::embedding(table, ids).to(stream_type_);
  };
  at::Tensor x = embedding(wte_, tokens_BS);
  if (wpe_.defined()) {
    const std::int64_t end = first + tokens_BS.size(1);
    check_positions(end);
    // Rotated positions need no shift: only their differences count.
    at::Tensor positions = options.position_1.defined()
                               ? options.position_1.unsqueeze(0)
                               : at::arange(first, end, tokens_BS.options()).unsqueeze(0);
    if (options.pads_B.defined()) {
      positions = (positions - options.pads_B.unsqueeze(1)).clamp_min(0);
    }
    x = x + embedding(wpe_, positions);
  }
  const double fraction = config_.embedding_fraction;
  if (training && fraction != 1) x = x * fraction + x.detach() * (1 - fraction);
  return training ? drop(x, config_.emb_pdrop) : x;
}

void Transformer::check_positions(std::int64_t end) const {
  if (!wpe_.defined() || end <= config_.max_seq_len) return;
  throw Error(ErrorKind::kInvalidArgument,
              "position " + std::to_string(end - 1) + " is beyond the " +
                  std::to_string(config_.max_seq_len) + " learned positions of this model",
              "shorten the prompt or ask for fewer new tokens");
}

bool Transformer::can_be_captured(Precision precision) const {
  if (!device_.is_cuda() || config_.attention.rope_scaling.type == RopeScaling::Type::kDynamic) {
    return false;
  }
  const MoELayerConfig* moe = config_.moe();
  return moe == nullptr ||
         resolve_backend(*moe, compute_type(precision), device_).backend == MoEBackend::kDropless;
}

ModelCache with_room(ModelCache cache, std::int64_t positions) {
  const auto widen = [&](const at::Tensor& held) {
    std::vector<std::int64_t> sizes = held.sizes().vec();
    sizes[2] = positions;
    const at::Tensor room = at::zeros(sizes, held.options());
    const std::int64_t filled = std::min(held.size(2), positions);
    room.narrow(2, 0, filled).copy_(held.narrow(2, 0, filled));
    return room;
  };
  for (KeyValueCache& layer : cache.layers) {
    layer.keys = widen(layer.keys);
    layer.values = widen(layer.values);
  }
  return cache;
}

at::Tensor Transformer::forward(const at::Tensor& tokens_BS, RouterRecord& record,
                                ModelCache* cache, const PassOptions& options) {
  if (options.position_1.defined()) {
    const at::ScalarType type =
        AutocastState::of(device_).enabled ? AutocastState::of(device_).dtype : stream_type_;
    return decodes(type) ? decode(tokens_BS, record, *cache, options, type)
                         : run(tokens_BS, 0, record, cache, options);
  }
  if (cache && cache->layers.empty()) cache->layers.resize(blocks_.size());
  const bool cached = cache && cache->layers[0].keys.defined();
  const std::int64_t first = cached ? cache->layers[0].keys.size(2) : 0, S = tokens_BS.size(1);
  const RopeScaling& scaling = config_.attention.rope_scaling;
  if (!cache || scaling.type != RopeScaling::Type::kDynamic) {
    return run(tokens_BS, first, record, cache, options);
  }
  cache->tokens_BS = cached ? at::cat({cache->tokens_BS, tokens_BS}, 1) : tokens_BS;
  if (!cached || !scaling.depends_on_length(first + S)) {
    return run(tokens_BS, first, record, cache, options);
  }
  // Every position's angles, and with them all that later layers made of it, are of the new length.
  cache->layers.assign(blocks_.size(), {});
  return run(cache->tokens_BS, 0, record, cache, options).narrow(1, first, S);
}

// One stream a block, so that a block that is run again alone draws the same.
void Transformer::begin_stream(const PassOptions& options, std::uint64_t stream) const {
  if (!options.noise_seed || !config_.draws_noise()) return;
  at::manual_seed(mix_seed(*options.noise_seed, stream));
}

at::Tensor Transformer::run_block(std::size_t i, const at::Tensor& in, RouterRecord& record,
                                  KeyValueCache* cache, AttentionPass& pass,
                                  const PassOptions& options) {
  Block& block = blocks_[i];
  const bool training = options.noise_seed.has_value();
  const double p = training ? config_.resid_pdrop : 0;
  begin_stream(options, i + 1);
  const at::Tensor x = in + drop(block.attention.forward(block.norm_1.forward(in), cache, pass), p);
  const auto feed = [&](const at::Tensor& tokens) {
    if (const MoE* moe = std::get_if<MoE>(&block.ffn)) {
      return moe->forward(tokens, record, training);
    }
    return std::get<Ffn>(block.ffn).forward(tokens, training);
  };
  const at::Tensor normed = block.norm_2.forward(x);
  const bool all = config_.pads_in_ffn || !options.kept_R.defined();
  return x + drop(all ? feed(normed) : feed_kept(normed, options.kept_R, feed), p);
}

// Of what a block records, the losses have gradients: they are outputs beside its own.
at::Tensor Transformer::run_block_again_in_backward(std::size_t i, const at::Tensor& x,
                                                    RouterRecord& record,
                                                    const std::shared_ptr<AttentionPass>& pass,
                                                    const PassOptions& options) {
  const auto first =
      std::make_shared<RouterRecord>();  // of the first run; nobody reads the second's
  first->want_entropy = record.want_entropy;
  const auto body = [this, i, pass, options, first](const at::Tensor& in) {
    RouterRecord now;
    now.want_entropy = std::exchange(first->want_entropy, false);
    std::vector<at::Tensor> outputs{run_block(i, in, now, nullptr, *pass, options)};
    outputs.insert(outputs.end(), now.losses_2.begin(), now.losses_2.end());
    if (first->tokens_per_expert_E.empty()) {
      first->tokens_per_expert_E = now.tokens_per_expert_E;
      first->entropy = now.entropy;
    }
    return outputs;
  };
  const std::vector<at::Tensor> outputs = recompute_in_backward(body, x);
  const auto append = [](std::vector<at::Tensor>& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  append(record.losses_2, std::vector(outputs.begin() + 1, outputs.end()));
  append(record.tokens_per_expert_E, first->tokens_per_expert_E);
  append(record.entropy, first->entropy);
  return outputs[0];
}

at::Tensor Transformer::run(const at::Tensor& tokens_BS, std::int64_t first, RouterRecord& record,
                            ModelCache* cache, const PassOptions& options) {
  const bool training = options.noise_seed.has_value();
  const auto pass = std::make_shared<AttentionPass>();
  pass->sequence_ids_BS = options.sequence_ids_BS;
  pass->training = training;
  pass->pads_B = options.pads_B;
  pass->position_1 = options.position_1;
  begin_stream(options, 0);
  at::Tensor x = embed(tokens_BS, first, options);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (options.recompute_blocks && !cache) {
      x = run_block_again_in_backward(i, x, record, pass, options);
    } else {
      x = run_block(i, x, record, cache ? &cache->layers[i] : nullptr, *pass, options);
    }
  }
  return logits_of(norm_f_->forward(x));
}

at::Tensor Transformer::logits_of(const at::Tensor& normed) const {
  at::Tensor logits = linear_layer(normed, lm_head_.defined() ? lm_head_ : wte_);
  if (config_.logit_scale != 1) logits = logits * config_.logit_scale;
  const double cap = config_.final_logit_softcap;
  return cap > 0 ? at::tanh(logits / cap) * cap : logits;
}

bool Transformer::decodes(at::ScalarType type) const {
  return stream_type_ == at::kFloat && !config_.lora &&
         std::all_of(blocks_.begin(), blocks_.end(),
                     [&](const Block& block) { return block.attention.decodes(type); });
}

// What a block adds to the stream is added by the norm behind it.
at::Tensor Transformer::decode(const at::Tensor& tokens_B1, RouterRecord& record, ModelCache& cache,
                               const PassOptions& options, at::ScalarType type) {
  AttentionPass pass;
  pass.pads_B = options.pads_B;
  pass.position_1 = options.position_1;
  const at::Tensor x_BD = embed(tokens_B1, 0, options).squeeze(1).contiguous();
  at::Tensor y_BD;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    const at::Tensor in_BD = decode_add_norm(x_BD, y_BD, block.norm_1.tensors(), type);
    y_BD = block.attention.decode(in_BD, cache.layers[i], pass);
    const at::Tensor normed_B1D =
        decode_add_norm(x_BD, y_BD, block.norm_2.tensors(), type).unsqueeze(1);
    const MoE* moe = std::get_if<MoE>(&block.ffn);
    const at::Tensor fed_B1D = moe != nullptr ? moe->forward(normed_B1D, record, false)
                                              : std::get<Ffn>(block.ffn).forward(normed_B1D);
    y_BD = fed_B1D.squeeze(1).to(type);
  }
  return logits_of(decode_add_norm(x_BD, y_BD, norm_f_->tensors(), type).unsqueeze(1));
}

void Transformer::update_selection_bias(const at::Tensor& tokens_per_expert_LE) {
  std::int64_t mixture = 0;
  for (Block& block : blocks_) {
    if (MoE* moe = std::get_if<MoE>(&block.ffn)) {
      moe->update_selection_bias(tokens_per_expert_LE[mixture++]);
    }
  }
}

ParameterCount Transformer::count() const {
  ParameterCount count;
  for (const Parameter& parameter : parameters_) {
    const std::int64_t n = parameter.value.numel();
    count.total += n;
    const MoELayerConfig* moe = config_.moe();
    count.active += parameter.expert ? n / moe->moe.num_experts * moe->moe.top_k : n;
  }
  return count;
}

at::Tensor cross_entropy_sum(const at::Tensor& logits_BSV, const at::Tensor& labels_BS) {
  const at::Tensor logits =
      logits_BSV.reshape({-1, logits_BSV.size(-1)}).to(sum_type(logits_BSV.scalar_type()));
  return at::cross_entropy_loss(logits, labels_BS.reshape({-1}), {}, at::Reduction::Sum,
                                /*ignore_index=*/-100);
}

}  // namespace dropless::train
