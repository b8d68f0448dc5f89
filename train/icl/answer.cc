#include "train/icl/answer.h"

#include <algorithm>

#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

// string.punctuation, and the quotes that stand in its place.
bool is_punctuation(char32_t c) {
  const bool ascii = (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
                     (c >= '{' && c <= '~');
  return ascii || c == U'\u2018' || c == U'\u2019' || c == U'\u00b4';
}

}  // namespace

std::string normalize_answer(std::string_view text) {
  const std::string lower = lowercase(replace_invalid_utf8(text));
  std::string normal, word;
  const auto end_word = [&] {
    if (!word.empty() && word != "a" && word != "an" && word != "the") {
      if (!normal.empty()) normal += ' ';
      normal += word;
    }
    word.clear();
  };
  for (std::size_t at = 0; at < lower.size();) {
    const CodePoint c = code_point_at(lower, at);
    if (is_punctuation(c.value) || is_white_space(c.value)) {
      end_word();
    } else {
      word += lower.substr(at, c.bytes);
    }
    at += c.bytes;
  }
  end_word();
  return normal;
}

bool gives_answer(const TaskConfig& task, std::string generated,
                  const std::vector<std::string>& answers) {
  std::size_t end = generated.size();
  for (const std::string& stop : task.early_stopping_criteria) {
    end = std::min(end, generated.find(stop));
  }
  generated.resize(end);
  if (!task.cot_delimiter.empty()) {
    const std::size_t thoughts = generated.rfind(task.cot_delimiter);
    if (thoughts != std::string::npos) {
      generated.erase(0, thoughts + task.cot_delimiter.size());
    }
  }
  const auto form = [&](const std::string& text) {
    return task.do_normalization ? normalize_answer(text) : text;
  };
  const std::string said = form(generated);
  return std::any_of(answers.begin(), answers.end(), [&](const std::string& answer) {
    const std::string right = form(answer);
    if (!right.empty()) return said.starts_with(right);
    // Nothing is left of "the" or "-", and with nothing every text begins.
    const std::size_t start = std::min(generated.find_first_not_of(" \t\n"), generated.size());
    return std::string_view(generated).substr(start).starts_with(answer);
  });
}

}  // namespace dropless::train
