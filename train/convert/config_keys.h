// A model's config in JSON, read strictly: what nobody asked for and could change the result is an error.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dropless/error.h"

namespace dropless::train {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Whether a key of Hugging Face's config.json says nothing about the logits: origin, storage, token ids
// (generation's affair), and losses that no reader here takes over.
bool is_harmless_key(const std::string& key);

// No family of released models that is written here has the key with this value.
[[noreturn]] void inexpressible(const std::string& key, const std::string& value,
                                const std::string& why = {});

// One JSON object, of which every key must be asked for.
class Keys {
 public:
  Keys(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) fail("not a JSON object");
  }

  // Present and not null.
  bool has(const char* key) const {
    asked_.insert(key);
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
  }
  template <class T>
  T get(const char* key) const {
    if (!has(key)) fail(fmt::format("no key {}", key));
    const Json& value = object_.at(key);
    const bool fits = std::is_same_v<T, bool>          ? value.is_boolean()
                      : std::is_same_v<T, std::string> ? value.is_string()
                      : std::is_same_v<T, double>      ? value.is_number()
                                                       : value.is_number_integer();
    if (!fits) fail(fmt::format("{} is {}, of another type than it should be", key, value.dump()));
    return value.get<T>();
  }
  template <class T>
  T get(const char* key, T fallback) const {
    return has(key) ? get<T>(key) : fallback;
  }
  Keys part(const char* key) const { return Keys(object_.at(key), where_ + ": " + key); }
  bool is_part(const char* key) const { return has(key) && object_.at(key).is_object(); }
  // Present, but null.
  bool is_null(const char* key) const { return !has(key) && object_.contains(key); }
  const Json& raw(const char* key) const { return object_.at(key); }

  const std::string& where() const { return where_; }

  // `supported`: the values of this key that have a counterpart here.
  void refuse_unless(const char* key, bool supported) const {
    if (supported || !has(key)) return;
    throw Error(ErrorKind::kUnsupported, fmt::format("{}: {} {} is not supported by this version",
                                                     where_, key, object_.at(key).dump()));
  }
  [[noreturn]] void fail(const std::string& message, const std::string& hint = {}) const {
    throw Error(ErrorKind::kInvalidArgument, where_ + ": " + message, hint);
  }
  // For whoever reads the file, but no error.
  void remark(const std::string& what) const { remarks_.push_back(where_ + ": " + what); }
  const std::vector<std::string>& remarks() const { return remarks_; }
  void finish() const {
    for (const auto& [key, value] : object_.items()) {
      if (is_harmless_key(key) || value.is_null() || asked_.contains(key)) continue;
      fail(fmt::format("unknown key {} ({}), which may change the result", key,
                       value.dump().substr(0, 80)),
           "remove it if it does not");
    }
  }

 private:
  const Json& object_;
  std::string where_;
  mutable std::set<std::string> asked_;
  mutable std::vector<std::string> remarks_;
};

}  // namespace dropless::train
