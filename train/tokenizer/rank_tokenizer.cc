// Tokenizers of ranks: .tiktoken files and tekken.json. Text is cut by a pattern; of a word, the two
// neighbours whose bytes together have the lowest rank become one.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/tokenizer/base64.h"
#include "train/tokenizer/bpe.h"
#include "train/tokenizer/byte_characters.h"
#include "train/tokenizer/pattern.h"
#include "train/tokenizer/tekken.h"
#include "train/tokenizer/tokenizer_files.h"

namespace dropless::train {
namespace {

// The patterns are part of the vocabularies: other cuts give other ids.
constexpr const char* kR50k =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$|\s+(?!\S)|\s)";
constexpr const char* kCl100k =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|)"
    R"(\s*[\r\n]|\s+(?!\S)|\s)";
constexpr const char* kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Special {
  std::string text;
  TokenId id;
};

struct Family {
  const char* name;
  std::size_t ranks;  // how many its file holds
  const char* pattern;
  std::vector<Special> specials;
};

const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {"r50k", 50256, kR50k, {{"<|endoftext|>", 50256}}},
      {"gpt2", 50256, kR50k, {{"<|endoftext|>", 50256}}},
      {"p50k", 50280, kR50k, {{"<|endoftext|>", 50256}}},
      {"cl100k",
       100256,
       kCl100k,
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}}},
      {"o200k", 199998, kO200k, {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}},
      {"llama3",
       128000,
       kLlama3Pattern,
       {{"<|end_of_text|>", 128001},
        {"<|begin_of_text|>", 128000},
        {"<|start_header_id|>", 128006},
        {"<|end_header_id|>", 128007},
        {"<|eot_id|>", 128009},
        {"<|reserved_special_token_250|>", 128255}}},
      {"qwen",
       151643,
       kQwen,
       {{"<|endoftext|>", 151643}, {"<|im_start|>", 151644}, {"<|im_end|>", 151645}}},
  };
  return all;
}

class RankTokenizer : public Tokenizer {
 public:
  // specials[0] ends a text; one named "begin" or "<s>" begins it.
  RankTokenizer(std::string name, const std::string& path, Pattern pattern,
                std::vector<std::pair<std::string, TokenId>> ranks, std::vector<Special> specials)
      : name_(std::move(name)), pattern_(std::move(pattern)), specials_(std::move(specials)) {
    model_.whole_words = true;
    model_.vocabulary = Vocabulary(std::move(ranks), path);
    for (int byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      const TokenId id = model_.vocabulary.find({&text, 1});
      model_.byte_tokens[static_cast<std::size_t>(byte)] = id;
      if (id == kNoToken) {
        throw Error(ErrorKind::kInvalidArgument,
                    fmt::format("{}: the byte 0x{:02x} has no rank", path, byte));
      }
    }
    vocab_size_ = model_.vocabulary.size();
    for (const Special& special : specials_) vocab_size_ = std::max(vocab_size_, special.id + 1);
  }

  std::string name() const override { return name_; }
  std::int64_t vocab_size() const override { return vocab_size_; }
  std::optional<TokenId> eos_id() const override {
    for (const char* text : {"<|endoftext|>", "<|end_of_text|>", "</s>"}) {
      if (const auto id = special_id(text)) return id;
    }
    return std::nullopt;
  }
  std::optional<TokenId> bos_id() const override {
    for (const char* text : {"<|begin_of_text|>", "<s>"}) {
      if (const auto id = special_id(text)) return id;
    }
    return std::nullopt;
  }
  TokenId pad_id() const override { return special_id("<pad>").value_or(eos_id().value_or(0)); }

  std::optional<TokenId> special_id(std::string_view text) const override {
    for (const Special& special : specials_) {
      if (special.text == text) return special.id;
    }
    return std::nullopt;
  }

  std::vector<TokenId> encode(std::string_view text) const override {
    std::string replaced;
    text = valid_utf8(text, replaced);
    std::vector<TokenId> out;
    caches_.with([&](WordCache& cache) {
      std::size_t at = 0, begin = 0, end = 0;
      while (pattern_.find(text, at, begin, end)) {
        model_.encode(text.substr(begin, end - begin), cache, out);
        at = end;
      }
    });
    return out;
  }

  std::string decode(std::span<const TokenId> ids) const override {
    return replace_invalid_utf8(decode_bytes(ids, true));
  }

  std::string decode_bytes(std::span<const TokenId> ids, bool) const override {
    check_ids(ids, vocab_size_);
    std::string out;
    for (const TokenId id : ids) out += model_.vocabulary.bytes(id);
    return out;
  }

 private:
  std::string name_;
  Pattern pattern_;
  std::vector<Special> specials_;
  BpeModel model_;
  TokenId vocab_size_ = 0;
  WordCaches caches_;
};

// One line: base64, a space, a rank. False at a line that is something else.
bool read_line(std::string_view line, std::pair<std::string, TokenId>& out) {
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0) return false;
  const std::string_view number = line.substr(space + 1);
  const auto [end, error] =
      std::from_chars(number.data(), number.data() + number.size(), out.second);
  if (error != std::errc() || end != number.data() + number.size()) return false;
  auto bytes = decode_base64(line.substr(0, space));
  if (!bytes || bytes->empty()) return false;
  out.first = std::move(*bytes);
  return true;
}

std::string_view next_line(std::string_view& bytes) {
  const std::size_t end = std::min(bytes.size(), bytes.find('\n'));
  std::string_view line = bytes.substr(0, end);
  bytes.remove_prefix(std::min(bytes.size(), end + 1));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

// By the file's name, else by how many ranks it holds.
const Family& family_of(const std::string& path, std::size_t ranks) {
  for (const Family& family : families()) {
    if (base_name(path).find(family.name) != std::string::npos) return family;
  }
  for (const Family& family : families()) {
    if (family.ranks == ranks) return family;
  }
  log_warning(
      "{}: neither its name nor its {} ranks tell the pattern that goes with it; taken is "
      "cl100k's (a name with o200k, p50k, r50k, gpt2, llama3 or qwen in it takes theirs)",
      path, ranks);
  return *std::find_if(families().begin(), families().end(),
                       [](const Family& family) { return family.name == std::string("cl100k"); });
}

}  // namespace

bool looks_like_ranks(std::string_view bytes) {
  std::pair<std::string, TokenId> entry;
  return read_line(next_line(bytes), entry);
}

std::shared_ptr<const Tokenizer> read_rank_tokenizer(const std::string& name,
                                                     const std::string& path,
                                                     std::string_view bytes) {
  std::vector<std::pair<std::string, TokenId>> ranks;
  for (std::size_t line = 1; !bytes.empty(); ++line) {
    const std::string_view text = next_line(bytes);
    if (text.empty()) continue;
    ranks.emplace_back();
    if (!read_line(text, ranks.back())) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}:{}: not base64, a space and a rank", path, line),
                  "copy the file anew");
    }
  }
  const Family& family = family_of(path, ranks.size());
  // A vocabulary of another size has the family's first special token behind its last rank.
  std::vector<Special> specials = family.specials;
  if (ranks.size() != family.ranks) {
    TokenId last = -1;
    for (const auto& [token, rank] : ranks) last = std::max(last, rank);
    specials = {{family.specials[0].text, last + 1}};
  }
  return std::make_shared<RankTokenizer>(name, path, Pattern(family.pattern), std::move(ranks),
                                         std::move(specials));
}

bool is_tekken(const nlohmann::json& json) {
  return json.is_object() && json.contains("config") && json["config"].is_object() &&
         json["config"].contains("default_num_special_tokens");
}

std::int64_t whole_number_of(const nlohmann::json& json) {
  // get() would cast a number beyond 64 bits, which C++ leaves undefined.
  if (!json.is_number_integer()) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is no whole number", json.dump()));
  }
  return json.get<std::int64_t>();
}

std::shared_ptr<const Tokenizer> read_tekken(const std::string& name, const std::string& path,
                                             const nlohmann::json& json) {
  const auto& config = json.at("config");
  const auto num_special = whole_number_of(config.at("default_num_special_tokens"));
  const auto size = whole_number_of(config.at("default_vocab_size"));
  if (num_special < 0 || size < num_special || size >= 1 << 22) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} special tokens of {} tokens", num_special, size));
  }
  std::vector<std::pair<std::string, TokenId>> ranks;
  for (const auto& entry : json.at("vocab")) {
    const auto rank = whole_number_of(entry.at("rank"));
    if (rank < 0 || rank >= size - num_special) continue;  // the file may hold more than are in use
    auto bytes = decode_base64(entry.at("token_bytes").get<std::string>());
    if (!bytes) throw Error(ErrorKind::kInvalidArgument, fmt::format("rank {} is no base64", rank));
    ranks.emplace_back(std::move(*bytes), static_cast<TokenId>(rank + num_special));
  }
  std::vector<Special> specials;
  if (json.contains("special_tokens") && json["special_tokens"].is_array()) {
    for (const auto& entry : json["special_tokens"]) {
      const auto id = whole_number_of(entry.at("rank"));
      if (id < 0 || id >= num_special) {
        throw Error(ErrorKind::kInvalidArgument,
                    fmt::format("special token {} of {}", id, num_special));
      }
      specials.push_back({entry.at("token_str").get<std::string>(), static_cast<TokenId>(id)});
    }
  }
  if (specials.empty()) specials = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};  // those of old files
  return std::make_shared<RankTokenizer>(name, path,
                                         Pattern(config.at("pattern").get<std::string>()),
                                         std::move(ranks), std::move(specials));
}

}  // namespace dropless::train
