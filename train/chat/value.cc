#include "train/chat/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "dropless/error.h"

namespace dropless::train::chat {
namespace {

[[noreturn]] void unsupported(const std::string& what) {
  throw Error(ErrorKind::kUnsupported, what);
}

// bool is an int in Python.
std::optional<std::int64_t> number(const Value& value) {
  if (const auto* flag = value.get<bool>()) return *flag ? 1 : 0;
  if (const auto* integer = value.get<std::int64_t>()) return *integer;
  return std::nullopt;
}

std::uint32_t code_point(const std::string& character) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0);
  std::uint32_t code = byte(0) & (0xFF >> (character.size() + 1));
  for (std::size_t i = 1; i < character.size(); ++i) code = code << 6 | (byte(i) & 0x3F);
  return code;
}

// Python's str.isspace of one character.
bool is_space(const std::string& character) {
  const std::uint32_t c = code_point(character);
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::int64_t length_of(const Value& whole) {
  if (const List* list = whole.list()) return static_cast<std::int64_t>(list->size());
  return static_cast<std::int64_t>(characters(*whole.string()).size());
}

void hold(Value& whole, const Value& element, std::size_t own_bytes = 0) {
  require_no_namespace(element);
  whole.bytes += kElementBytes + own_bytes + element.bytes;
  whole.height = std::max(whole.height, element.height + 1);
  require_bytes(whole.bytes);
  if (whole.height > kMostHeight) unsupported("a value so deep");
}

}  // namespace

void require_no_namespace(const Value& element) {
  if (element.get<std::shared_ptr<Namespace>>()) unsupported("a namespace in another value");
}

void require_bytes(std::size_t bytes) {
  if (bytes > kMostBytes) unsupported("a value of more than 16 MB");
}

Value::Value(std::string text) : data(std::move(text)), bytes(string()->size()) {
  require_bytes(bytes);
}
Value::Value(List list) {
  for (const Value& element : list) hold(*this, element);
  data = std::make_shared<const List>(std::move(list));
}
Value::Value(Dict dict) {
  for (const auto& [key, element] : dict) hold(*this, element, key.size());
  data = std::make_shared<const Dict>(std::move(dict));
}

const char* type_of(const Value& value) {
  static constexpr const char* kNames[] = {"undefined", "none", "bool",    "int",
                                           "string",    "list", "mapping", "namespace"};
  return kNames[value.data.index()];
}

bool truth(const Value& value) {
  if (const auto integer = number(value)) return *integer != 0;
  if (const std::string* text = value.string()) return !text->empty();
  if (const List* list = value.list()) return !list->empty();
  if (const Dict* dict = value.dict()) return !dict->empty();
  return value.get<std::shared_ptr<Namespace>>() != nullptr;
}

bool equal(const Value& a, const Value& b) {
  const auto x = number(a), y = number(b);
  if (x || y) return x == y;
  if (a.data.index() != b.data.index()) return false;
  if (const std::string* text = a.string()) return *text == *b.string();
  if (const List* list = a.list()) {
    return std::equal(list->begin(), list->end(), b.list()->begin(), b.list()->end(), equal);
  }
  if (a.dict()) unsupported("mappings are not compared");
  return a.undefined() || a.get<None>();
}

bool less(const Value& a, const Value& b) {
  const auto x = number(a), y = number(b);
  if (x && y) return *x < *y;
  if (a.string() && b.string()) return *a.string() < *b.string();
  unsupported(fmt::format("{} and {} are not ordered", type_of(a), type_of(b)));
}

bool contains(const Value& whole, const Value& part) {
  if (whole.undefined()) return false;
  if (const List* list = whole.list()) {
    return std::any_of(list->begin(), list->end(), [&](const Value& v) { return equal(v, part); });
  }
  const std::string* name = part.string();
  if (whole.string() && name) return whole.string()->find(*name) != std::string::npos;
  if (const Dict* dict = whole.dict()) {
    if (!name) return false;
    return std::any_of(dict->begin(), dict->end(), [&](const auto& e) { return e.first == *name; });
  }
  unsupported(fmt::format("`in` of {} in {}", type_of(part), type_of(whole)));
}

std::string to_text(const Value& value) {
  if (const std::string* text = value.string()) return *text;
  if (value.undefined()) return {};
  if (value.get<None>()) return "None";
  if (const auto* flag = value.get<bool>()) return *flag ? "True" : "False";
  if (const auto* integer = value.get<std::int64_t>()) return std::to_string(*integer);
  unsupported(fmt::format("a {} as text", type_of(value)));
}

std::string to_json(const Value& value) {
  if (value.get<None>()) return "null";
  if (const auto* flag = value.get<bool>()) return *flag ? "true" : "false";
  if (const auto* integer = value.get<std::int64_t>()) return std::to_string(*integer);
  if (const std::string* text = value.string()) return nlohmann::json(*text).dump();
  std::string json;
  if (const List* list = value.list()) {
    for (const Value& element : *list) json += (json.empty() ? "" : ", ") + to_json(element);
    return "[" + json + "]";
  }
  if (const Dict* dict = value.dict()) {
    for (const auto& [key, element] : *dict) {
      json += (json.empty() ? "" : ", ") + nlohmann::json(key).dump() + ": " + to_json(element);
    }
    return "{" + json + "}";
  }
  unsupported(fmt::format("a {} as JSON", type_of(value)));
}

Value item(const Value& whole, const Value& key) {
  if (const Dict* dict = whole.dict()) {
    const std::string* name = key.string();
    if (!name) return Undefined{to_text(key)};
    for (const auto& [known, value] : *dict) {
      if (known == *name) return value;
    }
    return Undefined{*name};
  }
  if (const auto* space = whole.get<std::shared_ptr<Namespace>>()) {
    const auto found = (*space)->find(to_text(key));
    return found == (*space)->end() ? Value(Undefined{to_text(key)}) : found->second;
  }
  const auto index = number(key);
  if (!index || (!whole.list() && !whole.string())) {
    unsupported(fmt::format(
        "[{}] of {}", key.string() ? "'" + *key.string() + "'" : type_of(key),
        whole.undefined() ? "the undefined " + whole.get<Undefined>()->name : type_of(whole)));
  }
  const std::int64_t length = length_of(whole), i = *index < 0 ? *index + length : *index;
  if (i < 0 || i >= length) return Undefined{fmt::format("element {}", *index)};
  if (const List* list = whole.list()) return (*list)[static_cast<std::size_t>(i)];
  return characters(*whole.string())[static_cast<std::size_t>(i)];
}

Value slice(const Value& whole, const Value& begin, const Value& end, const Value& step) {
  if (!whole.list() && !whole.string()) unsupported(fmt::format("a slice of {}", type_of(whole)));
  const auto bound = [](const Value& value) {
    if (value.undefined() || value.get<None>()) return std::optional<std::int64_t>();
    const auto integer = number(value);
    if (!integer) unsupported(fmt::format("a slice up to {}", type_of(value)));
    return integer;
  };
  const std::int64_t length = length_of(whole), by = bound(step).value_or(1);
  if (by == 0) unsupported("a slice of step 0");
  // Python's slice.indices().
  const std::int64_t low = by > 0 ? 0 : -1, high = by > 0 ? length : length - 1;
  const auto clip = [&](std::optional<std::int64_t> i, std::int64_t otherwise) {
    if (!i) return otherwise;
    return std::clamp(*i < 0 ? *i + length : *i, low, high);
  };
  const std::int64_t first = clip(bound(begin), by > 0 ? low : high);
  const std::int64_t last = clip(bound(end), by > 0 ? high : low);
  std::vector<std::string> letters;
  if (whole.string()) letters = characters(*whole.string());
  List list;
  std::string text;
  for (std::int64_t i = first; by > 0 ? i < last : i > last; i += by) {
    if (whole.list()) {
      list.push_back((*whole.list())[static_cast<std::size_t>(i)]);
    } else {
      text += letters[static_cast<std::size_t>(i)];
    }
  }
  return whole.list() ? Value(std::move(list)) : Value(std::move(text));
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> all;
  for (const char byte : text) {
    if (!all.empty() && (static_cast<unsigned char>(byte) & 0xC0) == 0x80) {
      all.back() += byte;
    } else {
      all.emplace_back(1, byte);
    }
  }
  return all;
}

std::string strip(const std::string& text, bool left, bool right, const std::string* set) {
  const std::vector<std::string> letters = characters(text);
  const std::vector<std::string> chosen = set ? characters(*set) : std::vector<std::string>();
  const auto goes = [&](const std::string& letter) {
    return set ? std::find(chosen.begin(), chosen.end(), letter) != chosen.end() : is_space(letter);
  };
  std::size_t first = 0, end = letters.size();
  while (left && first < end && goes(letters[first])) ++first;
  while (right && end > first && goes(letters[end - 1])) --end;
  std::string kept;
  for (std::size_t i = first; i < end; ++i) kept += letters[i];
  return kept;
}

}  // namespace dropless::train::chat
