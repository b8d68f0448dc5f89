// What a program asks of a config: every key with its type, its default and what becomes of it.
//
// A YamlMap of YamlDocument::recorded_by() writes down each question it is asked. docs/yaml.md is
// made of what parses of every branch leave here (tests/train/run/config_keys.cc), so that it
// cannot list a key that the code does not read, nor leave one out.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace dropless::train {

struct YamlKeyRecord {
  std::set<std::string> types;            // "number above 0"; several where forms differ
  std::optional<std::string> fallback;    // what an absent key stands for, as YAML
  bool required = false;                  // absent or null: an error
  bool is_map = false;                    // has keys of its own
  std::optional<std::string> no_effect;   // why it changes nothing
  std::optional<std::string> not_served;  // known and refused: the hint
};

struct YamlMapRecord {
  std::map<std::string, YamlKeyRecord, std::less<>> keys;
  bool any_key = false;  // its keys are names that the user chooses
};

struct YamlRecorder {
  std::map<std::string, YamlMapRecord, std::less<>> maps;  // by path: "model.attn_config"

  YamlKeyRecord& key(const std::string& path, std::string_view name) {
    return maps[path].keys[std::string(name)];
  }
};

}  // namespace dropless::train
