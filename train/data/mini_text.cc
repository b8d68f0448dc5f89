#include "train/data/mini_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::train {

TextFileSource::TextFileSource(const std::string& path, const Tokenizer& tokenizer,
                               std::int64_t batch_size, std::int64_t seq_len)
    : ids_(tokenizer.encode(read_file(path))),
      batch_size_(batch_size),
      seq_len_(seq_len),
      pad_id_(tokenizer.pad_id()) {
  if (batch_size <= 0 || seq_len <= 0) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("batches of {} pieces of {} tokens", batch_size, seq_len));
  }
  if (ids_.empty()) throw Error(ErrorKind::kInvalidArgument, fmt::format("{} holds no text", path));
}

std::int64_t TextFileSource::num_pieces() const { return (num_tokens() + seq_len_ - 1) / seq_len_; }

bool TextFileSource::next(Batch& batch) {
  batch = Batch{};
  while (batch.batch < batch_size_ && position_ < ids_.size()) {
    const std::size_t length =
        std::min(static_cast<std::size_t>(seq_len_), ids_.size() - position_);
    const auto begin = ids_.begin() + static_cast<std::ptrdiff_t>(position_);
    batch.tokens_BS.insert(batch.tokens_BS.end(), begin,
                           begin + static_cast<std::ptrdiff_t>(length));
    batch.lengths_B.push_back(static_cast<std::int32_t>(length));
    batch.seq_len = std::max(batch.seq_len, static_cast<std::int64_t>(length));
    batch.tokens += static_cast<std::int64_t>(length);
    ++batch.batch;
    ++batch.samples;
    position_ += length;
  }
  pad_rows(batch, pad_id_);
  return batch.batch > 0;
}

}  // namespace dropless::train
