#include "train/chat/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
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

bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

std::uint32_t code_point(std::string_view character) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0);
  std::uint32_t code = byte(0) & (0xFF >> (character.size() + 1));
  for (std::size_t i = 1; i < character.size(); ++i) code = code << 6 | (byte(i) & 0x3F);
  return code;
}

// Python's str.isspace of one character.
bool is_space(std::string_view character) {
  const std::uint32_t c = code_point(character);
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// Of the character that begins at `at`.
std::size_t character_bytes(std::string_view text, std::size_t at) {
  std::size_t end = at + 1;
  while (end < text.size() && continues(text[end])) ++end;
  return end - at;
}

// Of the character that is the n-th after the one at `from`, or of the end.
std::size_t place_of(std::string_view text, std::size_t from, std::int64_t n) {
  while (n > 0 && from < text.size()) {
    from += character_bytes(text, from);
    --n;
  }
  return from;
}

void append_json(const Value& value, std::string& json) {
  require_bytes(json.size());
  if (value.get<None>()) {
    json += "null";
  } else if (const auto* flag = value.get<bool>()) {
    json += *flag ? "true" : "false";
  } else if (const auto* integer = value.get<std::int64_t>()) {
    json += std::to_string(*integer);
  } else if (const std::string* text = value.string()) {
    json += nlohmann::json(*text).dump();
  } else if (const List* list = value.list()) {
    for (const Value& element : *list) {
      json += &element == list->data() ? "[" : ", ";
      append_json(element, json);
    }
    json += list->empty() ? "[]" : "]";
  } else if (const Dict* dict = value.dict()) {
    for (const auto& entry : *dict) {
      json += &entry == dict->data() ? "{" : ", ";
      json += nlohmann::json(entry.first).dump() + ": ";
      append_json(entry.second, json);
    }
    json += dict->empty() ? "{}" : "}";
  } else {
    unsupported(fmt::format("a {} as JSON", type_of(value)));
  }
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

Value::Value(std::string text) : bytes(text.size()) {
  require_bytes(bytes);
  data = std::make_shared<const std::string>(std::move(text));
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

std::int64_t length_of(const Value& whole) {
  if (const List* list = whole.list()) return static_cast<std::int64_t>(list->size());
  if (const Dict* dict = whole.dict()) return static_cast<std::int64_t>(dict->size());
  if (!whole.string()) unsupported(fmt::format("going through a {}", type_of(whole)));
  return static_cast<std::int64_t>(count_characters(*whole.string()));
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
  unsupported(fmt::format("an order of {} and {}", type_of(a), type_of(b)));
}

bool contains(const Value& whole, const Value& part) {
  if (whole.undefined()) return false;
  if (const List* list = whole.list()) {
    return std::any_of(list->begin(), list->end(), [&](const Value& v) { return equal(v, part); });
  }
  const std::string* name = part.string();
  if (whole.string() && name) return find_text(*whole.string(), *name) != std::string::npos;
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
  std::string json;
  append_json(value, json);
  return json;
}

Value item(const Value& whole, const Value& key) {
  if (const Dict* dict = whole.dict()) {
    const std::string* name = key.string();
    if (!name) return Undefined(to_text(key));
    for (const auto& [known, value] : *dict) {
      if (known == *name) return value;
    }
    return Undefined(*name);
  }
  if (const auto* space = whole.get<std::shared_ptr<Namespace>>()) {
    const auto found = (*space)->find(to_text(key));
    return found == (*space)->end() ? Value(Undefined(to_text(key))) : found->second;
  }
  const auto index = number(key);
  if (!index || (!whole.list() && !whole.string())) {
    unsupported(fmt::format(
        "[{}] of {}", key.string() ? "'" + *key.string() + "'" : type_of(key),
        whole.undefined() ? "the undefined " + whole.get<Undefined>()->name : type_of(whole)));
  }
  const std::int64_t length = length_of(whole), i = *index < 0 ? *index + length : *index;
  if (i < 0 || i >= length) return Undefined(fmt::format("element {}", *index));
  if (const List* list = whole.list()) return (*list)[static_cast<std::size_t>(i)];
  const std::string& text = *whole.string();
  const std::size_t at = place_of(text, 0, i);
  return text.substr(at, character_bytes(text, at));
}

Value slice(const Value& whole, const Value& begin, const Value& end, const Value& step) {
  if (!whole.list() && !whole.string()) unsupported(fmt::format("a slice of {}", type_of(whole)));
  const auto bound = [](const Value& value) {
    if (value.undefined() || value.get<None>()) return std::optional<std::int64_t>();
    const auto integer = number(value);
    if (!integer) unsupported(fmt::format("a slice up to {}", type_of(value)));
    return integer;
  };
  const std::int64_t length = length_of(whole);
  const std::int64_t by = std::clamp(bound(step).value_or(1), -kMostInteger / 2, kMostInteger / 2);
  if (by == 0) unsupported("a slice of step 0");
  // Python's slice.indices().
  const std::int64_t low = by > 0 ? 0 : -1, high = by > 0 ? length : length - 1;
  const auto clip = [&](std::optional<std::int64_t> i, std::int64_t otherwise) {
    if (!i) return otherwise;
    return std::clamp(*i < 0 ? *i + length : *i, low, high);
  };
  const std::int64_t first = clip(bound(begin), by > 0 ? low : high);
  const std::int64_t last = clip(bound(end), by > 0 ? high : low);
  if (whole.string() && by == 1) {
    const std::size_t from = place_of(*whole.string(), 0, std::min(first, last));
    const std::size_t to = place_of(*whole.string(), from, std::max<std::int64_t>(last - first, 0));
    return whole.string()->substr(from, to - from);
  }
  std::vector<std::uint32_t> places;
  if (whole.string()) places = character_places(*whole.string());
  List list;
  std::string text;
  for (std::int64_t i = first; by > 0 ? i < last : i > last; i += by) {
    if (whole.list()) {
      list.push_back((*whole.list())[static_cast<std::size_t>(i)]);
    } else {
      const std::uint32_t* place = &places[static_cast<std::size_t>(i)];
      text.append(*whole.string(), place[0], place[1] - place[0]);
    }
  }
  return whole.list() ? Value(std::move(list)) : Value(std::move(text));
}

std::size_t count_characters(std::string_view text) {
  return text.size() - static_cast<std::size_t>(std::count_if(text.begin(), text.end(), continues));
}

std::vector<std::uint32_t> character_places(std::string_view text) {
  std::vector<std::uint32_t> places;
  places.reserve(count_characters(text) + 1);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!continues(text[i])) places.push_back(static_cast<std::uint32_t>(i));
  }
  places.push_back(static_cast<std::uint32_t>(text.size()));
  return places;
}

std::size_t find_text(std::string_view text, std::string_view part, std::size_t from) {
  if (from > text.size()) return std::string_view::npos;
  // string_view::find takes the product of the sizes at worst.
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  if (!found) return std::string_view::npos;
  return static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

std::string strip(const std::string& text, bool left, bool right, const std::string* set) {
  const std::string_view view = text;
  std::vector<bool> chosen(set ? 0x110000 : 0);  // by code point
  for (std::size_t at = 0, size; set && at < set->size(); at += size) {
    size = character_bytes(*set, at);
    chosen[code_point(std::string_view(*set).substr(at, size))] = true;
  }
  const auto goes = [&](std::string_view character) {
    return set ? chosen[code_point(character)] : is_space(character);
  };
  std::size_t first = 0, end = text.size();
  while (left && first < end) {
    const std::size_t size = character_bytes(view, first);
    if (!goes(view.substr(first, size))) break;
    first += size;
  }
  while (right && end > first) {
    std::size_t begin = end - 1;
    while (begin > first && continues(view[begin])) --begin;
    if (!goes(view.substr(begin, end - begin))) break;
    end = begin;
  }
  return text.substr(first, end - first);
}

}  // namespace dropless::train::chat
