// `dropless data cat` prints samples; `dropless data verify` reads all of a set.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <limits>
#include <memory>

#include "apps/data_verbs.h"
#include "apps/whole_number.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/signals.h"
#include "train/data/mds_reader.h"
#include "train/data/sample_line.h"
#include "train/data/verify.h"

namespace dropless::apps {

using namespace train;

namespace {

struct CatOptions {
  std::string folder, split, local;
  ShardStoreOptions store;
  std::int64_t from = 0;
  std::int64_t count = std::numeric_limits<std::int64_t>::max();
  bool raw = false;
};

void run_cat(const CatOptions& options) {
  install_signal_handlers(SignalMode::kThrow);
  const bool remote = is_url(options.folder) && !options.folder.starts_with("file://");
  std::string folder = options.folder;
  if (!remote) {
    folder = local_set(strip_file_scheme(folder), options.split);
  } else if (!options.split.empty()) {
    folder = join_path(folder, options.split);
  }
  std::string cache = options.local;
  if (!cache.empty() && !options.split.empty()) cache = join_path(cache, options.split);
  MdsReader reader(std::make_shared<ShardStore>(folder, cache, options.store));
  if (options.from > reader.num_samples()) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("--from {}: the set has {} samples",
                                                         options.from, reader.num_samples()));
  }
  const std::int64_t end =
      options.from + std::min(options.count, reader.num_samples() - options.from);
  for (std::int64_t sample = options.from; sample < end && std::cout; ++sample) {
    check_interrupted();
    const auto& columns = reader.columns(sample);
    const auto values = reader.read(sample);
    std::cout << (options.raw ? raw_sample_line(columns, values)
                              : sample_line(columns, values, sample))
              << "\n";
  }
}

void run_verify(const std::string& folder) {
  install_signal_handlers(SignalMode::kThrow);
  const auto damage = verify_set(local_set(folder, ""));
  for (const auto& [basename, reason] : damage) std::cout << basename << ": " << reason << "\n";
  if (!damage.empty()) throw CLI::RuntimeError(1);
}

}  // namespace

void add_data_cat(CLI::App& data) {
  auto options = std::make_shared<CatOptions>();
  CLI::App* verb = data.add_subcommand("cat", "Print samples, one JSON object a line");
  verb->add_option("DIR", options->folder,
                   "folder of the set, or its URL (file, http, https, s3) together with --local")
      ->required();
  verb->add_option("--split", options->split, "sub-folder of the set");
  verb->add_option("--from", options->from, "first sample, from 0")
      ->check(whole_number<std::int64_t>(0));
  verb->add_option("--count", options->count, "how many samples; all")
      ->check(whole_number<std::int64_t>(0));
  verb->add_option("--local", options->local,
                   "folder in which the shards that are read are kept, decompressed");
  verb->add_option("--validate-hash", options->store.validate_hash,
                   "check this hash of every shard that is read, such as sha256");
  RemoteOptions& remote = options->store.remote;
  remote.knobs = "--download-retry and --download-timeout";
  verb->add_option("--download-retry", remote.retries, "of a URL: further tries of a file")
      ->capture_default_str()
      ->check(whole_number<int>(0, 1000));
  verb->add_option("--download-timeout", remote.timeout,
                   "of a URL: seconds below 16 KiB/s that end a try")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_flag("--raw", options->raw, "per column, length and SHA-256 of the undecoded bytes");
  verb->footer("Example: dropless data cat data/corpus --split train --from 100 --count 3");
  verb->callback([options] { run_cat(*options); });
}

void add_data_verify(CLI::App& data) {
  auto folder = std::make_shared<std::string>();
  CLI::App* verb =
      data.add_subcommand("verify", "Read all of a set; exit 1 and name each damaged shard");
  verb->add_option("DIR", *folder, "folder of the set")->required();
  verb->footer("Example: dropless data verify data/corpus/train");
  verb->callback([folder] { run_verify(*folder); });
}

}  // namespace dropless::apps
