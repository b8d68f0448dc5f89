// How tokens are drawn, and when a sequence ends.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "train/nn/precision_config.h"
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

}  // namespace dropless::train
