#include "train/icl/suite.h"

#include <fmt/format.h>

#include <filesystem>
#include <iterator>
#include <system_error>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::train {
namespace {

constexpr const char* kTasks = "icl_tasks";
constexpr const char* kGauntlet = "eval_gauntlet";

// The mapping that holds `key`: this one, or that of the file which `key` or key_str names. Absent:
// nullopt.
std::optional<YamlMap> holder_of(const YamlMap& map, const std::string& key) {
  const std::string path_key = key + "_str";
  if (map.has(key) && map.has(path_key)) map.fail(path_key, path_key + " beside " + key);
  map.skip(path_key);
  if (map.is_sequence(key) || map.is_map(key)) return map;
  map.skip(key);
  if (!map.has(key) && !map.has(path_key)) return std::nullopt;
  const std::string& naming = map.has(key) ? key : path_key;
  const std::string path = map.get<std::string>(naming);
  std::error_code unreadable;
  if (!std::filesystem::is_regular_file(path, unreadable)) {
    map.fail(naming, path + " is no file here",
             "give the path of a YAML file that holds " + key + ", or write them in its place");
  }
  const YamlMap file = YamlDocument::load(path).root();
  if (!file.is_sequence(key) && !file.is_map(key)) file.fail(key, "no " + key + " in this file");
  for (const char* other : {kTasks, kGauntlet}) file.skip(other);
  file.finish();
  return file;
}

}  // namespace

TaskSuite TaskSuite::from_yaml(const YamlMap& map, TaskDefaults defaults) {
  TaskSuite suite;
  defaults.max_seq_len = map.positive<std::int64_t>("icl_seq_len", defaults.max_seq_len);
  suite.subset_num_batches = map.get<std::int64_t>("icl_subset_num_batches", -1);
  if (suite.subset_num_batches < -1 || suite.subset_num_batches == 0) {
    map.fail("icl_subset_num_batches", "icl_subset_num_batches is -1 (all) or at least 1");
  }
  if (const auto holder = holder_of(map, kTasks)) suite.tasks = tasks_from_yaml(*holder, defaults);
  if (const auto holder = holder_of(map, kGauntlet)) {
    suite.gauntlet = GauntletConfig::from_yaml(holder->map(kGauntlet));
  }
  if (suite.tasks.empty()) {
    for (const char* key : {"icl_seq_len", "icl_subset_num_batches", kGauntlet}) {
      map.no_effect(key, "there are no icl_tasks");
    }
  }
  return suite;
}

void TaskSuite::require_files() const {
  for (const TaskConfig& task : tasks) {
    if (path_exists(task.dataset_uri)) continue;
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: there is no file {}", task.place, task.dataset_uri),
                "give the path of its JSON Lines; icl_tasks=null leaves out all");
  }
}

std::vector<TaskRun> TaskSuite::open(const Tokenizer& tokenizer) const {
  std::vector<TaskRun> runs;
  for (const TaskConfig& task : tasks) {
    std::vector<TaskRun> opened = open_task(task, tokenizer);
    std::move(opened.begin(), opened.end(), std::back_inserter(runs));
  }
  return runs;
}

}  // namespace dropless::train
