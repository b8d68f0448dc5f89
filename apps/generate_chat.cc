#include "apps/generate_chat.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::apps {

using namespace train;

ChatTemplate chat_template_of(const LoadedModel& loaded) {
  if (!loaded.tokenizer) {
    throw Error(ErrorKind::kInvalidArgument,
                "--chat needs the model's tokenizer, which is not here");
  }
  const std::string name = base_name(loaded.tokenizer->name());
  const bool recognises = name == "bytes" || (name.ends_with(".json") && name != "tekken.json");
  if (!recognises) {
    throw Error(ErrorKind::kUnsupported,
                loaded.tokenizer->name() +
                    ": special tokens in a text are recognised only with a "
                    "tokenizer.json, and chat templates write them so",
                "put the model's tokenizer.json into " + loaded.folder);
  }
  auto chat = ChatTemplate::find(loaded.folder);
  if (!chat) {
    throw Error(
        ErrorKind::kInvalidArgument, loaded.folder + " has no chat template",
        "it would be chat_template.jinja, or a key of tokenizer_config.json; without --chat "
        "the prompt is taken as it is");
  }
  return std::move(*chat);
}

void converse(const ChatTemplate& chat, std::vector<ChatMessage> messages,
              const std::function<std::string(const std::string& prompt)>& answer) {
  const bool asks = ::isatty(STDIN_FILENO) != 0;
  const auto ask = [&] {
    if (asks) std::fputs("> ", stderr);
  };
  ask();
  for (std::string line; std::getline(std::cin, line); ask()) {
    if (line.empty()) continue;
    messages.push_back({"user", line});
    messages.push_back({"assistant", answer(chat.render(messages))});
  }
}

}  // namespace dropless::apps
