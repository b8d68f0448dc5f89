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
// scored, nor is a document's first token, which nothing predicts.
struct Batch {
  std::int64_t batch = 0;               // B
  std::int64_t seq_len = 0;             // S: the longest row of this batch, at most max_seq_len
  std::vector<std::int64_t> tokens_BS;  // row-major
  std::vector<std::int32_t> lengths_B;  // each in [1, S]
  std::int64_t tokens = 0;              // sum of lengths_B
  std::int64_t samples = 0;             // of the set; more than rows where several share one
  std::optional<DocumentSeparator> separator;  // where documents_BS does not tell them apart

  // Where not every token is learned, or rows hold several documents; else empty. Row-major, as the
  // tokens. Documents are numbered from 0 in each row; pads have a number of their own.
  std::vector<std::uint8_t> learned_BS;
  std::vector<std::int32_t> documents_BS;

  // Whether token s of row b is predicted from those before it.
  bool is_scored(std::int64_t b, std::int64_t s) const;
  std::int64_t scored_tokens() const;
};

// The rows stand one after another, lengths_B, seq_len and tokens are set: moves them to their places
// and fills up with pad_id.
void pad_rows(Batch& batch, std::int64_t pad_id);

class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Fills `batch` (its memory is reused) and returns true; false when the epoch or file has ended.
  virtual bool next(Batch& batch) = 0;
};

}  // namespace dropless::train
