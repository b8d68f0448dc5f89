#include "train/data/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <set>

#include "dropless/error.h"
#include "train/base/utf8.h"

namespace dropless::train {
namespace {

constexpr int kMaxDepth = 100;

enum class Style { kNone, kCompact, kPython };

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Appends a UTF-16 unit as Python's ASCII-only writer does.
void append_ascii_unit(std::string& out, char16_t unit) {
  switch (unit) {
    case u'"':
      out += "\\\"";
      return;
    case u'\\':
      out += "\\\\";
      return;
    case u'\b':
      out += "\\b";
      return;
    case u'\f':
      out += "\\f";
      return;
    case u'\n':
      out += "\\n";
      return;
    case u'\r':
      out += "\\r";
      return;
    case u'\t':
      out += "\\t";
      return;
    default:
      if (unit < 0x20 || unit > 0x7e) {
        out += fmt::format("\\u{:04x}", static_cast<unsigned>(unit));
      } else {
        out += static_cast<char>(unit);
      }
  }
}

// Code units of valid UTF-8.
std::u16string to_utf16(std::string_view text) {
  std::u16string out;
  for (std::size_t i = 0; i < text.size();) {
    const std::uint8_t lead = static_cast<std::uint8_t>(text[i]);
    const std::size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    std::uint32_t code = length == 1 ? lead : lead & (0x7fu >> length);
    for (std::size_t k = 1; k < length; ++k) {
      code = (code << 6) | (static_cast<std::uint8_t>(text[i + k]) & 0x3f);
    }
    if (code >= 0x10000) {
      out += static_cast<char16_t>(0xd800 + ((code - 0x10000) >> 10));
      out += static_cast<char16_t>(0xdc00 + ((code - 0x10000) & 0x3ff));
    } else {
      out += static_cast<char16_t>(code);
    }
    i += length;
  }
  return out;
}

void append_utf8(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  const int extra = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  out += static_cast<char>(((0xff00u >> (extra + 1)) & 0xff) | (code >> (6 * extra)));
  for (int k = extra - 1; k >= 0; --k) out += static_cast<char>(0x80 | ((code >> (6 * k)) & 0x3f));
}

// Walks one document; copies it to out_ in the style asked for.
class Scanner {
 public:
  Scanner(std::string_view text, Style style) : text_(text), style_(style) {}

  std::string rewrite() {
    space();
    value(0);
    end();
    return std::move(out_);
  }

  std::vector<JsonMember> members() {
    std::vector<JsonMember> out;
    std::set<std::string> seen;
    space();
    expect('{');
    sequence('}', [&] {
      JsonMember member;
      const std::size_t key_at = at_;
      string();
      member.key = json_unquote(text_.substr(key_at, at_ - key_at));
      if (!seen.insert(member.key).second) fail(fmt::format("key '{}' stands twice", member.key));
      colon();
      const std::size_t value_at = at_;
      value(1);
      member.value = text_.substr(value_at, at_ - value_at);
      out.push_back(std::move(member));
    });
    end();
    return out;
  }

  std::vector<std::string_view> elements() {
    std::vector<std::string_view> out;
    space();
    expect('[');
    sequence(']', [&] {
      const std::size_t value_at = at_;
      value(1);
      out.push_back(text_.substr(value_at, at_ - value_at));
    });
    end();
    return out;
  }

  // The whole input is one string literal.
  std::u16string units() {
    std::u16string out;
    string(&out);
    if (at_ != text_.size()) fail("text after the string");
    return out;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("JSON, byte {}: {}", at_, what));
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void put(std::string_view piece) {
    if (style_ != Style::kNone) out_ += piece;
  }
  void space() {
    while (at_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) {
      ++at_;
    }
  }
  void expect(char c) {
    if (peek() != c) fail(fmt::format("expected '{}'", c));
    ++at_;
    put(std::string_view(&c, 1));
  }
  void colon() {
    space();
    expect(':');
    if (style_ == Style::kPython) out_ += ' ';
    space();
  }
  void end() {
    space();
    if (at_ != text_.size()) fail("text after the end of the document");
  }

  // The rest of an array or object, its opening bracket read.
  template <class Item>
  void sequence(char close, Item item) {
    space();
    if (peek() == close) {
      expect(close);
      return;
    }
    for (;;) {
      item();
      space();
      if (peek() == close) break;
      expect(',');
      if (style_ == Style::kPython) out_ += ' ';
      space();
    }
    expect(close);
  }

  void value(int depth) {
    if (depth > kMaxDepth) fail("nested deeper than 100 levels");
    const char c = peek();
    if (c == '{') {
      expect('{');
      sequence('}', [&] {
        string();
        colon();
        value(depth + 1);
      });
    } else if (c == '[') {
      expect('[');
      sequence(']', [&] { value(depth + 1); });
    } else if (c == '"') {
      string();
    } else {
      for (const std::string_view word :
           {"true", "false", "null", "NaN", "Infinity", "-Infinity"}) {
        if (text_.substr(at_, word.size()) == word) {
          at_ += word.size();
          put(word);
          return;
        }
      }
      number();
    }
  }

  void digits() {
    if (!is_digit(peek())) fail("expected a value");
    while (is_digit(peek())) ++at_;
  }

  void number() {
    const std::size_t begin = at_;
    bool whole = true;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits();
    }
    if (peek() == '.') {
      whole = false;
      ++at_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const std::string_view token = text_.substr(begin, at_ - begin);
    if (style_ != Style::kPython) {
      put(token);
    } else if (whole) {
      out_ += token == "-0" ? "0" : token;  // Python reads -0 as the integer 0
    } else {
      out_ += python_float(std::string(token));
    }
  }

  static std::string python_float(const std::string& token) {
    const double number =
        std::strtod(token.c_str(), nullptr);  // too large is infinity, as in Python
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return python_float_repr(number);
  }

  char16_t hex_unit() {
    unsigned unit = 0;
    const std::string_view four = text_.substr(std::min(at_, text_.size()), 4);
    const auto [last, error] = std::from_chars(four.data(), four.data() + four.size(), unit, 16);
    if (four.size() != 4 || error != std::errc{} || last != four.data() + 4) {
      fail("\\u without four hexadecimal digits");
    }
    at_ += 4;
    return static_cast<char16_t>(unit);
  }

  void string(std::u16string* units = nullptr) {
    std::u16string collected;
    const std::size_t begin = at_;
    if (peek() != '"' || at_ >= text_.size()) fail("expected a string");
    ++at_;
    const bool collect = units != nullptr || style_ == Style::kPython;
    for (;;) {
      const std::size_t plain = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
             static_cast<std::uint8_t>(text_[at_]) >= 0x20) {
        ++at_;
      }
      const std::string_view piece = text_.substr(plain, at_ - plain);
      if (find_invalid_utf8(piece) != std::string_view::npos) fail("invalid UTF-8 in a string");
      if (collect) collected += to_utf16(piece);
      if (at_ >= text_.size()) fail("a string without its end");
      const char c = text_[at_++];
      if (c == '"') break;
      if (c != '\\') fail("a control character in a string");
      const char escape = peek();
      ++at_;
      constexpr std::string_view kEscapes = "\"\\/bfnrt";
      constexpr std::u16string_view kMeant = u"\"\\/\b\f\n\r\t";
      if (escape == 'u') {
        collected += hex_unit();
      } else if (const std::size_t which = kEscapes.find(escape);
                 which != std::string_view::npos && at_ <= text_.size()) {
        collected += kMeant[which];
      } else {
        fail("unknown escape in a string");
      }
    }
    if (style_ == Style::kCompact) out_ += text_.substr(begin, at_ - begin);
    if (style_ == Style::kPython) {
      out_ += '"';
      for (const char16_t unit : collected) append_ascii_unit(out_, unit);
      out_ += '"';
    }
    if (units != nullptr) *units = std::move(collected);
  }

  std::string_view text_;
  Style style_;
  std::size_t at_ = 0;
  std::string out_;
};

// Digits and exponent as Python lays them out: plain between 1e-4 and 1e16, else d.ddde+XX.
template <class Float>
std::string float_repr(Float value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char text[64];
  const auto result = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific);
  std::string digits(text, result.ptr);
  const std::size_t e = digits.find('e');
  const int exponent = std::stoi(digits.substr(e + 1));
  digits.resize(e);
  std::string sign;
  if (digits[0] == '-') {
    sign = "-";
    digits.erase(0, 1);
  }
  std::erase(digits, '.');
  if (exponent < -4 || exponent >= 16) {
    if (digits.size() > 1) digits.insert(1, ".");
    return fmt::format("{}{}e{}{:02}", sign, digits, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  }
  const std::size_t point = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= point) return sign + digits + std::string(point - digits.size(), '0') + ".0";
  return sign + digits.insert(point, ".");
}

}  // namespace

std::vector<JsonMember> split_json_object(std::string_view text) {
  return Scanner(text, Style::kNone).members();
}

std::vector<std::string_view> split_json_array(std::string_view text) {
  return Scanner(text, Style::kNone).elements();
}

std::string compact_json(std::string_view text) { return Scanner(text, Style::kCompact).rewrite(); }

std::string python_json(std::string_view text) { return Scanner(text, Style::kPython).rewrite(); }

std::string json_quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (static_cast<std::uint8_t>(c) >= 0x20 && c != '"' && c != '\\') {
      out += c;
    } else {
      append_ascii_unit(out, static_cast<char16_t>(c));
    }
  }
  return out + '"';
}

std::string json_quote_ascii(std::string_view text) {
  std::string out = "\"";
  for (const char16_t unit : to_utf16(text)) append_ascii_unit(out, unit);
  return out + '"';
}

std::string json_unquote(std::string_view literal) {
  // Most are of plain characters.
  const auto is_plain = [](char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; };
  if (literal.size() >= 2 && literal.front() == '"' && literal.back() == '"') {
    const std::string_view inner = literal.substr(1, literal.size() - 2);
    if (std::all_of(inner.begin(), inner.end(), is_plain)) return std::string(inner);
  }
  Scanner scanner(literal, Style::kNone);
  const std::u16string units = scanner.units();
  std::string out;
  for (std::size_t i = 0; i < units.size(); ++i) {
    std::uint32_t code = units[i];
    if (code >= 0xd800 && code < 0xe000) {
      const std::uint32_t low = i + 1 < units.size() ? units[i + 1] : 0;
      if (code >= 0xdc00 || low < 0xdc00 || low >= 0xe000) {
        scanner.fail("half of a surrogate pair in a string");
      }
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      ++i;
    }
    append_utf8(out, code);
  }
  return out;
}

std::string python_float_repr(double value) { return float_repr(value); }
std::string python_float_repr(float value) { return float_repr(value); }

}  // namespace dropless::train
