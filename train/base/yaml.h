// YAML configuration, read strictly: every key must be asked for, once, with the right type.
//
// LLM Foundry's dialect: `${variables.x}` (any absolute dotted path) interpolation, `key.path=value`
// overrides, merge keys refused, `1e-3` and `6.0e-4` are numbers. Errors carry file:line:column
// and, for a misspelt key, the nearest known one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dropless::train {

class YamlMap;

// A parsed file with overrides applied and interpolations resolved. Cheap to copy (shared).
class YamlDocument {
 public:
  // Throws Error(kInvalidArgument): absent file, syntax, duplicate key, unknown or cyclic ${}, bad override.
  static YamlDocument load(const std::string& path, const std::vector<std::string>& overrides = {});
  static YamlDocument parse(const std::string& text, const std::string& file_name,
                            const std::vector<std::string>& overrides = {});

  YamlMap root() const;
  // The resolved document as YAML text (what a checkpoint stores).
  std::string dump() const;

  struct Node;

 private:
  std::shared_ptr<const Node> root_;
};

// One mapping of the document. Remembers which keys were read, so that finish() can refuse the rest.
// Copies share that memory.
class YamlMap {
 public:
  bool has(std::string_view key) const;  // present and not null; does not count as read
  std::vector<std::string> keys() const;

  // T: bool, int64_t, int, double, std::string, std::vector of those. Throws Error(kInvalidArgument)
  // with the place when the key is absent (get without fallback) or of another type. Integers take
  // `5` and `5.0`; bools take true/false only; a string key refuses mappings and sequences.
  template <class T>
  T get(std::string_view key) const;
  template <class T>
  T get(std::string_view key, T fallback) const;  // absent or null: fallback
  template <class T>
  std::optional<T> find(std::string_view key) const;

  YamlMap map(std::string_view key) const;                // absent: error
  std::optional<YamlMap> find_map(std::string_view key) const;  // absent or null: nullopt
  std::vector<YamlMap> maps(std::string_view key) const;  // a sequence of mappings, or one mapping
  bool is_map(std::string_view key) const;
  bool is_sequence(std::string_view key) const;

  // The key is accepted but changes nothing here; present: one warning saying why.
  void no_effect(std::string_view key, std::string_view why) const;
  // Reads the key without using it (a free-form part such as `variables`).
  void skip(std::string_view key) const;

  // Throws Error(kInvalidArgument) "file:line:column: path: message" at the key's place (or at the
  // mapping's when the key is absent or empty).
  [[noreturn]] void fail(std::string_view key, const std::string& message,
                         const std::string& hint = {}) const;
  // Every key that nobody read is an error with a "did you mean".
  void finish() const;

  std::string path() const;   // "model.ffn_config", "" for the root
  std::string where() const;  // "file:line:column" of the mapping

 private:
  friend class YamlDocument;
  struct Impl;
  explicit YamlMap(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace dropless::train
