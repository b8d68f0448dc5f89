// All in-context tasks of a config, and how their scores are averaged.
#pragma once

#include <cstdint>
#include <vector>

#include "train/icl/gauntlet.h"
#include "train/icl/task.h"

namespace dropless::train {

struct TaskSuite {
  std::vector<TaskConfig> tasks;
  GauntletConfig gauntlet;
  std::int64_t subset_num_batches = -1;  // of each task; -1: all

  // Reads `icl_tasks`, `icl_seq_len`, `icl_subset_num_batches` and `eval_gauntlet`; the first and the
  // last may be paths of YAML files, also under the names with _str. Throws Error(kInvalidArgument)
  // with the place.
  static TaskSuite from_yaml(const YamlMap& map, TaskDefaults defaults);
  // Throws Error(kInvalidArgument), with the place, where a task's file is absent.
  void require_files() const;
  // The runs point into `tasks`. Throws Error as open_task() does.
  std::vector<TaskRun> open(const Tokenizer& tokenizer) const;
};

}  // namespace dropless::train
