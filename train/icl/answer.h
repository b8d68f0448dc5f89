// Whether a generated text gives an answer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "train/icl/task_config.h"

namespace dropless::train {

// TriviaQA's normal form: small letters, punctuation and underscores as spaces, without the articles
// a, an and the, words one space apart.
std::string normalize_answer(std::string_view text);

// The final answer in `generated`: what stands before the first stopping criterion and behind the
// last cot_delimiter. It is right when it begins with one of `answers`.
bool gives_answer(const TaskConfig& task, std::string generated,
                  const std::vector<std::string>& answers);

}  // namespace dropless::train
