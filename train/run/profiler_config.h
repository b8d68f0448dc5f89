// The `profiler` block, with Composer's keys.
#pragma once

#include <cstdint>
#include <string>

#include "train/base/yaml.h"

namespace dropless::train {

struct ProfilerConfig {
  // Of every epoch, counted from where this process entered it: skip_first steps are left out, then
  // `repeat` times (0: to its end) come wait + warmup steps that are not recorded and `active` ones
  // that are.
  std::int64_t skip_first = 0, wait = 0, warmup = 1, active = 4, repeat = 1;
  std::string folder = {};  // empty: traces/ in the run folder
  std::string filename = "ep{epoch}-ba{batch}-rank{rank}.json";
  std::int64_t num_traces_to_keep = -1;  // -1: all
  bool shapes = false, memory = true, flops = true;

  enum class Action { kSkip, kWarmUp, kRecord, kRecordAndSave };
  // For step `step` (from 0) of an epoch of `steps` that this process entered at step `entered`.
  Action action(std::int64_t step, std::int64_t steps, std::int64_t entered) const;

  // Reads the block. Throws Error(kInvalidArgument).
  static ProfilerConfig from_yaml(const YamlMap& map, const std::string& run_name);
};

}  // namespace dropless::train
