// The tokenizer that belongs to a model's folder, and the one that a run trains with and keeps beside its
// weights.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/convert/companions.h"
#include "train/nn/model_config.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

// The name of the tokenizer of a folder that resolve_model() named, which need not be here; empty: none.
std::string tokenizer_of_model(const std::string& folder);
// Throws Error(kInvalidArgument) where the tokenizer can say ids that the folder's model has no embedding of.
void require_vocabulary(const std::string& folder, const ModelConfig& config,
                        const Tokenizer& tokenizer);

// "id 5 is 'a' in PATH and 'b' in PATH" of the first id that is another text in the folder's own tokenizer;
// nullopt where none is, and where the folder has no tokenizer that can be read.
std::optional<std::string> tokenizer_difference(const std::string& folder,
                                                const Tokenizer& tokenizer);

// What the checkpoints of a run carry that starts from `origin` (empty: from drawn weights) and trains with
// `tokenizer` (null: with stored token ids): the tokenizer's own files and the ids of its special tokens, and of the
// origin what says nothing about text, or all where the tokenizer is its own (`differs` false).
std::vector<Companion> companions_of_run(const std::string& origin, const Tokenizer* tokenizer,
                                         bool differs);

}  // namespace dropless::train
