#include "apps/bench_routing.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::apps {

using namespace train;

namespace {

constexpr const char* kCounts = "mb_moe/tokens_per_expert";

// A layer's counts as shares of their mean; an expert without tokens gets few, not none.
std::vector<double> loads_of(const std::vector<double>& counts) {
  const double mean =
      std::accumulate(counts.begin(), counts.end(), 0.0) / static_cast<double>(counts.size());
  std::vector<double> loads;
  loads.reserve(counts.size());
  for (const double count : counts) loads.push_back(std::max(count / mean, 1e-3));
  return loads;
}

// A list of lists of counts, as a run writes it.
bool holds_counts(const nlohmann::json& line) {
  const auto found = line.find(kCounts);
  if (found == line.end() || !found->is_array()) return false;
  return std::all_of(found->begin(), found->end(), [](const nlohmann::json& layer) {
    return layer.is_array() &&
           std::all_of(layer.begin(), layer.end(), [](const nlohmann::json& count) {
             return count.is_number() && count.get<double>() >= 0 && count.get<double>() < 1e15;
           });
  });
}

std::vector<double> loads_of_run(const std::string& folder) {
  const std::string path = join_path(folder, "metrics.jsonl");
  std::ifstream file(path);
  std::vector<std::vector<double>> layers;
  for (std::string line; std::getline(file, line);) {
    if (line.find(kCounts) == std::string::npos) continue;
    // A line that is being written is none yet.
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object() && holds_counts(json)) layers = json[kCounts];
  }
  std::vector<double> fullest;
  for (const std::vector<double>& counts : layers) {
    if (std::accumulate(counts.begin(), counts.end(), 0.0) <= 0) continue;
    std::vector<double> loads = loads_of(counts);
    const auto most = [](const auto& of) { return *std::max_element(of.begin(), of.end()); };
    if (fullest.empty() || most(loads) > most(fullest)) fullest = std::move(loads);
  }
  if (fullest.empty()) {
    throw Error(ErrorKind::kInvalidArgument, path + " holds no " + kCounts + " above 0",
                "name the folder of a run whose model has experts");
  }
  return fullest;
}

// Of the row: two runs' are told apart. In ASCII, for JSON.
std::string run_name(const std::string& folder) {
  std::string name = base_name(folder);
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return c <= 0x20 || c >= 0x7f; }, '?');
  return name.empty() ? "run" : "run:" + name;
}

}  // namespace

RoutingChoice parse_routing(const std::string& text) {
  if (text == "router") return {text, Routing::kRouter};
  if (text == "uniform") return {text, Routing::kUniform};
  if (text == "zipf") return {text, Routing::kZipf};
  if (path_exists(join_path(text, "metrics.jsonl"))) {
    return {run_name(text), Routing::kLoads, loads_of_run(text)};
  }
  if (path_exists(text)) {
    throw Error(ErrorKind::kInvalidArgument, "--routing " + text + " has no metrics.jsonl",
                "name the folder that a run of `dropless train` wrote (save_folder)");
  }
  throw Error(ErrorKind::kInvalidArgument, "unknown --routing " + text,
              "one of: router, uniform, zipf, or the folder of a run");
}

}  // namespace dropless::apps
