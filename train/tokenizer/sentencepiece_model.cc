#include "train/tokenizer/sentencepiece_model.h"

#include <fmt/format.h>

#include <cstring>

#include "dropless/error.h"
#include "train/base/utf8.h"
#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

// The fields of one protobuf message, in order.
class Fields {
 public:
  Fields(std::string_view bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  std::uint64_t number = 0;  // of the field
  std::uint64_t integer = 0;
  std::string_view text;
  float real = 0;

  // False at the end.
  bool next() {
    if (bytes_.empty()) return false;
    const std::uint64_t key = varint();
    number = key >> 3;
    integer = 0;
    text = {};
    real = 0;
    switch (key & 7) {
      case 0:
        integer = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        text = take(varint());
        break;
      case 5:
        std::memcpy(&real, take(4).data(), 4);
        break;
      default:
        damaged();
    }
    return true;
  }

 private:
  [[noreturn]] void damaged() const {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} is no SentencePiece model, or is damaged", path_),
                "copy the file anew");
  }
  std::string_view take(std::uint64_t bytes) {
    if (bytes > bytes_.size()) damaged();
    const std::string_view out = bytes_.substr(0, bytes);
    bytes_.remove_prefix(bytes);
    return out;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<std::uint8_t>(take(1)[0]);
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    damaged();
  }

  std::string_view bytes_;
  const std::string& path_;
};

Piece read_piece(std::string_view bytes, const std::string& path) {
  Piece piece;
  for (Fields fields(bytes, path); fields.next();) {
    if (fields.number == 1) piece.text = fields.text;
    if (fields.number == 2) piece.score = fields.real;
    if (fields.number == 3) piece.type = static_cast<PieceType>(fields.integer);
  }
  return piece;
}

void read_trainer(std::string_view bytes, const std::string& path, SentencePieceModel& model) {
  for (Fields fields(bytes, path); fields.next();) {
    const auto id = static_cast<int>(static_cast<std::int64_t>(fields.integer));
    switch (fields.number) {
      case 3:
        if (fields.integer != 1 && fields.integer != 2) {
          throw Error(ErrorKind::kInvalidArgument,
                      fmt::format("{} is a model of words or characters", path),
                      "unigram and BPE models are supported");
        }
        model.unigram = fields.integer == 1;
        break;
      case 24:
        model.space_as_suffix = fields.integer != 0;
        break;
      case 35:
        model.byte_fallback = fields.integer != 0;
        break;
      case 41:
        model.bos = id;
        break;
      case 42:
        model.eos = id;
        break;
      case 43:
        model.pad = id;
        break;
      case 44:
        model.unknown_surface = fields.text;
        break;
      default:
        break;
    }
  }
}

void read_normalizer(std::string_view bytes, const std::string& path, SentencePieceModel& model) {
  for (Fields fields(bytes, path); fields.next();) {
    switch (fields.number) {
      case 2:
        model.charsmap = fields.text;
        break;
      case 3:
        model.add_dummy_prefix = fields.integer != 0;
        break;
      case 4:
        model.remove_extra_spaces = fields.integer != 0;
        break;
      case 5:
        model.escape_spaces = fields.integer != 0;
        break;
      default:
        break;
    }
  }
}

std::uint32_t unit_at(std::string_view bytes, std::size_t index) {
  std::uint32_t unit;
  std::memcpy(&unit, bytes.data() + 4 * index, 4);
  return unit;
}

}  // namespace

SentencePieceModel SentencePieceModel::parse(std::string_view bytes, const std::string& path) {
  SentencePieceModel model;
  for (Fields fields(bytes, path); fields.next();) {
    if (fields.number == 1) model.pieces.push_back(read_piece(fields.text, path));
    if (fields.number == 2) read_trainer(fields.text, path, model);
    if (fields.number == 3) read_normalizer(fields.text, path, model);
  }
  const auto fail = [&](const std::string& message) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: {}", path, message));
  };
  if (model.pieces.empty()) fail("a SentencePiece model without pieces");
  if (model.pieces.size() >= 1 << 22) fail("more than 2^22 pieces");
  for (std::size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    if (piece.text.empty() || find_invalid_utf8(piece.text) != std::string::npos)
      fail(fmt::format("piece {} is empty or no UTF-8", i));
    if (piece.type < PieceType::kNormal || piece.type > PieceType::kByte)
      fail(fmt::format("piece {} is of an unknown type", i));
  }
  model.check_charsmap(path);
  return model;
}

// u32 bytes of the trie | its units | replacements, each ended by a NUL.
void SentencePieceModel::check_charsmap(const std::string& path) const {
  if (charsmap.empty()) return;
  const auto trie = charsmap.size() >= 4 ? unit_at(charsmap, 0) : 0;
  const bool fits =
      charsmap.size() >= 8 && trie >= 4 && trie % 4 == 0 && trie < charsmap.size() - 4;
  if (!fits || charsmap.back() != '\0' ||
      find_invalid_utf8(std::string_view(charsmap).substr(4 + trie)) != std::string::npos) {
    throw Error(ErrorKind::kInvalidArgument, path + ": the table of replacements is damaged");
  }
}

std::string_view SentencePieceModel::replacement(std::string_view text, std::size_t& bytes) const {
  bytes = code_point_at(text, 0).bytes;
  const std::string_view same = text.substr(0, bytes);
  if (charsmap.empty()) return same;
  // darts-clone's units: bit 8 a leaf below, bits 0-7 (and 31 clear) the label, 10-30 the offset.
  const std::string_view all(charsmap);
  const std::string_view trie = all.substr(4, unit_at(all, 0)), texts = all.substr(4 + trie.size());
  const std::size_t units = trie.size() / 4;
  const auto offset = [](std::uint32_t unit) {
    return static_cast<std::size_t>(unit >> 10) << ((unit & (1u << 9)) >> 6);
  };
  std::size_t node = offset(unit_at(trie, 0)), longest = 0, found = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<std::uint8_t>(text[i]);
    node ^= byte;
    if (node >= units) break;
    const std::uint32_t unit = unit_at(trie, node);
    if ((unit & ((1u << 31) | 0xff)) != byte) break;
    node ^= offset(unit);
    if ((unit >> 8 & 1) == 0) continue;
    if (node >= units) break;
    longest = i + 1;
    found = unit_at(trie, node) & 0x7fffffff;
  }
  if (longest == 0 || found >= texts.size()) return same;
  bytes = longest;
  const std::string_view rest = texts.substr(found);
  return rest.substr(0, rest.find('\0'));
}

}  // namespace dropless::train
