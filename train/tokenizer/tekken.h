// Mistral's tekken.json: ranks as in a .tiktoken file, with the pattern beside them.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

bool is_tekken(const nlohmann::json& json);
// Special tokens have the first ids; a rank's id follows them.
std::shared_ptr<const Tokenizer> read_tekken(const std::string& name, const std::string& path,
                                             const nlohmann::json& json);

// A whole number of 64 bits. Anything else, 1e99 too: Error(kInvalidArgument).
std::int64_t whole_number_of(const nlohmann::json& json);

}  // namespace dropless::train
