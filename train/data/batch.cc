#include "train/data/batch.h"

#include <algorithm>

namespace dropless::train {

void pad_rows(Batch& batch, std::int64_t pad_id) {
  const std::int64_t width = batch.seq_len;
  if (batch.tokens == batch.batch * width) return;
  std::vector<std::int64_t> padded(static_cast<std::size_t>(batch.batch * width), pad_id);
  const std::int64_t* row = batch.tokens_BS.data();
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    const std::int64_t length = batch.lengths_B[static_cast<std::size_t>(b)];
    std::copy(row, row + length, padded.data() + b * width);
    row += length;
  }
  batch.tokens_BS = std::move(padded);
}

}  // namespace dropless::train
