#include "train/base/time.h"

#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <optional>
#include <string_view>

#include "dropless/error.h"
#include "train/base/scalar.h"

namespace dropless::train {
namespace {

constexpr TimeUnit kUnits[] = {TimeUnit::kIteration, TimeUnit::kEpoch, TimeUnit::kBatch,
                               TimeUnit::kSample,    TimeUnit::kToken, TimeUnit::kDuration,
                               TimeUnit::kSecond};

[[noreturn]] void fail(const std::string& text, const std::string& why) {
  throw Error(ErrorKind::kInvalidArgument, fmt::format("\"{}\" is not a time: {}", text, why),
              "write 10ba, 1ep, 500sp, 3e4tok, 0.02dur, 90sec or 1h30m10s");
}

std::string_view trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") + 1 - begin);
}

// "1h30m10s" in seconds: hours, minutes, seconds in this order, each at most once, at least one.
std::optional<double> parse_clock(const std::string& text) {
  double total = 0;
  std::size_t at = 0;
  bool any = false;
  for (const auto& [letter, seconds] : {std::pair{'h', 3600.0}, {'m', 60.0}, {'s', 1.0}}) {
    std::size_t end = at;
    while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end]))) ++end;
    if (end == at || end == text.size() || text[end] != letter) continue;
    const std::optional<double> value = parse_float_text(text.substr(at, end - at));
    if (!value) return std::nullopt;
    total += *value * seconds;
    at = end + 1;
    any = true;
  }
  return any && at == text.size() ? std::optional<double>(total) : std::nullopt;
}

}  // namespace

const char* time_unit_suffix(TimeUnit unit) {
  switch (unit) {
    case TimeUnit::kBatch:
      return "ba";
    case TimeUnit::kEpoch:
      return "ep";
    case TimeUnit::kSample:
      return "sp";
    case TimeUnit::kToken:
      return "tok";
    case TimeUnit::kDuration:
      return "dur";
    case TimeUnit::kSecond:
      return "sec";
    case TimeUnit::kIteration:
      return "iter";
  }
  return "";
}

Time Time::parse(const std::string& text) {
  std::string lower(trim(text));
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (const std::optional<double> seconds = parse_clock(lower))
    return {*seconds, TimeUnit::kSecond};

  TimeUnit unit = TimeUnit::kEpoch;  // of a bare number
  std::string number = lower;
  for (const TimeUnit candidate : kUnits) {
    const std::string suffix = time_unit_suffix(candidate);
    if (lower.size() > suffix.size() && lower.ends_with(suffix)) {
      unit = candidate;
      number = lower.substr(0, lower.size() - suffix.size());
      break;
    }
  }
  const std::optional<double> value = parse_float_text(trim(number));
  if (!value || std::isnan(*value)) {
    const std::string_view rest = std::string_view(number).substr(
        std::min(number.size(), number.find_first_not_of("0123456789.")));
    fail(text, rest.empty() || rest.size() == number.size()
                   ? "no number and unit in it"
                   : fmt::format("\"{}\" is no unit", rest));
  }
  if (*value < 0) fail(text, "it is negative");
  if (std::isinf(*value)) fail(text, "it is too large");
  if (unit == TimeUnit::kDuration || unit == TimeUnit::kSecond) return {*value, unit};
  if (*value != std::floor(*value)) fail(text, "only dur and sec take fractions");
  // Beyond 2^53 a double no longer counts one by one.
  if (*value > 9007199254740992.0) fail(text, "it is too large");
  return {*value, unit};
}

std::string Time::str() const { return fmt::format("{}{}", value, time_unit_suffix(unit)); }

}  // namespace dropless::train
