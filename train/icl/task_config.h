// In-context tasks as LLM Foundry's YAML lists them (`icl_tasks`): a JSON Lines file of questions, and
// how they are put to a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/base/yaml.h"

namespace dropless::train {

enum class TaskType {
  kLanguageModeling,  // {context, continuation}: is every token of the continuation the likeliest?
  kMultipleChoice,    // {query, choices, gold}: which continuation is the likeliest a token?
  kSchema,            // {context_options, continuation, gold}: after which context is it so?
  kGeneration,        // {context, answer, aliases}: does what is written begin with an answer?
};

// The name under which LLM Foundry logs a task's accuracy.
const char* metric_name(TaskType type);

struct TaskConfig {
  std::string label;
  std::string dataset_uri;  // a JSON Lines file
  std::string place;        // of that key, for messages
  TaskType type = TaskType::kLanguageModeling;
  std::vector<std::int64_t> num_fewshot;  // the task is run once for each
  std::int64_t batch_size = 0;            // sequences
  std::int64_t max_seq_len = 0;
  std::string prompt_string;             // in front of everything
  std::string example_delimiter = "\n";  // between examples
  std::string continuation_delimiter = " ";
  std::string question_prelimiter;
  std::uint64_t fewshot_random_seed = 1234;
  bool has_categories = false;  // each `category` of the questions is a task of its own
  // Generation.
  std::string cot_delimiter;  // what stands behind the last of these is the answer
  std::vector<std::string> early_stopping_criteria;
  bool do_normalization = true;
  // At most; 0: as many as the longest answer has.
  std::int64_t max_new_tokens = 0;
};

struct TaskDefaults {
  std::int64_t batch_size = 1;
  std::int64_t max_seq_len = 0;  // of the model
};

// The list `icl_tasks` of a mapping. Throws Error(kInvalidArgument) with the place.
std::vector<TaskConfig> tasks_from_yaml(const YamlMap& map, const TaskDefaults& defaults);

}  // namespace dropless::train
