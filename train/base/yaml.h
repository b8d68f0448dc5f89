// YAML configuration, read strictly: every key must be asked for, once, with the right type.
//
// LLM Foundry's dialect: `${variables.x}` (any absolute dotted path) interpolation,
// `key.path=value` overrides, anchors and merge keys (`<<`), `1e-3` and `6.0e-4` are numbers; `yes`
// and `on` are not bools, quoted scalars are strings. Errors carry file:line:column and, for a
// misspelt key, the nearest known one. yaml-cpp only scans: duplicate keys, limits (1 MiB, 100,000
// nodes, 100 levels), types and interpolation are checked here, so that no input costs more than
// its size.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/base/time.h"

namespace dropless::train {

class YamlMap;
struct YamlRecorder;

// A parsed file with overrides applied and interpolations resolved. Cheap to copy (shared).
class YamlDocument {
 public:
  // Throws Error(kInvalidArgument): absent file, syntax, duplicate key, unknown or cyclic ${}, bad
  // override. An override's value is YAML; a mapping merges into the one there, all else replaces;
  // absent keys are created. Its place in messages is `override "a.b=1"`.
  static YamlDocument load(const std::string& path, const std::vector<std::string>& overrides = {});
  static YamlDocument parse(const std::string& text, const std::string& file_name,
                            const std::vector<std::string>& overrides = {});

  YamlMap root() const;
  // The same document, whose no_effect() says nothing: for a config that was warned about before.
  YamlDocument without_warnings() const;
  // The same document, whose maps write down what they are asked and say nothing.
  YamlDocument recorded_by(std::shared_ptr<YamlRecorder> recorder) const;
  // The resolved document as YAML text (what a checkpoint stores).
  std::string dump() const;

  struct Node;

 private:
  friend class YamlMap;
  std::shared_ptr<const Node> root_;
  bool warns_ = true;
  std::shared_ptr<YamlRecorder> recorder_;
};

// One mapping of the document. Remembers which keys were asked for, so that finish() can refuse the
// rest. The memory belongs to the document: copies, and a second map() of the same key, share it.
class YamlMap {
 public:
  bool has(std::string_view key) const;  // present and not null; does not count as read
  std::vector<std::string> keys() const;

  // T: bool, int64_t, int, double, std::string, std::vector of those (but bool). Throws
  // Error(kInvalidArgument) with the place when the key is absent or null (get without fallback) or
  // of another type. Integers take `5`, `5.0`, `3e4`, `1_000`; bools take true/false only; a string
  // key takes any scalar as it is written and refuses mappings and sequences; a vector takes a
  // sequence. A double is 0 or within fp32's range of normal numbers: it will be computed in fp32.
  template <class T>
  T get(std::string_view key) const;
  template <class T>
  T get(std::string_view key, T fallback) const;  // absent or null: fallback
  template <class T>
  std::optional<T> find(std::string_view key) const;

  // Numbers (int64_t, int, double) with a bound: above 0, or 0 and above. Absent: fallback; without
  // one the key is required. Null is the fallback of non_negative(), where it reads as "off"; of
  // positive(), which counts and measures, it is an error.
  template <class T>
  T positive(std::string_view key, std::optional<T> fallback = std::nullopt) const;
  template <class T>
  T non_negative(std::string_view key, std::optional<T> fallback = std::nullopt) const;
  template <class T>
  std::optional<T> find_positive(std::string_view key) const;
  // A time string such as "10ba"; absent or null: fallback, or an error without one.
  Time time(std::string_view key, const std::optional<Time>& fallback = std::nullopt) const;

  YamlMap map(std::string_view key) const;                      // absent: error
  std::optional<YamlMap> find_map(std::string_view key) const;  // absent or null: nullopt
  std::vector<YamlMap> maps(std::string_view key) const;  // a sequence of mappings, or one mapping
  bool is_map(std::string_view key) const;                // none of these three counts as read
  bool is_sequence(std::string_view key) const;
  bool is_string(std::string_view key)
      const;  // a quoted scalar, or a plain one that is no number, bool or null

  // The key is accepted but changes nothing here; present: one warning saying why.
  void no_effect(std::string_view key, std::string_view why) const;
  // A value that is read as another one, or that is likely a mistake.
  void warn(std::string_view key, std::string_view message) const;
  // The key is known and one of its values cannot be honoured: `set` says whether that one is
  // given.
  void refuse(std::string_view key, bool set, const std::string& hint = {}) const;
  // The same for a key of which only null can be honoured.
  void refuse(std::string_view key) const;
  // Reads the key without using it (a free-form part such as `variables`).
  void skip(std::string_view key) const;

  // Throws Error(kInvalidArgument) "file:line:column: path: message" at the key's place (or at the
  // mapping's when the key is absent or empty).
  [[noreturn]] void fail(std::string_view key, const std::string& message,
                         const std::string& hint = {}) const;
  // Runs a check that knows nothing of YAML: its errors of kind kInvalidArgument and kUnsupported
  // are thrown as fail() throws them.
  template <class Action>
  decltype(auto) locate(std::string_view key, Action&& action) const {
    try {
      return std::forward<Action>(action)();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInvalidArgument && error.kind() != ErrorKind::kUnsupported) {
        throw;
      }
      fail(key, error.what(), error.hint());
    }
  }
  // Every key that nobody read, here and in every mapping below that was reached through map(),
  // find_map() or maps(), is an error with a "did you mean" out of the keys asked for there.
  void finish() const;

  // The same mapping, whose no_effect() says nothing: of a block that was warned about as a whole.
  YamlMap without_warnings() const;

  std::string path() const;   // "model.ffn_config", "" for the root
  std::string where() const;  // "file:line:column" of the mapping
  // Of the value of a key of this mapping, or of one further down ("scheduler.t_warmup",
  // "eval_loader.1.dataset"); of what it would stand in when it is absent. fail() and locate() take
  // such paths too.
  std::string where(std::string_view key) const;

 private:
  friend class YamlDocument;
  YamlMap(const YamlDocument& document, const YamlDocument::Node* node);
  YamlMap child(const YamlDocument::Node* node) const;
  template <class T>
  std::optional<T> read(std::string_view key) const;
  [[noreturn]] void fail_missing(std::string_view key, const char* what) const;
  // Writes down something about the key, where that is done.
  template <class Note>
  void record(std::string_view key, Note&& note) const;

  YamlDocument document_;  // keeps the nodes alive
  const YamlDocument::Node* node_;
};

}  // namespace dropless::train
