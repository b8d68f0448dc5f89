// tokenizer.json: added tokens -> normalizer -> added tokens of normalised text -> pre-tokenizer ->
// BPE of each word; the template of the post-processor around it. Ids are those of `tokenizers`.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/tokenizer/added_tokens.h"
#include "train/tokenizer/bpe.h"
#include "train/tokenizer/byte_characters.h"
#include "train/tokenizer/split_steps.h"
#include "train/tokenizer/tekken.h"
#include "train/tokenizer/text_steps.h"
#include "train/tokenizer/tokenizer_files.h"

namespace dropless::train {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const std::string& message, const std::string& hint = {}) {
  throw Error(ErrorKind::kInvalidArgument, message, hint);
}

// A member that must be there as an "object" or "array"; nlohmann's own message would not name it.
const json& member(const json& json, const char* key, const std::string& type,
                   const std::string& place = {}) {
  const auto& value = json.at(key);
  const std::string is = value.type_name();
  const auto with_article = [](const std::string& noun) {
    return noun == "null" ? noun : (noun == "object" || noun == "array" ? "an " : "a ") + noun;
  };
  if (is != type)
    refuse(fmt::format("{}'{}' is {}, not {}", place, key, with_article(is), with_article(type)));
  return value;
}

TokenId token_id(const json& json) {
  const std::int64_t id = whole_number_of(json);
  if (id < 0 || id >= 1 << 22) refuse(fmt::format("{} is no token id", json.dump()));
  return static_cast<TokenId>(id);
}

void read_merges(const json& merges, const Vocabulary& by_text, BpeModel& model) {
  MergeTable table;
  table.reserve(merges.size());
  std::uint32_t rank = 0;
  for (const json& merge : merges) {
    std::string left, right;
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      const std::size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
        refuse(fmt::format("merge {} '{}' is not two tokens", rank, text));
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else {
      refuse(fmt::format("merge {} is not two tokens", rank));
    }
    const TokenId ids[] = {by_text.find(left), by_text.find(right), by_text.find(left + right)};
    for (const TokenId id : ids) {
      if (id == kNoToken)
        refuse(fmt::format("merge {} '{} {}': a token of it is not in the vocabulary", rank, left,
                           right));
    }
    table.add(ids[0], ids[1], {rank++, ids[2]});
  }
  model.merges = std::move(table);
}

BpeModel read_model(const json& json, bool byte_level, const std::string& path) {
  // Old files leave out the type.
  if (json.value("type", "BPE") != "BPE")
    refuse(fmt::format("model: type '{}' is not supported", json.value("type", "")),
           "BPE is; a SentencePiece unigram model is read from its .model file");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (json.contains(key) && !json[key].is_null() && json[key] != "")
      refuse(fmt::format("model: {} is not supported", key));
  }
  if (json.contains("dropout") && !json["dropout"].is_null() && json["dropout"] != 0.0)
    refuse("model: dropout is not supported");
  BpeModel model;
  model.byte_level = byte_level;
  model.whole_words = json.value("ignore_merges", false);
  model.fuse_unknown = json.value("fuse_unk", false);
  std::vector<std::pair<std::string, TokenId>> tokens;
  for (const auto& [text, id] : member(json, "vocab", "object", "model: ").items())
    tokens.emplace_back(text, token_id(id));
  const Vocabulary by_text(tokens, path);
  if (json.contains("unk_token") && json["unk_token"].is_string())
    model.unknown = by_text.find(json["unk_token"].get<std::string>());
  read_merges(member(json, "merges", "array", "model: "), by_text, model);
  if (byte_level) {
    for (auto& [text, id] : tokens) text = bytes_of_characters(text);
    model.vocabulary = Vocabulary(std::move(tokens), path);
    for (int byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      model.byte_tokens[static_cast<std::size_t>(byte)] = model.vocabulary.find({&text, 1});
    }
  } else {
    model.vocabulary = by_text;
    for (int byte = 0; byte < 256 && json.value("byte_fallback", false); ++byte)
      model.byte_tokens[static_cast<std::size_t>(byte)] =
          by_text.find(fmt::format("<0x{:02X}>", byte));
  }
  return model;
}

// A token that the model's vocabulary writes the same way has its id there.
std::vector<AddedToken> read_added(const json& list, const json& vocabulary) {
  std::vector<AddedToken> out;
  for (const auto& entry : list) {
    AddedToken token;
    token.text = entry.at("content").get<std::string>();
    token.id = token_id(vocabulary.contains(token.text) ? vocabulary[token.text] : entry.at("id"));
    token.special = entry.value("special", false);
    token.single_word = entry.value("single_word", false);
    token.strip_left = entry.value("lstrip", false);
    token.strip_right = entry.value("rstrip", false);
    token.normalized = entry.value("normalized", !token.special);
    out.push_back(std::move(token));
  }
  return out;
}

// The ids before and after the text.
struct Template {
  std::vector<TokenId> prefix, suffix;
};

void read_template(const json& json, Template& out) {
  const auto type = json.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const auto& part : json.at("processors")) read_template(part, out);
  } else if (type == "TemplateProcessing") {
    bool after = false;
    std::vector<TokenId> prefix;
    for (const auto& piece : json.at("single")) {
      if (piece.contains("Sequence")) {
        if (after) refuse("post_processor: the text stands twice in a template");
        after = true;
        continue;
      }
      const auto id = piece.at("SpecialToken").at("id").get<std::string>();
      for (const auto& number : json.at("special_tokens").at(id).at("ids"))
        (after ? out.suffix : prefix).push_back(token_id(number));
    }
    out.prefix.insert(out.prefix.begin(), prefix.begin(), prefix.end());
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    out.prefix.insert(out.prefix.begin(), token_id(json.at("cls").at(1)));
    out.suffix.push_back(token_id(json.at("sep").at(1)));
  } else if (type != "ByteLevel") {  // which moves offsets only
    refuse(fmt::format("post_processor: type '{}' is not supported", type));
  }
}

bool is_byte_level_decoder(const json& decoder) {
  if (!decoder.is_object()) return false;
  if (decoder.at("type") == "ByteLevel") return true;
  return decoder.at("type") == "Sequence" && decoder.at("decoders").size() == 1 &&
         is_byte_level_decoder(decoder["decoders"][0]);
}

class JsonTokenizer : public Tokenizer {
 public:
  JsonTokenizer(std::string name, const std::string& path, const json& json)
      : name_(std::move(name)),
        normalizer_(json.value("normalizer", nlohmann::json())),
        splits_(split_steps_from_json(json.value("pre_tokenizer", nlohmann::json()))),
        model_(read_model(member(json, "model", "object"), splits_.byte_level, path)),
        added_(read_added(json.value("added_tokens", nlohmann::json::array()),
                          json.at("model").at("vocab"))) {
    const nlohmann::json decoder = json.value("decoder", nlohmann::json());
    if (!splits_.byte_level) {
      decoder_.emplace(decoder);
    } else if (!is_byte_level_decoder(decoder)) {
      refuse("decoder: a ByteLevel vocabulary with another decoder is not supported");
    }
    const nlohmann::json post = json.value("post_processor", nlohmann::json());
    if (!post.is_null()) read_template(post, template_);
    std::vector<AddedToken> raw, normalized;
    vocab_size_ = model_.vocabulary.size();
    for (const AddedToken& token : added_) {
      vocab_size_ = std::max(vocab_size_, token.id + 1);
      AddedToken found = token;
      if (token.normalized && !normalizer_.empty()) found.text = normalizer_(token.text);
      (token.normalized ? normalized : raw).push_back(std::move(found));
    }
    for (const TokenId id : template_.prefix) check_ids({&id, 1}, vocab_size_);
    for (const TokenId id : template_.suffix) check_ids({&id, 1}, vocab_size_);
    raw_added_ = AddedTokens(std::move(raw));
    normalized_added_ = AddedTokens(std::move(normalized));
    by_id_.assign(static_cast<std::size_t>(vocab_size_), -1);
    for (std::size_t i = 0; i < added_.size(); ++i)
      by_id_[static_cast<std::size_t>(added_[i].id)] = static_cast<int>(i);
    find_roles(parent_folder(path));
  }

  std::string name() const override { return name_; }
  std::int64_t vocab_size() const override { return vocab_size_; }
  std::optional<TokenId> eos_id() const override { return roles_.eos; }
  std::optional<TokenId> bos_id() const override { return roles_.bos; }
  TokenId pad_id() const override { return roles_.pad.value_or(roles_.eos.value_or(0)); }
  std::vector<TokenId> prefix_ids() const override { return template_.prefix; }
  std::vector<TokenId> suffix_ids() const override { return template_.suffix; }

  std::optional<TokenId> special_id(std::string_view text) const override {
    for (const AddedToken& token : added_) {
      if (token.special && token.text == text) return token.id;
    }
    return std::nullopt;
  }

  std::vector<TokenId> encode(std::string_view text) const override {
    std::vector<TokenId> out;
    std::string replaced;
    encode_valid(valid_utf8(text, replaced), out);
    return out;
  }

  std::string decode(std::span<const TokenId> ids) const override {
    if (!decoder_) return replace_invalid_utf8(decode_bytes(ids, true));
    return decoder_->decode(texts_of(ids), /*first=*/true, /*raw=*/false);
  }

  std::string decode_bytes(std::span<const TokenId> ids, bool first) const override {
    if (decoder_) return decoder_->decode(texts_of(ids), first, /*raw=*/true);
    check_ids(ids, vocab_size_);
    std::string out;
    for (const TokenId id : ids) {
      const AddedToken* added = added_token(id);
      if (added == nullptr) {
        out += model_.vocabulary.bytes(id);
      } else if (!added->special) {
        out += bytes_of_characters(added->text);
      }
    }
    return out;
  }

 private:
  const AddedToken* added_token(TokenId id) const {
    const int index = by_id_[static_cast<std::size_t>(id)];
    return index < 0 ? nullptr : &added_[static_cast<std::size_t>(index)];
  }

  std::vector<std::string> texts_of(std::span<const TokenId> ids) const {
    check_ids(ids, vocab_size_);
    std::vector<std::string> out;
    for (const TokenId id : ids) {
      const AddedToken* added = added_token(id);
      if (added != nullptr && added->special) continue;
      if (added != nullptr) {
        out.push_back(added->text);
      } else if (model_.vocabulary.has(id)) {
        out.emplace_back(model_.vocabulary.bytes(id));
      }
    }
    return out;
  }

  void encode_valid(std::string_view text, std::vector<TokenId>& out) const {
    const auto put = [&](TokenId id) { out.push_back(id); };
    caches_.with([&](WordCache& cache) {
      const auto word = [&](std::string_view part) { model_.encode(part, cache, out); };
      raw_added_.split(
          text,
          [&](std::string_view piece) {
            bool first = piece.data() == text.data();
            const std::string changed = normalizer_.empty() ? std::string() : normalizer_(piece);
            normalized_added_.split(
                normalizer_.empty() ? piece : std::string_view(changed),
                [&](std::string_view part) {
                  splits_.split(part, first, word);
                  first = false;
                },
                [&](TokenId id) {
                  put(id);
                  first = false;
                });
          },
          put);
    });
  }

  // From tokenizer_config.json beside it; else by the names that are in use.
  void find_roles(const std::string& folder) {
    const std::string path = join_path(folder, "tokenizer_config.json");
    json config;
    if (path_exists(path)) config = parse_json(read_file(path), path);
    const auto role = [&](const char* key) -> std::optional<TokenId> {
      if (!config.is_object() || !config.contains(key)) return std::nullopt;
      const json& value = config[key];
      const json& text = value.is_object() && value.contains("content") ? value["content"] : value;
      if (!text.is_string()) return std::nullopt;
      return id_of(text.get<std::string>());
    };
    const auto known = [&](std::initializer_list<const char*> names) -> std::optional<TokenId> {
      for (const char* text : names) {
        if (const auto id = special_id(text)) return id;
      }
      return std::nullopt;
    };
    roles_ = {role("eos_token"), role("bos_token"), role("pad_token")};
    if (config.is_object()) return;
    roles_.eos = known({"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<EOT>",
                        "<｜end▁of▁sentence｜>", "<|im_end|>"});
    roles_.bos = known({"<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "<｜begin▁of▁sentence｜>"});
    roles_.pad = known({"<pad>", "<|pad|>", "[PAD]", "<|padding|>"});
  }

  std::optional<TokenId> id_of(const std::string& text) const {
    for (const AddedToken& token : added_) {
      if (token.text == text) return token.id;
    }
    return std::nullopt;
  }

  std::string name_;
  Normalizer normalizer_;
  SplitSteps splits_;
  BpeModel model_;
  std::vector<AddedToken> added_;
  std::optional<TokenDecoder> decoder_;  // none: the tokens' bytes in a row
  Template template_;
  AddedTokens raw_added_, normalized_added_;
  std::vector<int> by_id_;  // in added_; -1
  TokenId vocab_size_ = 0;
  SpecialRoles roles_;
  WordCaches caches_;
};

}  // namespace

std::shared_ptr<const Tokenizer> read_json_tokenizer(const std::string& name,
                                                     const std::string& path,
                                                     std::string_view bytes) {
  const json json = parse_json(bytes, path);
  try {
    if (is_tekken(json)) return read_tekken(name, path, json);
    if (!json.contains("model")) refuse("it has no 'model'", "name a tokenizer.json");
    return std::make_shared<JsonTokenizer>(name, path, json);
  } catch (const nlohmann::json::exception& error) {
    const std::string text = error.what();
    const std::size_t end = text.find("] ");
    refuse(fmt::format("{}: {}", path, end == std::string::npos ? text : text.substr(end + 2)));
  } catch (const Error& error) {
    const std::string text = error.what();
    throw Error(error.kind(), text.starts_with(path) ? text : fmt::format("{}: {}", path, text),
                error.hint());
  }
}

}  // namespace dropless::train
