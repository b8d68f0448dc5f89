#include "train/icl/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/icl/few_shot.h"

namespace dropless::train {
namespace {

constexpr std::int64_t kAnswerBuffer = 10;  // tokens, for chains of thought longer than any known

// Python's str.strip and str.rstrip.
std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    const std::size_t last = code_point_before(text, text.size());
    if (!is_white_space(code_point_at(text, last).value)) break;
    text = text.substr(0, last);
  }
  return text;
}
std::string_view strip(std::string_view text) {
  text = strip_right(text);
  while (!text.empty() && is_white_space(code_point_at(text, 0).value)) {
    text.remove_prefix(code_point_at(text, 0).bytes);
  }
  return text;
}

// One line of the file, with its place for messages. Texts are stripped, those in lists are not.
class Line {
 public:
  Line(nlohmann::json json, std::string where) : json_(std::move(json)), where_(std::move(where)) {
    if (!json_.is_object()) fail("not a JSON object");
  }
  std::string text(const char* key) const { return std::string(strip(string(at(key), key))); }
  std::string text(const char* key, const char* fallback) const {
    return json_.contains(key) ? text(key) : fallback;
  }
  std::vector<std::string> texts(const char* key) const {
    std::vector<std::string> all;
    if (!at(key).is_array()) fail(fmt::format("{} is no list", key));
    for (const auto& one : at(key)) all.push_back(string(one, key));
    return all;
  }
  bool has(const char* key) const { return json_.contains(key); }
  std::int64_t gold(std::size_t choices) const {
    if (!at("gold").is_number_integer()) fail("gold is no whole number");
    const auto gold = at("gold").get<std::int64_t>();
    if (gold < 0 || gold >= static_cast<std::int64_t>(choices)) {
      fail(fmt::format("gold is {} of {} choices", gold, choices));
    }
    return gold;
  }
  [[noreturn]] void fail(const std::string& message) const {
    throw Error(ErrorKind::kInvalidArgument, where_ + ": " + message);
  }

 private:
  const nlohmann::json& at(const char* key) const {
    const auto found = json_.find(key);
    if (found == json_.end()) fail(fmt::format("no key {}", key));
    return *found;
  }
  std::string string(const nlohmann::json& value, const char* key) const {
    if (!value.is_string()) fail(fmt::format("{} holds {}, no text", key, value.type_name()));
    return value.get<std::string>();
  }

  nlohmann::json json_;
  std::string where_;
};

std::vector<Line> read_lines(const std::string& path) {
  const std::string content = read_file(path);
  std::vector<Line> lines;
  std::size_t number = 0;
  for (std::size_t at = 0; at < content.size();) {
    const std::size_t end = std::min(content.find('\n', at), content.size());
    const std::string_view text = std::string_view(content).substr(at, end - at);
    at = end + 1;
    ++number;
    const std::string where = fmt::format("{}:{}", path, number);
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    lines.emplace_back(parse_json(text, where), where);
  }
  if (lines.empty()) throw Error(ErrorKind::kInvalidArgument, path + " holds no questions");
  return lines;
}

// Puts the lines of one file (or category) together, one after the other.
class Builder {
 public:
  Builder(const TaskConfig& task, const Tokenizer& tokenizer, std::vector<const Line*> lines)
      : task_(task), tokenizer_(tokenizer), lines_(std::move(lines)) {
    // LLM Foundry asks whether " a" is one token, and loses the space where it is two.
    prefix_space_ =
        !tokenizer.decode_bytes(tokenizer.encode("a"), /*first=*/false).starts_with(' ');
    if (task_.type != TaskType::kGeneration) return;
    for (const Line* line : lines_) has_thoughts_ = has_thoughts_ || line->has("chain_of_thought");
    for (const Line* line : lines_) {
      for (const std::string& answer : answers(*line)) {
        const std::string text = has_thoughts_ ? with_thoughts(*line, answer) : answer;
        longest_answer_ =
            std::max(longest_answer_,
                     static_cast<std::int64_t>(tokenizer_.encode_with_template(text).size()));
      }
    }
    if (!task_.cot_delimiter.empty()) longest_answer_ += kAnswerBuffer;
  }

  TaskRun build(std::int64_t num_fewshot) const {
    TaskRun run;
    run.task = &task_;
    run.max_new_tokens = task_.max_new_tokens > 0 ? task_.max_new_tokens
                                                  : std::max<std::int64_t>(longest_answer_, 1);
    PythonRandom random(task_.fewshot_random_seed);
    const auto size = static_cast<std::int64_t>(lines_.size());
    for (std::int64_t i = 0; i < size; ++i) {
      std::string before = task_.prompt_string;
      if (num_fewshot > 0) {
        for (const std::int64_t example : few_shot_examples(size, num_fewshot, i, random)) {
          before += solved(*lines_[static_cast<std::size_t>(example)], before);
        }
      }
      run.questions.push_back(question(*lines_[static_cast<std::size_t>(i)], before));
    }
    return run;
  }

 private:
  // An example with its answer.
  std::string solved(const Line& line, const std::string& before) const {
    const std::string delimiter = before.empty() ? "" : task_.example_delimiter;
    switch (task_.type) {
      case TaskType::kSchema: {
        const auto contexts = line.texts("context_options");
        return task_.question_prelimiter + delimiter +
               contexts[static_cast<std::size_t>(line.gold(contexts.size()))] +
               task_.continuation_delimiter + line.text("continuation");
      }
      case TaskType::kMultipleChoice: {
        const auto choices = line.texts("choices");
        return unsolved(line, before) +
               choices[static_cast<std::size_t>(line.gold(choices.size()))];
      }
      case TaskType::kGeneration: {
        const std::string answer = line.text("answer");
        return unsolved(line, before) + (has_thoughts_ ? with_thoughts(line, answer) : answer);
      }
      case TaskType::kLanguageModeling:
        return unsolved(line, before) + line.text("continuation");
    }
    return {};
  }
  std::string unsolved(const Line& line, const std::string& before) const {
    const char* key = task_.type == TaskType::kMultipleChoice ? "query" : "context";
    return (before.empty() ? "" : task_.example_delimiter) + task_.question_prelimiter +
           line.text(key) + task_.continuation_delimiter;
  }
  std::string with_thoughts(const Line& line, const std::string& answer) const {
    return line.text("chain_of_thought", "") + task_.cot_delimiter + answer;
  }
  static std::vector<std::string> answers(const Line& line) {
    std::vector<std::string> all{line.text("answer")};
    if (line.has("aliases")) {
      for (const std::string& alias : line.texts("aliases")) all.push_back(alias);
    }
    for (const std::string& answer : all) {
      if (strip(answer).empty()) line.fail("an answer is empty, so every text would be right");
    }
    return all;
  }

  // What stands before the question, with what the tokenizer's template puts in front of a text.
  std::vector<TokenId> preamble(const std::string& before) const {
    std::vector<TokenId> ids = tokenizer_.encode_with_template(before);
    if (ids.size() > 1 && tokenizer_.eos_id() == ids.back()) ids.pop_back();
    return ids;
  }
  std::vector<TokenId> context_ids(const std::string& before, std::string_view text) const {
    std::vector<TokenId> ids = preamble(before);
    const std::vector<TokenId> context = tokenizer_.encode(text);
    ids.insert(ids.end(), context.begin(), context.end());
    return ids;
  }
  // The space before a continuation, which its context has lost: but where the tokenizer puts one in front
  // of every text.
  std::vector<TokenId> continuation_ids(const std::string& text) const {
    const bool lacks_space = prefix_space_ && !text.empty() && !text.starts_with(' ');
    return tokenizer_.encode(lacks_space ? " " + text : text);
  }
  // Keeps the end of a context that is too long.
  static void trim(std::vector<TokenId>& context, std::int64_t most) {
    const auto size = static_cast<std::int64_t>(context.size());
    if (size > most)
      context.erase(context.begin(), context.end() - std::max<std::int64_t>(most, 0));
  }
  ScoredSequence scored(const Line& line, std::vector<TokenId> context,
                        const std::vector<TokenId>& continuation) const {
    trim(context, task_.max_seq_len - static_cast<std::int64_t>(continuation.size()));
    if (continuation.empty()) line.fail("the continuation has no token");
    if (context.empty()) {
      line.fail(
          fmt::format("a continuation of {} tokens has no context in front of it within "
                      "max_seq_len {}",
                      continuation.size(), task_.max_seq_len));
    }
    ScoredSequence sequence;
    sequence.continuation = static_cast<std::int64_t>(context.size());
    sequence.tokens = std::move(context);
    sequence.tokens.insert(sequence.tokens.end(), continuation.begin(), continuation.end());
    return sequence;
  }

  Question question(const Line& line, const std::string& before) const {
    Question question;
    if (task_.type == TaskType::kSchema) {
      const std::vector<TokenId> continuation = continuation_ids(line.text("continuation"));
      const auto contexts = line.texts("context_options");
      question.gold = line.gold(contexts.size());
      for (const std::string& context : contexts) {
        std::string text = task_.question_prelimiter;
        if (before.empty()) {
          text += context;
        } else {
          text += task_.example_delimiter + context +
                  std::string(strip_right(task_.continuation_delimiter));
        }
        question.choices.push_back(scored(line, context_ids(before, text), continuation));
      }
      return question;
    }
    const std::string text = unsolved(line, before);
    std::vector<TokenId> context = context_ids(before, strip_right(text));
    switch (task_.type) {
      case TaskType::kLanguageModeling:
        question.choices.push_back(
            scored(line, std::move(context), continuation_ids(line.text("continuation"))));
        break;
      case TaskType::kMultipleChoice: {
        const auto choices = line.texts("choices");
        question.gold = line.gold(choices.size());
        for (const std::string& choice : choices) {
          question.choices.push_back(scored(line, context, continuation_ids(choice)));
        }
        break;
      }
      default:
        trim(context, task_.max_seq_len - longest_answer_);
        if (context.empty()) {
          line.fail(
              fmt::format("a prompt without a token, or answers of up to {} tokens, which "
                          "leave none of max_seq_len {} to it",
                          longest_answer_, task_.max_seq_len));
        }
        question.prompt = std::move(context);
        question.answers = answers(line);
    }
    return question;
  }

  const TaskConfig& task_;
  const Tokenizer& tokenizer_;
  std::vector<const Line*> lines_;
  bool prefix_space_ = false, has_thoughts_ = false;
  std::int64_t longest_answer_ = 0;
};

}  // namespace

std::vector<TaskRun> open_task(const TaskConfig& task, const Tokenizer& tokenizer) {
  const std::vector<Line> lines = read_lines(task.dataset_uri);
  std::map<std::string, std::vector<const Line*>> by_category;
  for (const Line& line : lines) {
    by_category[task.has_categories ? line.text("category") : std::string()].push_back(&line);
  }
  std::vector<TaskRun> runs;
  for (const std::int64_t shots : task.num_fewshot) {
    for (const auto& [category, members] : by_category) {
      const auto others = static_cast<std::int64_t>(members.size()) - 1;
      if (others < shots) {
        log_warning("{}: {} examples are asked for, and {} has {} besides the question", task.label,
                    shots, category.empty() ? task.dataset_uri : "category " + category, others);
      }
      TaskRun run = Builder(task, tokenizer, members).build(shots);
      run.name = fmt::format("{}/{}-shot", task.label, shots);
      if (task.has_categories) run.name += "/" + category;
      runs.push_back(std::move(run));
    }
  }
  return runs;
}

}  // namespace dropless::train
