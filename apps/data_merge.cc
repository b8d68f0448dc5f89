// `dropless data merge` writes one index over several sets.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>

#include "apps/data_verbs.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/data/merge.h"
#include "train/data/remote.h"

namespace dropless::apps {

using namespace train;

namespace {

struct MergeOptions {
  std::vector<std::string> folders;
  std::string out;
};

void run_merge(MergeOptions options) {
  install_signal_handlers(SignalMode::kThrow);
  if (options.out.empty()) {
    if (options.folders.size() != 1) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} folders to merge, and no --out", options.folders.size()),
                  "name the one folder that holds them, or say with --out where the index goes");
    }
    options.out = strip_file_scheme(options.folders[0]);
    options.folders = find_partitions(options.out);
  }
  options.out = strip_file_scheme(options.out);
  if (is_url(options.out)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("--out {}: nothing is uploaded", options.out),
                "name a folder here, and copy its index.json there");
  }
  const auto [index, home, holds_own] = write_merged_index(options.folders, options.out);
  std::cout << fmt::format("{}: {} in {}\n", options.out, counted(index.num_samples(), "sample"),
                           counted(static_cast<std::int64_t>(index.shards.size()), "shard"));
  if (!home.empty()) {
    log_info("{} names shards below {}: copy {}them beside it",
             join_path(options.out, "index.json"), home, holds_own ? "" : "it there, or ");
  }
}

}  // namespace

void add_data_merge(CLI::App& data) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App* verb =
      data.add_subcommand("merge", "Write one index.json over the sets in the folders below DIR");
  verb->add_option("DIR", options->folders,
                   "folder that holds the sets; with --out, the sets or their URLs")
      ->required();
  verb->add_option("--out", options->out, "folder of the merged index; DIR");
  verb->footer(
      "Example: dropless data merge data/corpus\n"
      "         dropless data merge s3://bucket/a s3://bucket/b --out merged");
  verb->callback([options] { run_merge(*options); });
}

}  // namespace dropless::apps
