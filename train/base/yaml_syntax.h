// Internal to train/base/yaml_read.cc: where in a text that is no YAML a person has to look.
#pragma once

#include <string>
#include <string_view>

namespace dropless::train {

struct YamlSyntaxPlace {
  int line = 0, column = 0;  // from 0
  std::string key;  // "model.attn_config", "eval_loader.1.dataset"; empty: none stands there
};

// From the place at which the parser gave up. `unclosed`: it misses the end of a quote or a
// bracket, which it looks for to the end of the text; then the place is that of its beginning. Both
// are read off the text as people write it, by lines and indentation.
YamlSyntaxPlace locate_syntax_error(std::string_view text, int line, int column, bool unclosed);

}  // namespace dropless::train
