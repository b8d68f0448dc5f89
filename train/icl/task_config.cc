#include "train/icl/task_config.h"

#include <fmt/format.h>

#include <utility>

namespace dropless::train {
namespace {

TaskType type_at(const YamlMap& map) {
  const std::string name = map.get<std::string>("icl_task_type");
  if (name == "language_modeling") return TaskType::kLanguageModeling;
  if (name == "multiple_choice") return TaskType::kMultipleChoice;
  if (name == "schema") return TaskType::kSchema;
  if (name == "generation_task_with_answers" || name == "question_answering") {
    return TaskType::kGeneration;
  }
  map.fail("icl_task_type", "icl_task_type " + name + " is not supported by this version",
           "one of: language_modeling, multiple_choice, schema, generation_task_with_answers");
}

std::vector<std::int64_t> shots_at(const YamlMap& map) {
  const auto shots = map.is_sequence("num_fewshot")
                         ? map.get<std::vector<std::int64_t>>("num_fewshot")
                         : std::vector<std::int64_t>{map.get<std::int64_t>("num_fewshot")};
  for (std::size_t i = 0; i < shots.size(); ++i) {
    const bool listed = map.is_sequence("num_fewshot");
    if (shots[i] < 0) {
      map.fail(listed ? fmt::format("num_fewshot.{}", i) : "num_fewshot",
               "num_fewshot must not be negative");
    }
  }
  if (shots.empty()) map.fail("num_fewshot", "num_fewshot is empty", "0: no examples");
  return shots;
}

void read_metric_names(const YamlMap& map, TaskType type) {
  for (const std::string& name : map.get<std::vector<std::string>>("metric_names", {})) {
    if (name != metric_name(type)) {
      map.fail("metric_names", "metric " + name + " is not supported by this version",
               fmt::format("leave it out: {} is what is computed", metric_name(type)));
    }
  }
}

TaskConfig task_from_yaml(const YamlMap& map, const TaskDefaults& defaults) {
  TaskConfig task;
  task.label = map.get<std::string>("label");
  if (!map.has("dataset_uri")) {
    map.fail("dataset_uri", "the task names no file",
             "give the path of its JSON Lines (docs/evaluation.md), or take the task out: "
             "icl_tasks=null leaves out all");
  }
  task.dataset_uri = map.get<std::string>("dataset_uri");
  task.place = map.where("dataset_uri") + ": " + map.path() + ".dataset_uri";
  if (task.dataset_uri.find("://") != std::string::npos) {
    map.fail("dataset_uri", task.dataset_uri + " is not a file here", "download it first");
  }
  task.type = type_at(map);
  task.num_fewshot = shots_at(map);
  task.batch_size = map.positive<std::int64_t>("batch_size", defaults.batch_size);
  task.max_seq_len = map.positive<std::int64_t>("max_seq_len", defaults.max_seq_len);
  task.prompt_string = map.get<std::string>("prompt_string", "");
  task.example_delimiter = map.get<std::string>("example_delimiter", task.example_delimiter);
  task.continuation_delimiter =
      map.get<std::string>("continuation_delimiter", task.continuation_delimiter);
  task.question_prelimiter = map.get<std::string>("question_prelimiter", "");
  task.fewshot_random_seed = static_cast<std::uint64_t>(
      map.non_negative<std::int64_t>("fewshot_random_seed", std::int64_t{1234}));
  task.has_categories = map.get<bool>("has_categories", false);
  if (task.type == TaskType::kGeneration) {
    task.cot_delimiter = map.get<std::string>("cot_delimiter", "");
    task.early_stopping_criteria = map.get<std::vector<std::string>>("early_stopping_criteria", {});
    task.do_normalization = map.get<bool>("do_normalization", true);
    if (const auto generation = map.find_map("generation_kwargs")) {
      task.max_new_tokens = generation->find_positive<std::int64_t>("max_new_tokens").value_or(0);
      generation->finish();
    }
  } else {
    for (const char* key :
         {"cot_delimiter", "early_stopping_criteria", "do_normalization", "generation_kwargs"}) {
      map.no_effect(key, "nothing is generated in this task");
    }
  }
  read_metric_names(map, task.type);
  for (const char* key : {"pass_at_k", "generations_per_sample"}) {
    map.no_effect(key, "it belongs to the evaluation of code");
  }
  for (const char* key : {"hf_loading_vars", "hf_parsing_map"}) map.refuse(key);
  map.finish();
  return task;
}

}  // namespace

const char* metric_name(TaskType type) {
  switch (type) {
    case TaskType::kLanguageModeling:
      return "InContextLearningLMAccuracy";
    case TaskType::kMultipleChoice:
    case TaskType::kSchema:
      return "InContextLearningMultipleChoiceAccuracy";
    case TaskType::kGeneration:
      return "InContextLearningGenerationExactMatchAccuracy";
  }
  return "";
}

std::vector<TaskConfig> tasks_from_yaml(const YamlMap& map, const TaskDefaults& defaults) {
  std::vector<TaskConfig> tasks;
  for (const YamlMap& task : map.maps("icl_tasks")) {
    tasks.push_back(task_from_yaml(task, defaults));
    for (std::size_t i = 0; i + 1 < tasks.size(); ++i) {
      if (tasks[i].label == tasks.back().label) {
        task.fail("label", "two tasks are called " + tasks[i].label);
      }
    }
  }
  return tasks;
}

}  // namespace dropless::train
