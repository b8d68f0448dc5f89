#include "train/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/tokenizer/tokenizer_files.h"

namespace dropless::train {
namespace {

constexpr TokenId kBytes = 256;
constexpr TokenId kEos = 256;

class BytesTokenizer : public Tokenizer {
 public:
  std::string name() const override { return "bytes"; }
  std::int64_t vocab_size() const override { return kBytes + 1; }
  std::optional<TokenId> eos_id() const override { return kEos; }
  std::optional<TokenId> bos_id() const override { return std::nullopt; }
  TokenId pad_id() const override { return kEos; }

  std::optional<TokenId> special_id(std::string_view text) const override {
    return text == "<|endoftext|>" ? std::optional(kEos) : std::nullopt;
  }

  std::vector<TokenId> encode(std::string_view text) const override {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data());
    return {bytes, bytes + text.size()};
  }

  std::string decode(std::span<const TokenId> ids) const override {
    return replace_invalid_utf8(decode_bytes(ids, true));
  }

  std::string decode_bytes(std::span<const TokenId> ids, bool) const override {
    check_ids(ids, vocab_size());
    std::string bytes;
    bytes.reserve(ids.size());
    for (const TokenId id : ids) {
      if (id != kEos) bytes += static_cast<char>(id);
    }
    return bytes;
  }
};

// *.model, or *.model.v1 as mistral-common names its files (.v3, .v7m1).
bool is_model_name(std::string_view path) {
  if (path.ends_with(".model")) return true;
  constexpr std::string_view kVersion = ".model.v";
  const std::size_t at = path.rfind(kVersion);
  if (at == std::string_view::npos) return false;
  const std::string_view version = path.substr(at + kVersion.size());
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return !version.empty() && digit(version[0]) &&
         std::all_of(version.begin(), version.end(),
                     [&](char c) { return digit(c) || (c >= 'a' && c <= 'z'); });
}

std::string file_in_folder(const std::string& folder) {
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tekken.json"}) {
    if (path_exists(join_path(folder, name))) return join_path(folder, name);
  }
  std::string found;
  for (const std::string& name : list_folder(folder)) {
    if (!name.ends_with(".tiktoken") && !is_model_name(name)) continue;
    if (!found.empty()) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} holds {} and {}", folder, found, name), "name one of the files");
    }
    found = name;
  }
  if (!found.empty()) return join_path(folder, found);
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{} holds no tokenizer.json, tokenizer.model or .tiktoken file", folder),
              "name a folder or a file that holds a tokenizer, or 'bytes'");
}

}  // namespace

void check_ids(std::span<const TokenId> ids, std::int64_t vocab_size) {
  for (const TokenId id : ids) {
    if (id < 0 || id >= vocab_size) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("token id {} is outside the vocabulary of {}", id, vocab_size));
    }
  }
}

std::vector<TokenId> Tokenizer::encode_with_template(std::string_view text) const {
  std::vector<TokenId> ids = prefix_ids();
  const std::vector<TokenId> middle = encode(text), suffix = suffix_ids();
  ids.insert(ids.end(), middle.begin(), middle.end());
  ids.insert(ids.end(), suffix.begin(), suffix.end());
  return ids;
}

bool is_tokenizer(const std::string& name) { return name == "bytes" || path_exists(name); }

std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_shared<BytesTokenizer>();
  if (!path_exists(name)) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("tokenizer '{}' is neither 'bytes' nor a file or folder here", name),
        "name a tokenizer.json, a .model or .tiktoken file, or a folder that holds one; names "
        "on the Hugging Face hub are not fetched");
  }
  const std::string path = is_folder(name) ? file_in_folder(name) : name;
  constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;
  const std::string bytes = read_file(path, kMostBytes);
  const std::size_t text = bytes.find_first_not_of(" \t\r\n");
  if (text != std::string::npos && bytes[text] == '{')
    return read_json_tokenizer(name, path, bytes);
  // Llama 3's tokenizer.model holds ranks.
  if (path.ends_with(".tiktoken") || looks_like_ranks(bytes))
    return read_rank_tokenizer(name, path, bytes);
  if (is_model_name(path)) return read_sentencepiece(name, path, bytes);
  throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is no tokenizer that is known", path),
              "name a tokenizer.json, a .model or a .tiktoken file");
}

}  // namespace dropless::train
