// What goes along with a model's weights unread: tokenizer files, generation settings, a chat
// template, and the config.json that the model came with, so that it can go back.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace dropless::train {

// config.json of a model's origin, in a folder of ours: it still says the special tokens' ids.
inline constexpr const char* kKeptConfig = "hf_config.json";
inline constexpr const char* kGenerationConfig = "generation_config.json";

struct Companion {
  std::string name;  // in a folder of ours
  std::string content;
};

// Those of a Hugging Face folder, or of a folder of ours. Throws Error(kInvalidArgument) for one of
// absurd size.
std::vector<Companion> read_companions(const std::string& folder);

// The files by which transformers knows the tokenizer of that name (a path; empty for others), those beside it
// among them where it has its usual name.
std::vector<Companion> tokenizer_files(const std::string& name);
bool is_tokenizer_file(const std::string& name);

// config.json of the model's origin, in either kind of folder; null where there is none.
nlohmann::json read_origin_config(const std::string& folder);

}  // namespace dropless::train
