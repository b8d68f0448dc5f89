// In-context tasks of `dropless eval`.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/run/model_files.h"
#include "train/run/task_evaluate.h"

namespace dropless::apps {

struct TaskResults {
  std::vector<train::TaskScore> scores;
  std::vector<std::pair<std::string, double>> averages;  // of the gauntlet
};

// A YAML file of its own: icl_tasks, eval_gauntlet and what belongs to them.
train::TaskSuite load_tasks(const std::string& path, const train::TaskDefaults& defaults);

// `samples`: where each question's outcome goes as a JSON line; empty: nowhere.
TaskResults run_tasks(const train::TaskSuite& suite, const train::LoadedModel& loaded,
                      train::Precision precision, const std::string& samples);

nlohmann::ordered_json tasks_as_json(const TaskResults& results);
void print_tasks(const TaskResults& results);

}  // namespace dropless::apps
