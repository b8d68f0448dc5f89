// Sampling: token by token, with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/nn/transformer.h"
#include "train/run/generate_options.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

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
