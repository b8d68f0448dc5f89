#include "train/data/tokenizer.h"

#include <fmt/format.h>

#include "dropless/error.h"
#include "train/base/utf8.h"

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
    return replace_invalid_utf8(decode_bytes(ids));
  }

  std::string decode_bytes(std::span<const TokenId> ids) const override {
    std::string bytes;
    bytes.reserve(ids.size());
    for (const TokenId id : ids) {
      if (id < 0 || id >= vocab_size()) {
        throw Error(ErrorKind::kInvalidArgument,
                    fmt::format("token id {} is outside the vocabulary of {}", id, vocab_size()));
      }
      if (id != kEos) bytes += static_cast<char>(id);
    }
    return bytes;
  }
};

// Bytes of the ill-formed part at the front of `text`: the longest beginning of a code point, else
// one.
std::size_t broken_part(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0xc2 || lead > 0xf4 || text.size() < 2) return 1;
  const std::uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const std::uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < low || byte(1) > high) return 1;
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  std::size_t size = 2;
  while (size < length && size < text.size() && (byte(size) & 0xc0) == 0x80) ++size;
  return size;
}

}  // namespace

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string out;
  for (;;) {
    const std::size_t valid = find_invalid_utf8(bytes);
    out += bytes.substr(0, valid);
    if (valid == std::string_view::npos) return out;
    bytes.remove_prefix(valid);
    out += "\xef\xbf\xbd";
    bytes.remove_prefix(broken_part(bytes));
  }
}

std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_shared<BytesTokenizer>();
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("tokenizer '{}' is not supported by this version", name),
              "use the tokenizer 'bytes', or train on a set of stored `tokens`");
}

}  // namespace dropless::train
