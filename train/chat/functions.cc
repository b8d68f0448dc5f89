#include "train/chat/functions.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <iterator>
#include <optional>

#include "dropless/error.h"

namespace dropless::train::chat {
namespace {

[[noreturn]] void unsupported(const std::string& what) {
  throw Error(ErrorKind::kUnsupported, what);
}

// The arguments by position, of which there are from `least` to `most`.
std::vector<Value> positional(const std::string& name, const Arguments& arguments,
                              std::size_t least, std::size_t most) {
  std::vector<Value> values;
  for (const NamedValue& argument : arguments) {
    if (!argument.keyword.empty()) {
      unsupported(fmt::format("the argument {} of {}", argument.keyword, name));
    }
    values.push_back(argument.value);
  }
  if (values.size() < least || values.size() > most) {
    unsupported(fmt::format("{} with {} arguments", name, values.size()));
  }
  return values;
}

const std::string& text_of(const std::string& name, const Value& value) {
  if (!value.string()) unsupported(fmt::format("{} with a {}", name, type_of(value)));
  return *value.string();
}

std::int64_t integer_of(const std::string& name, const Value& value) {
  const auto* integer = value.get<std::int64_t>();
  if (!integer) unsupported(fmt::format("{} with a {}", name, type_of(value)));
  return *integer;
}

// Other alphabets have rules of their own.
std::string changed_case(const std::string& name, std::string text, bool upper) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) unsupported(name + " of a text beyond ASCII");
    if (upper && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    if (!upper && c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

List split(const std::string& text, const std::string& separator, std::int64_t most) {
  if (separator.empty()) unsupported("split with an empty separator");
  List parts;
  std::size_t from = 0;
  while (most < 0 || static_cast<std::int64_t>(parts.size()) < most) {
    const std::size_t at = find_text(text, separator, from);
    if (at == std::string::npos) break;
    parts.emplace_back(text.substr(from, at - from));
    require_bytes(parts.size() * kElementBytes);
    from = at + separator.size();
  }
  parts.emplace_back(text.substr(from));
  return parts;
}

std::string replace(const std::string& text, const std::string& old, const std::string& with) {
  if (old.empty()) unsupported("replace of an empty text");
  std::string out;
  std::size_t from = 0;
  for (std::size_t at; (at = find_text(text, old, from)) != std::string::npos;
       from = at + old.size()) {
    out.append(text, from, at - from) += with;
    require_bytes(out.size());
  }
  return out.append(text, from);
}

std::string join(const List& list, const std::string& separator) {
  std::string text;
  for (std::size_t i = 0; i < list.size(); ++i) {
    text += (i > 0 ? separator : "") + to_text(list[i]);
    require_bytes(text.size());
  }
  return text;
}

Value range(const std::vector<Value>& bounds) {
  const auto at = [&](std::size_t i) { return integer_of("range", bounds[i]); };
  const std::int64_t first = bounds.size() > 1 ? at(0) : 0, end = bounds.size() > 1 ? at(1) : at(0);
  const std::int64_t step = bounds.size() > 2 ? at(2) : 1;
  constexpr std::int64_t kMost = 100'000;  // as in Jinja's sandbox
  if (step == 0 || std::abs(end - first) > kMost || std::abs(step) > kMost) {
    unsupported("such a range");
  }
  List list;
  for (std::int64_t i = first; step > 0 ? i < end : i > end; i += step) list.emplace_back(i);
  return list;
}

// The local time, by strftime.
std::string now(const std::string& format) {
  const std::time_t seconds = std::time(nullptr);
  std::tm parts{};
  localtime_r(&seconds, &parts);
  char text[256];
  const std::size_t size = std::strftime(text, sizeof(text), format.c_str(), &parts);
  if (size == 0) unsupported("strftime_now('" + format + "')");
  return {text, size};
}

Value string_method(const std::string& text, const std::string& name, const Arguments& arguments) {
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const auto values = positional(name, arguments, 0, 1);
    const std::string* set = values.empty() ? nullptr : &text_of(name, values[0]);
    return strip(text, name != "rstrip", name != "lstrip", set);
  }
  if (name == "upper" || name == "lower") {
    positional(name, arguments, 0, 0);
    return changed_case(name, text, name == "upper");
  }
  if (name == "startswith") {
    return text.starts_with(text_of(name, positional(name, arguments, 1, 1)[0]));
  }
  if (name == "endswith") {
    return text.ends_with(text_of(name, positional(name, arguments, 1, 1)[0]));
  }
  if (name == "split") {
    const auto values = positional(name, arguments, 1, 2);
    const std::int64_t most = values.size() > 1 ? integer_of(name, values[1]) : -1;
    return split(text, text_of(name, values[0]), most);
  }
  if (name == "replace") {
    const auto values = positional(name, arguments, 2, 2);
    return replace(text, text_of(name, values[0]), text_of(name, values[1]));
  }
  if (name == "join") {
    return join(iterate(positional(name, arguments, 1, 1)[0]), text);
  }
  unsupported("the method " + name + " of a string");
}

Value dict_method(const Dict& dict, const std::string& name, const Arguments& arguments) {
  List list;
  if (name == "get") {
    const auto values = positional(name, arguments, 1, 2);
    const Value found = item(dict, values[0]);
    if (!found.undefined()) return found;
    return values.size() > 1 ? values[1] : Value(None{});
  }
  positional(name, arguments, 0, 0);
  for (const auto& [key, value] : dict) {
    if (name == "items") list.emplace_back(List{key, value});
    if (name == "keys") list.emplace_back(key);
    if (name == "values") list.push_back(value);
  }
  if (name != "items" && name != "keys" && name != "values") {
    unsupported("the method " + name + " of a mapping");
  }
  return list;
}

// Those elements whose attribute passes (or, `rejects`, fails) a test.
Value select(const std::string& name, const Value& value, const Arguments& arguments,
             bool rejects) {
  const auto values = positional(name, arguments, 1, 3);
  const std::string& attribute = text_of(name, values[0]);
  if (attribute.find('.') != std::string::npos) unsupported(name + " of " + attribute);
  List kept;
  for (const Value& element : iterate(value)) {
    const Value subject = item(element, attribute);
    bool passes = truth(subject);
    if (values.size() > 1) {
      Arguments rest;
      if (values.size() > 2) rest.push_back({{}, values[2]});
      passes = apply_test(text_of(name, values[1]), subject, rest);
    }
    if (passes != rejects) kept.push_back(element);
  }
  return kept;
}

// With an indent, json.dumps writes a line an element.
Value json_filter(const Value& value, const Arguments& arguments) {
  for (const NamedValue& argument : arguments) {
    if (!argument.value.get<None>()) unsupported("tojson with " + argument.keyword);
  }
  return to_json(value);
}

}  // namespace

bool is_function(const std::string& name) {
  return name == "raise_exception" || name == "namespace" || name == "range" ||
         name == "strftime_now";
}

bool is_method(const std::string& name) {
  static constexpr const char* kMethods[] = {"clear",      "copy",   "fromkeys", "get",
                                             "items",      "keys",   "pop",      "popitem",
                                             "setdefault", "update", "values"};
  return std::find(std::begin(kMethods), std::end(kMethods), name) != std::end(kMethods);
}

List iterate(const Value& whole) {
  if (const List* list = whole.list()) return *list;
  List elements;
  if (const Dict* dict = whole.dict()) {
    for (const auto& [key, value] : *dict) elements.emplace_back(key);
    return elements;
  }
  if (!whole.string()) unsupported(fmt::format("going through a {}", type_of(whole)));
  const std::string& text = *whole.string();
  const std::vector<std::uint32_t> places = character_places(text);
  require_bytes((places.size() - 1) * kElementBytes);
  for (std::size_t i = 0; i + 1 < places.size(); ++i) {
    elements.emplace_back(text.substr(places[i], places[i + 1] - places[i]));
  }
  return elements;
}

Value call_function(const std::string& name, const Arguments& arguments) {
  if (name == "namespace") {
    const auto space = std::make_shared<Namespace>();
    for (const NamedValue& argument : arguments) {
      if (argument.keyword.empty()) unsupported("namespace of a value without a name");
      require_no_namespace(argument.value);
      (*space)[argument.keyword] = argument.value;
    }
    return space;
  }
  if (name == "range") return range(positional(name, arguments, 1, 3));
  const std::string text = text_of(name, positional(name, arguments, 1, 1)[0]);
  if (name == "strftime_now") return now(text);
  throw Error(ErrorKind::kInvalidArgument, "the chat template refuses these messages: " + text);
}

Value call_method(const Value& whole, const std::string& name, const Arguments& arguments) {
  if (whole.string()) return string_method(*whole.string(), name, arguments);
  if (whole.dict()) return dict_method(*whole.dict(), name, arguments);
  unsupported(fmt::format(
      "the method {} of {}", name,
      whole.undefined() ? "the undefined " + whole.get<Undefined>()->name : type_of(whole)));
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "default" || name == "d") {
    const auto values = positional(name, arguments, 0, 2);
    const bool falsy_too = values.size() > 1 && truth(values[1]);
    if (!value.undefined() && !(falsy_too && !truth(value))) return value;
    return values.empty() ? Value("") : values[0];
  }
  if (value.undefined()) {
    unsupported(fmt::format("{} of the undefined {}", name, value.get<Undefined>()->name));
  }
  if (name == "tojson") return json_filter(value, arguments);
  if (name == "selectattr") return select(name, value, arguments, false);
  if (name == "rejectattr") return select(name, value, arguments, true);
  if (name == "trim") {
    const auto values = positional(name, arguments, 0, 1);
    return strip(to_text(value), true, true, values.empty() ? nullptr : &text_of(name, values[0]));
  }
  if (name == "replace") {
    const auto values = positional(name, arguments, 2, 2);
    return replace(text_of(name, value), text_of(name, values[0]), text_of(name, values[1]));
  }
  if (name == "join") {
    const auto values = positional(name, arguments, 0, 1);
    return join(iterate(value), values.empty() ? "" : text_of(name, values[0]));
  }
  positional(name, arguments, 0, 0);
  if (name == "string") return to_text(value);
  if (name == "safe") return value;
  if (name == "upper" || name == "lower") {
    return changed_case(name, text_of(name, value), name == "upper");
  }
  if (name == "list") return iterate(value);
  if (name == "items" && value.dict()) return dict_method(*value.dict(), name, {});
  if (name == "length" || name == "count") return length_of(value);
  if (name == "first" || name == "last") {
    if (length_of(value) == 0) return Undefined(name);
    if (const Dict* dict = value.dict()) {
      return name == "first" ? dict->front().first : dict->back().first;
    }
    return item(value, std::int64_t{name == "first" ? 0 : -1});
  }
  unsupported("the filter " + name);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "equalto" || name == "eq" || name == "==") {
    return equal(value, positional(name, arguments, 1, 1)[0]);
  }
  if (name == "ne" || name == "!=") return !equal(value, positional(name, arguments, 1, 1)[0]);
  if (name == "in") return contains(positional(name, arguments, 1, 1)[0], value);
  if (name == "divisibleby") {
    const std::int64_t by = integer_of(name, positional(name, arguments, 1, 1)[0]);
    if (by == 0) unsupported("divisibleby 0");
    return integer_of(name, value) % by == 0;
  }
  positional(name, arguments, 0, 0);
  if (name == "defined") return !value.undefined();
  if (name == "undefined") return value.undefined();
  if (name == "none") return value.get<None>() != nullptr;
  if (name == "string") return value.string() != nullptr;
  if (name == "mapping") return value.dict() != nullptr;
  if (name == "boolean") return value.get<bool>() != nullptr;
  if (name == "integer") return value.get<std::int64_t>() != nullptr;
  if (name == "number") return value.get<std::int64_t>() || value.get<bool>();
  if (name == "true") return value.get<bool>() && *value.get<bool>();
  if (name == "false") return value.get<bool>() && !*value.get<bool>();
  if (name == "odd") return integer_of(name, value) % 2 != 0;
  if (name == "even") return integer_of(name, value) % 2 == 0;
  if (name == "iterable" || name == "sequence") {
    // Jinja's undefined is both.
    return value.undefined() || value.string() || value.list() || value.dict();
  }
  unsupported("the test " + name);
}

}  // namespace dropless::train::chat
