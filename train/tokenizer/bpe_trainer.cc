#include "train/tokenizer/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <queue>
#include <set>

#include "dropless/error.h"
#include "train/base/signals.h"
#include "train/tokenizer/byte_characters.h"
#include "train/tokenizer/unicode.h"
#include "train/tokenizer/vocabulary.h"

namespace dropless::train {
namespace {

using nlohmann::ordered_json;

ordered_json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

ordered_json pre_tokenizer_named(const std::string& pattern) {
  if (pattern == "gpt2") return byte_level(true);
  if (pattern == "llama3") {
    const ordered_json split = {{"type", "Split"},
                                {"pattern", {{"Regex", kLlama3Pattern}}},
                                {"behavior", "Isolated"},
                                {"invert", false}};
    return {{"type", "Sequence"}, {"pretokenizers", {split, byte_level(false)}}};
  }
  throw Error(ErrorKind::kInvalidArgument, fmt::format("unknown pattern '{}'", pattern),
              "one of: gpt2, llama3");
}

using Pair = std::pair<TokenId, TokenId>;

struct Word {
  std::vector<TokenId> tokens;
  std::int64_t count;
};

struct Candidate {
  std::int64_t count;
  Pair pair;
  bool operator<(const Candidate& other) const {  // the queue's top is the largest
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

class Training {
 public:
  // token_texts: of the tokens that there are, by id.
  Training(std::vector<Word> words, std::vector<std::string>& token_texts)
      : words_(std::move(words)), texts_(token_texts) {
    for (std::size_t id = 0; id < texts_.size(); ++id)
      ids_.emplace(texts_[id], static_cast<TokenId>(id));
    for (std::size_t i = 0; i < words_.size(); ++i) count_pairs(i, 1, nullptr);
    for (const auto& [pair, count] : counts_) queue_.push({count, pair});
  }

  // The merges, in order.
  std::vector<Pair> run(std::size_t vocab_size, std::int64_t least_count) {
    std::vector<Pair> merges;
    while (ids_.size() < vocab_size && !queue_.empty()) {
      check_interrupted();
      Candidate top = queue_.top();
      queue_.pop();
      const std::int64_t count = counts_[top.pair];
      if (top.count != count) {
        top.count = count;
        if (count > 0) queue_.push(top);
        continue;
      }
      if (count < 1 || count < least_count) break;
      merges.push_back(top.pair);
      join(top.pair);
    }
    return merges;
  }

 private:
  void count_pairs(std::size_t i, std::int64_t sign, std::set<Pair>* seen) {
    const Word& word = words_[i];
    for (std::size_t k = 0; k + 1 < word.tokens.size(); ++k) {
      const Pair pair{word.tokens[k], word.tokens[k + 1]};
      counts_[pair] += sign * word.count;
      if (sign < 0) continue;
      auto& places = places_[pair];
      if (places.empty() || places.back() != i) places.push_back(i);
      if (seen != nullptr) seen->insert(pair);
    }
  }

  void join(const Pair& pair) {
    const auto at = [&](TokenId id) -> const std::string& {
      return texts_[static_cast<std::size_t>(id)];
    };
    const std::string text = at(pair.first) + at(pair.second);
    const auto [found, added] = ids_.emplace(text, static_cast<TokenId>(texts_.size()));
    if (added) texts_.push_back(text);
    const TokenId joined = found->second;
    std::set<Pair> changed;
    std::vector<std::size_t> places = std::move(places_[pair]);
    places_.erase(pair);
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    for (const std::size_t i : places) {
      count_pairs(i, -1, nullptr);
      auto& tokens = words_[i].tokens;
      std::size_t kept = 0;
      for (std::size_t k = 0; k < tokens.size(); ++k) {
        const bool joins = k + 1 < tokens.size() && Pair{tokens[k], tokens[k + 1]} == pair;
        tokens[kept++] = joins ? joined : tokens[k];
        k += joins ? 1 : 0;
      }
      tokens.resize(kept);
      count_pairs(i, 1, &changed);
    }
    for (const Pair& other : changed) {
      const bool has_joined = other.first == joined || other.second == joined;
      if (has_joined && counts_[other] > 0) queue_.push({counts_[other], other});
    }
  }

  std::vector<Word> words_;
  std::vector<std::string>& texts_;
  std::unordered_map<std::string, TokenId> ids_;
  std::map<Pair, std::int64_t> counts_;
  std::map<Pair, std::vector<std::size_t>> places_;  // words that have held it
  std::priority_queue<Candidate> queue_;
};

}  // namespace

BpeTrainer::BpeTrainer(const BpeTrainerOptions& options)
    : options_(options), pre_tokenizer_(pre_tokenizer_named(options.pattern).dump()) {
  splits_ = split_steps_from_json(nlohmann::json::parse(pre_tokenizer_));
  const auto least = static_cast<std::int64_t>(256 + options.special.size());
  if (options.vocab_size < least || options.vocab_size > 1 << 22) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a vocabulary of {}: the bytes and the special tokens are {}",
                            options.vocab_size, least));
  }
  const std::set<std::string> special(options.special.begin(), options.special.end());
  if (special.size() != options.special.size() || special.count("") > 0)
    throw Error(ErrorKind::kInvalidArgument, "a special token is empty or stands twice");
}

void BpeTrainer::add(std::string_view document) {
  std::string replaced;
  splits_.split(valid_utf8(document, replaced), /*first=*/true,
                [&](std::string_view word) { ++words_[std::string(word)]; });
}

std::string BpeTrainer::finish() const {
  // Tokens are kept as the characters that stand for their bytes, whose order is that of the ids.
  std::vector<std::string> texts = options_.special;
  std::map<std::string, TokenId> alphabet;
  for (int byte = 0; byte < 256; ++byte) alphabet.emplace(character_of_byte(byte), 0);
  for (auto& [text, id] : alphabet) {
    id = static_cast<TokenId>(texts.size());
    texts.push_back(text);
  }
  std::vector<Word> words;
  for (const auto& [text, count] : words_) {
    Word word{{}, count};
    for (const char c : text)
      word.tokens.push_back(alphabet.at(character_of_byte(static_cast<std::uint8_t>(c))));
    words.push_back(std::move(word));
  }
  Training training(std::move(words), texts);
  const auto merges =
      training.run(static_cast<std::size_t>(options_.vocab_size), options_.least_count);

  ordered_json model = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", nullptr},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", false},
                        {"vocab", ordered_json::object()},
                        {"merges", ordered_json::array()}};
  for (std::size_t id = 0; id < texts.size(); ++id) model["vocab"][texts[id]] = id;
  for (const auto& [left, right] : merges) {
    model["merges"].push_back(
        {texts[static_cast<std::size_t>(left)], texts[static_cast<std::size_t>(right)]});
  }
  ordered_json added = ordered_json::array();
  for (std::size_t i = 0; i < options_.special.size(); ++i) {
    added.push_back({{"id", i},
                     {"content", options_.special[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const ordered_json out = {{"version", "1.0"},
                            {"truncation", nullptr},
                            {"padding", nullptr},
                            {"added_tokens", added},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", ordered_json::parse(pre_tokenizer_)},
                            {"post_processor", nullptr},
                            {"decoder", byte_level(true)},
                            {"model", model}};
  return out.dump(1) + "\n";
}

}  // namespace dropless::train
