// A batch of token rows, and the interface of all that yields them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace dropless::train {

// The token that tells the documents of a packed row apart.
struct DocumentSeparator {
  std::int64_t id = 0;
  bool begins = false;  // it is a document's first token; else its last one
};

// B rows of up to S tokens. Row b holds lengths_B[b] tokens, then pads up to S; pads are never
// scored. Nothing predicts a row's first token, so a row of n tokens has n - 1 scored ones.
struct Batch {
  std::int64_t batch = 0;               // B
  std::int64_t seq_len = 0;             // S: the longest row of this batch, at most max_seq_len
  std::vector<std::int64_t> tokens_BS;  // row-major
  std::vector<std::int32_t> lengths_B;  // each in [1, S]
  std::int64_t tokens = 0;              // sum of lengths_B
  std::optional<DocumentSeparator> separator;

  std::int64_t scored_tokens() const { return tokens - batch; }
};

// tokens_BS holds the rows one after another, lengths_B, seq_len and tokens are set: moves the rows
// to their places and fills up with pad_id.
void pad_rows(Batch& batch, std::int64_t pad_id);

class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Fills `batch` (its memory is reused) and returns true; false when the epoch or file has ended.
  virtual bool next(Batch& batch) = 0;
};

}  // namespace dropless::train
