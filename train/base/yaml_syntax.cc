#include "train/base/yaml_syntax.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <initializer_list>
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

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r'; }

// What begins in a line: `- - key: ...`.
struct LineStart {
  std::vector<int> dashes;  // columns
  std::string_view key;     // empty: none
  int key_column = 0;
};

LineStart start_of(std::string_view line) {
  LineStart start;
  std::size_t at = std::min(line.find_first_not_of(" \t"), line.size());
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
  if (end > at && colon && (end + 1 == line.size() || is_space(line[end + 1]))) {
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
  line = std::min(line, static_cast<int>(lines.size()) - 1);
  const std::string_view own = lines[static_cast<std::size_t>(line)];
  if (!is_idle(own) && start_of(own).key.empty() && start_of(own).dashes.empty()) {
    key_limit = dash_limit = indentation(own);
  }
  for (int i = line; i >= 0 && key_limit > 0; --i) {
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

// A quote or a bracket.
struct Opening {
  char sign;
  int line, column;
  std::string text;  // read last: of a quote its content, of a bracket what may become a key
  std::string key;   // of a `{`: of the value that is being read
  int index = 0;     // of a `[`: of the item
  bool is_quote() const { return sign == '"' || sign == '\''; }
};

// Reads quotes, brackets, comments and block scalars (`|`, `>`), which decide what the others mean, up to a
// place.
class FlowReader {
 public:
  FlowReader(const std::vector<std::string_view>& lines, int line, int column) : lines_(lines) {
    for (line_ = 0; line_ < static_cast<int>(lines_.size()) && line_ <= line; ++line_) {
      const std::string_view text = lines_[static_cast<std::size_t>(line_)];
      if (skips(text)) continue;
      if (mismatch_) break;  // what was to be closed first is the one
      read(text.substr(0, line_ == line ? static_cast<std::size_t>(column) : text.npos));
    }
  }

  // What is open there, the innermost last.
  const std::vector<Opening>& open() const { return open_; }
  // The quote that was closed last, and where.
  struct Closed {
    Opening opening;
    int line, column;
    std::size_t depth;  // brackets around it
  };
  const std::optional<Closed>& closed() const { return closed_; }

 private:
  bool in_quote() const { return !open_.empty() && open_.back().is_quote(); }

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
      const bool before_space = i + 1 == text.size() || is_space(text[i + 1]);
      const bool after_quote = std::exchange(closed_quote, false);
      if ((c == '"' || c == '\'') && at_start) {
        begin(c, i);
      } else if ((c == '[' || c == '{') && (at_start || flow)) {
        begin(c, i);
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
        if (flow) separate(c);
        at_start = true;
        continue;
      } else if (flow) {
        open_.back().text += c;
      }
      at_start = false;
    }
  }

  void separate(char c) {
    Opening& top = open_.back();
    if (c == ':') top.key = top.text;
    if (c == ',') {
      top.key.clear();
      ++top.index;
    }
    top.text.clear();
  }

  // `i` is the place of a sign within the quote, and then the last that was read.
  void read_quoted(std::string_view text, std::size_t& i) {
    Opening& quote = open_.back();
    if (quote.sign == '"' && text[i] == '\\') {
      ++i;
    } else if (text[i] != quote.sign) {
      quote.text += text[i];
    } else if (quote.sign == '\'' && i + 1 < text.size() && text[i + 1] == '\'') {
      ++i;
    } else {
      Opening done = std::move(quote);
      open_.pop_back();
      if (!open_.empty()) open_.back().text = done.text;
      closed_ = Closed{std::move(done), line_, static_cast<int>(i), open_.size()};
    }
  }

  void begin(char sign, std::size_t column) {
    open_.push_back({sign, line_, static_cast<int>(column), {}, {}, 0});
  }

  const std::vector<std::string_view>& lines_;
  int line_ = 0;
  std::vector<Opening> open_;
  std::optional<Closed> closed_;
  bool mismatch_ = false;
  std::optional<int> block_;  // the column of the key or dash that a block scalar belongs to
};

// The key at a place in `depth` brackets of those that are open.
std::string path_at(const std::vector<std::string_view>& lines, const std::vector<Opening>& open,
                    std::size_t depth, int line) {
  std::string path = key_path(lines, depth > 0 ? open[0].line : line);
  for (std::size_t i = 0; i < depth && i < kMostParts; ++i) {
    const std::string part = open[i].sign == '[' ? std::to_string(open[i].index) : open[i].key;
    if (!part.empty()) path += (path.empty() ? "" : ".") + part;
  }
  return path;
}

// Of `name:value` in this line, the column behind the colon.
std::optional<int> missing_space(std::string_view line) {
  const std::size_t begin = std::min(line.find_first_not_of(" -"), line.size());
  const std::size_t colon = line.find(':', begin);
  if (colon == std::string_view::npos || colon == begin || colon + 1 == line.size()) return {};
  const bool is_name = std::all_of(line.begin() + static_cast<std::ptrdiff_t>(begin),
                                   line.begin() + static_cast<std::ptrdiff_t>(colon), [](char c) {
                                     return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
                                   });
  if (!is_name || line[colon + 1] == ' ' || line.find(": ", colon) != std::string_view::npos)
    return {};
  return static_cast<int>(colon) + 1;
}

bool says(std::string_view message, std::initializer_list<const char*> beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(),
                     [&](const char* beginning) { return message.starts_with(beginning); });
}

}  // namespace

YamlSyntaxPlace locate_syntax_error(std::string_view text, int line, int column,
                                    std::string_view message) {
  const std::vector<std::string_view> lines = lines_of(text);
  const int last = static_cast<int>(lines.size()) - 1;
  const FlowReader whole(lines, last, std::numeric_limits<int>::max());
  const bool unclosed = says(message, {"end of map flow", "end of sequence flow"});
  // At the end of a text the parser has no place.
  const bool at_end = unclosed && line == 0 && column == 0;
  const FlowReader reader = at_end ? whole : FlowReader(lines, line, column);
  const std::vector<Opening>& open = reader.open();
  YamlSyntaxPlace place{line, column, {}, {}, {}};
  std::size_t depth = open.size();
  const auto move_to = [&](const Opening& opening, std::size_t around) {
    place.line = opening.line;
    place.column = opening.column;
    depth = around;
  };
  const std::string_view own =
      line < static_cast<int>(lines.size()) ? lines[static_cast<std::size_t>(line)] : "";
  const std::size_t tab = own.substr(0, own.find_first_not_of(" \t")).find('\t');
  const auto& closed = reader.closed();
  // Where a quote is not closed, the next one closes it, and what stands behind that is odd.
  const bool closed_late =
      closed && closed->opening.line < closed->line && (closed->line == line || depth > 0);
  if (closed_late && !says(message, {"not valid", "a control"})) {
    move_to(closed->opening, closed->depth);
    place.message = fmt::format("a quote that ends in line {}", closed->line + 1);
    place.hint = "close it where its text ends";
  } else if (open.empty() && tab != std::string_view::npos && !message.starts_with("a control")) {
    place.column = static_cast<int>(tab);
    place.message = "a tab in the indentation";
    place.hint = "YAML is indented by spaces";
  } else if (!open.empty() && open.back().is_quote() &&
             says(message, {"illegal EOF", "illegal document indicator"})) {
    move_to(open.back(), depth - 1);
    place.message = "a quote is opened and not closed";
    place.hint = "close it where its text ends";
  } else if (!open.empty() && unclosed) {
    const Opening& bracket = open.back();
    const bool stays_open =
        std::any_of(whole.open().begin(), whole.open().end(), [&](const Opening& other) {
          return other.line == bracket.line && other.column == bracket.column;
        });
    if (stays_open) {
      move_to(bracket, depth - 1);
    } else if (closed && closed->line == line && closed->depth == depth &&
               closed->opening.line == line && column - closed->column < 2) {
      move_to(closed->opening, depth);
      place.message = "text behind a closing quote";
      place.hint = "quote all of the value; perhaps the quote before it is not closed";
    } else {
      place.hint = "a comma is missing, or a value that holds a colon and a space needs quotes";
    }
  } else if (!open.empty() && message.starts_with("illegal block entry")) {
    move_to(open.back(), depth - 1);
    place.message = std::string("a ") + open.back().sign + " is not closed";
    place.hint = "close it where it ends";
  } else if (!open.empty() && message.starts_with("illegal flow end")) {
    move_to(open.back(), depth - 1);
    place.hint = fmt::format("it is not closed, or what closes nothing stands at {}:{}", line + 1,
                             column + 1);
  } else if (message.starts_with("illegal flow end")) {
    place.hint = "nothing is open that it would close: remove it, or quote the text";
  } else if (message.starts_with("illegal map value")) {
    int above = line - 1;
    while (above >= 0 && is_idle(lines[static_cast<std::size_t>(above)])) --above;
    const auto space =
        above < 0 ? std::nullopt : missing_space(lines[static_cast<std::size_t>(above)]);
    if (space) {
      place.line = above;
      place.column = *space;
      place.message = "no space behind the colon";
      place.hint = "write `key: value`";
      const std::string_view said = lines[static_cast<std::size_t>(above)];
      const std::size_t begin = said.find_first_not_of(" -");
      place.key = key_path(lines, above);
      if (!place.key.empty()) place.key += '.';
      place.key += said.substr(begin, static_cast<std::size_t>(*space) - 1 - begin);
      return place;
    }
  } else if (closed && closed->line == line && closed->opening.line == line &&
             own.substr(0, static_cast<std::size_t>(column)).find_last_not_of(' ') ==
                 static_cast<std::size_t>(closed->column)) {
    place.message = "text behind a closing quote";
    place.hint = "quote all of the value, or none of it";
  }
  place.key = path_at(lines, open, depth, place.line);
  return place;
}

}  // namespace dropless::train
