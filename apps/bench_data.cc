// `dropless bench data`: how fast sets are read, opened and ordered, and text is tokenised, on one
// core. Times are the processor's, which other programs change least; `seconds` in the JSON are the clock's.
// scripts/compare_data.py runs the reference packages beside it.
#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/verbs.h"
#include "apps/whole_number.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/signals.h"
#include "train/data/epoch_plan.h"
#include "train/data/mds_reader.h"
#include "train/data/rng.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::apps {

using namespace train;

namespace {

using nlohmann::ordered_json;

struct BenchDataVerb {
  std::string set, tokenizer, text;
  std::int64_t samples = 10'000'000, order_shards = 2000, shards = 100'000;
  bool json = false;
};

double processor_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Seconds {
  double wall = 0, processor = 0;
};

template <class Work>
Seconds seconds_of(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  const double before = processor_seconds();
  work();
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  return {wall.count(), processor_seconds() - before};
}

// The least of some runs: what the machine can do when nothing else runs on it.
template <class Work>
Seconds best_seconds(int runs, Work&& work) {
  Seconds best = seconds_of(work);
  for (int i = 1; i < runs; ++i) {
    const Seconds run = seconds_of(work);
    best = {std::min(best.wall, run.wall), std::min(best.processor, run.processor)};
  }
  return best;
}

constexpr int kRuns = 3;  // the best of them counts

// Calls use(columns, values) for every sample, in this order.
template <class Use>
double read_seconds(MdsReader& reader, const std::vector<std::int64_t>& order, Use use) {
  return best_seconds(kRuns,
                      [&] {
                        for (const std::int64_t sample : order)
                          use(reader.columns(sample), reader.read(sample));
                      })
      .processor;
}

// Every sample, in order and in a random order, with every byte of every value through XXH3; and at random
// as the package's data[i] does it: copied out and decoded, without a hash.
ordered_json bench_read(const std::string& folder) {
  MdsReader reader(folder);
  std::vector<std::int64_t> order(static_cast<std::size_t>(reader.num_samples()));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::uint64_t bytes = 0;
  Xxh3Hash hash;
  const auto hash_values = [&](const auto&, std::span<const std::string_view> values) {
    for (const std::string_view value : values) {
      hash.update(value.data(), value.size());
      bytes += value.size();
    }
  };
  const auto decode_values = [&](const std::vector<MdsColumn>& columns,
                                 std::span<const std::string_view> values) {
    for (std::size_t i = 0; i < columns.size(); ++i) {
      if (columns[i].encoding.kind == EncodingKind::kArray)
        decode_array(columns[i].encoding, values[i]);
    }
  };
  const double seconds = read_seconds(reader, order, hash_values);
  const std::uint64_t set_bytes = bytes / kRuns;
  NumpyRng(17).shuffle(std::span(order));
  const double hashed_seconds = read_seconds(reader, order, hash_values);
  const double decoded_seconds = read_seconds(reader, order, decode_values);
  const auto samples = static_cast<double>(reader.num_samples());
  return {{"set", folder},
          {"samples", reader.num_samples()},
          {"bytes", set_bytes},
          {"gigabytes_per_s", static_cast<double>(set_bytes) / 1e9 / seconds},
          {"samples_per_s", samples / seconds},
          {"random_samples_per_s", samples / decoded_seconds},
          {"random_hashed_samples_per_s", samples / hashed_seconds}};
}

// Of this process: bytes of "VmHWM:" (the most that was resident) or "VmRSS:".
std::int64_t resident_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field)) return std::stoll(line.substr(field.size())) * 1024;
  }
  throw Error(ErrorKind::kInternal, fmt::format("/proc/self/status has no {}", field));
}

// Runs `work` and returns by how much resident memory rose at most. The peak begins anew when 5 is
// written to clear_refs (proc(5)).
template <class Work>
std::int64_t peak_bytes_of(Work&& work) {
  std::ofstream("/proc/self/clear_refs") << 5;
  const std::int64_t before = resident_bytes("VmRSS:");
  work();
  return resident_bytes("VmHWM:") - before;
}

// The order of one epoch, by every algorithm.
ordered_json bench_order(std::int64_t samples, std::int64_t shards) {
  ordered_json rows = ordered_json::array();
  EpochStream stream;
  for (std::int64_t i = 0; i < shards; ++i)
    stream.shard_sizes.push_back(samples * (i + 1) / shards - samples * i / shards);
  for (const char* name : {"naive", "py1s", "py1br", "py2s", "py1e"}) {
    EpochConfig config;
    config.shuffle.algo = parse_shuffle_algo(name);
    Seconds best;
    const std::int64_t peak = peak_bytes_of(
        [&] { best = best_seconds(3, [&] { epoch_order(config, std::span(&stream, 1), 1, 0); }); });
    rows.push_back({{"algorithm", name},
                    {"samples", samples},
                    {"shards", shards},
                    {"seconds", best.wall},
                    {"processor_seconds", best.processor},
                    {"peak_bytes", peak}});
  }
  return rows;
}

// Opens a set of so many shards, of which only the index is there.
ordered_json bench_open(std::int64_t shards) {
  const TemporaryFolder scratch;
  const std::string& folder = scratch.path();
  MdsIndex index;
  MdsShard shard;
  shard.columns.push_back({"tokens", Encoding::parse("ndarray:int32"), std::nullopt});
  for (std::int64_t i = 0; i < shards; ++i) {
    shard.raw = {fmt::format("shard.{:05}.mds", i),
                 std::uint64_t{1} << 26,
                 {{"xxh128", std::string(32, '0')}}};
    shard.hashes = {"xxh128"};
    shard.samples = 8000;
    index.shards.push_back(shard);
  }
  write_file_durable(join_path(folder, "index.json"), index.dump());
  const Seconds best = best_seconds(2, [&] { MdsReader reader(folder); });
  const std::uint64_t bytes = file_bytes(join_path(folder, "index.json"));
  return {{"shards", shards},
          {"index_bytes", bytes},
          {"seconds", best.wall},
          {"processor_seconds", best.processor}};
}

// Texts of 20,000 bytes, about a page of the web each.
ordered_json bench_tokenizer(const std::string& name, const std::string& path) {
  const std::string text = read_file(path);
  std::shared_ptr<const Tokenizer> tokenizer;
  const double load = seconds_of([&] { tokenizer = make_tokenizer(name); }).processor;
  constexpr std::size_t kText = 20000;
  std::size_t tokens = 0;
  const auto encode = [&] {
    tokens = 0;
    for (std::size_t at = 0; at < text.size(); at += kText)
      tokens += tokenizer->encode(std::string_view(text).substr(at, kText)).size();
  };
  const double seconds = best_seconds(3, encode).processor;
  return {{"tokenizer", name},
          {"bytes", text.size()},
          {"tokens", tokens},
          {"load_seconds", load},
          {"megabytes_per_s", static_cast<double>(text.size()) / 1e6 / seconds}};
}

void print(const ordered_json& json) {
  if (json.contains("read")) {
    const auto& row = json["read"];
    std::cout << fmt::format("read       {:.2f} GB/s, {:.0f} samples/s, {:.0f} in random order\n",
                             row["gigabytes_per_s"].get<double>(),
                             row["samples_per_s"].get<double>(),
                             row["random_samples_per_s"].get<double>());
  }
  for (const auto& row : json.value("order", ordered_json::array())) {
    std::cout << fmt::format("order      {:<6} {:.3f} s, {:.0f} MB\n",
                             row["algorithm"].get<std::string>(), row["seconds"].get<double>(),
                             row["peak_bytes"].get<double>() / 1e6);
  }
  if (json.contains("open")) {
    std::cout << fmt::format("open       {} shards in {:.3f} s\n",
                             json["open"]["shards"].get<std::int64_t>(),
                             json["open"]["processor_seconds"].get<double>());
  }
  if (json.contains("tokenizer")) {
    const auto& row = json["tokenizer"];
    std::cout << fmt::format("tokenizer  {:.1f} MB/s, loaded in {:.3f} s\n",
                             row["megabytes_per_s"].get<double>(),
                             row["load_seconds"].get<double>());
  }
}

void run_bench_data(const BenchDataVerb& verb) {
  install_signal_handlers(SignalMode::kExit);
  if (verb.tokenizer.empty() != verb.text.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "--tokenizer and --text go together",
                "name a tokenizer and a file of text");
  }
  ordered_json json;
  if (!verb.set.empty()) json["read"] = bench_read(verb.set);
  if (!verb.tokenizer.empty()) json["tokenizer"] = bench_tokenizer(verb.tokenizer, verb.text);
  if (json.is_null()) {
    json["order"] = bench_order(verb.samples, verb.order_shards);
    json["open"] = bench_open(verb.shards);
  }
  if (verb.json) {
    std::cout << json.dump() << "\n";
  } else {
    print(json);
  }
}

}  // namespace

void add_bench_data(CLI::App& bench) {
  auto verb = std::make_shared<BenchDataVerb>();
  CLI::App* data = bench.add_subcommand(
      "data", "Reading, opening and ordering sets, and tokenising text, on one core");
  data->add_option("--set", verb->set, "a set on this machine: read and hash all of it");
  data->add_option("--tokenizer", verb->tokenizer, "tokenise --text with it");
  data->add_option("--text", verb->text, "a file of text");
  data->add_option("--samples", verb->samples, "of the epoch that is ordered")
      ->capture_default_str()
      ->check(whole_number<std::int64_t>(1));
  data->add_option("--order-shards", verb->order_shards, "that they lie in")
      ->capture_default_str()
      ->check(whole_number<std::int64_t>(1));
  data->add_option("--shards", verb->shards, "of the set that is opened")
      ->capture_default_str()
      ->check(whole_number<std::int64_t>(1, 10'000'000));
  data->add_flag("--json", verb->json, "one JSON document");
  data->footer(
      "Example: dropless bench data --set data/books/train\n"
      "         dropless bench data          (without --set or --tokenizer: opening and ordering)\n"
      "The package beside it: scripts/compare_data.py BINARY, in an environment with "
      "mosaicml-streaming");
  data->callback([verb] { run_bench_data(*verb); });
}

}  // namespace dropless::apps
