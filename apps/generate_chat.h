// `dropless generate MODEL --chat`: messages in, answers out.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "train/chat/chat_template.h"
#include "train/run/model_files.h"

namespace dropless::apps {

// The template of the model's folder. Throws Error(kInvalidArgument) where there is none, or where its
// tokenizer does not recognise the special tokens that templates write out.
train::ChatTemplate chat_template_of(const train::LoadedModel& loaded);

// A conversation over standard input, a line a turn, until it ends. `answer` prints what the model says to a
// prompt and returns it.
void converse(const train::ChatTemplate& chat, std::vector<train::ChatMessage> messages,
              const std::function<std::string(const std::string& prompt)>& answer);

}  // namespace dropless::apps
