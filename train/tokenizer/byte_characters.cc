#include "train/tokenizer/byte_characters.h"

#include <array>
#include <vector>

#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

const std::array<char32_t, 256>& characters() {
  static const std::array<char32_t, 256> table = [] {
    std::array<char32_t, 256> out{};
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      out[byte] = printable ? byte : next++;
    }
    return out;
  }();
  return table;
}

// -1 for characters that stand for no byte.
const std::vector<int>& bytes() {
  static const std::vector<int> table = [] {
    std::vector<int> out(0x180, -1);
    for (int byte = 0; byte < 256; ++byte) out[characters()[static_cast<std::size_t>(byte)]] = byte;
    return out;
  }();
  return table;
}

}  // namespace

std::string character_of_byte(int byte) {
  std::string out;
  append_utf8(out, characters()[static_cast<std::size_t>(byte)]);
  return out;
}

std::string bytes_of_characters(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    at += c.bytes;
    if (c.value >= bytes().size() || bytes()[c.value] < 0) return text;
    out += static_cast<char>(bytes()[c.value]);
  }
  return out;
}

}  // namespace dropless::train
