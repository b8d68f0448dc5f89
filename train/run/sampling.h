// The next token out of a row of logits.
#pragma once

#include <random>
#include <vector>

#include "train/bridge/torch.h"
#include "train/run/generate.h"

namespace dropless::train {

bool contains(const std::vector<TokenId>& ids, TokenId id);

// Logits [V] as fp64. Throws Error(kNonFinite).
std::vector<double> row_logits(const at::Tensor& logits_V);

// Of logits [V], by the options' rules; `prompt` and `sequence` are the tokens so far. Throws
// Error(kNonFinite).
TokenId choose_token(const at::Tensor& logits_V, const std::vector<TokenId>& prompt,
                     const std::vector<TokenId>& sequence, const GenerateOptions& options,
                     std::mt19937_64& rng);

}  // namespace dropless::train
