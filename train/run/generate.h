// Sampling: token by token, with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/nn/precision.h"
#include "train/nn/transformer.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

// A sample is drawn from the logits after the filters, in this order: repetition penalty (Keskar et
// al. 2019, arXiv:1909.05858; over the prompt and the new tokens), temperature, top-k, top-p, min-p.
struct GenerateOptions {
  std::int64_t max_new_tokens = 128;
  double temperature = 1.0;  // 0: greedy
  std::int64_t top_k = 0;    // 0: off
  double top_p = 1.0;        // 1: off
  double min_p = 0.0;        // keep what has this share of the likeliest's probability; 0: off
  double repetition_penalty = 1.0;  // 1: off
  std::uint64_t seed = 0;
  std::vector<TokenId> eos;       // a sequence stops at any of them, and includes it
  std::vector<std::string> stop;  // ... and as soon as its new text holds any of these; they need
                                  // the tokenizer
  // The model's. Ids that it does not have are never drawn (released models have more rows of
  // embeddings than tokens, padded to a round number), but for those in `eos`.
  const Tokenizer* tokenizer = nullptr;
  Precision precision = Precision::kFp32;
  // Asked before each token; true: the sequences end where they are. May be empty.
  std::function<bool()> ends_early;

  // Throws Error(kInvalidArgument).
  void check() const;
};

enum class Finish { kLength, kEos, kStop };

// Where in `text` the first of `stop` begins; npos: nowhere.
std::size_t find_stop(std::string_view text, const std::vector<std::string>& stop);

// Of new tokens: an EOS that the tokenizer does not have gives no text.
std::string text_of(const Tokenizer& tokenizer, std::span<const TokenId> ids);

struct GenerateResult {
  std::vector<std::vector<TokenId>> sequences;  // the new tokens
  std::vector<Finish> finish;
  std::optional<double> cross_entropy;  // of the prompts' own tokens; none where all have length 1
  std::vector<std::vector<float>> logits_last;  // after each prompt, before any new token
  double prompt_seconds = 0;                    // until the logits after the prompts are there
  // Of each pass after that, with the choice of its tokens and the logits behind them. On a GPU the first
  // may capture those that follow.
  std::vector<double> pass_seconds;
};

// prompts: lengths of at least 1, which may differ; ids below the vocabulary. What a prompt yields
// does not depend on its neighbours, but for the last bits of sums. `on_token(sequence, id)` is
// called as each token comes. Throws Error: kInvalidArgument, kNonFinite for ruined weights,
// kResource.
GenerateResult generate(Transformer& model, const std::vector<std::vector<TokenId>>& prompts,
                        const GenerateOptions& options,
                        const std::function<void(std::size_t, TokenId)>& on_token = {});

}  // namespace dropless::train
