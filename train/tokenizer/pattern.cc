// A pattern becomes a program of few instructions with relative jumps; match() runs it with a stack
// of the places to go back to. Repeats of one class, nearly all of what these patterns do, are one
// instruction and at most one entry on the stack.
#include "train/tokenizer/pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "dropless/error.h"
#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

constexpr std::size_t kNone = std::string_view::npos;
constexpr std::uint32_t kUnbounded = std::numeric_limits<std::uint32_t>::max();

// A set of code points.
struct CharSet {
  std::uint64_t ascii[2] = {0, 0};
  Categories categories = 0;  // beyond ASCII, as the ranges
  std::vector<std::pair<char32_t, char32_t>> ranges;
  bool negated = false;  // of what stands beyond ASCII

  bool has_ascii(std::uint32_t c) const { return ascii[c >> 6] >> (c & 63) & 1; }
  void add_range(char32_t low, char32_t high) {
    for (char32_t c = low; c <= std::min<char32_t>(high, 127); ++c)
      ascii[c >> 6] |= std::uint64_t{1} << (c & 63);
    if (high >= 128) ranges.emplace_back(std::max<char32_t>(low, 128), high);
  }
  void add_categories(Categories added) {
    for (char32_t c = 0; c < 128; ++c) {
      if (category_of(c) & added) add_range(c, c);
    }
    categories |= added;
  }
  void negate() {
    for (std::uint64_t& word : ascii) word = ~word;
    negated = !negated;
  }
  bool has(char32_t c) const {
    if (c < 128) return has_ascii(c);
    bool in = category_of(c) & categories;
    for (const auto& [low, high] : ranges) in = in || (c >= low && c <= high);
    return in != negated;
  }
  // Certainly no code point in common.
  bool disjoint(const CharSet& other) const {
    if ((ascii[0] & other.ascii[0]) != 0 || (ascii[1] & other.ascii[1]) != 0) return false;
    if (!ranges.empty() || !other.ranges.empty()) return false;
    const Categories mine = negated ? ~categories : categories;
    const Categories theirs = other.negated ? ~other.categories : other.categories;
    return (mine & theirs) == 0;
  }
};

enum class Op : std::uint8_t {
  kSet,
  kRepeat,
  kSplit,
  kJump,
  kAhead,
  kAtomic,
  kBegin,
  kEnd,
  kMatch
};

struct Instruction {
  Op op;
  bool flag = false;  // kRepeat: never gives back; kAhead: must not match
  std::uint32_t set = 0;
  std::uint32_t min = 0, max = 0;  // kRepeat
  // Relative. kSplit: the second choice (the first is the next instruction). kAhead, kAtomic: behind
  // the part, which is the next instruction up to its own kMatch.
  std::int32_t target = 0;
};

struct Fragment {
  std::vector<Instruction> code;
  bool can_be_empty = true;

  void append(const Fragment& other) {
    code.insert(code.end(), other.code.begin(), other.code.end());
    can_be_empty = can_be_empty && other.can_be_empty;
  }
  bool is_one_set() const { return code.size() == 1 && code[0].op == Op::kSet; }
};

// The categories that \p{NAME} names.
std::optional<Categories> categories_named(std::string_view name) {
  static constexpr std::string_view kTwo[] = {
      "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
      "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};
  static constexpr std::pair<std::string_view, Categories> kOthers[] = {
      {"L", kLetters},
      {"Letter", kLetters},
      {"M", kMarks},
      {"Mark", kMarks},
      {"N", kNumbers},
      {"Number", kNumbers},
      {"P", kPunctuation},
      {"Punctuation", kPunctuation},
      {"S", kSymbols},
      {"Symbol", kSymbols},
      {"Z", kZs | kZl | kZp},
      {"Separator", kZs | kZl | kZp},
      {"C", kCn | kCc | kControlSpace | kCf | kCs | kCo}};
  for (std::size_t i = 0; i < std::size(kTwo); ++i) {
    if (name == kTwo[i])
      return Categories{1} << i | (name == "Cc"   ? Categories{kControlSpace}
                                   : name == "So" ? Categories{kSymbolLetter}
                                                  : Categories{0});
  }
  for (const auto& [known, categories] : kOthers) {
    if (name == known) return categories;
  }
  return std::nullopt;
}

class Parser {
 public:
  Parser(std::string_view source, std::vector<CharSet>& sets) : source_(source), sets_(sets) {}

  // The alternatives of the whole pattern.
  std::vector<Fragment> parse() {
    std::vector<Fragment> alternatives = parse_alternatives();
    if (at_ < source_.size()) fail("a ')' without its '('");
    return alternatives;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("pattern '{}': at byte {}: {}", source_, at_, what));
  }
  bool at_end() const { return at_ == source_.size(); }
  bool skip(std::string_view text) {
    if (!source_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }
  char32_t take() {
    if (at_end()) fail("the pattern ends too early");
    const CodePoint c = code_point_at(source_, at_);
    at_ += c.bytes;
    return c.value;
  }

  std::vector<Fragment> parse_alternatives() {
    if (++depth_ > 50) fail("groups nested deeper than 50 levels");
    std::vector<Fragment> alternatives;
    do alternatives.push_back(parse_sequence());
    while (skip("|"));
    --depth_;
    return alternatives;
  }

  Fragment parse_sequence() {
    Fragment sequence;
    while (!at_end() && source_[at_] != '|' && source_[at_] != ')') {
      sequence.append(parse_quantified());
      if (sequence.code.size() > 10000) fail("the pattern is too large");
    }
    return sequence;
  }

  Fragment parse_quantified() {
    const std::size_t begin = at_;
    Fragment atom = parse_atom();
    for (;;) {
      std::uint32_t min = 0, max = kUnbounded;
      if (!parse_counts(min, max)) return atom;
      const bool lazy = skip("?");
      const bool possessive = !lazy && skip("+");
      if (atom.can_be_empty) {
        at_ = begin;
        fail("a repeat of what can be empty");
      }
      atom = repeat(atom, min, max, lazy, possessive);
    }
  }

  bool parse_counts(std::uint32_t& min, std::uint32_t& max) {
    if (skip("*")) return true;
    if (skip("+")) {
      min = 1;
      return true;
    }
    if (skip("?")) {
      max = 1;
      return true;
    }
    if (at_end() || source_[at_] != '{') return false;
    const std::size_t close = source_.find('}', at_);
    if (close == kNone) fail("a '{' without its '}'");
    const std::string_view body = source_.substr(at_ + 1, close - at_ - 1);
    const std::size_t comma = body.find(',');
    const auto number = [&](std::string_view digits) {
      std::uint32_t value = 0;
      for (const char digit : digits) {
        if (digit < '0' || digit > '9' || value > 100) fail("a bad repeat count (at most 1000)");
        value = value * 10 + static_cast<std::uint32_t>(digit - '0');
      }
      return value;
    };
    if (body.empty() || body == ",") fail("a repeat without a count");
    min = number(body.substr(0, comma));
    if (comma == kNone) {
      max = min;
    } else if (comma + 1 < body.size()) {
      max = number(body.substr(comma + 1));
    }
    if (max < min || max == 0) fail("a repeat with no possible count");
    at_ = close + 1;
    return true;
  }

  Fragment repeat(const Fragment& atom, std::uint32_t min, std::uint32_t max, bool lazy,
                  bool possessive) {
    Fragment out;
    out.can_be_empty = min == 0 || atom.can_be_empty;
    if (atom.is_one_set() && !lazy) {
      out.code = {{Op::kRepeat, possessive, atom.code[0].set, min, max, 0}};
      return out;
    }
    const auto length = static_cast<std::int32_t>(atom.code.size());
    const auto add_atom = [&] {
      out.code.insert(out.code.end(), atom.code.begin(), atom.code.end());
    };
    // Where a split's second choice is the atom, a jump behind it is the first.
    const auto add_choice = [&](std::int32_t behind) {
      if (lazy) {
        out.code.push_back({.op = Op::kSplit, .target = 2});
        out.code.push_back({.op = Op::kJump, .target = behind});
      } else {
        out.code.push_back({.op = Op::kSplit, .target = behind + 1});
      }
    };
    for (std::uint32_t i = 0; i < min; ++i) add_atom();
    const std::int32_t choice = lazy ? 2 : 1;
    if (max == kUnbounded) {
      add_choice(length + 2 - (lazy ? 0 : 1));
      add_atom();
      out.code.push_back({.op = Op::kJump, .target = -length - choice});
    } else {
      for (std::uint32_t left = max - min; left > 0; --left) {
        const auto all = static_cast<std::int32_t>(left) * (length + choice) - choice;
        add_choice(all + (lazy ? 1 : 0));
        add_atom();
      }
    }
    return possessive ? closed(Op::kAtomic, false, out) : out;
  }

  // A part with a program of its own: lookahead or atomic group.
  Fragment closed(Op op, bool flag, const Fragment& inner) {
    Fragment out;
    out.can_be_empty = op == Op::kAhead || inner.can_be_empty;
    const auto length = static_cast<std::int32_t>(inner.code.size());
    out.code.push_back({.op = op, .flag = flag, .target = length + 2});
    out.code.insert(out.code.end(), inner.code.begin(), inner.code.end());
    out.code.push_back({.op = Op::kMatch});
    return out;
  }

  static Fragment join(const std::vector<Fragment>& alternatives) {
    Fragment out = alternatives.back();
    for (std::size_t i = alternatives.size() - 1; i-- > 0;) {
      const Fragment& first = alternatives[i];
      Fragment both;
      both.can_be_empty = first.can_be_empty || out.can_be_empty;
      both.code.push_back(
          {.op = Op::kSplit, .target = static_cast<std::int32_t>(first.code.size()) + 2});
      both.code.insert(both.code.end(), first.code.begin(), first.code.end());
      both.code.push_back(
          {.op = Op::kJump, .target = static_cast<std::int32_t>(out.code.size()) + 1});
      both.code.insert(both.code.end(), out.code.begin(), out.code.end());
      out = std::move(both);
    }
    return out;
  }

  Fragment one(CharSet set) {
    sets_.push_back(std::move(set));
    Fragment out;
    out.can_be_empty = false;
    out.code.push_back({.op = Op::kSet, .set = static_cast<std::uint32_t>(sets_.size() - 1)});
    return out;
  }

  Fragment parse_atom() {
    if (skip("(")) return parse_group();
    if (skip("[")) return one(parse_class());
    if (skip(".")) {
      CharSet set;
      set.add_range('\n', '\n');
      set.negate();
      return one(set);
    }
    Fragment anchor;
    if (skip("^")) {
      anchor.code.push_back({.op = Op::kBegin});
      return anchor;
    }
    if (skip("$")) {
      anchor.code.push_back({.op = Op::kEnd});
      return anchor;
    }
    if (source_[at_] == '*' || source_[at_] == '+' || source_[at_] == '?')
      fail("nothing to repeat");
    CharSet set;
    if (source_[at_] == '\\') {
      add_escape(set);
    } else {
      add_literal(set, take());
    }
    return one(set);
  }

  Fragment parse_group() {
    const bool ignored_case = ignore_case_;
    Op op = Op::kJump;  // a plain group
    bool negative = false;
    if (skip("?:")) {
    } else if (skip("?i:")) {
      ignore_case_ = true;
    } else if (skip("?>")) {
      op = Op::kAtomic;
    } else if (skip("?=")) {
      op = Op::kAhead;
    } else if (skip("?!")) {
      op = Op::kAhead;
      negative = true;
    } else if (skip("?i)")) {
      ignore_case_ = true;  // for the rest of the group around it
      return {};
    } else if (!at_end() && source_[at_] == '?') {
      fail("a kind of group that is not supported (look-behind, names, flags)");
    }
    const Fragment inner = join(parse_alternatives());
    if (!skip(")")) fail("a '(' without its ')'");
    ignore_case_ = ignored_case;
    return op == Op::kJump ? inner : closed(op, negative, inner);
  }

  CharSet parse_class() {
    CharSet set;
    const bool negated = skip("^");
    bool first = true;
    while (first || at_end() || source_[at_] != ']') {
      if (at_end()) fail("a '[' without its ']'");
      first = false;
      if (source_[at_] == '[' && source_.substr(at_ + 1, 1) == ":") fail("a POSIX class");
      if (source_[at_] == '[') fail("a class in a class");
      if (source_.substr(at_).starts_with("&&")) fail("an intersection of classes");
      std::optional<char32_t> low;
      if (source_[at_] == '\\') {
        low = add_escape(set);
      } else {
        low = take();
        add_literal(set, *low);
      }
      const std::string_view rest = source_.substr(at_);
      if (low && rest.size() >= 2 && rest[0] == '-' && rest[1] != ']') {
        ++at_;
        CharSet end;
        const auto high = source_[at_] == '\\' ? add_escape(end) : std::optional(take());
        if (!high || *high < *low) fail("a range that ends before it begins");
        if (ignore_case_) fail("a range that ignores case");
        set.add_range(*low, *high);
      }
    }
    ++at_;
    if (negated) set.negate();
    return set;
  }

  void add_literal(CharSet& set, char32_t c) {
    set.add_range(c, c);
    if (!ignore_case_) return;
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (letter) {
      set.add_range(c ^ 0x20, c ^ 0x20);
      if ((c | 0x20) == 's') set.add_range(0x17f, 0x17f);    // LATIN SMALL LETTER LONG S
      if ((c | 0x20) == 'k') set.add_range(0x212a, 0x212a);  // KELVIN SIGN
    } else if (category_of(c) & kLetters) {
      fail("a letter beyond ASCII that ignores case");
    }
  }

  // Adds what the escape stands for; the code point where it is a single one.
  std::optional<char32_t> add_escape(CharSet& set) {
    const std::size_t begin = at_++;
    const char32_t c = take();
    const auto categories = [&](Categories added) {
      set.add_categories(added);
      return std::nullopt;
    };
    const auto literal = [&](char32_t value) {
      add_literal(set, value);
      return std::optional(value);
    };
    switch (c) {
      case 's':
        return categories(kSpaces);
      case 'S':
        return categories(~kSpaces);
      case 'd':
        return categories(kNd);
      case 'D':
        return categories(~Categories{kNd});
      case 'w':
        return categories(kWordCharacters);
      case 'W':
        return categories(~kWordCharacters);
      case 'p':
      case 'P': {
        bool negated = c == 'P';
        std::string_view name = source_.substr(at_, 1);
        if (skip("{")) {
          const std::size_t close = source_.find('}', at_);
          if (close == kNone) fail("a '{' without its '}'");
          name = source_.substr(at_, close - at_);
          at_ = close + 1;
          if (name.starts_with("^")) {
            negated = !negated;
            name.remove_prefix(1);
          }
        } else {
          take();
        }
        const auto found = categories_named(name);
        if (!found) {
          at_ = begin;
          fail(fmt::format("\\p{{{}}} is no general category", name));
        }
        return categories(negated ? ~*found : *found);
      }
      case 'n':
        return literal('\n');
      case 'r':
        return literal('\r');
      case 't':
        return literal('\t');
      case 'f':
        return literal('\f');
      case 'v':
        return literal('\v');
      case 'x':
      case 'u':
        return literal(parse_hex(c == 'x' ? 2 : 4));
      default:
        break;
    }
    const bool word = c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                      (c >= 'A' && c <= 'Z') || c >= 128;
    if (word) {
      at_ = begin;
      fail("an escape that is not supported");
    }
    return literal(c);
  }

  char32_t parse_hex(std::size_t digits) {
    std::string_view text = source_.substr(at_, digits);
    if (skip("{")) {
      const std::size_t close = source_.find('}', at_);
      if (close == kNone) fail("a '{' without its '}'");
      text = source_.substr(at_, close - at_);
      at_ = close + 1;
    } else {
      at_ = std::min(source_.size(), at_ + digits);
    }
    char32_t value = 0;
    for (const char digit : text) {
      const auto at = std::string_view("0123456789abcdef").find(static_cast<char>(digit | 0x20));
      const bool hex = at != kNone && (digit >= '0' && (digit <= '9' || (digit | 0x20) >= 'a'));
      if (!hex || value > 0x10ffff) fail("a bad hexadecimal number");
      value = value * 16 + static_cast<char32_t>(at);
    }
    if (text.empty() || value > 0x10ffff) fail("a bad hexadecimal number");
    return value;
  }

  std::string_view source_;
  std::vector<CharSet>& sets_;
  std::size_t at_ = 0;
  int depth_ = 0;
  bool ignore_case_ = false;
};

}  // namespace

struct Pattern::Program {
  std::string source;
  std::vector<CharSet> sets;
  std::vector<Instruction> code;      // the alternatives, each up to its kMatch
  std::vector<std::uint32_t> starts;  // of each
  // Bit i: alternative i may begin with this ASCII character, or with one beyond. Of the first 64.
  std::array<std::uint64_t, 129> may_begin{};

  explicit Program(std::string_view text) : source(text) {
    for (const Fragment& alternative : Parser(source, sets).parse()) {
      starts.push_back(static_cast<std::uint32_t>(code.size()));
      code.insert(code.end(), alternative.code.begin(), alternative.code.end());
      code.push_back({.op = Op::kMatch});
    }
    if (starts.size() > 64) {
      throw Error(
          ErrorKind::kUnsupported,
          fmt::format("pattern '{}' has {} alternatives, more than 64", source, starts.size()));
    }
    for (std::size_t pc = 0; pc < code.size(); ++pc) keep_what_it_takes(pc);
    for (std::size_t i = 0; i < starts.size(); ++i) {
      std::vector<bool> seen(code.size());
      std::array<bool, 129> may{};
      find_beginnings(starts[i], may, seen);
      for (std::size_t c = 0; c < may.size(); ++c) may_begin[c] |= std::uint64_t{may[c]} << i;
    }
  }

  // A repeat whose next instruction cannot match anything that it would give back keeps it.
  void keep_what_it_takes(std::size_t pc) {
    Instruction& repeat = code[pc];
    if (repeat.op != Op::kRepeat) return;
    const Instruction& next = code[pc + 1];
    const bool needs = next.op == Op::kSet || (next.op == Op::kRepeat && next.min > 0);
    if (next.op == Op::kMatch || (needs && sets[repeat.set].disjoint(sets[next.set]))) {
      repeat.flag = true;
    }
  }

  void find_beginnings(std::size_t pc, std::array<bool, 129>& may, std::vector<bool>& seen) const {
    if (seen[pc]) return;
    seen[pc] = true;
    const Instruction& instruction = code[pc];
    const auto jump =
        static_cast<std::size_t>(static_cast<std::ptrdiff_t>(pc) + instruction.target);
    switch (instruction.op) {
      case Op::kSet:
      case Op::kRepeat:
        for (std::uint32_t c = 0; c < 128; ++c)
          may[c] = may[c] || sets[instruction.set].has_ascii(c);
        may[128] = true;
        if (instruction.op == Op::kRepeat && instruction.min == 0)
          find_beginnings(pc + 1, may, seen);
        return;
      case Op::kSplit:
        find_beginnings(pc + 1, may, seen);
        find_beginnings(jump, may, seen);
        return;
      case Op::kJump:
      case Op::kAhead:
        find_beginnings(jump, may, seen);
        return;
      case Op::kAtomic:
        find_beginnings(pc + 1, may, seen);
        return;
      case Op::kBegin:
      case Op::kEnd:
      case Op::kMatch:
        may.fill(true);
        return;
    }
  }

  // Where to go on when the way taken fails: at `pc`, with any place from `most` back to `least`.
  struct Choice {
    std::size_t pc, least, most;
  };

  // From `pc` at `at` to a kMatch. Uses the stack above what stands on it.
  std::size_t run(std::string_view text, std::size_t pc, std::size_t at, std::vector<Choice>& stack,
                  std::uint64_t& steps) const {
    const std::size_t floor = stack.size();
    for (;;) {
      const Instruction& instruction = code[pc];
      bool ok = true;
      switch (instruction.op) {
        case Op::kSet:
          if (at < text.size()) {
            const CodePoint c = code_point_at(text, at);
            ok = sets[instruction.set].has(c.value);
            at += c.bytes;
          } else {
            ok = false;
          }
          ++pc;
          break;
        case Op::kRepeat: {
          const CharSet& set = sets[instruction.set];
          std::size_t least = at;
          std::uint32_t count = 0;
          while (count < instruction.max && at < text.size()) {
            const CodePoint c = code_point_at(text, at);
            if (!set.has(c.value)) break;
            at += c.bytes;
            if (++count == instruction.min) least = at;
          }
          ok = count >= instruction.min;
          ++pc;
          if (ok && !instruction.flag && at > least) stack.push_back({pc, least, at});
          break;
        }
        case Op::kSplit:
          stack.push_back({jump(pc), at, kNone});
          ++pc;
          break;
        case Op::kJump:
          pc = jump(pc);
          break;
        case Op::kAhead:
          ok = (run(text, pc + 1, at, stack, steps) != kNone) != instruction.flag;
          pc = jump(pc);
          break;
        case Op::kAtomic: {
          const std::size_t end = run(text, pc + 1, at, stack, steps);
          ok = end != kNone;
          at = end;
          pc = jump(pc);
          break;
        }
        case Op::kBegin:
          ok = at == 0;
          ++pc;
          break;
        case Op::kEnd:
          ok = at == text.size();
          ++pc;
          break;
        case Op::kMatch:
          stack.resize(floor);
          return at;
      }
      if (ok) continue;
      if (stack.size() == floor) return kNone;
      count_step(steps);
      Choice& choice = stack.back();
      pc = choice.pc;
      if (choice.most == kNone) {
        at = choice.least;
        stack.pop_back();
        continue;
      }
      at = choice.most = code_point_before(text, choice.most);
      if (choice.most <= choice.least) stack.pop_back();
    }
  }

  std::size_t jump(std::size_t pc) const {
    return static_cast<std::size_t>(static_cast<std::ptrdiff_t>(pc) + code[pc].target);
  }

  void count_step(std::uint64_t& steps) const {
    constexpr std::uint64_t kMost = 100'000'000;
    if (++steps > kMost) {
      throw Error(
          ErrorKind::kUnsupported,
          fmt::format("pattern '{}' goes back more than {} times for one match", source, kMost),
          "write it without nested repeats");
    }
  }
};

Pattern::Pattern(std::string_view source) : program_(std::make_unique<Program>(source)) {}
Pattern::~Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;

std::size_t Pattern::match_at(std::string_view text, std::size_t at) const {
  thread_local std::vector<Program::Choice> stack;
  stack.clear();
  std::uint64_t steps = 0;
  const std::uint8_t lead = at < text.size() ? static_cast<std::uint8_t>(text[at]) : 128;
  std::uint64_t left = program_->may_begin[std::min<std::uint8_t>(lead, 128)];
  for (; left != 0; left &= left - 1) {
    const auto alternative = static_cast<std::size_t>(__builtin_ctzll(left));
    const std::size_t end = program_->run(text, program_->starts[alternative], at, stack, steps);
    if (end != kNone) return end;
  }
  return kNone;
}

bool Pattern::find(std::string_view text, std::size_t at, std::size_t& begin,
                   std::size_t& end) const {
  while (at < text.size()) {
    end = match_at(text, at);
    if (end != kNone && end > at) {
      begin = at;
      return true;
    }
    at += code_point_at(text, at).bytes;
  }
  return false;
}

}  // namespace dropless::train
