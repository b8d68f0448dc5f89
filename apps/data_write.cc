// `dropless data write` makes a set of sample lines, the inverse of `dropless data cat`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <memory>

#include "apps/data_verbs.h"
#include "apps/standard_input.h"
#include "dropless/error.h"
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
  std::string compression;
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

void run_write(const WriteOptions& options) {
  install_signal_handlers(SignalMode::kThrow);
  MdsWriterOptions mds;
  mds.replace = options.exist_ok;
  mds.hashes = hash_names(options.hashes);
  mds.compression = options.compression;
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
                   "of each shard, for verify: sha256, xxh128 and others, with commas; or none")
      ->capture_default_str();
  verb->add_option("--compression", options->compression,
                   "of the shards: zstd, gz, bz2, br, with a level as in zstd:7; or snappy");
  verb->add_flag("--exist-ok", options->exist_ok, "replace what stands under DIR");
  verb->footer(
      "Example: dropless data cat old | dropless data write new --columns "
      "'{\"tokens\":\"ndarray:int32\"}'");
  verb->callback([options] { run_write(*options); });
}

}  // namespace dropless::apps
