#include "train/base/yaml.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/scalar.h"
#include "train/base/suggest.h"
#include "train/base/yaml_node.h"

namespace dropless::train {
namespace {

using Kind = YamlNode::Kind;

std::string child_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

// Gives every mapping its path and checks the depth of the whole, overrides and ${} included.
void finish_tree(YamlNode& node, const std::string& path, int depth) {
  if (depth > kMaxYamlDepth) {
    fail_yaml(node.place, fmt::format("{}: nested deeper than {} levels", path, kMaxYamlDepth));
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

[[noreturn]] void fail_type(const YamlNode& node, const std::string& path,
                            const std::string& wanted, const std::string& hint = {}) {
  const std::string via = node.via.empty() ? "" : " (from " + node.via + ")";
  fail_yaml(node.place, fmt::format("{}: expected {}, got {}{}", path, wanted, describe(node), via),
            hint);
}

std::string quotes_hint(const YamlNode& node) {
  return node.kind == Kind::kScalar && !node.plain ? "quoted values are strings; remove the quotes"
                                                   : "";
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
              yaml11 ? "yes, no, on and off are not bools here" : quotes_hint(node));
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
    }
    fail_type(node, path, "an integer", quotes_hint(node));
  }
};

template <>
struct Reader<int> {
  static int read(const YamlNode& node, const std::string& path) {
    const std::int64_t value = Reader<std::int64_t>::read(node, path);
    if (value < INT32_MIN || value > INT32_MAX) fail_type(node, path, "an integer of 32 bits");
    return static_cast<int>(value);
  }
};

template <>
struct Reader<double> {
  static double read(const YamlNode& node, const std::string& path) {
    if (node.kind == Kind::kScalar && node.plain) {
      const std::optional<double> value = parse_float_text(node.text);
      constexpr double kMax = std::numeric_limits<float>::max();
      constexpr double kMin = std::numeric_limits<float>::min();
      const double size = value ? std::abs(*value) : 0;
      if (value && (size == 0 || (size >= kMin && size <= kMax))) return *value;
      if (value) {
        fail_type(node, path,
                  fmt::format("a number of fp32, 0 or from {:.1e} to {:.1e}", kMin, kMax));
      }
    }
    fail_type(node, path, "a number", quotes_hint(node));
  }
};

template <>
struct Reader<std::string> {
  static std::string read(const YamlNode& node, const std::string& path) {
    if (node.kind != Kind::kScalar) fail_type(node, path, "a string");
    return node.text;
  }
};

template <class T>
struct Reader<std::vector<T>> {
  static std::vector<T> read(const YamlNode& node, const std::string& path) {
    if (node.kind != Kind::kSequence) fail_type(node, path, "a sequence");
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

void check_unknown(const YamlNode& map) {
  for (const YamlNode::Entry& entry : map.map->entries) {
    if (!entry.used) {
      const std::vector<std::string> known(map.map->asked.begin(), map.map->asked.end());
      const std::string nearest = nearest_word(entry.key, known);
      std::string message = child_path(map.map->path, entry.key) + ": unknown key";
      if (!nearest.empty()) message += "; did you mean \"" + nearest + "\"?";
      std::string hint;
      if (nearest.empty() && map.map->path.empty())
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
    fail_yaml(root->place, "a config is a mapping of keys to values, not " + describe(*root));
  }
  for (const std::string& override_text : overrides) apply_override(root, override_text, budget);
  resolve_interpolations(root, budget);
  finish_tree(*root, "", 0);
  YamlDocument document;
  document.root_ = std::shared_ptr<const Node>(std::move(root));
  return document;
}

YamlMap YamlDocument::root() const { return YamlMap(root_, root_.get(), warns_); }

YamlDocument YamlDocument::without_warnings() const {
  YamlDocument document = *this;
  document.warns_ = false;
  return document;
}

std::string YamlDocument::dump() const { return emit_yaml(*root_); }

// ---- mapping ----

YamlMap::YamlMap(std::shared_ptr<const YamlDocument::Node> root, const YamlDocument::Node* node,
                 bool warns)
    : root_(std::move(root)), node_(node), warns_(warns) {}

bool YamlMap::has(std::string_view key) const {
  const YamlNode::Entry* entry = ask(*node_, key);
  return entry != nullptr && entry->value->kind != Kind::kNull;
}

std::vector<std::string> YamlMap::keys() const {
  std::vector<std::string> out;
  for (const YamlNode::Entry& entry : node_->map->entries) out.push_back(entry.key);
  return out;
}

template <class T>
std::optional<T> YamlMap::find(std::string_view key) const {
  const YamlNode* value = take(*node_, key);
  if (value == nullptr) return std::nullopt;
  return Reader<T>::read(*value, child_path(path(), key));
}

template <class T>
T YamlMap::get(std::string_view key, T fallback) const {
  std::optional<T> value = find<T>(key);
  return value ? *std::move(value) : std::move(fallback);
}

template <class T>
T YamlMap::get(std::string_view key) const {
  std::optional<T> value = find<T>(key);
  if (!value) fail(key, node_->find(key) ? "must not be null" : "required key is missing");
  return *std::move(value);
}

template <class T>
std::optional<T> YamlMap::find_positive(std::string_view key) const {
  const std::optional<T> value = find<T>(key);
  if (value && *value <= 0) {
    const char* bound = std::is_integral_v<T> ? "must be at least 1" : "must be above 0";
    fail(key, fmt::format("{}, not {}", bound, *value));
  }
  return value;
}

template <class T>
T YamlMap::positive(std::string_view key, std::optional<T> fallback) const {
  const std::optional<T> value = find_positive<T>(key);
  if (value) return *value;
  return fallback && node_->find(key) == nullptr ? *fallback : get<T>(key);
}

template <class T>
T YamlMap::non_negative(std::string_view key, std::optional<T> fallback) const {
  const std::optional<T> value = find<T>(key);
  if (value && *value < 0) fail(key, fmt::format("must not be negative, but is {}", *value));
  if (value) return *value;
  return fallback ? *fallback : get<T>(key);
}

#define DROPLESS_YAML_NUMBER(T)                                                \
  template std::optional<T> YamlMap::find_positive<T>(std::string_view) const; \
  template T YamlMap::positive<T>(std::string_view, std::optional<T>) const;   \
  template T YamlMap::non_negative<T>(std::string_view, std::optional<T>) const;
DROPLESS_YAML_NUMBER(int)
DROPLESS_YAML_NUMBER(std::int64_t)
DROPLESS_YAML_NUMBER(double)
#undef DROPLESS_YAML_NUMBER

Time YamlMap::time(std::string_view key, const Time& fallback) const {
  const std::optional<std::string> text = find<std::string>(key);
  if (!text) return fallback;
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
  const YamlNode* value = take(*node_, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_map()) fail_type(*value, child_path(path(), key), "a mapping");
  node_->find(key)->reached = true;
  return YamlMap(root_, value, warns_);
}

YamlMap YamlMap::map(std::string_view key) const {
  std::optional<YamlMap> value = find_map(key);
  if (!value) fail(key, node_->find(key) ? "must not be null" : "required mapping is missing");
  return *std::move(value);
}

std::vector<YamlMap> YamlMap::maps(std::string_view key) const {
  const YamlNode* value = take(*node_, key);
  std::vector<YamlMap> out;
  if (value == nullptr) return out;
  node_->find(key)->reached = true;
  if (value->is_map()) {
    out.push_back(YamlMap(root_, value, warns_));
    return out;
  }
  const std::string here = child_path(path(), key);
  if (value->kind != Kind::kSequence)
    fail_type(*value, here, "a mapping or a sequence of mappings");
  for (std::size_t i = 0; i < value->items.size(); ++i) {
    const YamlNode& item = *value->items[i];
    if (!item.is_map()) fail_type(item, child_path(here, std::to_string(i)), "a mapping");
    out.push_back(YamlMap(root_, &item, warns_));
  }
  return out;
}

bool YamlMap::is_map(std::string_view key) const {
  const YamlNode::Entry* entry = ask(*node_, key);
  return entry != nullptr && entry->value->is_map();
}

bool YamlMap::is_sequence(std::string_view key) const {
  const YamlNode::Entry* entry = ask(*node_, key);
  return entry != nullptr && entry->value->kind == Kind::kSequence;
}

bool YamlMap::is_string(std::string_view key) const {
  const YamlNode::Entry* entry = ask(*node_, key);
  if (entry == nullptr || entry->value->kind != Kind::kScalar) return false;
  const std::string& text = entry->value->text;
  return !entry->value->plain || (!parse_bool_text(text) && !parse_float_text(text));
}

void YamlMap::no_effect(std::string_view key, std::string_view why) const {
  if (take(*node_, key) == nullptr || !warns_) return;
  log_warning("{}: {} has no effect: {}", where(key), child_path(path(), key), why);
}

void YamlMap::refuse(std::string_view key, bool set, const std::string& hint) const {
  skip(key);
  if (set) fail(key, "not supported by this version", hint);
}

void YamlMap::refuse(std::string_view key) const { refuse(key, has(key)); }

void YamlMap::skip(std::string_view key) const { take(*node_, key); }

void YamlMap::fail(std::string_view key, const std::string& message,
                   const std::string& hint) const {
  const std::string here = key.empty() ? path() : child_path(path(), key);
  throw Error(ErrorKind::kInvalidArgument,
              where(key) + ": " + (here.empty() ? "" : here + ": ") + message, hint);
}

void YamlMap::finish() const { check_unknown(*node_); }

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
