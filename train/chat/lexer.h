// The pieces of a chat template: text, and the tokens between its delimiters.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dropless::train::chat {

struct Token {
  enum class Kind {
    kText,
    kBeginOutput,
    kEndOutput,
    kBeginBlock,
    kEndBlock,
    kName,
    kInteger,
    kString,
    kOperator,
    kEnd
  };
  Kind kind;
  std::string text;  // of a string its characters, of others as written
  int line = 1;
};

// Without comments, and with the white space taken away that Jinja takes away: after and before tags with a
// dash; after block tags a newline (trim_blocks); before them what stands between them and the line's beginning
// (lstrip_blocks); at the end a newline. Throws as parse_template does.
std::vector<Token> tokenize(std::string_view source, const std::string& name);

}  // namespace dropless::train::chat
