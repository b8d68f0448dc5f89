// Samples of instructions and answers, for the loader `finetuning`: which tokens they are, and which of
// them are learned.
//
// | sample                             | turns                                                         |
// | {"prompt", "response"}             | one: the prompt, then the response (also named "completion")  |
// | {"messages": [{"role","content"}]} | one for each answer of the assistant, in ChatML:              |
// |                                    | <|im_start|>ROLE\nCONTENT<|im_end|>\n                         |
//
// A prompt begins with what the tokenizer's template puts before a text; the last response ends with EOS.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/base/yaml.h"
#include "train/data/mds_reader.h"
#include "train/data/sample_reader.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

struct FinetuningConfig {
  std::string folder;  // hf_name, where it is the folder of a set; else empty
  // target_prompts: learned are none, all, or those of at least so many tokens.
  std::optional<std::int64_t> least_prompt;  // nullopt: none; 0: all
  bool all_responses = false;                // target_responses: all, else the last
  // Samples of a batch for each row of it, put together into rows of max_seq_len. nullopt with
  // `packs`: chosen from the first samples. Without `packs`: each sample is a row.
  bool packs = false;
  std::optional<double> packing_ratio;

  // Of a loader's `dataset` block. Throws Error(kInvalidArgument) with the place.
  static FinetuningConfig from_yaml(const YamlMap& dataset);
};

struct DialogueTurn {
  std::string role, content;
};
// The value of `messages`: two or more, their roles as LLM Foundry takes them (system, user, assistant,
// tool, none twice in a row), the last an answer of the assistant. Throws Error(kDamaged).
std::vector<DialogueTurn> read_chat(std::string_view json);

class FinetuningReader : public SampleReader {
 public:
  // Checks the columns of every shard. Throws Error(kInvalidArgument).
  FinetuningReader(MdsReader reader, std::shared_ptr<const Tokenizer> tokenizer,
                   FinetuningConfig config, std::int64_t max_tokens, std::int64_t vocab_size);

  void append(std::int64_t sample, TokenRow& row) override;
  const MdsReader& reader() const override { return reader_; }
  std::int64_t pad_id() const override { return tokenizer_->pad_id(); }
  void report_lost() override;
  void forget_lost() override;

 private:
  struct Columns {
    std::size_t prompt = 0, response = 0;
    std::optional<std::size_t> messages;
  };
  static Columns find_columns(const MdsShard& shard, const std::string& folder);
  void append_turn(const std::vector<TokenId>& prompt, const std::vector<TokenId>& response,
                   bool last, TokenRow& row) const;
  void append_chat(std::string_view json, TokenRow& row) const;
  void cut(std::int64_t sample, std::size_t begin, TokenRow& row);

  MdsReader reader_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  FinetuningConfig config_;
  std::size_t max_tokens_;
  std::int64_t vocab_size_;
  std::vector<Columns> columns_;  // of each shard
  std::int64_t lost_ = 0;         // samples cut before what is to be learned
  bool warned_ = false;
};

// The rows of a batch: first fit of the longest first. rows[i] lists indices into `lengths`, in the
// order in which they stand in the row; no row is longer than `room`, if no length is.
std::vector<std::vector<std::size_t>> pack_rows(const std::vector<std::int64_t>& lengths,
                                                std::int64_t room);

}  // namespace dropless::train
