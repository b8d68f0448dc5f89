// The decoder-only language model: MPT's block order and LLM Foundry's names.
//
//   x = wte[token] (+ wpe[position]);  per block: x += attn(norm_1(x)); x += ffn(norm_2(x))
//   logits = norm_f(x) wte^T, or lm_head where embeddings are untied, scaled and capped where asked
//
// Shape legend: B rows, S positions, D model width, V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "train/nn/attention.h"
#include "train/nn/ffn.h"
#include "train/nn/model_config.h"
#include "train/nn/moe.h"
#include "train/nn/norm.h"
#include "train/nn/precision.h"

namespace dropless::train {

// `active`: the embedding table and top_k / E of the experts.
struct ParameterCount {
  std::int64_t total = 0;
  std::int64_t active = 0;
};

// What Transformer::forward keeps of the tokens so far.
struct ModelCache {
  std::vector<KeyValueCache> layers;
  at::Tensor tokens_BS;  // only where a longer row may change the angles of earlier positions
};

// A cache of `positions` places that begins with what `cache` holds, which is given up layer by layer: a pass
// writes into it and changes no shape, so that a CUDA graph of one serves them all.
ModelCache with_room(ModelCache cache, std::int64_t positions);

// What a pass takes besides its tokens.
struct PassOptions {
  // int64 [B, S]: which document of its row a token belongs to, for attn_uses_sequence_id;
  // undefined: a row is one document.
  at::Tensor sequence_ids_BS;
  // Of the random numbers of a training pass (dropout, router jitter); absent: a pass without.
  // Passes with equal seeds draw equal numbers, whatever was drawn before.
  std::optional<std::uint64_t> noise_seed;
  // Activation checkpointing: of each block only the input is kept for backward.
  bool recompute_blocks = false;
  // int64: the places in [B * S] that hold tokens and no pads, for use_pad_tok_in_ffn: false;
  // undefined: all.
  at::Tensor kept_R = {};
  // int64 [B]: row b begins with so many tokens of padding, cached ones included, which no other token
  // sees; its positions count from behind them. Undefined: none.
  at::Tensor pads_B{};
  // int64 [1], on the device: the position of the one token of each row, for caches of with_room(), whose
  // places before it are full. Undefined: caches hold what they hold, and grow.
  at::Tensor position_1{};
};

// SplitMix64's output function (Steele et al. 2014): one of many seeds that one makes.
std::uint64_t mix_seed(std::uint64_t seed, std::uint64_t stream);

class Transformer {
 public:
  // Weights drawn from `seed`, the same values in fp32 and fp64.
  Transformer(const ModelConfig& config, std::uint64_t seed, at::Device device,
              WeightOptions weights = {});
  ~Transformer();

  // tokens_BS int64 -> logits [B, S, V]. With a cache, the tokens follow those it holds. Throws
  // Error(kInvalidArgument) when learned positions run out.
  at::Tensor forward(const at::Tensor& tokens_BS, RouterRecord& record, ModelCache* cache = nullptr,
                     const PassOptions& options = {});

  // After an optimiser step over a batch, of which each mixture's experts were chosen so often (int64,
  // one row a mixture): the next step of the balance by MoELayerConfig::bias_update_rate.
  void update_selection_bias(const at::Tensor& tokens_per_expert_LE);

  // Throws Error(kInvalidArgument) where learned positions end before position `end`.
  void check_positions(std::int64_t end) const;
  // Whether a pass with a position_1 can be captured into a CUDA graph: nothing in it asks the device.
  bool can_be_captured(Precision precision) const;

  const std::vector<Parameter>& parameters() const { return parameters_; }
  const ModelConfig& config() const { return config_; }
  at::Device device() const { return device_; }
  ParameterCount count() const;

 private:
  struct Block;
  at::Tensor embed(const at::Tensor& tokens_BS, std::int64_t first,
                   const PassOptions& options) const;
  at::Tensor run_block(std::size_t i, const at::Tensor& x, RouterRecord& record,
                       KeyValueCache* cache, AttentionPass& pass, const PassOptions& options);
  at::Tensor run_block_again_in_backward(std::size_t i, const at::Tensor& x, RouterRecord& record,
                                         const std::shared_ptr<AttentionPass>& pass,
                                         const PassOptions& options);
  void begin_stream(const PassOptions& options, std::uint64_t stream) const;
  bool decodes(at::ScalarType type) const;
  at::Tensor decode(const at::Tensor& tokens_B1, RouterRecord& record, ModelCache& cache,
                    const PassOptions& options, at::ScalarType type);
  at::Tensor logits_of(const at::Tensor& normed) const;
  at::Tensor run(const at::Tensor& tokens_BS, std::int64_t first, RouterRecord& record,
                 ModelCache* cache, const PassOptions& options);

  ModelConfig config_;
  at::Device device_;
  at::ScalarType stream_type_;  // of the residual stream, and of norms' weights
  std::vector<Parameter> parameters_;
  at::Tensor wte_, wpe_, lm_head_;
  std::vector<Block> blocks_;
  std::optional<Norm> norm_f_;
};

// Sum of -log softmax(logits)[label] over the positions whose label is not -100; a scalar, fp32
// (fp64 for fp64 logits). logits_BSV [B, S, V]; labels_BS int64: each position's next token.
at::Tensor cross_entropy_sum(const at::Tensor& logits_BSV, const at::Tensor& labels_BS);

}  // namespace dropless::train
