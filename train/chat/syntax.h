// The syntax tree of a chat template, and its parser.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/chat/value.h"

namespace dropless::train::chat {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Argument {
  std::string keyword;  // empty: by position
  ExpressionPtr value;
};

struct Expression {
  enum class Kind {
    kConstant,   // value
    kName,       // name
    kList,       // parts
    kDict,       // parts: key, value, key, value ...
    kAttribute,  // parts[0].name
    kItem,       // parts[0][parts[1]]
    kSlice,      // parts[0][parts[1]:parts[2]:parts[3]], absent ones null
    kCall,       // parts[0](arguments)
    kFilter,     // parts[0] | name(arguments)
    kTest,       // parts[0] is name(arguments)
    kNot,        // not parts[0]
    kNegative,   // -parts[0]
    kAnd,
    kOr,
    kBinary,       // parts[0] name parts[1]: + - * // % ~
    kCompare,      // parts[0] name parts[1]: == != < <= > >= in, "not in"
    kConditional,  // parts[1] if parts[0] else parts[2], which may be absent
  };
  Kind kind;
  int line = 1;
  int height = 1;  // of the tree below it
  std::string name;
  Value value;
  std::vector<ExpressionPtr> parts;
  std::vector<Argument> arguments;
};

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum class Kind {
    kText,    // text
    kOutput,  // expressions[0]
    kSet,     // names[0] = expressions[0]; names[0].names[1] where there are two
    kIf,      // expressions[i] -> blocks[i]; a block more is the else
    kFor,     // for names in expressions[0] [if expressions[1]] -> blocks[0], else blocks[1]
  };
  Kind kind;
  int line = 1;
  std::string text;
  std::vector<std::string> names;
  std::vector<ExpressionPtr> expressions;
  std::vector<Block> blocks;
};

// With trim_blocks and lstrip_blocks, as transformers reads chat templates. Throws
// Error(kUnsupported) "NAME:LINE: ..." for what is no part of the subset, and
// Error(kInvalidArgument) for what is no template.
Block parse_template(std::string_view source, const std::string& name);

}  // namespace dropless::train::chat
