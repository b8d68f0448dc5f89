#include "train/data/text_writer.h"

#include <fmt/format.h>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/signals.h"
#include "train/base/utf8.h"

namespace dropless::train {
namespace {

std::vector<TokenId> encode_marker(const Tokenizer& tokenizer, const std::string& text) {
  if (const auto id = tokenizer.special_id(text)) return {*id};
  return tokenizer.encode(text);
}

void write_rows(const std::vector<std::string>& files, const TextSetOptions& options,
                MdsWriter& writer, TextSetCounts& counts) {
  const Encoding encoding = Encoding::parse("ndarray:int32");
  const std::size_t length = static_cast<std::size_t>(options.concat_tokens);
  const auto bos = encode_marker(*options.tokenizer, options.bos_text);
  const auto eos = encode_marker(*options.tokenizer, options.eos_text);
  std::vector<TokenId> buffer;
  for (const std::string& file : files) {
    const auto ids = options.tokenizer->encode_with_template(read_file(file));
    for (const auto* part : {&bos, &ids, &eos})
      buffer.insert(buffer.end(), part->begin(), part->end());
    std::size_t at = 0;
    for (; buffer.size() - at >= length; at += length) {
      check_interrupted();
      ArrayView row{encoding.type, {length}, {}};
      row.values = {reinterpret_cast<const char*>(buffer.data() + at), length * sizeof(TokenId)};
      const std::string value = encode_array(encoding, row);
      const std::string_view view = value;
      writer.write(std::span(&view, 1));
      counts.tokens += options.concat_tokens;
      if (!options.wrap) {
        // LLM Foundry's no_wrap empties the whole buffer once a row is cut from it.
        counts.dropped_tokens += static_cast<std::int64_t>(buffer.size() - at - length);
        at = buffer.size();
        break;
      }
    }
    buffer.erase(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(at));
  }
  counts.dropped_tokens += static_cast<std::int64_t>(buffer.size());
}

void write_documents(const std::vector<std::string>& files, MdsWriter& writer) {
  for (const std::string& file : files) {
    check_interrupted();
    const std::string text = read_file(file);
    if (const std::size_t at = find_invalid_utf8(text); at != std::string::npos) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}: invalid UTF-8 at byte {}", file, at),
                  "convert the file to UTF-8, or write token rows with --concat-tokens");
    }
    const std::string_view view = text;
    writer.write(std::span(&view, 1));
  }
}

}  // namespace

TextSetCounts write_text_set(const std::vector<std::string>& files, const std::string& folder,
                             const TextSetOptions& options) {
  const bool rows = options.concat_tokens != 0;
  if (options.concat_tokens < 0) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("rows of {} tokens", options.concat_tokens));
  }
  if (rows && !options.tokenizer)
    throw Error(ErrorKind::kInvalidArgument, "token rows need a tokenizer");
  for (const std::string& file : files) {
    // Before any work: an absent last file should not cost the reading of all before it.
    if (!path_exists(file) || is_folder(file)) {
      throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is not a file", file),
                  "name text files, one document each");
    }
  }
  TextSetCounts counts;
  MdsWriter writer(folder, {rows ? std::pair("tokens", "ndarray:int32") : std::pair("text", "str")},
                   options.mds);
  if (rows) {
    write_rows(files, options, writer, counts);
  } else {
    write_documents(files, writer);
  }
  counts.documents = static_cast<std::int64_t>(files.size());
  counts.samples = writer.num_samples();
  if (counts.samples == 0) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} with {} tokens cannot fill one row of {}",
                            counts.documents == 1 ? "1 document"
                                                  : fmt::format("{} documents", counts.documents),
                            counts.dropped_tokens, options.concat_tokens),
                "give more text or a smaller --concat-tokens");
  }
  writer.finish();
  return counts;
}

}  // namespace dropless::train
