#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <optional>

#include "dropless/error.h"
#include "train/chat/lexer.h"
#include "train/chat/syntax.h"

namespace dropless::train::chat {
namespace {

using Kind = Expression::Kind;

// What walks the tree walks it recursively: what stands in each other, and chains such as a.b.c and a + b + c,
// each of whose links stands in the next.
constexpr int kMaxDepth = 200;
constexpr int kMaxHeight = 500;

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name)
      : name_(name), tokens_(std::move(tokens)) {}

  Block run() {
    Block all = block({});
    if (now().kind != Token::Kind::kEnd) fail("unexpected " + now().text);
    return all;
  }

 private:
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool is(const char* text) const {
    return (now().kind == Token::Kind::kOperator || now().kind == Token::Kind::kName) &&
           now().text == text;
  }
  bool skip(const char* text) {
    if (!is(text)) return false;
    take();
    return true;
  }
  void expect(const char* text) {
    if (!skip(text)) fail(fmt::format("'{}' is missing before '{}'", text, now().text));
  }
  void expect(Token::Kind kind, const char* what) {
    if (now().kind != kind) fail(fmt::format("{} is missing before '{}'", what, now().text));
    take();
  }
  std::string take_name() {
    if (now().kind != Token::Kind::kName)
      fail(fmt::format("a name is missing before '{}'", now().text));
    return take().text;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}:{}: {}", name_, now().line, what));
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorKind::kUnsupported, fmt::format("{}:{}: {} is not supported in chat templates",
                                                     name_, now().line, what));
  }

  struct Deeper {
    explicit Deeper(Parser& parser) : parser_(parser) {
      if (++parser.depth_ > kMaxDepth) parser.fail("too deep");
    }
    ~Deeper() { --parser_.depth_; }
    Parser& parser_;
  };

  // ---- statements ----

  // Up to a block tag that begins with one of `ends`, which is not taken.
  Block block(std::initializer_list<const char*> ends) {
    const Deeper deeper(*this);
    Block statements;
    while (now().kind != Token::Kind::kEnd) {
      if (now().kind == Token::Kind::kText) {
        Statement text{Statement::Kind::kText, now().line, {}, {}, {}, {}};
        text.text = take().text;
        statements.push_back(std::move(text));
      } else if (now().kind == Token::Kind::kBeginOutput) {
        Statement output{Statement::Kind::kOutput, take().line, {}, {}, {}, {}};
        output.expressions.push_back(expression());
        expect(Token::Kind::kEndOutput, "}}");
        statements.push_back(std::move(output));
      } else {
        const bool ending = std::any_of(ends.begin(), ends.end(),
                                        [&](const char* end) { return ahead().text == end; });
        if (ending) return statements;
        take();
        statements.push_back(statement());
      }
    }
    if (ends.size() > 0) fail(fmt::format("the template ends before '{}'", *(ends.end() - 1)));
    return statements;
  }
  void end_tag() { expect(Token::Kind::kEndBlock, "%}"); }

  Statement statement() {
    const int line = now().line;
    const std::string word = take_name();
    if (word == "set") return set(line);
    if (word == "if") return conditional(line);
    if (word == "for") return loop(line);
    unsupported(fmt::format("{{% {} %}}", word));
  }

  Statement set(int line) {
    Statement statement{Statement::Kind::kSet, line, {}, {}, {}, {}};
    statement.names.push_back(take_name());
    if (skip(".")) statement.names.push_back(take_name());
    if (!skip("=")) unsupported("a set of anything but one name");
    statement.expressions.push_back(expression());
    end_tag();
    return statement;
  }

  Statement conditional(int line) {
    Statement statement{Statement::Kind::kIf, line, {}, {}, {}, {}};
    do {
      statement.expressions.push_back(expression());
      end_tag();
      statement.blocks.push_back(block({"elif", "else", "endif"}));
      take();
    } while (skip("elif"));
    if (skip("else")) {
      end_tag();
      statement.blocks.push_back(block({"endif"}));
      take();
    }
    expect("endif");
    end_tag();
    return statement;
  }

  Statement loop(int line) {
    Statement statement{Statement::Kind::kFor, line, {}, {}, {}, {}};
    do {
      statement.names.push_back(take_name());
    } while (skip(","));
    expect("in");
    statement.expressions.push_back(disjunction());  // an `if` behind it is the loop's
    if (skip("if")) statement.expressions.push_back(expression());
    if (is("recursive")) unsupported("a recursive loop");
    end_tag();
    statement.blocks.push_back(block({"else", "endfor"}));
    take();
    if (skip("else")) {
      end_tag();
      statement.blocks.push_back(block({"endfor"}));
      take();
    }
    expect("endfor");
    end_tag();
    return statement;
  }

  // ---- expressions, from the loosest operator to the tightest ----

  ExpressionPtr make(Kind kind, std::string name = {}) const {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->line = now().line;
    node->name = std::move(name);
    return node;
  }
  ExpressionPtr make(Kind kind, std::string name, ExpressionPtr a,
                     ExpressionPtr b = nullptr) const {
    ExpressionPtr node = make(kind, std::move(name));
    add_part(*node, std::move(a));
    if (b) add_part(*node, std::move(b));
    return node;
  }
  void raise(Expression& node, const Expression& below) const {
    node.height = std::max(node.height, below.height + 1);
    if (node.height > kMaxHeight) fail("too long a chain");
  }
  void add_part(Expression& node, ExpressionPtr part) const {
    if (part) raise(node, *part);
    node.parts.push_back(std::move(part));
  }

  ExpressionPtr expression() {
    const Deeper deeper(*this);
    ExpressionPtr value = disjunction();
    while (skip("if")) {
      ExpressionPtr node = make(Kind::kConditional, {}, disjunction(), std::move(value));
      if (skip("else")) add_part(*node, expression());
      value = std::move(node);
    }
    return value;
  }
  ExpressionPtr disjunction() {
    ExpressionPtr left = conjunction();
    while (skip("or")) left = make(Kind::kOr, {}, std::move(left), conjunction());
    return left;
  }
  ExpressionPtr conjunction() {
    ExpressionPtr left = negation();
    while (skip("and")) left = make(Kind::kAnd, {}, std::move(left), negation());
    return left;
  }
  ExpressionPtr negation() {
    const Deeper deeper(*this);
    if (skip("not")) return make(Kind::kNot, {}, negation());
    return comparison();
  }
  ExpressionPtr comparison() {
    ExpressionPtr left = sum();
    bool one = false;
    while (const auto op = comparator()) {
      if (one) unsupported("a chain of comparisons");
      one = true;
      left = make(Kind::kCompare, *op, std::move(left), sum());
    }
    return left;
  }
  std::optional<std::string> comparator() {
    for (const char* op : {"==", "!=", "<=", ">=", "<", ">", "in"}) {
      if (skip(op)) return op;
    }
    if (is("not") && ahead().text == "in") {
      take();
      take();
      return "not in";
    }
    return std::nullopt;
  }
  ExpressionPtr sum() {
    ExpressionPtr left = joined();
    while (is("+") || is("-")) {
      const std::string op = take().text;
      left = make(Kind::kBinary, op, std::move(left), joined());
    }
    return left;
  }
  ExpressionPtr joined() {
    ExpressionPtr left = product();
    while (skip("~")) left = make(Kind::kBinary, "~", std::move(left), product());
    return left;
  }
  ExpressionPtr product() {
    ExpressionPtr left = unary();
    while (is("*") || is("//") || is("%") || is("/")) {
      const std::string op = take().text;
      if (op == "/") unsupported("division with a fraction (/)");
      left = make(Kind::kBinary, op, std::move(left), unary());
    }
    if (is("**")) unsupported("**");
    return left;
  }
  ExpressionPtr unary(bool with_filters = true) {
    const Deeper deeper(*this);
    ExpressionPtr node;
    if (skip("-")) {
      node = make(Kind::kNegative, {}, unary(false));
    } else if (is("+")) {
      unsupported("a unary +");
    } else {
      node = postfix(primary());
    }
    while (with_filters && (is("|") || is("is"))) {
      node = take().text == "|" ? filter(std::move(node)) : test(std::move(node));
    }
    return node;
  }

  ExpressionPtr filter(ExpressionPtr value) {
    ExpressionPtr node = make(Kind::kFilter, take_name(), std::move(value));
    if (is(".")) unsupported("a filter with a dot");
    if (skip("(")) add_arguments(*node);
    return node;
  }
  ExpressionPtr test(ExpressionPtr value) {
    const bool negated = skip("not");
    ExpressionPtr node = make(Kind::kTest, take_name(), std::move(value));
    const auto kind = now().kind;
    const bool word = kind == Token::Kind::kName && !is("else") && !is("or") && !is("and") &&
                      !is("if") && !is("is") && !is("in") && !is("not");
    if (skip("(")) {
      add_arguments(*node);
    } else if (word || kind == Token::Kind::kString || kind == Token::Kind::kInteger || is("[")) {
      node->arguments.push_back({{}, postfix(primary())});
      raise(*node, *node->arguments.back().value);
    }
    return negated ? make(Kind::kNot, {}, std::move(node)) : std::move(node);
  }

  ExpressionPtr postfix(ExpressionPtr node) {
    while (true) {
      if (skip(".")) {
        if (now().kind == Token::Kind::kInteger) unsupported("an attribute that is a number");
        node = make(Kind::kAttribute, take_name(), std::move(node));
      } else if (skip("[")) {
        node = subscript(std::move(node));
      } else if (skip("(")) {
        node = make(Kind::kCall, {}, std::move(node));
        add_arguments(*node);
      } else {
        return node;
      }
    }
  }
  ExpressionPtr subscript(ExpressionPtr whole) {
    std::vector<ExpressionPtr> bounds;
    bool slice = false;
    bounds.push_back(is(":") ? nullptr : expression());
    while (skip(":")) {
      slice = true;
      bounds.push_back(is(":") || is("]") ? nullptr : expression());
    }
    expect("]");
    if (!slice) return make(Kind::kItem, {}, std::move(whole), std::move(bounds[0]));
    if (bounds.size() > 3) fail("a slice of more than three bounds");
    bounds.resize(3);
    ExpressionPtr node = make(Kind::kSlice, {}, std::move(whole));
    for (ExpressionPtr& bound : bounds) add_part(*node, std::move(bound));
    return node;
  }
  // Behind the opening bracket.
  void add_arguments(Expression& node) {
    while (!skip(")")) {
      if (!node.arguments.empty()) expect(",");
      if (skip(")")) break;
      if (is("*") || is("**")) unsupported("*arguments");
      Argument argument;
      if (now().kind == Token::Kind::kName && ahead().kind == Token::Kind::kOperator &&
          ahead().text == "=") {
        argument.keyword = take_name();
        take();
      }
      argument.value = expression();
      raise(node, *argument.value);
      node.arguments.push_back(std::move(argument));
    }
  }

  ExpressionPtr constant(Value value) {
    ExpressionPtr node = make(Kind::kConstant);
    node->value = std::move(value);
    return node;
  }
  ExpressionPtr primary() {
    const Deeper deeper(*this);
    const Token token = now();
    if (token.kind == Token::Kind::kName) {
      take();
      if (token.text == "true" || token.text == "True") return constant(true);
      if (token.text == "false" || token.text == "False") return constant(false);
      if (token.text == "none" || token.text == "None") return constant(None{});
      return make(Kind::kName, token.text);
    }
    if (token.kind == Token::Kind::kString) {
      std::string text;  // neighbours are one
      while (now().kind == Token::Kind::kString) text += take().text;
      return constant(std::move(text));
    }
    if (token.kind == Token::Kind::kInteger) {
      std::int64_t value = 0;
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
      take();
      return constant(value);
    }
    if (skip("(")) {
      ExpressionPtr inner = expression();
      if (is(",")) unsupported("a tuple");
      expect(")");
      return inner;
    }
    if (skip("[")) return list();
    if (skip("{")) return dict();
    fail(fmt::format("an expression is missing before '{}'", token.text));
  }
  ExpressionPtr list() {
    ExpressionPtr node = make(Kind::kList);
    while (!skip("]")) {
      if (!node->parts.empty()) expect(",");
      if (skip("]")) break;
      add_part(*node, expression());
    }
    return node;
  }
  ExpressionPtr dict() {
    ExpressionPtr node = make(Kind::kDict);
    while (!skip("}")) {
      if (!node->parts.empty()) expect(",");
      if (skip("}")) break;
      add_part(*node, expression());
      expect(":");
      add_part(*node, expression());
    }
    return node;
  }

  const std::string& name_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Block parse_template(std::string_view source, const std::string& name) {
  return Parser(tokenize(source, name), name).run();
}

}  // namespace dropless::train::chat
