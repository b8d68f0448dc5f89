// SentencePiece's two models. BPE joins the two neighbours whose piece has the best score; unigram
// takes the pieces whose scores sum to the most.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/utf8.h"
#include "train/tokenizer/bpe.h"
#include "train/tokenizer/sentencepiece_model.h"
#include "train/tokenizer/text_steps.h"
#include "train/tokenizer/tokenizer_files.h"

namespace dropless::train {
namespace {

// Texts by their bytes, walked one byte at a time.
class Trie {
 public:
  static constexpr std::uint32_t kRoot = 0, kNone = UINT32_MAX;

  void build(const std::vector<std::pair<std::string_view, TokenId>>& texts) {
    std::size_t bytes = 1;
    for (const auto& [text, id] : texts) bytes += text.size();
    edges_.reserve(bytes);
    tokens_ = {kNoToken};
    for (const auto& [text, id] : texts) {
      std::uint32_t node = kRoot;
      for (const char c : text) {
        const std::uint32_t child = step(node, c);
        if (child != kNone) {
          node = child;
          continue;
        }
        edges_.add(static_cast<TokenId>(node), static_cast<std::uint8_t>(c),
                   {0, static_cast<TokenId>(tokens_.size())});
        node = static_cast<std::uint32_t>(tokens_.size());
        tokens_.push_back(kNoToken);
      }
      tokens_[node] = id;
    }
  }
  bool empty() const { return tokens_.size() < 2; }
  std::uint32_t step(std::uint32_t node, char byte) const {
    const auto* edge = edges_.find(static_cast<TokenId>(node), static_cast<std::uint8_t>(byte));
    return edge == nullptr ? kNone : static_cast<std::uint32_t>(edge->id);
  }
  TokenId token(std::uint32_t node) const { return tokens_[node]; }

  // The longest text at the front: its token and bytes.
  std::pair<TokenId, std::size_t> longest(std::string_view text) const {
    std::pair<TokenId, std::size_t> found{kNoToken, 0};
    if (empty()) return found;
    std::uint32_t node = kRoot;
    for (std::size_t i = 0; i < text.size(); ++i) {
      node = step(node, text[i]);
      if (node == kNone) break;
      if (tokens_[node] != kNoToken) found = {tokens_[node], i + 1};
    }
    return found;
  }

 private:
  MergeTable edges_;  // (node, byte) -> node
  std::vector<TokenId> tokens_;
};

// Of a unigram model: the best cut of `text`, its ids appended.
class Unigram {
 public:
  void build(const SentencePieceModel& model, TokenId unknown) {
    float least = std::numeric_limits<float>::max(), most = std::numeric_limits<float>::lowest();
    std::vector<std::pair<std::string_view, TokenId>> texts;
    for (std::size_t i = 0; i < model.pieces.size(); ++i) {
      const Piece& piece = model.pieces[i];
      const bool normal = piece.type == PieceType::kNormal;
      if (normal) {
        least = std::min(least, piece.score);
        most = std::max(most, piece.score);
      }
      if (normal || piece.type == PieceType::kUserDefined)
        texts.emplace_back(piece.text, static_cast<TokenId>(i));
    }
    trie_.build(texts);
    model_ = &model;
    unknown_ = unknown;
    most_ = most;
    constexpr float kUnknownPenalty = 10.0f;
    unknown_score_ = least - kUnknownPenalty;
  }

  // Calls put(id, text) for each piece, in order. All sums are in float, as sentencepiece's: near
  // ties would go elsewhere otherwise.
  template <class Put>
  void encode(std::string_view text, Put put) const {
    struct Node {
      TokenId id = kNoToken;
      float score = 0;
      std::size_t begin = std::string_view::npos;
    };
    std::vector<Node> ends(text.size() + 1);
    const auto offer = [&](std::size_t begin, std::size_t end, float score, TokenId id) {
      const float sum = score + ends[begin].score;
      Node& node = ends[end];
      if (node.begin == std::string_view::npos || sum > node.score) node = {id, sum, begin};
    };
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t one = code_point_at(text, begin).bytes;
      bool has_one = false;
      std::uint32_t node = Trie::kRoot;
      for (std::size_t at = begin; at < text.size();) {
        node = trie_.step(node, text[at++]);
        if (node == Trie::kNone) break;
        const TokenId id = trie_.token(node);
        if (id == kNoToken) continue;
        const Piece& piece = model_->pieces[static_cast<std::size_t>(id)];
        const bool chosen = piece.type == PieceType::kUserDefined;  // always
        const auto length = static_cast<float>(at - begin);
        const float score = chosen ? static_cast<float>(length * most_ - 0.1) : piece.score;
        offer(begin, at, score, id);
        has_one = has_one || at - begin == one;
      }
      if (!has_one) offer(begin, begin + one, unknown_score_, unknown_);
      begin += one;
    }
    std::vector<std::size_t> cuts;
    for (std::size_t end = text.size(); end > 0; end = ends[end].begin) cuts.push_back(end);
    for (std::size_t i = cuts.size(); i-- > 0;) {
      const Node& node = ends[cuts[i]];
      put(node.id, text.substr(node.begin, cuts[i] - node.begin));
    }
  }

 private:
  const SentencePieceModel* model_ = nullptr;
  Trie trie_;
  TokenId unknown_ = kNoToken;
  float most_ = 0, unknown_score_ = 0;
};

// Whether some piece goes on with a space behind another character; if none does, text can be cut
// before such spaces and each word looked at alone.
bool spaces_within(const SentencePieceModel& model) {
  for (const Piece& piece : model.pieces) {
    if (piece.type != PieceType::kNormal && piece.type != PieceType::kUnused) continue;
    std::string_view text = piece.text;
    while (text.starts_with(kSpaceMark)) text.remove_prefix(kSpaceMark.size());
    if (text.find(kSpaceMark) != std::string_view::npos) return true;
  }
  return false;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string name, const std::string& path, std::string_view bytes)
      : name_(std::move(name)), model_(SentencePieceModel::parse(bytes, path)) {
    std::vector<std::pair<std::string, TokenId>> pieces;
    std::vector<std::pair<std::string_view, TokenId>> user_defined;
    for (std::size_t i = 0; i < model_.pieces.size(); ++i) {
      const Piece& piece = model_.pieces[i];
      const auto id = static_cast<TokenId>(i);
      if (piece.type == PieceType::kUnknown) bpe_.unknown = id;
      if (piece.type == PieceType::kUserDefined) user_defined.emplace_back(piece.text, id);
      if (piece.type == PieceType::kNormal || piece.type == PieceType::kUserDefined)
        pieces.emplace_back(piece.text, id);
      if (piece.type == PieceType::kUnused && !model_.unigram) {
        throw Error(ErrorKind::kUnsupported,
                    fmt::format("{}: piece {} of a BPE model is of the type unused", path, i));
      }
      const int byte = byte_of_token(piece.text);
      if (piece.type == PieceType::kByte) {
        if (byte < 0)
          throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: piece {} is no byte", path, i));
        if (model_.byte_fallback) bpe_.byte_tokens[static_cast<std::size_t>(byte)] = id;
      }
    }
    if (bpe_.unknown == kNoToken)
      throw Error(ErrorKind::kInvalidArgument, path + ": no piece for what is unknown");
    frozen_.build(user_defined);
    if (model_.unigram) {
      unigram_.build(model_, bpe_.unknown);
    } else {
      bpe_.byte_level = false;
      bpe_.fuse_unknown = true;
      bpe_.vocabulary = Vocabulary(std::move(pieces), path);
      rank_pieces();
      whole_text_ = spaces_within(model_);
    }
    read_config(parent_folder(path));
  }

  std::string name() const override { return name_; }
  std::int64_t vocab_size() const override { return std::ssize(model_.pieces); }
  std::optional<TokenId> eos_id() const override { return control(model_.eos); }
  std::optional<TokenId> bos_id() const override { return control(model_.bos); }
  TokenId pad_id() const override { return control(model_.pad).value_or(eos_id().value_or(0)); }
  std::vector<TokenId> prefix_ids() const override {
    return adds_bos_ && bos_id() ? std::vector<TokenId>{*bos_id()} : std::vector<TokenId>();
  }
  std::vector<TokenId> suffix_ids() const override {
    return adds_eos_ && eos_id() ? std::vector<TokenId>{*eos_id()} : std::vector<TokenId>();
  }

  std::optional<TokenId> special_id(std::string_view text) const override {
    for (std::size_t i = 0; i < model_.pieces.size(); ++i) {
      const Piece& piece = model_.pieces[i];
      const bool special =
          piece.type == PieceType::kControl || piece.type == PieceType::kUserDefined;
      if (special && piece.text == text) return static_cast<TokenId>(i);
    }
    return std::nullopt;
  }

  std::vector<TokenId> encode(std::string_view text) const override {
    std::string replaced;
    text = valid_utf8(text, replaced);
    const std::string pieces =
        model_.normalize(text, [&](std::string_view rest) { return frozen_.longest(rest).second; });
    std::vector<TokenId> out;
    if (model_.unigram) {
      encode_unigram(pieces, out);
    } else {
      encode_bpe(pieces, out);
    }
    return out;
  }

  std::string decode(std::span<const TokenId> ids) const override {
    return decode_pieces(ids, /*first=*/true, /*raw=*/false);
  }
  std::string decode_bytes(std::span<const TokenId> ids, bool first) const override {
    return decode_pieces(ids, first, /*raw=*/true);
  }

 private:
  std::optional<TokenId> control(int id) const {
    return id >= 0 && id < vocab_size() ? std::optional(id) : std::nullopt;
  }

  // Ranks that go as the scores do, the best first; equal scores have equal ranks.
  void rank_pieces() {
    std::vector<std::size_t> order(model_.pieces.size());
    std::iota(order.begin(), order.end(), 0);
    const auto score = [&](std::size_t i) { return model_.pieces[i].score; };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return score(a) > score(b); });
    bpe_.ranks.resize(order.size());
    std::uint32_t rank = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (i > 0 && score(order[i]) != score(order[i - 1])) ++rank;
      bpe_.ranks[order[i]] = rank;
    }
  }

  // The fast tokenizers' settings, where they stand beside the model.
  void read_config(const std::string& folder) {
    const std::string path = join_path(folder, "tokenizer_config.json");
    if (!path_exists(path)) return;
    const nlohmann::json config = parse_json(read_file(path), path);
    const auto flag = [&](const char* key) {
      return config.is_object() && config.contains(key) && config[key] == true;
    };
    adds_bos_ = flag("add_bos_token");
    adds_eos_ = flag("add_eos_token");
  }

  void encode_unigram(std::string_view text, std::vector<TokenId>& out) const {
    bool after_unknown = false;
    unigram_.encode(text, [&](TokenId id, std::string_view part) {
      const bool unknown = id == bpe_.unknown;
      if (unknown && model_.byte_fallback) {
        for (const char byte : part)
          out.push_back(bpe_.byte_tokens[static_cast<std::uint8_t>(byte)]);
      } else if (!unknown || !after_unknown) {
        out.push_back(id);
      }
      after_unknown = unknown;
    });
  }

  void encode_bpe(std::string_view text, std::vector<TokenId>& out) const {
    caches_.with([&](WordCache& cache) {
      std::size_t begin = 0, at = 0;
      const auto word = [&] {
        if (begin < at) bpe_.encode(text.substr(begin, at - begin), cache, out);
        begin = at;
      };
      while (at < text.size()) {
        const auto [token, bytes] = frozen_.longest(text.substr(at));
        if (token != kNoToken) {
          word();
          out.push_back(token);
          begin = at = at + bytes;
          continue;
        }
        const bool space = text.substr(at).starts_with(kSpaceMark);
        if (space && !whole_text_ && at > begin &&
            !text.substr(begin, at - begin).ends_with(kSpaceMark))
          word();
        at += code_point_at(text, at).bytes;
      }
      word();
    });
  }

  std::string decode_pieces(std::span<const TokenId> ids, bool first, bool raw) const {
    check_ids(ids, vocab_size());
    std::string out, bytes;
    const auto end_bytes = [&] {
      if (!raw) bytes = replace_each(bytes);
      out += bytes;
      bytes.clear();
    };
    bool begins = first && (model_.add_dummy_prefix || model_.remove_extra_spaces);
    for (const TokenId id : ids) {
      const Piece& piece = model_.pieces[static_cast<std::size_t>(id)];
      if (piece.type == PieceType::kByte) {
        bytes += static_cast<char>(byte_of_token(piece.text));
        continue;
      }
      end_bytes();
      if (piece.type == PieceType::kControl) continue;
      if (piece.type == PieceType::kUnknown) {
        out += model_.unknown_surface;
        continue;
      }
      std::string text = piece.text;
      if (begins && out.empty() && text.starts_with(kSpaceMark)) {
        text.erase(0, kSpaceMark.size());
        // With extra spaces removed, all that begin a text go; a stream has no way back.
        begins = model_.remove_extra_spaces && !raw;
      }
      replace_all(text, kSpaceMark, " ");
      out += text;
    }
    end_bytes();
    return out;
  }

  // Broken bytes become U+FFFD one by one.
  static std::string replace_each(std::string_view bytes) {
    std::string out;
    for (;;) {
      const std::size_t valid = find_invalid_utf8(bytes);
      out += bytes.substr(0, valid);
      if (valid == std::string_view::npos) return out;
      out += "\xef\xbf\xbd";
      bytes.remove_prefix(valid + 1);
    }
  }

  std::string name_;
  SentencePieceModel model_;
  Trie frozen_;  // user-defined pieces
  BpeModel bpe_;
  Unigram unigram_;
  bool whole_text_ = false;  // words cannot be looked at alone
  bool adds_bos_ = false, adds_eos_ = false;
  WordCaches caches_;
};

}  // namespace

std::shared_ptr<const Tokenizer> read_sentencepiece(const std::string& name,
                                                    const std::string& path,
                                                    std::string_view bytes) {
  return std::make_shared<SentencePieceTokenizer>(name, path, bytes);
}

}  // namespace dropless::train
