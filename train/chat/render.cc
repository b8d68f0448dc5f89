#include "train/chat/render.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "dropless/error.h"
#include "train/chat/functions.h"

namespace dropless::train::chat {
namespace {

using Kind = Expression::Kind;

// A template that never ends takes steps: statements, expressions, turns of a loop, and bytes made or gone through.
// That bounds its memory too: 1 GB.
constexpr std::int64_t kMaxSteps = 2'000'000;
constexpr std::size_t kStepBytes = 512;

class Renderer {
 public:
  Renderer(const Dict& variables, const std::string& name) : name_(name) {
    scopes_.emplace_back();
    for (const auto& [key, value] : variables) scopes_[0][key] = value;
  }

  std::string take() { return std::move(out_); }

  void run(const Block& block) {
    for (const Statement& statement : block) {
      line_ = statement.line;
      take_steps(1);
      if (out_.size() > kMostBytes) unsupported("a text of more than 16 MB");
      run(statement);
    }
  }

 private:
  using Scope = std::map<std::string, Value>;

  void take_steps(std::int64_t steps) {
    steps_ += steps;
    if (steps_ > kMaxSteps)
      unsupported("a text of more than 2 million steps (a loop without end?)");
  }

  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}:{}: {} is not supported in chat templates", name_, line_, what));
  }

  void run(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        out_ += statement.text;
        return;
      case Statement::Kind::kOutput:
        out_ += to_text(evaluate(*statement.expressions[0]));
        return;
      case Statement::Kind::kSet:
        return set(statement);
      case Statement::Kind::kIf:
        for (std::size_t i = 0; i < statement.expressions.size(); ++i) {
          if (truth(evaluate(*statement.expressions[i]))) return run(statement.blocks[i]);
        }
        if (statement.blocks.size() > statement.expressions.size()) run(statement.blocks.back());
        return;
      case Statement::Kind::kFor:
        return loop(statement);
    }
  }

  void set(const Statement& statement) {
    Value value = evaluate(*statement.expressions[0]);
    if (statement.names.size() == 1) {
      scopes_.back()[statement.names[0]] = std::move(value);
      return;
    }
    const Value target = find(statement.names[0]);
    const auto* space = target.get<std::shared_ptr<Namespace>>();
    if (!space) unsupported("setting an attribute of what is no namespace");
    require_no_namespace(value);
    (**space)[statement.names[1]] = std::move(value);
  }

  static void bind(const Statement& statement, const Value& element, Scope& scope) {
    if (statement.names.size() == 1) {
      scope[statement.names[0]] = element;
      return;
    }
    const List* parts = element.list();
    if (!parts || parts->size() != statement.names.size()) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{} names for a {}", statement.names.size(), type_of(element)));
    }
    for (std::size_t i = 0; i < parts->size(); ++i) scope[statement.names[i]] = (*parts)[i];
  }

  // What is set within a turn of the loop ends with it, as in Jinja.
  void loop(const Statement& statement) {
    const Value whole = evaluate(*statement.expressions[0]);
    go_through(whole.own_bytes());
    List elements = whole.undefined() ? List() : iterate(whole);
    if (statement.expressions.size() > 1) {
      List kept;
      for (const Value& element : elements) {
        scopes_.emplace_back();
        bind(statement, element, scopes_.back());
        if (truth(evaluate(*statement.expressions[1]))) kept.push_back(element);
        scopes_.pop_back();
      }
      elements = std::move(kept);
    }
    const auto n = static_cast<std::int64_t>(elements.size());
    for (std::int64_t i = 0; i < n; ++i) {
      take_steps(1);
      const auto element = [&](std::int64_t j) {
        return j >= 0 && j < n ? elements[static_cast<std::size_t>(j)] : Value();
      };
      scopes_.emplace_back();
      bind(statement, element(i), scopes_.back());
      scopes_.back()["loop"] = Dict{{"index", i + 1},
                                    {"index0", i},
                                    {"revindex", n - i},
                                    {"revindex0", n - i - 1},
                                    {"first", i == 0},
                                    {"last", i == n - 1},
                                    {"length", n},
                                    {"previtem", element(i - 1)},
                                    {"nextitem", element(i + 1)}};
      run(statement.blocks[0]);
      scopes_.pop_back();
    }
    if (n == 0 && statement.blocks.size() > 1) {
      scopes_.emplace_back();
      run(statement.blocks[1]);
      scopes_.pop_back();
    }
  }

  Value find(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(name);
      if (found != scope->end()) return found->second;
    }
    return Undefined(name);
  }

  Value evaluate(const Expression& node) {
    line_ = node.line;
    Value value = value_of(node);
    // What was there before is shared.
    const bool shared = node.kind == Kind::kName || node.kind == Kind::kAttribute ||
                        node.kind == Kind::kItem || node.kind == Kind::kConstant ||
                        node.kind == Kind::kConditional || node.kind == Kind::kAnd ||
                        node.kind == Kind::kOr;
    take_steps(1);
    if (!shared) go_through(value.own_bytes());
    return value;
  }

  void go_through(std::size_t bytes) { take_steps(static_cast<std::int64_t>(bytes / kStepBytes)); }

  Value value_of(const Expression& node) {
    const auto part = [&](std::size_t i) { return evaluate(*node.parts[i]); };
    switch (node.kind) {
      case Kind::kConstant:
        return node.value;
      case Kind::kName:
        if (is_function(node.name)) unsupported("the function " + node.name + " as a value");
        return find(node.name);
      case Kind::kList: {
        List list;
        for (std::size_t i = 0; i < node.parts.size(); ++i) list.push_back(part(i));
        return list;
      }
      case Kind::kDict:
        return dict(node);
      case Kind::kAttribute:
        return attribute(part(0), node.name);
      case Kind::kItem: {
        const Value whole = part(0);
        if (!whole.list()) go_through(whole.own_bytes());  // characters or keys before it
        return item(whole, part(1));
      }
      case Kind::kSlice: {
        const auto bound = [&](std::size_t i) { return node.parts[i] ? part(i) : Value(None{}); };
        const Value whole = part(0);
        if (whole.string()) go_through((node.parts[3] ? 4 : 1) * whole.bytes);
        return slice(whole, bound(1), bound(2), bound(3));
      }
      case Kind::kCall:
        return call(node);
      case Kind::kFilter: {
        const Value value = part(0);
        const Arguments all = arguments(node);
        const bool of_elements = value.list() || value.dict();
        if (!of_elements || goes_through_elements(node.name)) go_through(value.own_bytes());
        if (node.name == "tojson") go_through(4 * value.bytes);  // slow
        // Each element may be compared with the last argument.
        if (of_elements && all.size() > 2) {
          go_through(static_cast<std::size_t>(length_of(value)) * all[2].value.bytes);
        }
        return apply_filter(node.name, value, all);
      }
      case Kind::kTest:
        return test(node);
      case Kind::kNot:
        return !truth(part(0));
      case Kind::kNegative: {
        const Value value = part(0);
        if (const auto* integer = value.get<std::int64_t>()) return -*integer;
        unsupported(fmt::format("- of {}", type_of(value)));
      }
      case Kind::kAnd: {
        Value left = part(0);
        return truth(left) ? part(1) : left;
      }
      case Kind::kOr: {
        Value left = part(0);
        return truth(left) ? left : part(1);
      }
      case Kind::kBinary:
        return binary(node.name, part(0), part(1));
      case Kind::kCompare: {
        const Value a = part(0), b = part(1);
        go_through(a.bytes);
        go_through(b.bytes);
        return compare(node.name, a, b);
      }
      case Kind::kConditional:
        if (truth(part(0))) return part(1);
        return node.parts.size() > 2 ? part(2) : Value();
    }
    return {};
  }

  Value dict(const Expression& node) {
    Dict dict;
    for (std::size_t i = 0; i < node.parts.size(); i += 2) {
      const Value key = evaluate(*node.parts[i]);
      go_through(dict.size() * kElementBytes);
      if (!key.string()) unsupported(fmt::format("a mapping by {}", type_of(key)));
      const auto same = [&](const auto& entry) { return entry.first == *key.string(); };
      const auto found = std::find_if(dict.begin(), dict.end(), same);
      Value value = evaluate(*node.parts[i + 1]);
      if (found != dict.end()) {
        found->second = std::move(value);
      } else {
        dict.emplace_back(*key.string(), std::move(value));
      }
    }
    return dict;
  }

  // Jinja asks for a mapping's own attributes before its keys.
  Value attribute(const Value& whole, const std::string& name) {
    if (whole.dict()) go_through(whole.own_bytes());
    if (whole.dict() && is_method(name)) unsupported("the method " + name + " as a value");
    if (whole.dict() || whole.get<std::shared_ptr<Namespace>>()) return item(whole, name);
    unsupported(fmt::format(
        "'{}' of {}", name,
        whole.undefined() ? "the undefined " + whole.get<Undefined>()->name : type_of(whole)));
  }

  Arguments arguments(const Expression& node) {
    Arguments all;
    for (const Argument& argument : node.arguments) {
      all.push_back({argument.keyword, evaluate(*argument.value)});
    }
    return all;
  }

  Value call(const Expression& node) {
    const Expression& callee = *node.parts[0];
    if (callee.kind == Kind::kAttribute) {
      const Value whole = evaluate(*callee.parts[0]);
      const Arguments all = arguments(node);
      go_through(whole.own_bytes());
      for (const NamedValue& argument : all) go_through(argument.value.own_bytes());
      return call_method(whole, callee.name, all);
    }
    if (callee.kind != Kind::kName || !is_function(callee.name)) {
      unsupported(callee.kind == Kind::kName ? "the function " + callee.name : "a call of a value");
    }
    return call_function(callee.name, arguments(node));
  }

  Value test(const Expression& node) {
    const Expression& subject = *node.parts[0];
    const bool asks_for_name = node.name == "defined" || node.name == "undefined";
    if (asks_for_name && subject.kind == Kind::kName && is_function(subject.name)) {
      return node.name == "defined";
    }
    const Value value = evaluate(subject);
    const Arguments all = arguments(node);
    for (const NamedValue& argument : all) go_through(value.bytes + argument.value.bytes);
    return apply_test(node.name, value, all);
  }

  static bool goes_through_elements(const std::string& filter) {
    return filter != "length" && filter != "count" && filter != "first" && filter != "last" &&
           filter != "default" && filter != "d";
  }

  // Far from what 64 bits hold: the sum and the difference of two fit.
  Value integer(std::int64_t value) const {
    if (value <= -kMostInteger || value >= kMostInteger) unsupported("such an integer");
    return value;
  }

  Value binary(const std::string& op, const Value& a, const Value& b) const {
    if (op == "~") return to_text(a) + to_text(b);
    const auto *x = a.get<std::int64_t>(), *y = b.get<std::int64_t>();
    if (op == "+") {
      if (x && y) return integer(*x + *y);
      if (a.string() && b.string()) return *a.string() + *b.string();
      if (a.list() && b.list()) {
        List sum = *a.list();
        sum.insert(sum.end(), b.list()->begin(), b.list()->end());
        return sum;
      }
    } else if (x && y && op == "-") {
      return integer(*x - *y);
    } else if (std::int64_t product;
               x && y && op == "*" && !__builtin_mul_overflow(*x, *y, &product)) {
      return integer(product);
    } else if (x && y && *y != 0 && (op == "//" || op == "%")) {
      // Python rounds down.
      std::int64_t quotient = *x / *y;
      if (*x % *y != 0 && (*x < 0) != (*y < 0)) --quotient;
      return op == "//" ? quotient : *x - quotient * *y;
    }
    const auto described = [](const Value& value) {
      return value.undefined() ? "the undefined " + value.get<Undefined>()->name : type_of(value);
    };
    unsupported(fmt::format("{} {} {}", described(a), op, described(b)));
  }

  static Value compare(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return equal(a, b);
    if (op == "!=") return !equal(a, b);
    if (op == "in") return contains(b, a);
    if (op == "not in") return !contains(b, a);
    if (op == "<") return less(a, b);
    if (op == ">") return less(b, a);
    return op == "<=" ? !less(b, a) : !less(a, b);
  }

  const std::string& name_;
  int line_ = 1;
  std::int64_t steps_ = 0;
  std::vector<Scope> scopes_;
  std::string out_;

 public:
  int line() const { return line_; }
};

}  // namespace

std::string render(const Block& block, const Dict& variables, const std::string& name) {
  Renderer renderer(variables, name);
  const std::string place = name + ":";
  try {
    renderer.run(block);
  } catch (const Error& error) {
    if (std::string_view(error.what()).starts_with(place)) throw;
    const bool own = error.kind() == ErrorKind::kUnsupported;
    throw Error(error.kind(),
                fmt::format("{}{}: {}{}", place, renderer.line(), error.what(),
                            own ? " is not supported in chat templates" : ""),
                error.hint());
  }
  return renderer.take();
}

}  // namespace dropless::train::chat
