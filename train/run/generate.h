// Sampling: token by token, with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/tokenizer/tokenizer.h"
#include "train/nn/precision.h"
#include "train/nn/transformer.h"

namespace dropless::train {

struct GenerateOptions {
  std::int64_t max_new_tokens = 128;
  double temperature = 1.0;  // 0: greedy
  std::int64_t top_k = 0;    // 0: off
  double top_p = 1.0;        // 1: off
  std::uint64_t seed = 0;
  std::optional<TokenId> eos;  // a sequence stops at it, and includes it
  Precision precision = Precision::kFp32;

  // Throws Error(kInvalidArgument).
  void check() const;
};

struct GenerateResult {
  std::vector<std::vector<TokenId>> sequences;  // the new tokens
  std::vector<bool> stopped_at_eos;
  std::optional<double> cross_entropy;          // of the prompts' own tokens; none for length 1
  std::vector<std::vector<float>> logits_last;  // after each prompt, before any new token
};

// prompts: equal lengths of at least 1, ids below the vocabulary. `on_token(sequence, id)` is
// called as each token comes. Throws Error: kInvalidArgument, kNonFinite for ruined weights,
// kResource.
GenerateResult generate(Transformer& model, const std::vector<std::vector<TokenId>>& prompts,
                        const GenerateOptions& options,
                        const std::function<void(std::size_t, TokenId)>& on_token = {});

}  // namespace dropless::train
