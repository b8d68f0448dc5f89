#include "train/run/model_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/base/yaml.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/released_config.h"
#include "train/run/config.h"

namespace dropless::train {
namespace {

// The first of the files that hold a tokenizer; empty where there is none.
std::string find_tokenizer(const std::string& folder) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (path_exists(join_path(folder, name))) return join_path(folder, name);
  }
  return {};
}

}  // namespace

std::string tokenizer_of_model(const std::string& folder) {
  if (is_released_folder(folder)) return find_tokenizer(folder);
  const YamlDocument document =
      YamlDocument::load(join_path(folder, kConfigFile)).without_warnings();
  const std::string name = tokenizer_from_yaml(document.root().map("tokenizer"));
  // Checkpoints and converted models bring its file along.
  const std::string beside = join_path(folder, base_name(name));
  if (path_exists(beside)) return beside;
  const std::string kept = find_tokenizer(folder);
  return kept.empty() || is_tokenizer(name) ? name : kept;
}

void require_vocabulary(const std::string& folder, const ModelConfig& config,
                        const Tokenizer& tokenizer) {
  if (tokenizer.vocab_size() <= config.vocab_size) return;
  const std::string path =
      is_released_folder(folder) ? released_config_path(folder) : join_path(folder, kConfigFile);
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("tokenizer {} has {} ids, and the model of {} embeddings of {}",
                          tokenizer.name(), tokenizer.vocab_size(), path, config.vocab_size),
              "it is another model's, or has tokens that the model was not resized for");
}

std::optional<std::string> tokenizer_difference(const std::string& folder,
                                                const Tokenizer& tokenizer) {
  const std::string name = tokenizer_of_model(folder);
  if (name == tokenizer.name() || !is_tokenizer(name)) return std::nullopt;
  std::shared_ptr<const Tokenizer> theirs;
  try {
    theirs = make_tokenizer(name);
  } catch (const Error& error) {
    log_warning("{}: its tokenizer is not compared: {}", folder, error.what());
    return std::nullopt;
  }
  const std::int64_t both = std::min(theirs->vocab_size(), tokenizer.vocab_size());
  for (std::int64_t i = 0; i < both; ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string before = theirs->decode_bytes({&id, 1}, /*first=*/false);
    const std::string now = tokenizer.decode_bytes({&id, 1}, /*first=*/false);
    if (before == now) continue;
    const auto quoted = [](const std::string& bytes) {
      return nlohmann::json(replace_invalid_utf8(bytes)).dump();
    };
    return fmt::format("id {} is {} in {} and {} in {}", id, quoted(before), name, quoted(now),
                       tokenizer.name());
  }
  return std::nullopt;
}

std::vector<Companion> companions_of_run(const std::string& origin, const Tokenizer* tokenizer,
                                         bool differs) {
  std::vector<Companion> found;
  if (!origin.empty()) found = read_companions(origin);
  if (tokenizer == nullptr) return found;
  std::vector<Companion> files = tokenizer_files(tokenizer->name());
  // `bytes`, ranks and others that transformers has no file for.
  if (files.empty() && !differs) return found;
  std::erase_if(found,
                [](const Companion& companion) { return is_tokenizer_file(companion.name); });
  const auto kept = std::find_if(found.begin(), found.end(), [](const Companion& companion) {
    return companion.name == kKeptConfig;
  });
  if (differs || kept == found.end()) {
    // The ids of special tokens are this tokenizer's, not another's or nobody's.
    nlohmann::json json = nlohmann::json::object();
    if (kept != found.end()) json = parse_json(kept->content, kKeptConfig);
    json["pad_token_id"] = nullptr;
    json["bos_token_id"] = nullptr;
    json["eos_token_id"] = nullptr;
    if (tokenizer->bos_id()) json["bos_token_id"] = *tokenizer->bos_id();
    if (tokenizer->eos_id()) json["eos_token_id"] = *tokenizer->eos_id();
    std::erase_if(found, [](const Companion& companion) {
      return companion.name == kGenerationConfig || companion.name == kKeptConfig;
    });
    found.push_back({kKeptConfig, json.dump(2) + "\n"});
  }
  for (Companion& file : files) found.push_back(std::move(file));
  return found;
}

}  // namespace dropless::train
