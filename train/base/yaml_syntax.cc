#include "train/base/yaml_syntax.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace dropless::train {
namespace {

// Deeper than any config is read: a path of more says nothing, and its length is the sender's to
// choose.
constexpr std::size_t kMostParts = 100;

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

int indentation(std::string_view line) {
  return static_cast<int>(std::min(line.find_first_not_of(' '), line.size()));
}

// Whether a line says nothing: blank, or a comment.
bool is_idle(std::string_view line) {
  const std::size_t first = line.find_first_not_of(" \t\r");
  return first == std::string_view::npos || line[first] == '#';
}

// What begins in a line: `- - key: ...`.
struct LineStart {
  std::vector<int> dashes;  // columns
  std::string_view key;     // empty: none
  int key_column = 0;
};

LineStart start_of(std::string_view line) {
  LineStart start;
  std::size_t at = static_cast<std::size_t>(indentation(line));
  while (start.dashes.size() < kMostParts && at < line.size() && line[at] == '-' &&
         (at + 1 == line.size() || line[at + 1] == ' ')) {
    start.dashes.push_back(static_cast<int>(at));
    at = std::min(line.find_first_not_of(' ', at + 1), line.size());
  }
  const auto is_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.' ||
           c == '/';
  };
  std::size_t end = at;
  while (end < line.size() && is_name(line[end])) ++end;
  const bool colon = end < line.size() && line[end] == ':';
  if (end > at && colon &&
      (end + 1 == line.size() || line[end + 1] == ' ' || line[end + 1] == '\r')) {
    start.key = line.substr(at, end - at);
    start.key_column = static_cast<int>(at);
  }
  return start;
}

// The place in its sequence of the item whose dash stands in that line and column.
int item_index(const std::vector<std::string_view>& lines, int line, int column) {
  int index = 0;
  while (--line >= 0) {
    const std::string_view text = lines[static_cast<std::size_t>(line)];
    if (is_idle(text) || indentation(text) > column) continue;
    const std::vector<int> dashes = start_of(text).dashes;
    if (std::find(dashes.begin(), dashes.end(), column) == dashes.end()) break;
    ++index;
    if (indentation(text) < column) break;  // in `- - a` the outer item begins there
  }
  return index;
}

// Of the key in this line, or the nearest above it.
std::string key_path(const std::vector<std::string_view>& lines, int line) {
  std::vector<std::string> parts;  // the last first
  // What comes further up is of the path only where it stands further to the left.
  int key_limit = std::numeric_limits<int>::max(), dash_limit = key_limit;
  for (int i = std::min(line, static_cast<int>(lines.size()) - 1); i >= 0 && key_limit > 0; --i) {
    if (is_idle(lines[static_cast<std::size_t>(i)])) continue;
    const LineStart start = start_of(lines[static_cast<std::size_t>(i)]);
    if (!start.key.empty() && start.key_column < key_limit) {
      parts.emplace_back(start.key);
      key_limit = dash_limit = start.key_column;
    }
    if (parts.empty()) continue;
    for (auto dash = start.dashes.rbegin(); dash != start.dashes.rend(); ++dash) {
      if (*dash >= dash_limit) continue;
      parts.push_back(std::to_string(item_index(lines, i, *dash)));
      dash_limit = *dash;
      key_limit = *dash + 1;  // a sequence may stand right below its key
    }
    if (parts.size() > kMostParts) return {};
  }
  std::reverse(parts.begin(), parts.end());
  return fmt::format("{}", fmt::join(parts, "."));
}

struct Opening {
  char sign;
  int line, column;
};

// Reads quotes, brackets, comments and block scalars (`|`, `>`), which decide what the others mean.
class OpeningFinder {
 public:
  explicit OpeningFinder(const std::vector<std::string_view>& lines) : lines_(lines) {}

  // The innermost quote or bracket that is open before the place.
  std::optional<Opening> open_before(int line, int column) {
    for (line_ = 0; line_ < static_cast<int>(lines_.size()) && line_ <= line; ++line_) {
      const std::string_view text = lines_[static_cast<std::size_t>(line_)];
      if (skips(text)) continue;
      if (mismatch_) break;  // what was to be closed first is the one
      read(text.substr(0, line_ == line ? static_cast<std::size_t>(column) : text.npos));
    }
    if (open_.empty()) return std::nullopt;
    return open_.back();
  }

 private:
  bool in_quote() const {
    return !open_.empty() && (open_.back().sign == '"' || open_.back().sign == '\'');
  }

  // The lines of a block scalar.
  bool skips(std::string_view text) {
    if (!block_) return false;
    if (is_idle(text) || indentation(text) > *block_) return true;
    block_.reset();
    return false;
  }

  void read(std::string_view text) {
    // Of a value or a key: only there quotes and brackets mean anything in a block.
    bool at_start = true, closed_quote = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const char c = text[i];
      if (in_quote()) {
        read_quoted(text, i);
        at_start = false;
        closed_quote = !in_quote();
        continue;
      }
      if (c == ' ' || c == '\t') continue;
      if (c == '#' && (i == 0 || text[i - 1] == ' ' || text[i - 1] == '\t')) return;
      const bool flow = !open_.empty();
      const bool before_space = i + 1 == text.size() || text[i + 1] == ' ';
      const bool after_quote = std::exchange(closed_quote, false);
      if ((c == '"' || c == '\'') && at_start) {
        open(c, i);
      } else if ((c == '[' || c == '{') && (at_start || flow)) {
        open(c, i);
        at_start = true;
        continue;
      } else if ((c == ']' || c == '}') && flow) {
        mismatch_ = open_.back().sign != (c == ']' ? '[' : '{');
        if (mismatch_) return;
        open_.pop_back();
      } else if ((c == '|' || c == '>') && at_start && !flow) {
        const LineStart start = start_of(text);
        block_ = !start.key.empty()     ? start.key_column
                 : start.dashes.empty() ? indentation(text)
                                        : start.dashes.back();
        return;
      } else if ((c == '&' || c == '!') && at_start) {  // the value comes behind its anchor or tag
        i = std::min(text.find(' ', i), text.size());
        continue;
      } else if ((flow && (c == ',' || (c == ':' && after_quote))) ||
                 ((c == ':' || c == '-' || c == '?') && before_space)) {
        at_start = true;
        continue;
      }
      at_start = false;
    }
  }

  // `i` is the place of a sign within the quote, and then the last that was read.
  void read_quoted(std::string_view text, std::size_t& i) {
    const char sign = open_.back().sign;
    if (sign == '"' && text[i] == '\\') {
      ++i;
    } else if (text[i] == sign) {
      const bool doubled = sign == '\'' && i + 1 < text.size() && text[i + 1] == sign;
      if (doubled) {
        ++i;
      } else {
        open_.pop_back();
      }
    }
  }

  void open(char sign, std::size_t column) {
    open_.push_back({sign, line_, static_cast<int>(column)});
  }

  const std::vector<std::string_view>& lines_;
  int line_ = 0;
  std::vector<Opening> open_;
  bool mismatch_ = false;
  std::optional<int> block_;  // the column of the key or dash that a block scalar belongs to
};

}  // namespace

YamlSyntaxPlace locate_syntax_error(std::string_view text, int line, int column, bool unclosed) {
  const std::vector<std::string_view> lines = lines_of(text);
  YamlSyntaxPlace place{line, column, {}};
  if (unclosed) {
    if (const auto opening = OpeningFinder(lines).open_before(line, column)) {
      place = {opening->line, opening->column, {}};
    }
  }
  place.key = key_path(lines, place.line);
  return place;
}

}  // namespace dropless::train
