#include "train/run/generate_options.h"

#include <cmath>
#include <limits>

#include "dropless/error.h"

namespace dropless::train {

void GenerateOptions::check() const {
  const auto refuse = [](const std::string& message) {
    throw Error(ErrorKind::kInvalidArgument, message);
  };
  if (max_new_tokens < 0) refuse("the number of new tokens must not be negative");
  if (max_new_tokens > std::numeric_limits<std::int32_t>::max()) {
    refuse("the number of new tokens must fit in 32 bits");
  }
  if (!(temperature >= 0) || std::isinf(temperature)) refuse("temperature must be 0 or above");
  if (top_k < 0) refuse("top-k must be 0 (off) or above");
  if (!(top_p > 0 && top_p <= 1)) refuse("top-p must be above 0 and at most 1");
  if (!(min_p >= 0 && min_p <= 1)) refuse("min-p must be from 0 to 1");
  if (!(repetition_penalty > 0) || std::isinf(repetition_penalty)) {
    refuse("the repetition penalty must be above 0");
  }
  for (const std::string& text : stop) {
    if (text.empty()) refuse("a stop string is empty");
  }
}

}  // namespace dropless::train
