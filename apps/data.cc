// `dropless data VERB`: data sets in MosaicML's MDS format.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/data_verbs.h"
#include "apps/verbs.h"
#include "dropless/error.h"
#include "train/data/mds_index.h"

namespace dropless::apps {

using namespace train;

namespace {

using nlohmann::ordered_json;

ordered_json file_json(const MdsFile& file) {
  ordered_json hashes = ordered_json::object();
  for (const auto& [name, hex] : file.hashes) hashes[name] = hex;
  return {{"basename", file.basename}, {"bytes", file.bytes}, {"hashes", hashes}};
}

ordered_json describe(const MdsIndex& index) {
  ordered_json json;
  json["num_samples"] = index.num_samples();
  for (const char* key : {"column_names", "column_encodings", "column_sizes"})
    json[key] = ordered_json::array();
  json["compression"] = nullptr;
  if (!index.shards.empty()) {
    for (const MdsColumn& column : index.shards[0].columns) {
      json["column_names"].push_back(column.name);
      json["column_encodings"].push_back(column.encoding.name);
      json["column_sizes"].push_back(column.size ? ordered_json(*column.size) : ordered_json());
    }
    const auto& first = index.shards[0].compression;
    bool same = first.has_value();
    for (const MdsShard& shard : index.shards) same = same && shard.compression == first;
    if (same) json["compression"] = *first;
  }
  json["shards"] = ordered_json::array();
  for (const MdsShard& shard : index.shards) {
    ordered_json entry = {{"samples", shard.samples}};
    entry.update(file_json(shard.raw));
    entry["zip"] = shard.zip ? file_json(*shard.zip) : ordered_json();
    json["shards"].push_back(entry);
  }
  return json;
}

void print_text(const std::string& folder, const MdsIndex& index) {
  std::uint64_t bytes = 0;
  for (const MdsShard& shard : index.shards) bytes += shard.raw.bytes;
  std::cout << fmt::format("{}: {} in {}, {}\n", folder, counted(index.num_samples(), "sample"),
                           counted(static_cast<std::int64_t>(index.shards.size()), "shard"),
                           counted(static_cast<std::int64_t>(bytes), "byte"));
  if (index.shards.empty()) return;
  for (const MdsColumn& column : index.shards[0].columns) {
    std::cout << fmt::format("  {}: {}{}\n", column.name, column.encoding.name,
                             column.size ? fmt::format(", {} bytes each", *column.size) : "");
  }
}

}  // namespace

std::string local_set(const std::string& folder, const std::string& split) {
  if (folder.find("://") != std::string::npos) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("{}: sets that are not on this machine cannot be read by this version", folder),
        "copy the set to a folder");
  }
  return split_folder(folder, split);
}

std::string counted(std::int64_t count, const std::string& noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

std::vector<std::string> hash_names(const std::string& text) {
  return text == "none" ? std::vector<std::string>() : CLI::detail::split(text, ',');
}

void add_data_info(CLI::App& data) {
  struct Options {
    std::string folder, split;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = data.add_subcommand("info", "What a set holds: samples, columns, shards");
  verb->add_option("DIR", options->folder, "folder of the set")->required();
  verb->add_option("--split", options->split, "sub-folder of the set");
  verb->add_flag("--json", options->json, "one JSON document, with every shard");
  verb->footer("Example: dropless data info data/corpus --split train --json");
  verb->callback([options] {
    const std::string folder = local_set(options->folder, options->split);
    const MdsIndex index = MdsIndex::load(folder);
    if (options->json) {
      std::cout << describe(index).dump() << "\n";
    } else {
      print_text(folder, index);
    }
  });
}

void add_data_verb(CLI::App& app) {
  CLI::App* data = app.add_subcommand("data", "Write, read and check data sets (MDS)");
  data->require_subcommand(1);
  data->footer("Example: dropless data text *.txt --out data/corpus/train --concat-tokens 1024");
  add_data_text(*data);
  add_data_json(*data);
  add_data_tokenizer(*data);
  add_data_cat(*data);
  add_data_info(*data);
  add_data_merge(*data);
  add_data_order(*data);
  add_data_write(*data);
  add_data_verify(*data);
}

}  // namespace dropless::apps
