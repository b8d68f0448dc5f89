#include "train/data/batch.h"

#include <algorithm>

namespace dropless::train {

namespace {

// Rows of lengths_B that stand one after another, moved to a width of seq_len.
template <class Value>
void spread(const Batch& batch, Value fill, std::vector<Value>& values) {
  const std::int64_t width = batch.seq_len;
  if (values.empty() || batch.tokens == batch.batch * width) return;
  std::vector<Value> padded(static_cast<std::size_t>(batch.batch * width), fill);
  const Value* row = values.data();
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    const std::int64_t length = batch.lengths_B[static_cast<std::size_t>(b)];
    std::copy(row, row + length, padded.data() + b * width);
    row += length;
  }
  values = std::move(padded);
}

}  // namespace

void pad_rows(Batch& batch, std::int64_t pad_id) {
  constexpr std::int32_t kPads = -1;  // the document of pads
  spread(batch, pad_id, batch.tokens_BS);
  spread(batch, std::uint8_t{0}, batch.learned_BS);
  spread(batch, kPads, batch.documents_BS);
}

bool Batch::is_scored(std::int64_t b, std::int64_t s) const {
  if (s == 0 || s >= lengths_B[static_cast<std::size_t>(b)]) return false;
  const auto at = static_cast<std::size_t>(b * seq_len + s);
  if (!learned_BS.empty() && learned_BS[at] == 0) return false;
  return documents_BS.empty() || documents_BS[at] == documents_BS[at - 1];
}

std::int64_t Batch::scored_tokens() const {
  if (learned_BS.empty() && documents_BS.empty()) return tokens - batch;
  std::int64_t count = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t s = 1; s < seq_len; ++s) count += is_scored(b, s);
  }
  return count;
}

}  // namespace dropless::train
