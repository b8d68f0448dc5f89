#include "train/base/json.h"

#include <fmt/format.h>

#include <set>
#include <vector>

namespace dropless::train {
namespace {

constexpr std::size_t kMaxDepth = 100;

// nlohmann's text without its "[json.exception.parse_error.101] " in front.
std::string plain_message(const std::exception& error) {
  const std::string text = error.what();
  const std::size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& name, ErrorKind kind) {
  const auto fail = [&](const std::string& message) {
    throw Error(kind, fmt::format("{}: {}", name, message));
  };
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) fail("it is empty");
  if (text.substr(0, 3) == "\xef\xbb\xbf") fail("begins with a byte-order mark");
  if (text.find('\0') != std::string_view::npos) fail("holds a NUL byte");

  std::vector<std::set<std::string>> keys;  // of the open objects; arrays hold an empty set
  using Event = nlohmann::json::parse_event_t;
  const auto watch = [&](int, Event event, nlohmann::json& parsed) {
    if (event == Event::object_start || event == Event::array_start) {
      keys.emplace_back();
      if (keys.size() > kMaxDepth) fail(fmt::format("nested deeper than {} levels", kMaxDepth));
    } else if (event == Event::object_end || event == Event::array_end) {
      keys.pop_back();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) fail(fmt::format("key \"{}\" stands twice", key));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, watch);
  } catch (const nlohmann::json::exception& error) {
    fail(plain_message(error));
  }
  return {};
}

}  // namespace dropless::train
