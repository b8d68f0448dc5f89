#include "train/run/task_evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "dropless/error.h"
#include "train/base/signals.h"
#include "train/icl/answer.h"
#include "train/run/generate.h"
#include "train/run/memory.h"

namespace dropless::train {
namespace {

struct SequenceScore {
  double loglikelihood = 0;  // of the continuation
  std::int64_t tokens = 0;
  bool greedy = true;  // every token of it is the likeliest
};

// Sequences of different lengths, filled up behind: what comes later changes nothing before it.
std::vector<SequenceScore> score(Transformer& model, const std::vector<ScoredSequence>& sequences,
                                 Precision precision) {
  at::NoGradGuard no_grad;
  AutocastGuard autocast(precision, model.device());
  const auto B = static_cast<std::int64_t>(sequences.size());
  std::size_t longest = 0;
  for (const ScoredSequence& one : sequences) longest = std::max(longest, one.tokens.size());
  const auto S = static_cast<std::int64_t>(longest);
  at::Tensor tokens = at::zeros({B, S}, at::kLong);
  for (std::int64_t b = 0; b < B; ++b) {
    const auto& row = sequences[static_cast<std::size_t>(b)].tokens;
    std::copy(row.begin(), row.end(), tokens.mutable_data_ptr<std::int64_t>() + b * S);
  }
  RouterRecord record;
  const at::Tensor logits_BSV = model.forward(tokens.to(model.device()), record);
  std::vector<SequenceScore> scores;
  for (std::int64_t b = 0; b < B; ++b) {
    const ScoredSequence& sequence = sequences[static_cast<std::size_t>(b)];
    SequenceScore result;
    result.tokens = static_cast<std::int64_t>(sequence.tokens.size()) - sequence.continuation;
    const at::Tensor logits =
        logits_BSV[b].narrow(0, sequence.continuation - 1, result.tokens).to(at::kFloat).cpu();
    const at::Tensor labels = tokens[b].narrow(0, sequence.continuation, result.tokens);
    result.loglikelihood =
        at::log_softmax(logits, 1).gather(1, labels.unsqueeze(1)).sum(at::kDouble).item<double>();
    result.greedy = logits.argmax(1).eq(labels).all().item<bool>();
    if (!std::isfinite(result.loglikelihood)) {
      throw Error(ErrorKind::kNonFinite, "the model's logits are not finite",
                  "the weights of this model are ruined: take an older checkpoint");
    }
    scores.push_back(result);
  }
  return scores;
}

// The choice of the highest likelihood a token; the first of equals.
std::int64_t likeliest(const SequenceScore* scores, std::size_t choices) {
  const auto mean = [](const SequenceScore& one) {
    return one.loglikelihood / static_cast<double>(one.tokens);
  };
  return std::max_element(
             scores, scores + choices,
             [&](const SequenceScore& a, const SequenceScore& b) { return mean(a) < mean(b); }) -
         scores;
}

class TaskEvaluation {
 public:
  TaskEvaluation(Transformer& model, const Tokenizer& tokenizer, const TaskRun& run,
                 Precision precision, const QuestionSink& sink)
      : model_(model), tokenizer_(tokenizer), run_(run), precision_(precision), sink_(sink) {}

  TaskScore evaluate(std::int64_t max_batches) {
    const bool generates = run_.task->type == TaskType::kGeneration;
    for (std::int64_t batch = 0; batch != max_batches && next_ < run_.questions.size(); ++batch) {
      check_interrupted();
      if (stop_signal() != 0) break;
      const std::size_t end = end_of_batch();
      if (generates) {
        generate_until(end);
      } else {
        score_until(end);
      }
      next_ = end;
    }
    const double accuracy = next_ == 0 ? std::numeric_limits<double>::quiet_NaN()
                                       : static_cast<double>(correct_) / static_cast<double>(next_);
    return {run_.name, metric_name(run_.task->type), accuracy, static_cast<std::int64_t>(next_)};
  }

 private:
  // Whole questions, at least one, of at most batch_size sequences together.
  std::size_t end_of_batch() const {
    std::size_t end = next_;
    std::int64_t sequences = 0;
    while (end < run_.questions.size()) {
      const auto more =
          static_cast<std::int64_t>(std::max<std::size_t>(run_.questions[end].choices.size(), 1));
      if (end > next_ && sequences + more > run_.task->batch_size) break;
      sequences += more;
      ++end;
    }
    return end;
  }
  void report(std::size_t index, bool correct, nlohmann::ordered_json more) {
    correct_ += correct ? 1 : 0;
    if (!sink_) return;
    nlohmann::ordered_json line{{"task", run_.name}, {"index", index}, {"correct", correct}};
    line.update(more);
    sink_(line);
  }
  void score_until(std::size_t end) {
    std::vector<ScoredSequence> sequences;
    for (std::size_t i = next_; i < end; ++i) {
      const auto& choices = run_.questions[i].choices;
      sequences.insert(sequences.end(), choices.begin(), choices.end());
    }
    const std::vector<SequenceScore> scores = score(model_, sequences, precision_);
    const SequenceScore* mine = scores.data();
    for (std::size_t i = next_; i < end; ++i) {
      const Question& question = run_.questions[i];
      const std::size_t choices = question.choices.size();
      const bool correct = run_.task->type == TaskType::kLanguageModeling
                               ? mine->greedy
                               : likeliest(mine, choices) == question.gold;
      nlohmann::ordered_json more;
      for (std::size_t c = 0; c < choices; ++c) {
        more["loglikelihoods"].push_back(mine[c].loglikelihood);
        more["tokens"].push_back(mine[c].tokens);
      }
      report(i, correct, std::move(more));
      mine += choices;
    }
  }
  void generate_until(std::size_t end) {
    GenerateOptions options;
    options.max_new_tokens = run_.max_new_tokens;
    options.temperature = 0;
    options.precision = precision_;
    options.stop = run_.task->early_stopping_criteria;
    options.tokenizer = &tokenizer_;
    if (const auto eos = tokenizer_.eos_id()) options.eos = {*eos};
    std::vector<std::vector<TokenId>> prompts;
    for (std::size_t i = next_; i < end; ++i) prompts.push_back(run_.questions[i].prompt);
    const GenerateResult result = generate(model_, prompts, options);
    for (std::size_t i = next_; i < end; ++i) {
      const std::string text = text_of(tokenizer_, result.sequences[i - next_]);
      const bool correct = gives_answer(*run_.task, text, run_.questions[i].answers);
      report(i, correct, {{"text", text}});
    }
  }

  Transformer& model_;
  const Tokenizer& tokenizer_;
  const TaskRun& run_;
  Precision precision_;
  const QuestionSink& sink_;
  std::size_t next_ = 0;
  std::int64_t correct_ = 0;
};

}  // namespace

TaskScore evaluate_task(Transformer& model, const Tokenizer& tokenizer, const TaskRun& run,
                        Precision precision, std::int64_t max_batches, const QuestionSink& sink) {
  return with_torch_errors("if memory ran out, lower the task's batch_size", [&] {
    return TaskEvaluation(model, tokenizer, run, precision, sink).evaluate(max_batches);
  });
}

}  // namespace dropless::train
