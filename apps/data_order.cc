// `dropless data order` prints which sample comes when, for specs on standard input.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "apps/data_verbs.h"
#include "apps/standard_input.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/json.h"
#include "train/base/signals.h"
#include "train/data/epoch_plan.h"
#include "train/data/mds_index.h"
#include "train/data/order_size.h"

namespace dropless::apps {

using namespace train;

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorKind::kInvalidArgument, what);
}

// One object of a spec. A key that is absent or null has its default; one that is unknown is an
// error.
class SpecMap {
 public:
  explicit SpecMap(const json& node) : node_(node) {
    if (!node.is_object()) refuse("a spec and each of its streams is a JSON object");
  }
  const json* find(const char* key) {
    known_.emplace_back(key);
    const auto found = node_.find(key);
    return found == node_.end() || found->is_null() ? nullptr : &*found;
  }
  std::optional<std::int64_t> whole(const char* key) {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer())
      refuse(fmt::format("{}: {} is no whole number", key, value->dump()));
    if (value->is_number_unsigned() && value->get<std::uint64_t>() > kMostCount)
      refuse(fmt::format("{}: {} is above 2^53", key, value->dump()));
    return value->get<std::int64_t>();
  }
  std::optional<double> number(const char* key) {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) refuse(fmt::format("{}: {} is no number", key, value->dump()));
    return value->get<double>();
  }
  std::optional<std::string> text(const char* key) {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(fmt::format("{}: {} is no string", key, value->dump()));
    return value->get<std::string>();
  }
  void finish() const {
    for (const auto& [key, value] : node_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
        refuse(fmt::format("unknown key '{}'", key));
      }
    }
  }

 private:
  const json& node_;
  std::vector<std::string> known_;
};

EpochStream read_stream(const json& node, const std::string& root) {
  SpecMap map(node);
  EpochStream stream;
  stream.weight = {map.number("proportion"), map.number("repeat"), map.whole("choose")};
  const auto folder = map.text("dir");
  const std::string split = map.text("split").value_or("");
  if (const json* sizes = map.find("shard_sizes")) {
    if (folder) refuse("a stream has a dir or shard_sizes, not both");
    if (!sizes->is_array()) refuse("shard_sizes is no list");
    for (const json& size : *sizes) {
      const bool whole = size.is_number_integer() &&
                         !(size.is_number_unsigned() && size.get<std::uint64_t>() > kMostCount);
      if (!whole) refuse(fmt::format("a shard of {} samples", size.dump()));
      stream.shard_sizes.push_back(size.get<std::int64_t>());
    }
  } else {
    if (!folder) refuse("a stream without dir");
    const bool absolute = root.empty() || folder->starts_with('/');
    stream.shard_sizes =
        MdsIndex::load(local_set(absolute ? *folder : join_path(root, *folder), split))
            .shard_sizes();
  }
  map.finish();
  return stream;
}

EpochPlan plan_spec(SpecMap& map, const std::string& root) {
  EpochConfig config;
  const auto algo = map.text("shuffle_algo");
  if (algo && *algo != "none") config.shuffle.algo = parse_shuffle_algo(*algo);
  config.shuffle.seed = map.whole("shuffle_seed").value_or(config.shuffle.seed);
  config.shuffle.block_size = map.whole("shuffle_block_size");
  config.shuffle.num_canonical_nodes = map.whole("num_canonical_nodes");
  if (const auto name = map.text("partition_algo")) config.partition = parse_partition_algo(*name);
  if (const auto name = map.text("batching_method")) config.batching = parse_batching_method(*name);
  if (const auto name = map.text("sampling_method")) config.sampling = parse_sampling_method(*name);
  config.sampling_granularity = map.whole("sampling_granularity").value_or(1);
  const json* size = map.find("epoch_size");
  if (size != nullptr && size->is_string()) {
    config.epoch_size = parse_sample_count(size->get<std::string>());
  } else {
    config.epoch_size = map.whole("epoch_size");
  }
  config.initial_nodes = map.whole("initial_physical_nodes");
  config.replication = map.whole("replication");
  World world;
  world.nodes = map.whole("nodes").value_or(1);
  world.ranks_per_node = map.whole("ranks_per_node").value_or(1);
  world.workers_per_rank = map.whole("workers_per_rank").value_or(1);
  world.batch_size = map.whole("batch_size").value_or(1);
  const std::int64_t epoch = map.whole("epoch").value_or(0);
  const std::int64_t sample = map.whole("sample_in_epoch").value_or(0);
  std::vector<EpochStream> streams;
  const json* list = map.find("streams");
  if (list == nullptr || !list->is_array()) refuse("no list of streams");
  for (const json& stream : *list) streams.push_back(read_stream(stream, root));
  map.finish();
  return plan_epoch(config, streams, world, epoch, sample);
}

std::string dump(const ordered_json& answer) {
  return answer.dump(-1, ' ', false, json::error_handler_t::replace);
}

// SHA-256 of the ids as little-endian int64.
std::string digest_of(const SampleIds& ids) {
  constexpr std::size_t kPiece = 1 << 16;
  Sha256Hash hash;
  for (std::size_t at = 0; at < ids.size(); at += kPiece) {
    const std::vector<std::int64_t> piece = ids.slice(at, kPiece);
    hash.update(piece.data(), piece.size() * sizeof(std::int64_t));
  }
  return hash.hex();
}

// The ids a piece at a time: an order of billions as one JSON value would take many times its memory.
void print_order(ordered_json answer, const SampleIds& ids) {
  constexpr std::size_t kPiece = 1 << 16;
  answer["order"] = nullptr;
  const std::string text = dump(answer);
  constexpr std::string_view kNone = "null}";
  std::cout << text.substr(0, text.size() - kNone.size()) << "[";
  for (std::size_t at = 0; at < ids.size() && std::cout; at += kPiece) {
    check_interrupted();
    std::cout << (at == 0 ? "" : ",") << fmt::format("{}", fmt::join(ids.slice(at, kPiece), ","));
  }
  std::cout << "]}\n";
}

void print_answer(const std::string& line, const std::string& root, bool digest) {
  ordered_json out;
  out["id"] = nullptr;
  EpochPlan plan;
  try {
    const json spec = parse_json(line, "the line's JSON");
    SpecMap map(spec);
    if (const json* id = map.find("id")) out["id"] = *id;
    plan = plan_spec(map, root);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInterrupted) throw;
    out["error"] = error.what();
  } catch (const std::bad_alloc&) {
    out["error"] = "out of memory";
  } catch (const std::length_error&) {
    out["error"] = "out of memory";
  }
  if (!out.contains("error")) {
    const World& world = plan.world;
    out["shape"] = {world.nodes, world.ranks_per_node, world.workers_per_rank, plan.batches,
                    world.batch_size};
    if (!digest) return print_order(std::move(out), plan.ids_PRWNB);
    out["sha256"] = digest_of(plan.ids_PRWNB);
  }
  std::cout << dump(out) << "\n";
}

}  // namespace

void add_data_order(CLI::App& data) {
  struct Options {
    std::string root;
    bool digest = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = data.add_subcommand(
      "order", "Print which sample comes when: one JSON spec a line on standard input");
  verb->add_option("--root", options->root, "folder to which the streams' dirs are relative");
  verb->add_flag("--digest", options->digest, "a SHA-256 of each order in place of it");
  verb->footer(
      "Example: echo '{\"streams\":[{\"shard_sizes\":[9,9]}],\"shuffle_algo\":\"py1e\","
      "\"batch_size\":2}' | dropless data order");
  verb->callback([options] {
    install_signal_handlers(SignalMode::kThrow);
    StandardInput input;
    for (std::string line; input.next_line(line) && std::cout;) {
      check_interrupted();
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      print_answer(line, options->root, options->digest);
      std::cout << std::flush;
    }
  });
}

}  // namespace dropless::apps
