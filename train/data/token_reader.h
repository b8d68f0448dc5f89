// Token rows of an MDS set: finds the column that holds them and decodes it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/data/mds_reader.h"
#include "train/data/sample_reader.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

// A `text` column is tokenised; else a `tokens` column is read as an array of any integer type, or
// as bytes of `token_type`. Rows are cut to max_tokens.
class TokenReader : public SampleReader {
 public:
  // Checks the columns of every shard. Throws Error(kInvalidArgument).
  TokenReader(MdsReader reader, std::shared_ptr<const Tokenizer> tokenizer,
              const std::string& token_type, std::int64_t max_tokens, std::int64_t vocab_size);

  void append(std::int64_t sample, TokenRow& row) override;
  const MdsReader& reader() const override { return reader_; }
  std::int64_t pad_id() const override { return tokenizer_ ? tokenizer_->pad_id() : 0; }

 private:
  void append_array(const Encoding& encoding, std::string_view bytes,
                    std::vector<std::int64_t>& row) const;
  void append_text(std::string_view text, std::vector<std::int64_t>& row) const;

  MdsReader reader_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  const NumpyType* token_type_;
  std::uint64_t max_tokens_;
  std::int64_t vocab_size_;          // 0: unchecked
  std::vector<std::size_t> column_;  // of each shard
};

}  // namespace dropless::train
