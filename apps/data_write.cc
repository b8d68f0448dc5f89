// `dropless data write` makes a set of sample lines, the inverse of `dropless data cat`.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <cerrno>
#include <memory>

#include "apps/data_verbs.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/signals.h"
#include "train/data/json_text.h"
#include "train/data/mds_writer.h"
#include "train/data/sample_line.h"

namespace dropless::apps {

using namespace train;

namespace {

struct WriteOptions {
  std::string folder, columns;
  std::string size_limit = "64mb";
  std::string hashes = "none";
  bool exist_ok = false;
};

std::vector<std::pair<std::string, std::string>> parse_columns(const std::string& text) {
  std::vector<std::pair<std::string, std::string>> columns;
  try {
    for (const JsonMember& member : split_json_object(text)) {
      columns.emplace_back(member.key, json_unquote(member.value));
    }
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("--columns: {}", error.what()),
                "write it as '{\"tokens\":\"ndarray:int32\"}'");
  }
  return columns;
}

// Standard input line by line. A wait for more of it ends at a signal.
class StandardInput {
 public:
  // False at the end; a last line may lack its newline.
  bool next_line(std::string& line) {
    std::size_t searched = 0, end;
    while ((end = buffer_.find('\n', begin_ + searched)) == std::string::npos) {
      searched = buffer_.size() - begin_;
      if (!fill()) {
        line = buffer_.substr(begin_);
        begin_ = buffer_.size();
        return !line.empty();
      }
    }
    line = buffer_.substr(begin_, end - begin_);
    begin_ = end + 1;
    return true;
  }

 private:
  bool fill() {
    constexpr std::size_t kBytes = 1 << 16;
    buffer_.erase(0, begin_);
    begin_ = 0;
    wait_readable(STDIN_FILENO);
    const std::size_t kept = buffer_.size();
    buffer_.resize(kept + kBytes);
    const ssize_t got = ::read(STDIN_FILENO, buffer_.data() + kept, kBytes);
    if (got == -1) throw_errno("read", "standard input", errno);
    buffer_.resize(kept + static_cast<std::size_t>(got));
    return got > 0;
  }

  std::string buffer_;
  std::size_t begin_ = 0;  // of what is not yet handed out
};

void run_write(const WriteOptions& options) {
  install_signal_handlers(SignalMode::kThrow);
  MdsWriterOptions mds;
  mds.replace = options.exist_ok;
  mds.hashes = hash_names(options.hashes);
  mds.size_limit.reset();
  if (options.size_limit != "none") mds.size_limit = parse_byte_size(options.size_limit);
  MdsWriter writer(options.folder, parse_columns(options.columns), mds);
  std::int64_t number = 0;
  StandardInput input;
  for (std::string line; input.next_line(line);) {
    check_interrupted();
    ++number;
    try {
      const auto values = encode_sample_line(writer.columns(), line);
      writer.write(std::vector<std::string_view>(values.begin(), values.end()));
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("line {}: {}", number, error.what()), error.hint());
    }
  }
  check_interrupted();
  writer.finish();
}

}  // namespace

void add_data_write(CLI::App& data) {
  auto options = std::make_shared<WriteOptions>();
  CLI::App* verb = data.add_subcommand("write", "Make a set of the sample lines on standard input");
  verb->add_option("DIR", options->folder, "folder of the new set")->required();
  verb->add_option("--columns", options->columns, "JSON object: column -> encoding")->required();
  verb->add_option("--size-limit", options->size_limit, "largest shard: bytes, 64mb, or none")
      ->capture_default_str();
  verb->add_option("--hashes", options->hashes,
                   "of each shard, for verify: sha256, xxh128, xxh3_128, with commas; or none")
      ->capture_default_str();
  verb->add_flag("--exist-ok", options->exist_ok, "replace what stands under DIR");
  verb->footer(
      "Example: dropless data cat old | dropless data write new --columns "
      "'{\"tokens\":\"ndarray:int32\"}'");
  verb->callback([options] { run_write(*options); });
}

}  // namespace dropless::apps
