#include "train/data/sample_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "dropless/error.h"
#include "train/base/hash.h"
#include "train/base/utf8.h"
#include "train/data/json_text.h"

namespace dropless::train {
namespace {

[[noreturn]] void damaged(const std::string& reason) { throw Error(ErrorKind::kDamaged, reason); }
[[noreturn]] void refuse(const std::string& reason) {
  throw Error(ErrorKind::kInvalidArgument, reason);
}

std::string hex_of(std::string_view bytes) { return to_hex(bytes.data(), bytes.size()); }

// ---- numbers ----

// Python's int(text) of what str(int) gives; "-0" and leading zeros are straightened. Empty: not a
// number.
std::string canonical_int(std::string_view text) {
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || text.find_first_not_of("0123456789") != std::string_view::npos) return {};
  text.remove_prefix(std::min(text.find_first_not_of('0'), text.size() - 1));
  std::string out(negative && text != "0" ? "-" : "");
  return out.append(text);
}

// Python's float(text), without its white space and underscores. False: not a number.
bool parse_float(const std::string& text, double& value) {
  const std::string_view digits =
      std::string_view(text).substr(text.starts_with('-') || text.starts_with('+'));
  const bool word = digits == "inf" || digits == "nan" || digits == "infinity";
  // strtod alone would also take hexadecimal and other spellings of NaN.
  if (!word &&
      (digits.empty() || digits.find_first_not_of("0123456789.eE+-") != std::string_view::npos)) {
    return false;
  }
  char* end = nullptr;
  value = std::strtod(text.c_str(), &end);
  return end == text.c_str() + text.size();
}

bool is_decimal(std::string_view text) {
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  if (text == "Infinity") return true;
  for (const std::string_view nan : {"sNaN", "NaN"}) {
    if (text.starts_with(nan)) {
      return text.substr(nan.size()).find_first_not_of("0123456789") == std::string_view::npos;
    }
  }
  const std::size_t e = text.find_first_of("eE");
  std::string mantissa(text.substr(0, e));
  if (const std::size_t point = mantissa.find('.'); point != std::string::npos)
    mantissa.erase(point, 1);
  const bool exponent = e == std::string_view::npos || !canonical_int(text.substr(e + 1)).empty();
  return exponent && !mantissa.empty() &&
         mantissa.find_first_not_of("0123456789") == std::string::npos;
}

double half_value(std::uint16_t half) {
  const int exponent = (half >> 10) & 0x1f, fraction = half & 0x3ff;
  const double magnitude = exponent == 0x1f ? (fraction != 0 ? std::nan("") : HUGE_VAL)
                           : exponent == 0  ? std::ldexp(fraction, -24)
                                            : std::ldexp(fraction + 1024, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

// The fewest digits that still round to this half among all halves.
std::string half_repr(std::uint16_t half) {
  const double value = half_value(half);
  if (!std::isfinite(value) || value == 0) return python_float_repr(value);
  const std::uint16_t magnitude = half & 0x7fff;
  const double below = half_value(static_cast<std::uint16_t>(magnitude - 1));
  const double above =
      magnitude == 0x7bff ? 65536.0 : half_value(static_cast<std::uint16_t>(magnitude + 1));
  const double size = std::fabs(value);
  for (int digits = 1; digits < 6; ++digits) {
    const double rounded = std::strtod(fmt::format("{:.{}e}", size, digits - 1).c_str(), nullptr);
    if (rounded > (below + size) / 2 && rounded < (size + above) / 2) {
      return python_float_repr(std::copysign(rounded, value));
    }
  }
  return python_float_repr(value);
}

template <class T>
T load(std::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::string scalar_text(const NumpyType& type, std::string_view bytes) {
  if (type.code == 18) return half_repr(load<std::uint16_t>(bytes));
  if (type.code == 34) return python_float_repr(load<float>(bytes));
  if (type.code == 66) return python_float_repr(load<double>(bytes));
  if (type.code == 64) return std::to_string(load<std::uint64_t>(bytes));
  std::vector<std::int64_t> value;
  append_as_int64(type, bytes, value);
  return std::to_string(value[0]);
}

// ---- stored bytes -> typed value ----

std::string typed_value(const Encoding& encoding, std::string_view bytes) {
  if (encoding.fixed_size && bytes.size() != *encoding.fixed_size) {
    damaged(fmt::format("{} bytes instead of {}", bytes.size(), *encoding.fixed_size));
  }
  const auto tagged = [](const char* tag, const std::string& value) {
    return fmt::format("{{\"t\":\"{}\",\"v\":{}}}", tag, value);
  };
  switch (encoding.kind) {
    case EncodingKind::kBytes:
    case EncodingKind::kImage:
      return fmt::format("{{\"t\":\"bytes\",\"hex\":\"{}\"}}", hex_of(bytes));
    case EncodingKind::kStr:
      if (const std::size_t at = find_invalid_utf8(bytes); at != std::string_view::npos) {
        damaged(fmt::format("invalid UTF-8 at byte {}", at));
      }
      return tagged("str", json_quote(bytes));
    case EncodingKind::kInt:
      return tagged("int", json_quote(scalar_text(*encoding.type, bytes)));
    case EncodingKind::kScalar:
      return fmt::format("{{\"t\":\"{}\",\"v\":\"{}\",\"hex\":\"{}\"}}", encoding.name,
                         scalar_text(*encoding.type, bytes), hex_of(bytes));
    case EncodingKind::kStrInt: {
      const std::string number = canonical_int(bytes);
      if (number.empty()) damaged("not a whole number");
      return tagged("int", json_quote(number));
    }
    case EncodingKind::kStrFloat: {
      double value = 0;
      if (!parse_float(std::string(bytes), value)) damaged("not a number");
      return fmt::format("{{\"t\":\"float\",\"v\":\"{}\",\"hex\":\"{}\"}}",
                         python_float_repr(value), to_hex(&value, sizeof value));
    }
    case EncodingKind::kStrDecimal:
      if (!is_decimal(bytes)) damaged("not a decimal number");
      return tagged("decimal", json_quote(bytes));
    case EncodingKind::kJson:
      try {
        return tagged("json", compact_json(bytes));
      } catch (const Error& error) {
        damaged(error.what());
      }
    case EncodingKind::kArray: {
      const ArrayView array = decode_array(encoding, bytes);
      return fmt::format("{{\"t\":\"ndarray\",\"dtype\":\"{}\",\"shape\":[{}],\"hex\":\"{}\"}}",
                         array.type->name, fmt::join(array.shape, ","), hex_of(array.values));
    }
    case EncodingKind::kPickle:
      refuse("a pickle can run any code when it is loaded, so it is not decoded");
  }
  throw Error(ErrorKind::kInternal, "unknown encoding kind");
}

// ---- typed value -> stored bytes ----

class TypedValue {
 public:
  explicit TypedValue(std::string_view text) : members_(split_json_object(text)) {}

  std::optional<std::string_view> find(std::string_view key) const {
    for (const JsonMember& member : members_) {
      if (member.key == key) return member.value;
    }
    return std::nullopt;
  }
  std::string_view at(std::string_view key) const {
    const auto value = find(key);
    if (!value) refuse(fmt::format("no \"{}\"", key));
    return *value;
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> out;
    for (const JsonMember& member : members_) out.push_back(member.key);
    return out;
  }
  std::string text(std::string_view key) const { return json_unquote(at(key)); }
  // A number given as a string or as itself.
  std::string number(std::string_view key) const {
    const std::string_view value = at(key);
    return value.starts_with('"') ? json_unquote(value) : std::string(value);
  }
  std::optional<std::string> hex() const {
    if (!find("hex")) return std::nullopt;
    const std::string digits = text("hex");
    std::string bytes;
    if (digits.size() % 2 != 0) refuse("\"hex\" of odd length");
    for (std::size_t i = 0; i < digits.size(); i += 2) {
      unsigned byte = 0;
      const auto [end, error] = std::from_chars(&digits[i], digits.data() + i + 2, byte, 16);
      if (error != std::errc{} || end != digits.data() + i + 2)
        refuse("\"hex\" with other characters");
      bytes += static_cast<char>(byte);
    }
    return bytes;
  }

 private:
  std::vector<JsonMember> members_;
};

template <class T>
std::string store(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string scalar_bytes(const NumpyType& type, const TypedValue& value) {
  if (const auto hex = value.hex()) {
    if (hex->size() != type.bytes) refuse(fmt::format("{} bytes for a {}", hex->size(), type.name));
    return *hex;
  }
  const std::string text = value.number("v");
  if (!type.is_integer) {
    double number = 0;
    if (!parse_float(text, number)) refuse(fmt::format("'{}' is not a number", text));
    if (type.bytes == 2) refuse("a float16 is given by its \"hex\"");
    return type.bytes == 4 ? store(static_cast<float>(number)) : store(number);
  }
  const bool negative = text.starts_with('-');
  const std::string digits = canonical_int(negative ? text.substr(1) : text);
  std::uint64_t magnitude = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), magnitude);
  const std::uint64_t top = std::uint64_t{1} << (8 * type.bytes - 1);  // 2^(bits - 1)
  const std::uint64_t max = !type.is_signed ? (negative ? 0 : top - 1 + top)
                            : negative      ? top
                                            : top - 1;
  if (digits.empty() || result.ec != std::errc{} || magnitude > max) {
    refuse(fmt::format("'{}' is not an {}", text, type.name));
  }
  return store(negative ? std::uint64_t{0} - magnitude : magnitude).substr(0, type.bytes);
}

std::string array_bytes(const Encoding& encoding, const TypedValue& value) {
  ArrayView array;
  array.type = find_numpy_type(value.text("dtype"));
  if (array.type == nullptr) refuse(fmt::format("unknown dtype {}", value.at("dtype")));
  for (const std::string_view dim : split_json_array(value.at("shape"))) {
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(dim.data(), dim.data() + dim.size(), number);
    if (error != std::errc{} || end != dim.data() + dim.size())
      refuse("a shape of other than sizes");
    array.shape.push_back(number);
  }
  const std::string values = value.hex().value_or("");
  array.values = values;
  return encode_array(encoding, array);
}

// The tag under which typed_value shows this encoding.
std::string tag_of(const Encoding& encoding) {
  switch (encoding.kind) {
    case EncodingKind::kStr:
      return "str";
    case EncodingKind::kInt:
    case EncodingKind::kStrInt:
      return "int";
    case EncodingKind::kScalar:
      return encoding.name;
    case EncodingKind::kStrFloat:
      return "float";
    case EncodingKind::kStrDecimal:
      return "decimal";
    case EncodingKind::kJson:
      return "json";
    case EncodingKind::kArray:
      return "ndarray";
    default:
      return "bytes";
  }
}

std::string stored_bytes(const Encoding& encoding, const TypedValue& value) {
  const std::string tag = value.text("t");
  if (tag == "bytes") {
    auto bytes = value.hex();
    if (!bytes) refuse("bytes are given by their \"hex\"");
    return *bytes;
  }
  if (tag != tag_of(encoding))
    refuse(fmt::format("a value of type '{}' for encoding {}", tag, encoding.name));
  switch (encoding.kind) {
    case EncodingKind::kStr:
      return value.text("v");
    case EncodingKind::kInt:
    case EncodingKind::kScalar:
      return scalar_bytes(*encoding.type, value);
    case EncodingKind::kStrInt: {
      const std::string number = canonical_int(value.number("v"));
      if (number.empty()) refuse("not a whole number");
      return number;
    }
    case EncodingKind::kStrFloat:
      return python_float_repr(load<double>(scalar_bytes(*find_numpy_type("float64"), value)));
    case EncodingKind::kStrDecimal: {
      const std::string number = value.number("v");
      if (!is_decimal(number)) refuse("not a decimal number");
      return number;
    }
    case EncodingKind::kJson:
      return python_json(value.at("v"));
    default:
      return array_bytes(encoding, value);
  }
}

}  // namespace

std::string sample_line(std::span<const MdsColumn> columns,
                        std::span<const std::string_view> values, std::int64_t sample) {
  std::string line = "{";
  for (std::size_t i = 0; i < columns.size(); ++i) {
    try {
      line += fmt::format("{}{}:{}", i == 0 ? "" : ",", json_quote(columns[i].name),
                          typed_value(columns[i].encoding, values[i]));
    } catch (const Error& error) {
      throw Error(error.kind(),
                  fmt::format("sample {}, column '{}' of encoding {}: {}", sample, columns[i].name,
                              columns[i].encoding.name, error.what()),
                  "--raw prints the sizes and hashes of undecoded values");
    }
  }
  return line + "}";
}

std::string raw_sample_line(std::span<const MdsColumn> columns,
                            std::span<const std::string_view> values) {
  std::string line = "{";
  for (std::size_t i = 0; i < columns.size(); ++i) {
    line += fmt::format("{}{}:{{\"len\":{},\"sha256\":\"{}\"}}", i == 0 ? "" : ",",
                        json_quote(columns[i].name), values[i].size(), sha256_hex(values[i]));
  }
  return line + "}";
}

std::vector<std::string> encode_sample_line(std::span<const MdsColumn> columns,
                                            std::string_view line) {
  const TypedValue sample(line);
  for (const std::string& key : sample.keys()) {
    const bool known = std::any_of(columns.begin(), columns.end(),
                                   [&](const MdsColumn& column) { return column.name == key; });
    if (known) continue;
    std::vector<std::string> names;
    for (const MdsColumn& column : columns) names.push_back(fmt::format("'{}'", column.name));
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("'{}' is no column; the columns are {}", key, fmt::join(names, ", ")),
                "name it in --columns, or leave it out of the line");
  }
  std::vector<std::string> values;
  for (const MdsColumn& column : columns) {
    try {
      const auto value = sample.find(column.name);
      if (!value) refuse("missing");
      values.push_back(stored_bytes(column.encoding, TypedValue(*value)));
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("column '{}': {}", column.name, error.what()));
    }
  }
  return values;
}

}  // namespace dropless::train
