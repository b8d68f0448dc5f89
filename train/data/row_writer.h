// Documents' ids to rows of one length: the part of text_writer.h that joins and cuts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/data/mds_writer.h"
#include "train/data/text_writer.h"

namespace dropless::train {

// Which sample of a set is made next, as the set's journal keeps it.
struct SamplePosition {
  std::int64_t documents = 0;        // before its own
  std::int64_t rows = 0;             // of its document, before it
  std::vector<TokenId> buffer = {};  // left over from the documents before
  std::int64_t dropped_tokens = 0;   // in them

  std::string dump() const;
  static SamplePosition parse(const std::string& text);
};

class RowWriter {
 public:
  explicit RowWriter(const TextSetOptions& options);

  void add(const std::vector<TokenId>& ids, MdsWriter& writer);
  // Of the row being written.
  const SamplePosition& position() const { return position_; }
  // Before the first add(): the documents before that position are not added again.
  void go_on_from(SamplePosition position);
  // With those that fill no row.
  std::int64_t dropped_tokens() const { return position_.dropped_tokens + std::ssize(buffer_); }

 private:
  void write_row(std::size_t at, MdsWriter& writer) const;

  const TextSetOptions& options_;
  const Encoding encoding_ = Encoding::parse("ndarray:int32");
  const std::size_t length_;
  const std::vector<TokenId> bos_, eos_;
  std::vector<TokenId> buffer_;
  std::int64_t rows_written_ = 0;  // of the document that is added next, by an earlier call
  SamplePosition position_;
};

}  // namespace dropless::train
