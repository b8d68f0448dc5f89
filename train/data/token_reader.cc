#include "train/data/token_reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "dropless/error.h"
#include "train/base/utf8.h"

namespace dropless::train {
namespace {

bool is_text(const Encoding& encoding) { return encoding.kind == EncodingKind::kStr; }

bool holds_tokens(const Encoding& encoding) {
  if (encoding.kind == EncodingKind::kBytes) return true;
  return encoding.kind == EncodingKind::kArray &&
         (encoding.type == nullptr || encoding.type->is_integer);
}

// LLM Foundry looks for `text` first.
std::size_t find_column(const MdsShard& shard, const std::string& folder) {
  for (const char* name : {"text", "tokens"}) {
    for (std::size_t i = 0; i < shard.columns.size(); ++i) {
      const MdsColumn& column = shard.columns[i];
      if (column.name != name) continue;
      if (name == std::string("text") ? is_text(column.encoding) : holds_tokens(column.encoding))
        return i;
      throw Error(
          ErrorKind::kInvalidArgument,
          fmt::format("{}: column '{}' is stored as {}", folder, name, column.encoding.name),
          "store `tokens` as ndarray:int32, or `text` as str");
    }
  }
  std::string names;
  for (const MdsColumn& column : shard.columns) names += (names.empty() ? "" : ", ") + column.name;
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{}: no column 'tokens' or 'text' to train on, only: {}", folder, names),
              "write a set with `dropless data text`");
}

}  // namespace

void check_vocabulary(const std::vector<std::int64_t>& ids, std::size_t from,
                      std::int64_t vocab_size) {
  for (std::size_t i = from; vocab_size > 0 && i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    throw Error(ErrorKind::kDamaged,
                fmt::format("token id {} at position {} is outside the vocabulary of {}", ids[i],
                            i - from, vocab_size),
                "train with the tokenizer and vocab_size the set was written for");
  }
}

TokenReader::TokenReader(MdsReader reader, std::shared_ptr<const Tokenizer> tokenizer,
                         const std::string& token_type, std::int64_t max_tokens,
                         std::int64_t vocab_size)
    : reader_(std::move(reader)),
      tokenizer_(std::move(tokenizer)),
      token_type_(find_numpy_type(std::string_view(token_type))),
      max_tokens_(static_cast<std::uint64_t>(max_tokens)),
      vocab_size_(vocab_size) {
  if (token_type_ == nullptr || !token_type_->is_integer) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("token_encoding_type '{}' is not an integer type", token_type));
  }
  for (const MdsShard& shard : reader_.index().shards) {
    column_.push_back(find_column(shard, reader_.folder()));
    if (is_text(shard.columns[column_.back()].encoding) && !tokenizer_) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} holds text, and no tokenizer is given", reader_.folder()),
                  "give a tokenizer");
    }
  }
}

void TokenReader::append_array(const Encoding& encoding, std::string_view bytes,
                               std::vector<std::int64_t>& row) const {
  const NumpyType* type = token_type_;
  if (encoding.kind == EncodingKind::kArray) {
    const ArrayView array = decode_array(encoding, bytes);
    if (array.shape.size() != 1 || !array.type->is_integer) {
      throw Error(ErrorKind::kDamaged,
                  fmt::format("an array of {} with {} dimensions instead of a row of token ids",
                              array.type->name, array.shape.size()));
    }
    type = array.type;
    bytes = array.values;
  } else if (bytes.size() % type->bytes != 0) {
    throw Error(ErrorKind::kDamaged,
                fmt::format("{} bytes are no whole number of {}", bytes.size(), type->name),
                "set token_encoding_type to the type the ids were written in");
  }
  append_as_int64(*type,
                  bytes.substr(0, std::min<std::uint64_t>(bytes.size(), max_tokens_ * type->bytes)),
                  row);
}

// A long text loses its end, not what the tokenizer's template puts behind it.
void TokenReader::append_text(std::string_view text, std::vector<std::int64_t>& row) const {
  const auto prefix = tokenizer_->prefix_ids(), suffix = tokenizer_->suffix_ids();
  const auto ids = tokenizer_->encode(text);
  const std::uint64_t around = prefix.size() + suffix.size();
  const std::size_t room = max_tokens_ > around ? max_tokens_ - around : 0;
  const std::size_t begin = row.size();
  row.insert(row.end(), prefix.begin(), prefix.end());
  row.insert(row.end(), ids.begin(),
             ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), room)));
  row.insert(row.end(), suffix.begin(), suffix.end());
  row.resize(std::min<std::size_t>(row.size(), begin + max_tokens_));
}

void TokenReader::append(std::int64_t sample, TokenRow& tokens) {
  std::vector<std::int64_t>& row = tokens.ids;
  const std::size_t begin = row.size();
  const std::size_t shard = reader_.shard_of(sample);
  const MdsColumn& column = reader_.index().shards[shard].columns[column_[shard]];
  const std::string_view bytes = reader_.read(sample)[column_[shard]];
  try {
    if (is_text(column.encoding)) {
      if (const std::size_t at = find_invalid_utf8(bytes); at != std::string_view::npos) {
        throw Error(ErrorKind::kDamaged, fmt::format("invalid UTF-8 at byte {}", at));
      }
      append_text(bytes, row);
    } else {
      append_array(column.encoding, bytes, row);
    }
    if (row.size() == begin) row.push_back(pad_id());
    check_vocabulary(row, begin, vocab_size_);
  } catch (const Error& error) {
    throw Error(error.kind(),
                fmt::format("{}: sample {}, column '{}': {}", reader_.folder(), sample, column.name,
                            error.what()),
                error.hint());
  }
}

}  // namespace dropless::train
