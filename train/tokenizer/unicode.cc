#include "train/tokenizer/unicode.h"

#include <utf8proc.h>

#include <bit>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "dropless/error.h"
#include "train/base/utf8.h"
#include "train/tokenizer/unicode_since_15.h"

namespace dropless::train {
namespace {

constexpr char32_t kCodePoints = 0x110000;

// What a code point's byte in the table says: the number of its category's bit, and whether some
// normal form can change it or join it to what stands before.
constexpr std::uint8_t kCategoryBits = 0x1f;
constexpr std::uint8_t kMayChange = 0x80;

bool may_change(char32_t code_point, const utf8proc_property_t& property) {
  if (property.decomp_seqindex != UINT16_MAX || property.combining_class != 0) return true;
  // Hangul is composed by rule. Indices from 0x8000 on are of second halves of pairs.
  if ((code_point >= 0x1100 && code_point <= 0x11ff) ||
      (code_point >= 0xac00 && code_point <= 0xd7ff)) {
    return true;
  }
  return property.comb_index != UINT16_MAX && property.comb_index >= 0x8000;
}

// The symbols that Unicode calls alphabetic: circled, squared and such.
bool is_symbol_letter(char32_t c) {
  return (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
         (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
}

std::vector<std::uint8_t> make_table() {
  std::vector<std::uint8_t> table(kCodePoints);
  for (char32_t c = 0; c < kCodePoints; ++c) {
    const utf8proc_property_t& property = *utf8proc_get_property(static_cast<std::int32_t>(c));
    const bool control_space = (c >= 9 && c <= 13) || c == 0x85;
    table[c] = control_space         ? 30
               : is_symbol_letter(c) ? 31
                                     : static_cast<std::uint8_t>(property.category);
    if (may_change(c, property)) table[c] |= kMayChange;
  }
  for (const auto& [first, last, category] : kSince15) {
    for (char32_t c = first; c <= last; ++c) {
      table[c] = static_cast<std::uint8_t>((table[c] & kMayChange) | std::countr_zero(category));
    }
  }
  return table;
}

const std::vector<std::uint8_t>& table() {
  static const std::vector<std::uint8_t> made = make_table();
  return made;
}

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

void append_normalized(NormalForm form, std::string_view text, std::string& out) {
  int options = UTF8PROC_STABLE;
  const bool compose = form == NormalForm::kC || form == NormalForm::kKC;
  options |= compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kKC || form == NormalForm::kKD) options |= UTF8PROC_COMPAT;
  std::uint8_t* mapped = nullptr;
  const auto bytes = utf8proc_map(reinterpret_cast<const std::uint8_t*>(text.data()),
                                  static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                                  static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<std::uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  if (bytes == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (bytes < 0) throw Error(ErrorKind::kInternal, utf8proc_errmsg(bytes));
  out.append(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(bytes));
}

}  // namespace

Categories category_of(char32_t code_point) {
  static const std::uint8_t* const entries = table().data();
  return Categories{1} << (entries[code_point] & kCategoryBits);
}

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xc0 | c >> 6);
  } else {
    if (c < 0x10000) {
      put(0xe0 | c >> 12);
    } else {
      put(0xf0 | c >> 18);
      put(0x80 | (c >> 12 & 0x3f));
    }
    put(0x80 | (c >> 6 & 0x3f));
  }
  put(0x80 | (c & 0x3f));
}

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

std::string_view valid_utf8(std::string_view text, std::string& storage) {
  if (find_invalid_utf8(text) == std::string_view::npos) return text;
  return storage = replace_invalid_utf8(text);
}

// ASCII stands as it is and nothing joins to what stands before it: only the stretches between ASCII
// characters (with the one before, to which a mark may join) that hold a character which some form
// changes are worked on.
std::string normalize(NormalForm form, std::string_view text) {
  const std::uint8_t* const entries = table().data();
  std::string out;
  std::size_t copied = 0, at = 0;
  while (at < text.size()) {
    if (static_cast<std::uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const std::size_t begin = at == 0 ? 0 : at - 1;
    bool changes = false;
    while (at < text.size() && static_cast<std::uint8_t>(text[at]) >= 0x80) {
      const CodePoint c = code_point_at(text, at);
      changes = changes || (entries[c.value] & kMayChange);
      at += c.bytes;
    }
    if (!changes) continue;
    out += text.substr(copied, begin - copied);
    append_normalized(form, text.substr(begin, at - begin), out);
    copied = at;
  }
  out += text.substr(copied);
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    at += c.bytes;
    if (c.value == 0x130) {  // the one whose lower case is two code points
      out += "i\xcc\x87";
      continue;
    }
    append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<std::int32_t>(c.value))));
  }
  return out;
}

std::string strip_accents(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    const auto category = utf8proc_category(static_cast<std::int32_t>(c.value));
    const bool mark = category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
                      category == UTF8PROC_CATEGORY_ME;
    if (!mark) out += text.substr(at, c.bytes);
    at += c.bytes;
  }
  return out;
}

}  // namespace dropless::train
