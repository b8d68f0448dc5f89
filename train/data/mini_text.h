// A plain text file as evaluation data: tokenised whole, without BOS or EOS, and cut into pieces of
// seq_len tokens. The last piece may be shorter; each piece's first token is unscored.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/data/batch.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

class TextFileSource : public BatchSource {
 public:
  // Throws Error(kInvalidArgument): absent, unreadable or empty file.
  TextFileSource(const std::string& path, const Tokenizer& tokenizer, std::int64_t batch_size,
                 std::int64_t seq_len);

  bool next(Batch& batch) override;
  void rewind() { position_ = 0; }
  std::int64_t num_pieces() const;
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(ids_.size()); }

 private:
  std::vector<TokenId> ids_;
  std::size_t position_ = 0;
  std::int64_t batch_size_;
  std::int64_t seq_len_;
  TokenId pad_id_;
};

}  // namespace dropless::train
