#include "train/icl/gauntlet.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "train/base/log.h"

namespace dropless::train {
namespace {

GauntletConfig::Weighting weighting_at(const YamlMap& map) {
  using Weighting = GauntletConfig::Weighting;
  const std::string name = map.get<std::string>("weighting", "EQUAL");
  if (name == "EQUAL") return Weighting::kEqual;
  if (name == "SAMPLE_SZ") return Weighting::kSampleSize;
  if (name == "LOG_SAMPLE_SZ") return Weighting::kLogSampleSize;
  map.fail("weighting", "unknown weighting " + name, "one of: EQUAL, SAMPLE_SZ, LOG_SAMPLE_SZ");
}

GauntletConfig::Category category_from_yaml(const YamlMap& map, bool subtracts) {
  GauntletConfig::Category category;
  category.name = map.get<std::string>("name");
  for (const YamlMap& entry : map.maps("benchmarks")) {
    GauntletConfig::Benchmark benchmark;
    benchmark.name = entry.get<std::string>("name");
    benchmark.num_fewshot = entry.non_negative<std::int64_t>("num_fewshot");
    benchmark.random_baseline = subtracts ? entry.get<double>("random_baseline")
                                          : entry.get<double>("random_baseline", 0.0);
    if (benchmark.random_baseline < 0 || benchmark.random_baseline >= 1) {
      entry.fail("random_baseline", "random_baseline is from 0 to below 1");
    }
    entry.no_effect("scorecard", "nothing reads it");
    entry.finish();
    category.benchmarks.push_back(std::move(benchmark));
  }
  map.finish();
  return category;
}

double weight_of(GauntletConfig::Weighting weighting, std::int64_t questions) {
  switch (weighting) {
    case GauntletConfig::Weighting::kSampleSize:
      return static_cast<double>(std::max<std::int64_t>(questions, 1));
    case GauntletConfig::Weighting::kLogSampleSize:
      return std::max(std::log2(static_cast<double>(std::max<std::int64_t>(questions, 1))), 1.0);
    default:
      return 1;
  }
}

}  // namespace

GauntletConfig GauntletConfig::from_yaml(const YamlMap& map) {
  GauntletConfig config;
  config.weighting = weighting_at(map);
  config.subtract_random_baseline = map.get<bool>("subtract_random_baseline", true);
  config.rescale_accuracy = map.get<bool>("rescale_accuracy", config.subtract_random_baseline);
  if (config.rescale_accuracy && !config.subtract_random_baseline) {
    map.fail("rescale_accuracy", "rescale_accuracy needs subtract_random_baseline");
  }
  for (const YamlMap& category : map.maps("categories")) {
    config.categories.push_back(category_from_yaml(category, config.subtract_random_baseline));
  }
  if (const auto averages = map.find_map("averages")) {
    for (const std::string& name : averages->keys()) {
      config.averages.push_back({name, averages->get<std::vector<std::string>>(name)});
      for (const std::string& member : config.averages.back().categories) {
        const bool known = std::any_of(config.categories.begin(), config.categories.end(),
                                       [&](const Category& one) { return one.name == member; });
        if (!known) averages->fail(name, "no category is called " + member);
      }
    }
    averages->finish();
  }
  map.no_effect("destination_dir", "nothing is downloaded");
  map.finish();
  return config;
}

std::vector<std::pair<std::string, double>> gauntlet_scores(const GauntletConfig& config,
                                                            const std::vector<TaskScore>& scores) {
  std::vector<std::pair<std::string, double>> result;
  std::map<std::string, double> by_category;
  for (const GauntletConfig::Category& category : config.categories) {
    double sum = 0, weights = 0;
    for (const GauntletConfig::Benchmark& benchmark : category.benchmarks) {
      const std::string name = fmt::format("{}/{}-shot", benchmark.name, benchmark.num_fewshot);
      double accuracy = 0;
      std::int64_t runs = 0, questions = 0;
      for (const TaskScore& score : scores) {
        if (score.name != name && !score.name.starts_with(name + "/")) continue;
        accuracy += score.accuracy;
        questions += score.questions;
        ++runs;
      }
      if (runs == 0) {
        log_warning("eval_gauntlet: {} was not evaluated: {} goes on without it", name,
                    category.name);
        continue;
      }
      accuracy /= static_cast<double>(runs);
      if (config.subtract_random_baseline) accuracy -= benchmark.random_baseline;
      if (config.rescale_accuracy) accuracy /= 1 - benchmark.random_baseline;
      const double weight = weight_of(config.weighting, questions);
      sum += weight * accuracy;
      weights += weight;
    }
    if (weights == 0) continue;
    by_category[category.name] = sum / weights;
    result.emplace_back(category.name, sum / weights);
  }
  std::vector<GauntletConfig::Average> averages = config.averages;
  if (averages.empty()) {
    averages.push_back({"default_average", {}});
    for (const auto& [name, score] : result) averages[0].categories.push_back(name);
  }
  for (const GauntletConfig::Average& average : averages) {
    double sum = 0;
    std::int64_t members = 0;
    for (const std::string& name : average.categories) {
      const auto found = by_category.find(name);
      if (found == by_category.end()) continue;
      sum += found->second;
      ++members;
    }
    if (members > 0) result.emplace_back(average.name, sum / static_cast<double>(members));
  }
  return result;
}

}  // namespace dropless::train
