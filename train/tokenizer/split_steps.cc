#include "train/tokenizer/split_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dropless/error.h"
#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

using nlohmann::json;

constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Digits go by Rust's own table, of Unicode 17.0: what it has beyond 16.0 is named.
constexpr const char* kDigits = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])";

// Punctuation goes by a table of Unicode 8.0: without what became punctuation later, with two that
// no longer are. The first lookahead spares what is no punctuation at all the long list.
constexpr const char* kPunctuation =
    R"([!-/:-@\[-`{-~\u166d\x{111c9}]|(?=\p{P})(?![)"
    R"(\x{61d}\x{9fd}\x{a76}\x{c77}\x{c84}\x{1b4e}-\x{1b4f}\x{1b7d}-\x{1b7f})"
    R"(\x{2e43}-\x{2e4f}\x{2e52}-\x{2e5d}\x{10d6e}\x{10ead}\x{10f55}-\x{10f59})"
    R"(\x{10f86}-\x{10f89}\x{113d4}-\x{113d5}\x{113d7}-\x{113d8}\x{1144b}-\x{1144f})"
    R"(\x{1145a}-\x{1145b}\x{1145d}\x{11660}-\x{1166c}\x{116b9}\x{1183b}\x{11944}-\x{11946})"
    R"(\x{119e2}\x{11a3f}-\x{11a46}\x{11a9a}-\x{11a9c}\x{11a9e}-\x{11aa2}\x{11b00}-\x{11b09})"
    R"(\x{11be1}\x{11c41}-\x{11c45}\x{11c70}-\x{11c71}\x{11ef7}-\x{11ef8}\x{11f43}-\x{11f4f})"
    R"(\x{11fff}\x{12ff1}-\x{12ff2}\x{16d6d}-\x{16d6f}\x{16e97}-\x{16e9a}\x{16fe2}\x{1e5ff})"
    R"(\x{1e95e}-\x{1e95f}])\p{P})";

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kInvalidArgument, "pre_tokenizer: " + message);
}

// A space before text that has none, as ByteLevel's add_prefix_space asks.
class SpaceStep : public SplitStep {
 public:
  void split(std::string_view piece, bool, const WordSink& part) const override {
    if (piece.starts_with(' ')) return part(piece);
    part(" " + std::string(piece));
  }
};

// Spaces become `replacement`, with one before the text; each begins a word.
class MetaspaceStep : public SplitStep {
 public:
  enum class Prepend { kAlways, kFirst, kNever };
  MetaspaceStep(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}

  void split(std::string_view piece, bool first, const WordSink& part) const override {
    std::string text;
    for (const char c : piece) {
      if (c == ' ') {
        text += replacement_;
      } else {
        text += c;
      }
    }
    const bool wanted = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && first);
    if (wanted && !text.starts_with(replacement_)) text.insert(0, replacement_);
    if (!split_) return part(text);
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.size(), text.find(replacement_, begin + 1));
      part(std::string_view(text).substr(begin, end - begin));
      begin = end;
    }
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

SplitBehavior behavior_named(const std::string& name) {
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  refuse(fmt::format("unknown behavior '{}'", name));
}

// A pattern that matches this text only.
std::string quoted(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

std::string pattern_source(const json& pattern) {
  if (pattern.is_object() && pattern.contains("Regex")) return pattern["Regex"].get<std::string>();
  if (pattern.is_object() && pattern.contains("String"))
    return quoted(pattern["String"].get<std::string>());
  refuse("a pattern is {\"Regex\": ...} or {\"String\": ...}");
}

void add_steps(const json& json, SplitSteps& out) {
  const auto type = json.at("type").get<std::string>();
  const auto add_pattern = [&](std::string_view source, SplitBehavior behavior,
                               bool invert = false) {
    out.steps.push_back(std::make_unique<PatternStep>(Pattern(source), behavior, invert));
  };
  if (type == "Sequence") {
    for (const auto& part : json.at("pretokenizers")) add_steps(part, out);
    return;
  }
  if (out.byte_level) refuse(fmt::format("{} after ByteLevel", type));
  if (type == "ByteLevel") {
    if (json.value("add_prefix_space", true)) out.steps.push_back(std::make_unique<SpaceStep>());
    if (json.value("use_regex", true)) add_pattern(kGpt2, SplitBehavior::kIsolated);
    out.byte_level = true;
  } else if (type == "Split") {
    add_pattern(pattern_source(json.at("pattern")),
                behavior_named(json.at("behavior").get<std::string>()),
                json.value("invert", false));
  } else if (type == "Digits") {
    const bool each = json.value("individual_digits", false);
    add_pattern(kDigits, each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  } else if (type == "Punctuation") {
    add_pattern(kPunctuation, behavior_named(json.value("behavior", "Isolated")));
  } else if (type == "Whitespace") {
    // With the joiners: this one is run by Rust's regex, those of Split by Oniguruma.
    add_pattern(R"([\w\u200c\u200d]+|[^\w\u200c\u200d\s]+)", SplitBehavior::kRemoved,
                /*invert=*/true);
  } else if (type == "WhitespaceSplit") {
    add_pattern(R"(\s)", SplitBehavior::kRemoved);
  } else if (type == "BertPreTokenizer") {
    add_pattern(R"(\s)", SplitBehavior::kRemoved);
    add_pattern(kPunctuation, SplitBehavior::kIsolated);
  } else if (type == "CharDelimiterSplit") {
    add_pattern(quoted(json.at("delimiter").get<std::string>()), SplitBehavior::kRemoved);
  } else if (type == "Metaspace") {
    using Prepend = MetaspaceStep::Prepend;
    const std::string scheme =
        json.value("prepend_scheme", json.value("add_prefix_space", true) ? "always" : "never");
    if (scheme != "always" && scheme != "first" && scheme != "never")
      refuse(fmt::format("unknown prepend_scheme '{}'", scheme));
    const Prepend prepend = scheme == "always"  ? Prepend::kAlways
                            : scheme == "first" ? Prepend::kFirst
                                                : Prepend::kNever;
    out.steps.push_back(std::make_unique<MetaspaceStep>(json.value("replacement", "\xe2\x96\x81"),
                                                        prepend, json.value("split", true)));
  } else {
    refuse(fmt::format("type '{}' is not supported", type));
  }
}

}  // namespace

void PatternStep::split(std::string_view piece, bool, const WordSink& part) const {
  struct Segment {
    std::size_t begin, end;
    bool matches;
  };
  std::vector<Segment> joined;  // of the behaviours that join
  const auto segment = [&](std::size_t begin, std::size_t end, bool matches) {
    if (begin == end) return;
    matches = matches != invert_;
    if (behavior_ == SplitBehavior::kIsolated) return part(piece.substr(begin, end - begin));
    if (behavior_ == SplitBehavior::kRemoved) {
      if (!matches) part(piece.substr(begin, end - begin));
      return;
    }
    joined.push_back({begin, end, matches});
  };
  std::size_t at = 0, begin = 0, end = 0;
  while (pattern_.find(piece, at, begin, end)) {
    segment(at, begin, false);
    segment(begin, end, true);
    at = end;
  }
  segment(at, piece.size(), false);
  // A match joins the text before or behind it; of several matches in a row the one beside the text.
  for (std::size_t i = 0; i < joined.size();) {
    std::size_t last = i;
    const auto matches = [&](std::size_t k) { return k < joined.size() && joined[k].matches; };
    if (behavior_ == SplitBehavior::kContiguous) {
      while (last + 1 < joined.size() && joined[last + 1].matches == joined[i].matches) ++last;
    } else if (behavior_ == SplitBehavior::kMergedWithPrevious) {
      if (!joined[i].matches && matches(i + 1)) ++last;
    } else if (joined[i].matches && i + 1 < joined.size() && !matches(i + 1)) {
      ++last;
    }
    part(piece.substr(joined[i].begin, joined[last].end - joined[i].begin));
    i = last + 1;
  }
}

void SplitSteps::run(std::size_t step, std::string_view piece, bool first,
                     const WordSink& word) const {
  if (step == steps.size()) return word(piece);
  if (step + 1 == steps.size()) return steps[step]->split(piece, first, word);
  bool begins = first;
  steps[step]->split(piece, first, [&](std::string_view part) {
    run(step + 1, part, begins, word);
    begins = false;
  });
}

SplitSteps split_steps_from_json(const json& json) {
  SplitSteps out;
  if (!json.is_null()) add_steps(json, out);
  return out;
}

}  // namespace dropless::train
