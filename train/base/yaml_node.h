// Internal to train/base/yaml*.cc: the document tree and the steps that make it.
//
// text --read_yaml--> tree --apply_override--> tree --resolve_interpolations--> tree without
// aliases, merge keys or ${}; every node is owned by one parent, so that places, paths and the
// record of what was asked for belong to one position of the document. Growth (aliases, ${}) is
// charged to one Budget.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "train/base/yaml.h"

namespace dropless::train {

inline constexpr std::size_t kMaxYamlBytes = 1 << 20;  // of a file
inline constexpr std::size_t kMaxYamlText = 4 << 20;   // of all scalars after expansion
inline constexpr std::size_t kMaxYamlNodes = 100'000;  // after expansion
inline constexpr int kMaxYamlDepth = 100;
inline constexpr const char* kDepthHint =
    "write it flatter, or look for a bracket that is not closed";

// Where something was written: "train.yaml:3:7", or `override "a.b=1"`.
struct YamlPlace {
  std::shared_ptr<const std::string> source;
  int line = 0;  // from 1; 0: the source has no lines (an override)
  int column = 0;
  std::string str() const;
};

struct YamlDocument::Node {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  using Pointer = std::unique_ptr<Node>;
  struct Entry {
    std::string key;
    YamlPlace place;  // of the key
    Pointer value;
    mutable bool used = false;
    mutable bool reached = false;  // taken as a mapping: finish() goes down here
    bool nulled = false;           // by an override `key=null`
    // Then nobody need know the key, and dump() leaves it out.
    bool is_taken_out() const { return nulled && !used && value->kind == Kind::kNull; }
  };
  // What only a mapping needs.
  struct Map {
    std::vector<Entry> entries;  // in the order written
    std::map<std::string, std::size_t, std::less<>> index;
    mutable std::set<std::string, std::less<>> asked;
    std::string path;  // "model.ffn_config"; set once the document is complete
  };

  Kind kind = Kind::kNull;
  bool resolved = false;  // its ${} are done: a `${` still in the text is meant literally
  bool plain = true;      // a scalar without quotes: numbers, bools and null only from these
  YamlPlace place;
  std::string text;            // of a scalar
  std::vector<Pointer> items;  // of a sequence
  std::unique_ptr<Map> map;    // of a mapping
  std::string via;             // "${variables.x}" where the value was put in by one

  bool is_map() const { return kind == Kind::kMap; }
  Entry* find(std::string_view key);
  const Entry* find(std::string_view key) const;
  // Appends (the key must be new) and returns the entry.
  Entry& add(std::string key, YamlPlace place, Pointer value);
};

using YamlNode = YamlDocument::Node;

// Counts what a document grows to, and stops a file of bytes from becoming gigabytes.
class YamlBudget {
 public:
  void charge(std::size_t text_bytes, const YamlPlace& place);

 private:
  std::size_t nodes_ = 0;
  std::size_t text_ = 0;
};

[[noreturn]] void fail_yaml(const YamlPlace& place, const std::string& message,
                            const std::string& hint = {});

// `depth` is the number of levels the copy will stand under.
YamlNode::Pointer copy_yaml(const YamlNode& node, YamlBudget& budget, int depth = 0);
// `source` names the text in places; one_line (an override) leaves line and column out of them.
YamlNode::Pointer read_yaml(std::string_view text, const std::string& source, bool one_line,
                            YamlBudget& budget);
// "a.b.c=v"
void apply_override(YamlNode::Pointer& root, const std::string& text, YamlBudget& budget);
void resolve_interpolations(YamlNode::Pointer& root, YamlBudget& budget);
std::string emit_yaml(const YamlNode& root);

// The component of a dotted path: a key of a mapping or an index of a sequence; nullptr when
// absent.
YamlNode::Pointer* step_into(YamlNode& node, std::string_view component);

}  // namespace dropless::train
