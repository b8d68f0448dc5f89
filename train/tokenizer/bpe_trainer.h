// Learns a byte-level BPE from text and writes it as a tokenizer.json.
//
// Of all pairs of neighbours in the words seen so far the most frequent becomes a token, of equals the
// one with the lower ids, until the vocabulary is full: what `tokenizers`' BpeTrainer does, id for id.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "train/tokenizer/split_steps.h"

namespace dropless::train {

struct BpeTrainerOptions {
  std::int64_t vocab_size = 32000;   // special tokens and the 256 bytes among them
  std::int64_t least_count = 2;      // rarer pairs are not joined
  std::vector<std::string> special;  // the first ids, in order
  std::string pattern = "gpt2";  // how text is cut: gpt2, or llama3 (numbers in threes, no case)
};

class BpeTrainer {
 public:
  // Throws Error(kInvalidArgument): a vocabulary below 256 bytes and the special tokens, an unknown
  // pattern, a special token twice.
  explicit BpeTrainer(const BpeTrainerOptions& options);

  void add(std::string_view document);
  // Trains; the text of a tokenizer.json.
  std::string finish() const;

 private:
  BpeTrainerOptions options_;
  std::string pre_tokenizer_;  // JSON
  SplitSteps splits_;
  std::unordered_map<std::string, std::int64_t> words_;
};

}  // namespace dropless::train
