// Internal to train/base/yaml_read.cc: where in a text that is no YAML a person has to look.
#pragma once

#include <string>
#include <string_view>

namespace dropless::train {

struct YamlSyntaxPlace {
  int line = 0, column = 0;  // from 0
  std::string key;  // "model.attn_config", "eval_loader.1.dataset"; empty: none stands there
  std::string message, hint;  // where the text shows another cause than the parser; else empty
};

// From the place at which the parser gave up, with what it says: where a person has to look, as at the
// beginning of a quote or bracket that is not closed. Read off the text as people write it, by lines
// and indentation.
YamlSyntaxPlace locate_syntax_error(std::string_view text, int line, int column,
                                    std::string_view message);

}  // namespace dropless::train
