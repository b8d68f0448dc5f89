// LLM Foundry's `eval_gauntlet`: tasks' accuracies averaged by category.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "train/base/yaml.h"

namespace dropless::train {

// The accuracy of one TaskRun.
struct TaskScore {
  std::string name;    // "label/5-shot" or "label/5-shot/category"
  std::string metric;  // metric_name()
  double accuracy = 0;
  std::int64_t questions = 0;
};

struct GauntletConfig {
  enum class Weighting { kEqual, kSampleSize, kLogSampleSize };
  struct Benchmark {
    std::string name;  // a task's label
    std::int64_t num_fewshot = 0;
    double random_baseline = 0;
  };
  struct Category {
    std::string name;
    std::vector<Benchmark> benchmarks;
  };
  struct Average {
    std::string name;
    std::vector<std::string> categories;
  };
  Weighting weighting = Weighting::kEqual;
  bool subtract_random_baseline = true;
  bool rescale_accuracy = true;
  std::vector<Category> categories;
  std::vector<Average> averages;  // empty: one, "default_average", over all categories

  // Reads an `eval_gauntlet`. Throws Error(kInvalidArgument) with the place.
  static GauntletConfig from_yaml(const YamlMap& map);
};

// By category, then by average: an accuracy above chance counts from 0 (chance) to 1. A task with
// categories of its own counts as their mean. A benchmark that was not run is left out, with a
// warning, and a category without any benchmark with it.
std::vector<std::pair<std::string, double>> gauntlet_scores(const GauntletConfig& config,
                                                            const std::vector<TaskScore>& scores);

}  // namespace dropless::train
