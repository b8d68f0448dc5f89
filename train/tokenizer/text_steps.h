// What tokenizer.json does to whole texts: its normalizer before they are cut, and its decoder, which
// makes text of tokens.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace dropless::train {

using TextStep = std::function<std::string(std::string)>;

class Normalizer {
 public:
  // The member `normalizer`. Throws Error(kInvalidArgument) for what it does not know.
  explicit Normalizer(const nlohmann::json& json);
  bool empty() const { return steps_.empty(); }
  std::string operator()(std::string_view text) const;

 private:
  void add(const nlohmann::json& json);
  std::vector<TextStep> steps_;
};

// The decoders of character-level vocabularies.
class TokenDecoder {
 public:
  // The member `decoder`. Throws Error(kInvalidArgument) for what it does not know.
  explicit TokenDecoder(const nlohmann::json& json);
  // `first`: the tokens stand at the beginning of the text. `raw`: byte tokens (<0xE4>) stay bytes;
  // else U+FFFD for each where together they are no UTF-8.
  std::string decode(std::vector<std::string> tokens, bool first, bool raw) const;

 private:
  using Step = std::function<void(std::vector<std::string>&, bool first, bool raw)>;
  void add(const nlohmann::json& json);
  std::vector<Step> steps_;
  bool spaced_ = false;  // no decoder: tokens with spaces between them
};

// The byte of a token such as "<0xE4>", or -1.
int byte_of_token(std::string_view token);
void replace_all(std::string& text, std::string_view from, std::string_view to);

}  // namespace dropless::train
