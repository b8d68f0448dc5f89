#include "train/data/text_writer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "dropless/error.h"
#include "dropless/version.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/progress.h"
#include "train/base/signals.h"
#include "train/base/utf8.h"
#include "train/data/finetuning.h"
#include "train/data/json_text.h"
#include "train/data/row_writer.h"

namespace dropless::train {
namespace {

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

// Moves the source to where an earlier call's whole shards end.
SamplePosition go_on(DocumentSource& documents, const MdsWriter& writer, TextSetCounts& counts) {
  if (writer.resumed_state().empty()) return {};
  SamplePosition position = SamplePosition::parse(writer.resumed_state());
  log_info("going on after {} samples of {} documents that an earlier call has written",
           writer.num_samples(), position.documents);
  std::string document;
  for (; counts.documents < position.documents && documents.next(document); ++counts.documents) {
    check_interrupted();
  }
  return position;
}

void write_rows(RowWriter& rows, DocumentSource& documents, const TextSetOptions& options,
                MdsWriter& writer, ProgressLine& progress, TextSetCounts& counts) {
  for (std::vector<std::string> chunk; next_chunk(documents, chunk);) {
    for (const auto& ids : encode_all(*options.tokenizer, chunk, options.threads))
      rows.add(ids, writer);
    counts.documents += std::ssize(chunk);
    progress.update(static_cast<std::uint64_t>(counts.documents),
                    {fmt::format("{} rows", writer.num_samples())});
  }
  counts.tokens = writer.num_samples() * options.concat_tokens;
  counts.dropped_tokens = rows.dropped_tokens();
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

// How the writer keeps what a later call needs; `form`: what the samples are.
MdsWriterOptions writer_options(const TextSetOptions& options, const std::string& form,
                                std::function<std::string()> state) {
  MdsWriterOptions mds = options.mds;
  if (options.source.empty()) return mds;
  mds.state = std::move(state);
  mds.plan =
      fmt::format("{} {} {} {}\n{}\n{}\n{} {} {}\n{}", form, options.concat_tokens, options.wrap,
                  DROPLESS_VERSION, options.bos_text, options.eos_text, mds.size_limit.value_or(0),
                  mds.compression, fmt::join(mds.hashes, ","), options.source);
  return mds;
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
  std::optional<RowWriter> row_writer;
  if (rows) row_writer.emplace(options);
  const auto state = [&] {
    return row_writer ? row_writer->position().dump()
                      : SamplePosition{.documents = counts.documents}.dump();
  };
  MdsWriter writer(folder, {rows ? std::pair("tokens", "ndarray:int32") : std::pair("text", "str")},
                   writer_options(options, rows ? "tokens" : "text", state));
  SamplePosition position = go_on(documents, writer, counts);
  ProgressLine progress = progress_line(options);
  if (rows) {
    row_writer->go_on_from(std::move(position));
    write_rows(*row_writer, documents, options, writer, progress, counts);
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
  TextSetCounts counts;
  MdsWriter writer(folder, columns, writer_options(options, chat ? "messages" : "prompts", [&] {
                     return SamplePosition{.documents = counts.documents}.dump();
                   }));
  go_on(lines, writer, counts);
  ProgressLine progress = progress_line(options);
  bool left_out = false;
  for (std::string line; lines.next(line); ++counts.documents) {
    check_interrupted();
    try {
      if (json_kind(line) != kind)
        throw Error(ErrorKind::kInvalidArgument,
                    "the object is of another kind than those before it");
      std::string values[2];
      std::string answer;  // the name of its key
      for (const JsonMember& member : split_json_object(line)) {
        if (chat && member.key == "messages") {
          read_chat(member.value);  // what the loader will not take is named here, by its line
          values[0] = python_json(member.value);
        } else if (!chat && member.key == "prompt") {
          values[0] = text_of(member);
        } else if (!chat && (member.key == "response" || member.key == "completion")) {
          if (!answer.empty()) {
            throw Error(ErrorKind::kInvalidArgument,
                        fmt::format("'{}' and '{}' are both there", answer, member.key),
                        "keep one of them");
          }
          answer = member.key;
          values[1] = text_of(member);
        } else if (!left_out) {  // as LLM Foundry does
          log_warning("{}: '{}' is left out, as are all other keys than {}", lines.place(),
                      member.key, chat ? "messages" : "prompt and response");
          left_out = true;
        }
      }
      if (!chat && values[1].empty()) {
        throw Error(ErrorKind::kInvalidArgument, "the response is empty: there is nothing to learn",
                    "remove the line");
      }
      const std::string_view views[] = {values[0], values[1]};
      writer.write(std::span(views, chat ? 1 : 2));
    } catch (const Error& error) {
      const bool of_line =
          error.kind() == ErrorKind::kInvalidArgument || error.kind() == ErrorKind::kDamaged;
      if (!of_line) throw;
      throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: {}", lines.place(), error.what()),
                  error.hint());
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
