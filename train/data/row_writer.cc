#include "train/data/row_writer.h"

#include <span>
#include <string_view>
#include <utility>

#include "train/base/json.h"
#include "train/base/signals.h"

namespace dropless::train {
namespace {

std::vector<TokenId> encode_marker(const Tokenizer& tokenizer, const std::string& text) {
  if (const auto id = tokenizer.special_id(text)) return {*id};
  return tokenizer.encode(text);
}

}  // namespace

std::string SamplePosition::dump() const {
  return nlohmann::json{{"documents", documents},
                        {"rows", rows},
                        {"buffer", buffer},
                        {"dropped_tokens", dropped_tokens}}
      .dump();
}

SamplePosition SamplePosition::parse(const std::string& text) {
  const nlohmann::json json = parse_json(text, "the set's journal");
  return {json.at("documents").get<std::int64_t>(), json.at("rows").get<std::int64_t>(),
          json.at("buffer").get<std::vector<TokenId>>(),
          json.at("dropped_tokens").get<std::int64_t>()};
}

RowWriter::RowWriter(const TextSetOptions& options)
    : options_(options),
      length_(static_cast<std::size_t>(options.concat_tokens)),
      bos_(encode_marker(*options.tokenizer, options.bos_text)),
      eos_(encode_marker(*options.tokenizer, options.eos_text)) {}

void RowWriter::go_on_from(SamplePosition position) {
  position_ = std::move(position);
  buffer_ = position_.buffer;
  rows_written_ = std::exchange(position_.rows, 0);
}

void RowWriter::add(const std::vector<TokenId>& ids, MdsWriter& writer) {
  for (const auto* part : {&bos_, &ids, &eos_})
    buffer_.insert(buffer_.end(), part->begin(), part->end());
  std::int64_t dropped = 0;
  std::size_t at = 0;
  for (; buffer_.size() - at >= length_; at += length_, ++position_.rows) {
    check_interrupted();
    if (position_.rows >= rows_written_) write_row(at, writer);
    if (!options_.wrap) {
      // LLM Foundry's no_wrap empties the whole buffer once a row is cut from it.
      dropped = static_cast<std::int64_t>(buffer_.size() - at - length_);
      at = buffer_.size();
      break;
    }
  }
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(at));
  rows_written_ = 0;
  ++position_.documents;
  position_.rows = 0;
  position_.dropped_tokens += dropped;
  if (!options_.source.empty()) position_.buffer = buffer_;
}

void RowWriter::write_row(std::size_t at, MdsWriter& writer) const {
  ArrayView row{encoding_.type, {length_}, {}};
  row.values = {reinterpret_cast<const char*>(buffer_.data() + at), length_ * sizeof(TokenId)};
  const std::string value = encode_array(encoding_, row);
  const std::string_view view = value;
  writer.write(std::span(&view, 1));
}

}  // namespace dropless::train
