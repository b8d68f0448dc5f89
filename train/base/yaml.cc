#include "train/base/yaml.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <type_traits>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/scalar.h"
#include "train/base/suggest.h"
#include "train/base/yaml_node.h"
#include "train/base/yaml_record.h"

namespace dropless::train {
namespace {

using Kind = YamlNode::Kind;

std::string child_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

// Gives every mapping its path and checks the depth of the whole, overrides and ${} included.
void finish_tree(YamlNode& node, const std::string& path, int depth) {
  if (depth > kMaxYamlDepth) {
    fail_yaml(node.place, fmt::format("{}: nested deeper than {} levels", path, kMaxYamlDepth),
              kDepthHint);
  }
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    finish_tree(*node.items[i], child_path(path, std::to_string(i)), depth + 1);
  }
  if (node.is_map()) {
    node.map->path = path;
    for (YamlNode::Entry& entry : node.map->entries) {
      finish_tree(*entry.value, child_path(path, entry.key), depth + 1);
    }
  }
}

// ---- scalars to C++ types ----

std::string describe(const YamlNode& node) {
  switch (node.kind) {
    case Kind::kNull:
      return "null";
    case Kind::kSequence:
      return "a sequence";
    case Kind::kMap:
      return "a mapping";
    case Kind::kScalar:
      break;
  }
  std::string text = node.text.substr(0, 40);
  if (text.size() < node.text.size()) text += "...";
  return (node.plain ? "" : "the string ") + ("\"" + text + "\"");
}

constexpr const char* kMappingHint = "write it as {key: value}, or as indented lines below the key";

// Of an error that names what is wrong with a value, and no better one.
std::string page_hint(std::string path) {
  // The page knows lists, not their elements.
  while (!path.empty() && std::isdigit(static_cast<unsigned char>(path.back()))) {
    const std::size_t dot = path.rfind('.');
    if (dot == path.npos || path.find_first_not_of("0123456789", dot + 1) != path.npos) break;
    path.resize(dot);
  }
  return fmt::format("docs/yaml.md says what {} takes", path);
}

// Where a value was written that came in by ${}.
std::string origin(const YamlNode& node) {
  return node.via.empty() ? "" : " (from " + node.via + ")";
}

[[noreturn]] void fail_type(const YamlNode& node, const std::string& path,
                            const std::string& wanted, const std::string& hint = {}) {
  fail_yaml(node.place,
            fmt::format("{}: expected {}, got {}{}", path, wanted, describe(node), origin(node)),
            hint);
}

// `written`: how a value of the type is written.
std::string scalar_hint(const YamlNode& node, const char* written) {
  return node.kind == Kind::kScalar && !node.plain ? "quoted values are strings; remove the quotes"
                                                   : written;
}

template <class T>
struct Reader;

template <>
struct Reader<bool> {
  static bool read(const YamlNode& node, const std::string& path) {
    if (node.kind == Kind::kScalar && node.plain) {
      if (const std::optional<bool> value = parse_bool_text(node.text)) return *value;
    }
    const bool yaml11 = node.kind == Kind::kScalar && is_yaml11_bool(node.text);
    fail_type(node, path, "true or false",
              yaml11 ? "yes, no, on and off are not bools here"
                     : scalar_hint(node, "write true or false, without quotes"));
  }
};

template <>
struct Reader<std::int64_t> {
  static std::int64_t read(const YamlNode& node, const std::string& path) {
    if (node.kind == Kind::kScalar && node.plain) {
      if (const std::optional<std::int64_t> value = parse_int_text(node.text)) return *value;
      // 3e4 and 5.0 are whole; beyond 2^53 a double no longer says which integer is meant.
      const std::optional<double> value = parse_float_text(node.text);
      constexpr double kExact = 9007199254740992.0;
      if (value && *value >= -kExact && *value <= kExact &&
          *value == static_cast<double>(static_cast<std::int64_t>(*value))) {
        return static_cast<std::int64_t>(*value);
      }
      if (value && std::isfinite(*value) && *value == std::floor(*value)) {
        fail_type(node, path, "an integer of 64 bits",
                  "1e15 is exact up to 2^53, digits up to 2^63");
      }
    }
    fail_type(node, path, "an integer",
              scalar_hint(node, "write one like 12, 3e4 or 1_000, without leading zeros"));
  }
};

template <>
struct Reader<int> {
  static int read(const YamlNode& node, const std::string& path) {
    const std::int64_t value = Reader<std::int64_t>::read(node, path);
    if (value < INT32_MIN || value > INT32_MAX) {
      fail_type(node, path, "an integer of 32 bits", "at most 2147483647");
    }
    return static_cast<int>(value);
  }
};

template <>
struct Reader<double> {
  static double read(const YamlNode& node, const std::string& path) {
    std::optional<double> value;
    if (node.kind == Kind::kScalar && node.plain) value = parse_float_text(node.text);
    if (!value) fail_type(node, path, "a number", scalar_hint(node, "write one like 0.1 or 3e-4"));
    constexpr double kMax = std::numeric_limits<float>::max();
    constexpr double kMin = std::numeric_limits<float>::min();
    const double size = std::abs(*value);
    if (size == 0 || (size >= kMin && size <= kMax)) return *value;
    const char* problem = std::isnan(size) ? "no number" : size < kMin ? "too small" : "too large";
    fail_yaml(
        node.place, fmt::format("{}: {} is {}{}", path, describe(node), problem, origin(node)),
        fmt::format("training computes in fp32: 0, or sizes from {:.1e} to {:.1e}", kMin, kMax));
  }
};

template <>
struct Reader<std::string> {
  static std::string read(const YamlNode& node, const std::string& path) {
    if (node.kind != Kind::kScalar) {
      fail_type(node, path, "a string", "write one value; quote it where it holds [ { : or #");
    }
    return node.text;
  }
};

template <class T>
struct Reader<std::vector<T>> {
  static std::vector<T> read(const YamlNode& node, const std::string& path) {
    if (node.kind != Kind::kSequence) fail_type(node, path, "a sequence", "write it as [a, b]");
    std::vector<T> values;
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      values.push_back(Reader<T>::read(*node.items[i], child_path(path, std::to_string(i))));
    }
    return values;
  }
};

// Notes that `key` is a key that belongs here and returns it, null counting as absent.
const YamlNode::Entry* ask(const YamlNode& map, std::string_view key) {
  if (map.map->asked.find(key) == map.map->asked.end()) map.map->asked.emplace(key);
  return map.find(key);
}

const YamlNode* take(const YamlNode& map, std::string_view key) {
  const YamlNode::Entry* entry = ask(map, key);
  if (entry == nullptr) return nullptr;
  entry->used = true;
  return entry->value->kind == Kind::kNull ? nullptr : entry->value.get();
}

// Whether an override gave the mapping some of its keys, and not this one.
bool merged_by_override(const YamlNode& map, const YamlNode::Entry& unknown) {
  const std::string override_text = "override \"" + map.map->path + "=";
  const auto given = [&](const YamlNode::Entry& entry) {
    return entry.place.source->starts_with(override_text);
  };
  const std::vector<YamlNode::Entry>& entries = map.map->entries;
  return !given(unknown) && std::any_of(entries.begin(), entries.end(), given);
}

void check_unknown(const YamlNode& map) {
  for (const YamlNode::Entry& entry : map.map->entries) {
    if (!entry.used && !entry.is_taken_out()) {
      const std::vector<std::string> known(map.map->asked.begin(), map.map->asked.end());
      const std::string nearest = nearest_word(entry.key, known);
      std::string message = child_path(map.map->path, entry.key) + ": unknown key";
      if (!nearest.empty()) message += "; did you mean \"" + nearest + "\"?";
      std::string hint;
      if (merged_by_override(map, entry)) {
        hint = fmt::format("the override adds to what stands there: `{}=null` before it empties it",
                           map.map->path);
      }
      if (hint.empty() && entry.key.find(':') != entry.key.npos)
        hint = "a space is missing behind the colon";
      if (hint.empty() && nearest.empty() && map.map->path.empty())
        hint = "values for ${} belong under `variables`";
      if (hint.empty() && !known.empty())
        hint = fmt::format("known here: {}", fmt::join(known, ", "));
      fail_yaml(entry.place, message, hint);
    }
    if (!entry.reached) continue;
    if (entry.value->is_map()) check_unknown(*entry.value);
    for (const YamlNode::Pointer& item : entry.value->items) {
      if (item->is_map()) check_unknown(*item);
    }
  }
}

}  // namespace

// ---- document ----

YamlDocument YamlDocument::load(const std::string& path,
                                const std::vector<std::string>& overrides) {
  if (!path_exists(path) || is_folder(path)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} is {}", path, is_folder(path) ? "a folder" : "no file here"),
                "name a YAML file; the files in configs/ are examples");
  }
  return parse(read_file(path, kMaxYamlBytes), path, overrides);
}

YamlDocument YamlDocument::parse(const std::string& text, const std::string& file_name,
                                 const std::vector<std::string>& overrides) {
  YamlBudget budget;
  YamlNode::Pointer root = read_yaml(text, file_name, false, budget);
  if (root->kind == Kind::kNull) {
    root->kind = Kind::kMap;
    root->map = std::make_unique<YamlNode::Map>();
  }
  if (!root->is_map()) {
    fail_yaml(root->place, "a config is a mapping of keys to values, not " + describe(*root),
              "write lines like `max_duration: 100ba`; the files in configs/ are examples");
  }
  for (const std::string& override_text : overrides) apply_override(root, override_text, budget);
  resolve_interpolations(root, budget);
  finish_tree(*root, "", 0);
  YamlDocument document;
  document.root_ = std::shared_ptr<const Node>(std::move(root));
  return document;
}

YamlMap YamlDocument::root() const { return YamlMap(*this, root_.get()); }

YamlDocument YamlDocument::without_warnings() const {
  YamlDocument document = *this;
  document.warns_ = false;
  return document;
}

YamlDocument YamlDocument::recorded_by(std::shared_ptr<YamlRecorder> recorder) const {
  YamlDocument document = without_warnings();
  document.recorder_ = std::move(recorder);
  return document;
}

std::string YamlDocument::dump() const { return emit_yaml(*root_); }

// ---- what is written down of a key ----

namespace {

template <class T>
constexpr const char* kTypeName = "";
template <>
constexpr const char* kTypeName<bool> = "true or false";
template <>
constexpr const char* kTypeName<int> = "integer";
template <>
constexpr const char* kTypeName<std::int64_t> = "integer";
template <>
constexpr const char* kTypeName<double> = "number";
template <>
constexpr const char* kTypeName<std::string> = "string";
template <>
constexpr const char* kTypeName<std::vector<int>> = "list of integers";
template <>
constexpr const char* kTypeName<std::vector<std::int64_t>> = "list of integers";
template <>
constexpr const char* kTypeName<std::vector<double>> = "list of numbers";
template <>
constexpr const char* kTypeName<std::vector<std::string>> = "list of strings";

template <class T>
std::string value_text(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return value.empty() ? "''" : value;
  } else if constexpr (std::is_arithmetic_v<T>) {
    return fmt::format("{}", value);
  } else {
    return fmt::format("[{}]", fmt::join(value, ", "));
  }
}

template <class T>
std::string above_zero() {
  return std::string(kTypeName<T>) + (std::is_integral_v<T> ? ", at least 1" : " above 0");
}

}  // namespace

template <class Note>
void YamlMap::record(std::string_view key, Note&& note) const {
  if (document_.recorder_) note(document_.recorder_->key(path(), key));
}

// ---- mapping ----

YamlMap::YamlMap(const YamlDocument& document, const YamlDocument::Node* node)
    : document_(document), node_(node) {
  if (document_.recorder_) document_.recorder_->maps[path()];
}

YamlMap YamlMap::child(const YamlDocument::Node* node) const { return YamlMap(document_, node); }

bool YamlMap::has(std::string_view key) const {
  record(key, [](YamlKeyRecord&) {});
  const YamlNode::Entry* entry = ask(*node_, key);
  return entry != nullptr && entry->value->kind != Kind::kNull;
}

std::vector<std::string> YamlMap::keys() const {
  if (document_.recorder_) document_.recorder_->maps[path()].any_key = true;
  std::vector<std::string> out;
  for (const YamlNode::Entry& entry : node_->map->entries) out.push_back(entry.key);
  return out;
}

void YamlMap::fail_missing(std::string_view key, const char* what) const {
  // Under a misspelt name it is not missing: nobody has asked for that one yet.
  if (node_->find(key) == nullptr) {
    for (const YamlNode::Entry& entry : node_->map->entries) {
      if (entry.used || nearest_word(entry.key, {std::string(key)}).empty()) continue;
      fail_yaml(
          entry.place,
          fmt::format("{}: unknown key; did you mean \"{}\"?", child_path(path(), entry.key), key),
          fmt::format("{} is required here", key));
    }
  }
  const std::string here = child_path(path(), key);
  if (node_->find(key) != nullptr) {
    fail(key, "must not be null", "give it a value; " + page_hint(here));
  }
  fail(key, fmt::format("required {} is missing", what), "add it; " + page_hint(here));
}

template <class T>
std::optional<T> YamlMap::read(std::string_view key) const {
  const YamlNode* value = take(*node_, key);
  if (value == nullptr) return std::nullopt;
  return Reader<T>::read(*value, child_path(path(), key));
}

template <class T>
std::optional<T> YamlMap::find(std::string_view key) const {
  record(key, [](YamlKeyRecord& known) { known.types.insert(kTypeName<T>); });
  return read<T>(key);
}

template <class T>
T YamlMap::get(std::string_view key, T fallback) const {
  record(key, [&](YamlKeyRecord& known) { known.fallback = value_text(fallback); });
  std::optional<T> value = find<T>(key);
  return value ? *std::move(value) : std::move(fallback);
}

template <class T>
T YamlMap::get(std::string_view key) const {
  record(key, [](YamlKeyRecord& known) { known.required = true; });
  std::optional<T> value = find<T>(key);
  if (!value) fail_missing(key, "key");
  return *std::move(value);
}

template <class T>
std::optional<T> YamlMap::find_positive(std::string_view key) const {
  record(key, [](YamlKeyRecord& known) { known.types.insert(above_zero<T>()); });
  const std::optional<T> value = read<T>(key);
  if (value && *value <= 0) {
    const char* bound = std::is_integral_v<T> ? "must be at least 1" : "must be above 0";
    fail(key, fmt::format("{}, not {}", bound, *value));
  }
  return value;
}

template <class T>
T YamlMap::positive(std::string_view key, std::optional<T> fallback) const {
  record(key, [&](YamlKeyRecord& known) {
    known.required = !fallback;
    if (fallback) known.fallback = value_text(*fallback);
  });
  const std::optional<T> value = find_positive<T>(key);
  if (value) return *value;
  if (!fallback || node_->find(key) != nullptr) fail_missing(key, "key");
  return *fallback;
}

template <class T>
T YamlMap::non_negative(std::string_view key, std::optional<T> fallback) const {
  record(key, [&](YamlKeyRecord& known) {
    known.types.insert(std::string(kTypeName<T>) + ", 0 or more");
    known.required = !fallback;
    if (fallback) known.fallback = value_text(*fallback);
  });
  const std::optional<T> value = read<T>(key);
  if (value && *value < 0) fail(key, fmt::format("must not be negative, but is {}", *value));
  if (value) return *value;
  if (!fallback) fail_missing(key, "key");
  return *fallback;
}

#define DROPLESS_YAML_NUMBER(T)                                                \
  template std::optional<T> YamlMap::find_positive<T>(std::string_view) const; \
  template T YamlMap::positive<T>(std::string_view, std::optional<T>) const;   \
  template T YamlMap::non_negative<T>(std::string_view, std::optional<T>) const;
DROPLESS_YAML_NUMBER(int)
DROPLESS_YAML_NUMBER(std::int64_t)
DROPLESS_YAML_NUMBER(double)
#undef DROPLESS_YAML_NUMBER

Time YamlMap::time(std::string_view key, const std::optional<Time>& fallback) const {
  record(key, [&](YamlKeyRecord& known) {
    known.types.insert("time");
    known.required = !fallback;
    if (fallback) known.fallback = fallback->str();
  });
  const std::optional<std::string> text = read<std::string>(key);
  if (!text && !fallback) fail_missing(key, "key");
  if (!text) return *fallback;
  return locate(key, [&] { return Time::parse(*text); });
}

#define DROPLESS_YAML_TYPE(...)                                                           \
  template std::optional<__VA_ARGS__> YamlMap::find<__VA_ARGS__>(std::string_view) const; \
  template __VA_ARGS__ YamlMap::get<__VA_ARGS__>(std::string_view, __VA_ARGS__) const;    \
  template __VA_ARGS__ YamlMap::get<__VA_ARGS__>(std::string_view) const;
DROPLESS_YAML_TYPE(bool)
DROPLESS_YAML_TYPE(int)
DROPLESS_YAML_TYPE(std::int64_t)
DROPLESS_YAML_TYPE(double)
DROPLESS_YAML_TYPE(std::string)
DROPLESS_YAML_TYPE(std::vector<int>)
DROPLESS_YAML_TYPE(std::vector<std::int64_t>)
DROPLESS_YAML_TYPE(std::vector<double>)
DROPLESS_YAML_TYPE(std::vector<std::string>)
#undef DROPLESS_YAML_TYPE

std::optional<YamlMap> YamlMap::find_map(std::string_view key) const {
  record(key, [](YamlKeyRecord& known) {
    known.types.insert("mapping");
    known.is_map = true;
  });
  const YamlNode* value = take(*node_, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_map()) fail_type(*value, child_path(path(), key), "a mapping", kMappingHint);
  node_->find(key)->reached = true;
  return child(value);
}

YamlMap YamlMap::map(std::string_view key) const {
  record(key, [](YamlKeyRecord& known) { known.required = true; });
  std::optional<YamlMap> value = find_map(key);
  if (!value) fail_missing(key, "mapping");
  return *std::move(value);
}

std::vector<YamlMap> YamlMap::maps(std::string_view key) const {
  record(key, [](YamlKeyRecord& known) {
    known.types.insert("mapping or list of mappings");
    known.is_map = true;
  });
  const YamlNode* value = take(*node_, key);
  std::vector<YamlMap> out;
  if (value == nullptr) return out;
  node_->find(key)->reached = true;
  if (value->is_map()) {
    out.push_back(child(value));
    return out;
  }
  const std::string here = child_path(path(), key);
  if (value->kind != Kind::kSequence)
    fail_type(*value, here, "a mapping or a sequence of mappings", kMappingHint);
  for (std::size_t i = 0; i < value->items.size(); ++i) {
    const YamlNode& item = *value->items[i];
    if (!item.is_map()) {
      fail_type(item, child_path(here, std::to_string(i)), "a mapping", kMappingHint);
    }
    out.push_back(child(&item));
  }
  return out;
}

bool YamlMap::is_map(std::string_view key) const {
  record(key, [](YamlKeyRecord&) {});
  const YamlNode::Entry* entry = ask(*node_, key);
  return entry != nullptr && entry->value->is_map();
}

bool YamlMap::is_sequence(std::string_view key) const {
  record(key, [](YamlKeyRecord&) {});
  const YamlNode::Entry* entry = ask(*node_, key);
  return entry != nullptr && entry->value->kind == Kind::kSequence;
}

bool YamlMap::is_string(std::string_view key) const {
  record(key, [](YamlKeyRecord&) {});
  const YamlNode::Entry* entry = ask(*node_, key);
  if (entry == nullptr || entry->value->kind != Kind::kScalar) return false;
  const std::string& text = entry->value->text;
  return !entry->value->plain || (!parse_bool_text(text) && !parse_float_text(text));
}

void YamlMap::no_effect(std::string_view key, std::string_view why) const {
  record(key, [&](YamlKeyRecord& known) { known.no_effect = why; });
  if (take(*node_, key) == nullptr || !document_.warns_) return;
  log_warning("{}: {} has no effect: {}", where(key), child_path(path(), key), why);
}

void YamlMap::warn(std::string_view key, std::string_view message) const {
  const std::string here = key.empty() ? path() : child_path(path(), key);
  if (document_.warns_) log_warning("{}: {}: {}", where(key), here, message);
}

void YamlMap::refuse(std::string_view key, bool set, const std::string& hint) const {
  record(key, [&](YamlKeyRecord& known) { known.not_served = hint; });
  take(*node_, key);
  if (set) {
    fail(key, "not supported by this version", hint.empty() ? "take the key out" : hint);
  }
}

void YamlMap::refuse(std::string_view key) const { refuse(key, has(key)); }

void YamlMap::skip(std::string_view key) const {
  record(key, [](YamlKeyRecord&) {});
  take(*node_, key);
}

void YamlMap::fail(std::string_view key, const std::string& message,
                   const std::string& hint) const {
  const std::string here = key.empty() ? path() : child_path(path(), key);
  throw Error(ErrorKind::kInvalidArgument,
              where(key) + ": " + (here.empty() ? "" : here + ": ") + message,
              hint.empty() && !here.empty() ? page_hint(here) : hint);
}

void YamlMap::finish() const { check_unknown(*node_); }

YamlMap YamlMap::without_warnings() const { return YamlMap(document_.without_warnings(), node_); }

std::string YamlMap::path() const { return node_->map->path; }
std::string YamlMap::where() const { return node_->place.str(); }

std::string YamlMap::where(std::string_view key) const {
  const YamlNode* node = node_;
  while (!key.empty()) {
    const std::string_view part = key.substr(0, key.find('.'));
    key.remove_prefix(std::min(part.size() + 1, key.size()));
    const YamlNode* child = nullptr;
    if (node->is_map()) {
      const YamlNode::Entry* entry = node->find(part);
      if (entry != nullptr) child = entry->value.get();
    } else if (const auto index = parse_int_text(std::string(part))) {
      const bool inside = *index >= 0 && *index < static_cast<std::int64_t>(node->items.size());
      if (inside) child = node->items[*index].get();
    }
    if (child == nullptr) break;
    node = child;
  }
  return node->place.str();
}

}  // namespace dropless::train
