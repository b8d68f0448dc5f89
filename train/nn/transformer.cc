#include "train/nn/transformer.h"

#include <string>
#include <utility>
#include <variant>

#include "dropless/error.h"

namespace dropless::train {

struct Transformer::Block {
  Norm norm_1;
  Attention attention;
  Norm norm_2;
  std::variant<Ffn, MoE> ffn;
};

namespace {

std::variant<Ffn, MoE> make_ffn(const ModelConfig& config, const std::string& name,
                                ParameterMaker& maker) {
  if (const MoELayerConfig* moe = config.moe()) return MoE(*moe, name, maker);
  return Ffn(std::get<FfnConfig>(config.ffn), name, maker);
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, std::uint64_t seed, at::Device device)
    : config_(config), device_(device) {
  ParameterMaker maker(config.init, config.d_model, config.n_layers, seed, device);
  wte_ = maker.embedding("transformer.wte.weight", config.vocab_size, config.d_model);
  if (config.learned_pos_emb) {
    wpe_ = maker.embedding("transformer.wpe.weight", config.max_seq_len, config.d_model);
  }
  blocks_.reserve(config.n_layers);
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const std::string name = "transformer.blocks." + std::to_string(i);
    // Braces: evaluated left to right, so parameters are made in the order of the pass.
    blocks_.push_back(Block{Norm(config.norm, name + ".norm_1", config.d_model, maker),
                            Attention(config.attention, name + ".attn", maker, device),
                            Norm(config.norm, name + ".norm_2", config.d_model, maker),
                            make_ffn(config, name + ".ffn", maker)});
  }
  norm_f_.emplace(config.norm, "transformer.norm_f", config.d_model, maker);
  if (!config.tie_word_embeddings) {
    lm_head_ = maker.linear("lm_head.weight", config.vocab_size, config.d_model);
  }
  parameters_ = maker.take();
}

Transformer::~Transformer() = default;

at::Tensor Transformer::forward(const at::Tensor& tokens_BS, RouterRecord& record,
                                ModelCache* cache) {
  if (cache && cache->empty()) cache->resize(blocks_.size());
  const bool cached = cache && (*cache)[0].keys.defined();
  const std::int64_t first = cached ? (*cache)[0].keys.size(2) : 0;
  at::Tensor x = at::embedding(wte_, tokens_BS);
  if (wpe_.defined()) {
    const std::int64_t end = first + tokens_BS.size(1);
    if (end > config_.max_seq_len) {
      throw Error(ErrorKind::kInvalidArgument,
                  "position " + std::to_string(end - 1) + " is beyond the " +
                      std::to_string(config_.max_seq_len) + " learned positions of this model",
                  "shorten the prompt or ask for fewer new tokens");
    }
    x = x + wpe_.narrow(0, first, tokens_BS.size(1)).unsqueeze(0);
  }
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    x = x + block.attention.forward(block.norm_1.forward(x), cache ? &(*cache)[i] : nullptr);
    const at::Tensor normed = block.norm_2.forward(x);
    if (const MoE* moe = std::get_if<MoE>(&block.ffn)) {
      x = x + moe->forward(normed, record);
    } else {
      x = x + std::get<Ffn>(block.ffn).forward(normed);
    }
  }
  return at::linear(norm_f_->forward(x), lm_head_.defined() ? lm_head_ : wte_);
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
      logits_BSV.reshape({-1, logits_BSV.size(-1)})
          .to(logits_BSV.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  return at::cross_entropy_loss(logits, labels_BS.reshape({-1}), {}, at::Reduction::Sum,
                                /*ignore_index=*/-100);
}

}  // namespace dropless::train
