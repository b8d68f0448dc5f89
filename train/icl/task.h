// A task's questions as token sequences: with the few-shot examples in front, cut to the model's
// length, as LLM Foundry puts them together.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/icl/task_config.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

struct ScoredSequence {
  std::vector<TokenId> tokens;
  std::int64_t continuation = 0;  // the first token that is scored; at least 1
};

struct Question {
  std::vector<ScoredSequence> choices;  // one, but for multiple choice and schema
  std::int64_t gold = 0;                // the right one
  // Generation: what the model is to continue, and what it may say.
  std::vector<TokenId> prompt;
  std::vector<std::string> answers;
};

// One run of a task: of one number of examples and, where it has categories, of one of them.
struct TaskRun {
  const TaskConfig* task = nullptr;
  std::string name;  // "label/5-shot", "label/5-shot/category"
  std::vector<Question> questions;
  std::int64_t max_new_tokens = 0;  // generation
};

// Reads the task's file. Throws Error: kInvalidArgument where it is absent or empty, for a line that
// is not of the task's form and for one that cannot be scored within max_seq_len.
std::vector<TaskRun> open_task(const TaskConfig& task, const Tokenizer& tokenizer);

}  // namespace dropless::train
