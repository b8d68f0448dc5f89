#include "train/data/text_writer.h"

#include <fmt/format.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/progress.h"
#include "train/base/signals.h"
#include "train/base/utf8.h"
#include "train/data/json_text.h"

namespace dropless::train {
namespace {

std::vector<TokenId> encode_marker(const Tokenizer& tokenizer, const std::string& text) {
  if (const auto id = tokenizer.special_id(text)) return {*id};
  return tokenizer.encode(text);
}

// The documents' ids, by several threads. Rethrows the first error.
std::vector<std::vector<TokenId>> encode_all(const Tokenizer& tokenizer,
                                             const std::vector<std::string>& documents,
                                             int threads) {
  std::vector<std::vector<TokenId>> ids(documents.size());
  std::atomic<std::size_t> next = 0;
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (std::size_t i; (i = next++) < documents.size();)
        ids[i] = tokenizer.encode_with_template(documents[i]);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next = documents.size();
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads && static_cast<std::size_t>(i) < documents.size(); ++i)
    others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
  return ids;
}

// Documents of some megabytes together, or one larger one. False at the end.
bool next_chunk(DocumentSource& documents, std::vector<std::string>& chunk) {
  constexpr std::size_t kBytes = std::size_t{8} << 20;
  chunk.clear();
  std::string document;
  for (std::size_t bytes = 0; bytes < kBytes && documents.next(document);) {
    check_interrupted();
    bytes += document.size();
    chunk.push_back(std::move(document));
  }
  return !chunk.empty();
}

class RowWriter {
 public:
  RowWriter(const TextSetOptions& options, MdsWriter& writer, TextSetCounts& counts)
      : options_(options),
        writer_(writer),
        counts_(counts),
        length_(static_cast<std::size_t>(options.concat_tokens)),
        bos_(encode_marker(*options.tokenizer, options.bos_text)),
        eos_(encode_marker(*options.tokenizer, options.eos_text)) {}

  void add(const std::vector<TokenId>& ids) {
    for (const auto* part : {&bos_, &ids, &eos_})
      buffer_.insert(buffer_.end(), part->begin(), part->end());
    std::size_t at = 0;
    for (; buffer_.size() - at >= length_; at += length_) {
      check_interrupted();
      write_row(at);
      if (!options_.wrap) {
        // LLM Foundry's no_wrap empties the whole buffer once a row is cut from it.
        counts_.dropped_tokens += static_cast<std::int64_t>(buffer_.size() - at - length_);
        at = buffer_.size();
        break;
      }
    }
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  std::int64_t left_over() const { return std::ssize(buffer_); }

 private:
  void write_row(std::size_t at) {
    ArrayView row{encoding_.type, {length_}, {}};
    row.values = {reinterpret_cast<const char*>(buffer_.data() + at), length_ * sizeof(TokenId)};
    const std::string value = encode_array(encoding_, row);
    const std::string_view view = value;
    writer_.write(std::span(&view, 1));
    counts_.tokens += options_.concat_tokens;
  }

  const TextSetOptions& options_;
  MdsWriter& writer_;
  TextSetCounts& counts_;
  const Encoding encoding_ = Encoding::parse("ndarray:int32");
  const std::size_t length_;
  const std::vector<TokenId> bos_, eos_;
  std::vector<TokenId> buffer_;
};

void write_rows(DocumentSource& documents, const TextSetOptions& options, MdsWriter& writer,
                ProgressLine& progress, TextSetCounts& counts) {
  RowWriter rows(options, writer, counts);
  for (std::vector<std::string> chunk; next_chunk(documents, chunk);) {
    for (const auto& ids : encode_all(*options.tokenizer, chunk, options.threads)) rows.add(ids);
    counts.documents += std::ssize(chunk);
    progress.update(static_cast<std::uint64_t>(counts.documents),
                    {fmt::format("{} rows", writer.num_samples())});
  }
  counts.dropped_tokens += rows.left_over();
}

void write_documents(DocumentSource& documents, MdsWriter& writer, ProgressLine& progress,
                     TextSetCounts& counts) {
  for (std::string text; documents.next(text); ++counts.documents) {
    check_interrupted();
    if (const std::size_t at = find_invalid_utf8(text); at != std::string::npos) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}: invalid UTF-8 at byte {}", documents.place(), at),
                  "convert it to UTF-8, or write token rows with --concat-tokens");
    }
    const std::string_view view = text;
    writer.write(std::span(&view, 1));
    if (progress.due(static_cast<std::uint64_t>(counts.documents)))
      progress.update(static_cast<std::uint64_t>(counts.documents), {});
  }
}

ProgressLine progress_line(const TextSetOptions& options) {
  return ProgressLine({.label = "documents", .enabled = options.progress});
}

}  // namespace

TextSetCounts write_text_set(DocumentSource& documents, const std::string& folder,
                             const TextSetOptions& options) {
  const bool rows = options.concat_tokens != 0;
  if (options.concat_tokens < 0) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("rows of {} tokens", options.concat_tokens));
  }
  if (rows && !options.tokenizer)
    throw Error(ErrorKind::kInvalidArgument, "token rows need a tokenizer");
  TextSetCounts counts;
  MdsWriter writer(folder, {rows ? std::pair("tokens", "ndarray:int32") : std::pair("text", "str")},
                   options.mds);
  ProgressLine progress = progress_line(options);
  if (rows) {
    write_rows(documents, options, writer, progress, counts);
  } else {
    write_documents(documents, writer, progress, counts);
  }
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

TextSetCounts write_finetuning_set(LineDocuments& lines, JsonKind kind, const std::string& folder,
                                   const TextSetOptions& options) {
  const bool chat = kind == JsonKind::kMessages;
  std::vector<std::pair<std::string, std::string>> columns = {{"prompt", "str"},
                                                              {"response", "str"}};
  if (chat) columns = {{"messages", "json"}};
  MdsWriter writer(folder, columns, options.mds);
  ProgressLine progress = progress_line(options);
  TextSetCounts counts;
  for (std::string line; lines.next(line); ++counts.documents) {
    check_interrupted();
    try {
      if (json_kind(line) != kind)
        throw Error(ErrorKind::kInvalidArgument,
                    "the object is of another kind than those before it");
      std::string values[2];
      for (const JsonMember& member : split_json_object(line)) {
        if (chat && member.key == "messages") values[0] = python_json(member.value);
        if (!chat && member.key == "prompt") values[0] = json_unquote(member.value);
        if (!chat && (member.key == "response" || member.key == "completion"))
          values[1] = json_unquote(member.value);
      }
      const std::string_view views[] = {values[0], values[1]};
      writer.write(std::span(views, chat ? 1 : 2));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInvalidArgument) throw;
      throw Error(error.kind(), fmt::format("{}: {}", lines.place(), error.what()), error.hint());
    }
    if (progress.due(static_cast<std::uint64_t>(counts.documents)))
      progress.update(static_cast<std::uint64_t>(counts.documents), {});
  }
  counts.samples = writer.num_samples();
  if (counts.samples == 0)
    throw Error(ErrorKind::kInvalidArgument, "the files hold no samples", "name other files");
  writer.finish();
  return counts;
}

}  // namespace dropless::train
