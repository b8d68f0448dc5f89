// The chat template of a model's folder: how messages become the text that it was trained on.
//
// Templates are Jinja as transformers runs it. Of the language there is what the common templates use (syntax.h,
// functions.h); whatever else a template does is an error, so that no prompt is another than transformers'.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train/chat/syntax.h"

namespace dropless::train {

struct ChatMessage {
  std::string role, content;
};

// A list of {"role": ..., "content": ...}. Throws Error(kInvalidArgument); `name` starts its messages.
std::vector<ChatMessage> messages_from_json(const nlohmann::json& json, const std::string& name);

class ChatTemplate {
 public:
  // Of chat_template.jinja, else tokenizer_config.json's chat_template (of several the default), else
  // chat_template.json; nullopt where there is none. The special tokens' texts are tokenizer_config.json's.
  // Throws Error as parse_template does.
  static std::optional<ChatTemplate> find(const std::string& folder);
  ChatTemplate(const std::string& source, const std::string& name, chat::Dict special_tokens);

  // With the beginning of the answer. Throws Error as render does.
  std::string render(const std::vector<ChatMessage>& messages) const;

 private:
  std::string name_;
  chat::Block block_;
  chat::Dict special_tokens_;
};

}  // namespace dropless::train
