#include "train/chat/chat_template.h"

#include <fmt/format.h>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/utf8.h"
#include "train/chat/render.h"

namespace dropless::train {
namespace {

constexpr std::uint64_t kMaxBytes = 64 << 20;

nlohmann::json read_json(const std::string& path) {
  if (!path_exists(path)) return nlohmann::json::object();
  return parse_json(read_file(path, kMaxBytes), path);
}

const std::string& valid_utf8(const std::string& text, const std::string& name) {
  if (const std::size_t at = find_invalid_utf8(text); at != std::string::npos) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: not valid UTF-8 at byte {}", name, at));
  }
  return text;
}

// A text, or an object with one.
std::optional<std::string> token_text(const nlohmann::json& token) {
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object() && token.contains("content") && token["content"].is_string()) {
    return token["content"].get<std::string>();
  }
  return std::nullopt;
}

chat::Dict special_tokens(const nlohmann::json& config, const nlohmann::json& map) {
  chat::Dict tokens;
  for (const char* key : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                          "cls_token", "mask_token"}) {
    for (const nlohmann::json* source : {&config, &map}) {
      if (!source->is_object() || !source->contains(key)) continue;
      const auto text = token_text((*source)[key]);
      if (!text) continue;
      tokens.emplace_back(key, *text);
      break;
    }
  }
  return tokens;
}

// A text, or a list of {"name", "template"}, of which the one called default counts.
std::optional<std::string> template_in(const nlohmann::json& config, const std::string& path) {
  if (!config.is_object() || !config.contains("chat_template")) return std::nullopt;
  const nlohmann::json& value = config["chat_template"];
  if (value.is_null()) return std::nullopt;
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    for (const auto& entry : value) {
      if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" &&
          entry.contains("template") && entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  throw Error(ErrorKind::kInvalidArgument,
              path + ": chat_template is no text, and none called default");
}

}  // namespace

std::vector<ChatMessage> messages_from_json(const nlohmann::json& json, const std::string& name) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::kInvalidArgument, name + ": " + what,
                R"(for example [{"role": "user", "content": "Hello"}])");
  };
  if (!json.is_array() || json.empty()) refuse("not a list of messages");
  std::vector<ChatMessage> messages;
  for (const auto& entry : json) {
    if (!entry.is_object() || entry.size() != 2 || !entry.contains("role") ||
        !entry.contains("content") || !entry["role"].is_string() || !entry["content"].is_string()) {
      refuse(fmt::format("message {} is not a role and a content, both texts", messages.size()));
    }
    messages.push_back({entry["role"].get<std::string>(), entry["content"].get<std::string>()});
  }
  return messages;
}

std::optional<ChatTemplate> ChatTemplate::find(const std::string& folder) {
  const std::string config_path = join_path(folder, "tokenizer_config.json");
  const nlohmann::json config = read_json(config_path);
  chat::Dict tokens =
      special_tokens(config, read_json(join_path(folder, "special_tokens_map.json")));
  const std::string own = join_path(folder, "chat_template.jinja");
  if (path_exists(own)) return ChatTemplate(read_file(own, kMaxBytes), own, std::move(tokens));
  if (const auto source = template_in(config, config_path)) {
    return ChatTemplate(*source, config_path + ", chat_template", std::move(tokens));
  }
  const std::string json_path = join_path(folder, "chat_template.json");
  if (const auto source = template_in(read_json(json_path), json_path)) {
    return ChatTemplate(*source, json_path, std::move(tokens));
  }
  return std::nullopt;
}

ChatTemplate::ChatTemplate(const std::string& source, const std::string& name,
                           chat::Dict special_tokens)
    : name_(name),
      block_(chat::parse_template(valid_utf8(source, name), name)),
      special_tokens_(std::move(special_tokens)) {}

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages) const {
  chat::List list;
  for (const ChatMessage& message : messages) {
    valid_utf8(message.role + message.content, "a message");
    list.emplace_back(chat::Dict{{"role", message.role}, {"content", message.content}});
  }
  chat::Dict variables{{"messages", std::move(list)},
                       {"tools", chat::None{}},
                       {"documents", chat::None{}},
                       {"add_generation_prompt", true}};
  variables.insert(variables.end(), special_tokens_.begin(), special_tokens_.end());
  return chat::render(block_, variables, name_);
}

}  // namespace dropless::train
