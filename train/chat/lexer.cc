#include "train/chat/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "dropless/error.h"

namespace dropless::train::chat {
namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool begins_name(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool in_name(char c) { return begins_name(c) || std::isdigit(static_cast<unsigned char>(c)) != 0; }

// One kind of newline, and none at the end.
std::string normalized(std::string_view source) {
  std::string text;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
      continue;
    }
    text += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name)
      : name_(name), source_(normalized(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const std::size_t tag = next_tag();
      text_before(tag);
      if (tag == source_.size()) break;
      const char kind = source_[tag + 1];
      advance_to(tag + 2);
      if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) advance_to(at_ + 1);
      if (kind == '#') {
        comment();
      } else {
        add(kind == '{' ? Token::Kind::kBeginOutput : Token::Kind::kBeginBlock);
        inside(kind == '{');
      }
    }
    add(Token::Kind::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}:{}: {}", name_, line_, what));
  }
  void add(Token::Kind kind, std::string text = {}) {
    tokens_.push_back({kind, std::move(text), line_});
  }
  void advance_to(std::size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  std::size_t next_tag() const {
    for (std::size_t i = at_; i + 1 < source_.size(); ++i) {
      const char next = source_[i + 1];
      if (source_[i] == '{' && (next == '{' || next == '%' || next == '#')) return i;
    }
    return source_.size();
  }

  void text_before(std::size_t tag) {
    std::string text = source_.substr(at_, tag - at_);
    if (tag + 2 < source_.size()) {
      const char sign = source_[tag + 2];
      if (sign == '-') {
        while (!text.empty() && is_space(text.back())) text.pop_back();
      } else if (sign != '+' && source_[tag + 1] != '{') {
        const std::size_t newline = text.rfind('\n');
        const bool at_line_start =
            newline != std::string::npos || at_ == 0 || source_[at_ - 1] == '\n';
        const std::size_t from = newline == std::string::npos ? 0 : newline + 1;
        const auto begin = text.begin() + static_cast<std::ptrdiff_t>(from);
        if (at_line_start && std::all_of(begin, text.end(), is_space)) text.resize(from);
      }
    }
    if (!text.empty()) add(Token::Kind::kText, std::move(text));
    advance_to(tag);
  }

  // Behind a tag that ends at `end`, whose last characters tell what of the white space goes.
  void after_tag(std::size_t end, bool dash, bool plus, bool trims_newline) {
    advance_to(end);
    if (dash) {
      std::size_t to = at_;
      while (to < source_.size() && is_space(source_[to])) ++to;
      advance_to(to);
    } else if (trims_newline && !plus && at_ < source_.size() && source_[at_] == '\n') {
      advance_to(at_ + 1);
    }
  }

  void comment() {
    const std::size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail("a comment without an end");
    const char sign = end > at_ ? source_[end - 1] : ' ';
    after_tag(end + 2, sign == '-', sign == '+', true);
  }

  void inside(bool output) {
    const std::string end = output ? "}}" : "%}";
    std::string open;  // brackets
    while (true) {
      while (at_ < source_.size() && is_space(source_[at_])) advance_to(at_ + 1);
      if (at_ >= source_.size()) fail("a tag without an end");
      const char sign = source_[at_];
      const bool signed_end =
          (sign == '-' || (sign == '+' && !output)) && source_.compare(at_ + 1, 2, end) == 0;
      if (open.empty() && (signed_end || source_.compare(at_, 2, end) == 0)) {
        add(output ? Token::Kind::kEndOutput : Token::Kind::kEndBlock);
        after_tag(at_ + (signed_end ? 3 : 2), signed_end && sign == '-', signed_end && sign == '+',
                  !output);
        return;
      }
      token(open);
    }
  }

  void token(std::string& open) {
    const char c = source_[at_];
    if (c == '\'' || c == '"') return string();
    std::size_t end = at_;
    if (begins_name(c)) {
      while (end < source_.size() && in_name(source_[end])) ++end;
      return take(Token::Kind::kName, end);
    }
    if (std::isdigit(static_cast<unsigned char>(c)) != 0) {
      while (end < source_.size() && in_name(source_[end])) ++end;
      const bool real = source_.compare(end, 1, ".") == 0 && end + 1 < source_.size() &&
                        std::isdigit(static_cast<unsigned char>(source_[end + 1])) != 0;
      const bool digits = std::all_of(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                      source_.begin() + static_cast<std::ptrdiff_t>(end),
                                      [](char d) { return d >= '0' && d <= '9'; });
      if (real || !digits || end - at_ > 15) {
        throw Error(
            ErrorKind::kUnsupported,
            fmt::format("{}:{}: numbers but plain whole ones are not supported", name_, line_));
      }
      return take(Token::Kind::kInteger, end);
    }
    for (const char* two : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (source_.compare(at_, 2, two) == 0) return take(Token::Kind::kOperator, at_ + 2);
    }
    constexpr std::string_view kOpening = "([{", kClosing = ")]}", kOther = "+-*/%~<>=.,:|";
    if (kOpening.find(c) != std::string_view::npos) {
      open += c;
    } else if (const std::size_t kind = kClosing.find(c); kind != std::string_view::npos) {
      if (open.empty() || open.back() != kOpening[kind])
        fail(fmt::format("'{}' closes nothing", c));
      open.pop_back();
    } else if (kOther.find(c) == std::string_view::npos) {
      fail(fmt::format("unexpected character '{}'", c));
    }
    take(Token::Kind::kOperator, at_ + 1);
  }

  void take(Token::Kind kind, std::size_t end) {
    add(kind, source_.substr(at_, end - at_));
    advance_to(end);
  }

  void string() {
    const char quote = source_[at_];
    std::string text;
    std::size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\') {
        text += source_[i];
        continue;
      }
      if (++i >= source_.size()) break;
      constexpr std::string_view kNames = "ntr\\'\"", kMeaning = "\n\t\r\\'\"";
      const std::size_t known = kNames.find(source_[i]);
      if (known == std::string_view::npos) {
        throw Error(ErrorKind::kUnsupported, fmt::format("{}:{}: the escape \\{} is not supported",
                                                         name_, line_, source_[i]));
      }
      text += kMeaning[known];
    }
    if (i >= source_.size()) fail("a string without an end");
    add(Token::Kind::kString, std::move(text));
    advance_to(i + 1);
  }

  const std::string& name_;
  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& name) {
  return Lexer(source, name).run();
}

}  // namespace dropless::train::chat
