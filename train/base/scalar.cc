#include "train/base/scalar.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

namespace dropless::train {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Removes `_` between digits; nullopt where one stands elsewhere.
std::optional<std::string> without_underscores(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || !is_digit(text[i - 1]) || !is_digit(text[i + 1])) {
      return std::nullopt;
    }
  }
  return out;
}

bool one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  for (std::string_view word : words) {
    if (text == word) return true;
  }
  return false;
}

}  // namespace

bool is_null_text(std::string_view text) { return one_of(text, {"", "~", "null", "Null", "NULL"}); }

std::optional<bool> parse_bool_text(std::string_view text) {
  if (one_of(text, {"true", "True", "TRUE"})) return true;
  if (one_of(text, {"false", "False", "FALSE"})) return false;
  return std::nullopt;
}

bool is_yaml11_bool(std::string_view text) {
  std::string lower;
  for (char c : text) lower += (c >= 'A' && c <= 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
  return one_of(lower, {"yes", "no", "on", "off", "y", "n"});
}

std::optional<std::int64_t> parse_int_text(std::string_view text) {
  const std::optional<std::string> clean = without_underscores(text);
  if (!clean) return std::nullopt;
  std::string_view digits = *clean;
  bool negative = false;
  if (!digits.empty() && (digits[0] == '-' || digits[0] == '+')) {
    negative = digits[0] == '-';
    digits.remove_prefix(1);
  }
  int base = 10;
  if (digits.size() > 2 && digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'o')) {
    base = digits[1] == 'x' ? 16 : 8;
    digits.remove_prefix(2);
  } else if (digits.size() > 1 && digits[0] == '0') {
    return std::nullopt;
  }
  if (digits.empty() || digits[0] == '-') return std::nullopt;
  // The sign goes in front again, so that the smallest integer is read without overflow.
  const std::string signed_digits = (negative ? "-" : "") + std::string(digits);
  std::int64_t value = 0;
  const char* end = signed_digits.data() + signed_digits.size();
  const auto result = std::from_chars(signed_digits.data(), end, value, base);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return value;
}

std::optional<double> parse_float_text(std::string_view text) {
  const std::optional<std::string> clean = without_underscores(text);
  if (!clean) return std::nullopt;
  std::string_view body = *clean;
  bool negative = false;
  if (!body.empty() && (body[0] == '-' || body[0] == '+')) {
    negative = body[0] == '-';
    body.remove_prefix(1);
  }
  const double sign = negative ? -1.0 : 1.0;
  if (one_of(body, {".inf", ".Inf", ".INF"})) {
    return sign * std::numeric_limits<double>::infinity();
  }
  if (one_of(text, {".nan", ".NaN", ".NAN"})) return std::numeric_limits<double>::quiet_NaN();
  if (body.empty() || (!is_digit(body[0]) && body[0] != '.')) return std::nullopt;
  if (body.size() > 1 && body[0] == '0' && is_digit(body[1])) return std::nullopt;
  if (body.size() > 1 && (body[1] == 'x' || body[1] == 'o')) {
    const std::optional<std::int64_t> whole = parse_int_text(text);
    return whole ? std::optional<double>(static_cast<double>(*whole)) : std::nullopt;
  }
  double value = 0;
  const char* end = body.data() + body.size();
  const auto result = std::from_chars(body.data(), end, value, std::chars_format::general);
  if (result.ptr != end || result.ec == std::errc::invalid_argument) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) {
    // from_chars does not tell 1e999 from 1e-999. None of the two is 0.
    const double rounded = std::strtod(std::string(body).c_str(), nullptr);
    value = std::max(rounded, std::numeric_limits<double>::denorm_min());
  }
  return sign * value;
}

}  // namespace dropless::train
