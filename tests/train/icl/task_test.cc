// What stands in front of a question and what is scored, spelled out; answers; averages.
#include "train/icl/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/icl/answer.h"
#include "train/icl/few_shot.h"
#include "train/icl/suite.h"

namespace dropless::train {
namespace {

using testing::HasSubstr;

// One id a character, but for a letter that follows a space: these two are one. It puts a BOS in
// front.
class SpacedLetters : public Tokenizer {
 public:
  static constexpr TokenId kBos = 1000, kSpaced = 256;
  std::string name() const override { return "spaced"; }
  std::int64_t vocab_size() const override { return 1001; }
  std::optional<TokenId> eos_id() const override { return std::nullopt; }
  std::optional<TokenId> bos_id() const override { return kBos; }
  TokenId pad_id() const override { return kBos; }
  std::optional<TokenId> special_id(std::string_view) const override { return std::nullopt; }
  std::vector<TokenId> prefix_ids() const override { return {kBos}; }
  std::vector<TokenId> encode(std::string_view text) const override {
    std::vector<TokenId> ids;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const bool spaced = text[i] == ' ' && i + 1 < text.size() && text[i + 1] != ' ';
      if (spaced) ++i;
      ids.push_back(static_cast<unsigned char>(text[i]) + (spaced ? kSpaced : 0));
    }
    return ids;
  }
  std::string decode(std::span<const TokenId> ids) const override {
    return decode_bytes(ids, true);
  }
  std::string decode_bytes(std::span<const TokenId> ids, bool) const override {
    std::string text;
    for (const TokenId id : ids) {
      if (id == kBos) {
        text += "<s>";
      } else {
        if (id >= kSpaced) text += ' ';
        text += static_cast<char>(id % kSpaced);
      }
    }
    return text;
  }
};

// Puts a space in front of every text, as SentencePiece's models do.
class SpacedTexts : public SpacedLetters {
 public:
  std::vector<TokenId> encode(std::string_view text) const override {
    return text.empty() ? std::vector<TokenId>() : SpacedLetters::encode(" " + std::string(text));
  }
};

class TaskTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/tasks_" + std::to_string(::getpid()) + ".jsonl";
  }
  void TearDown() override { remove_all(path_); }

  std::vector<TaskRun> open(const std::string& yaml, const std::string& lines,
                            const Tokenizer& tokenizer) {
    write_file_durable(path_, lines);
    suite_ = TaskSuite::from_yaml(
        YamlDocument::parse("{icl_tasks: [{label: t, dataset_uri: " + path_ + ", " + yaml + "}]}",
                            "t.yaml")
            .root(),
        {.batch_size = 4, .max_seq_len = 64});
    return suite_.open(tokenizer);
  }
  std::string refusal(const std::string& yaml, const std::string& lines) {
    try {
      open(yaml, lines, *make_tokenizer("bytes"));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return error.what();
    }
    return "opened";
  }
  // "context|continuation".
  static std::string shown(const ScoredSequence& sequence, const Tokenizer& tokenizer) {
    const std::span<const TokenId> ids = sequence.tokens;
    const auto split = static_cast<std::size_t>(sequence.continuation);
    return tokenizer.decode(ids.first(split)) + "|" + tokenizer.decode(ids.subspan(split));
  }

  std::string path_;
  TaskSuite suite_;
};

TEST_F(TaskTest, LanguageModeling) {
  const auto bytes = make_tokenizer("bytes");
  const std::string lines =
      "{\"context\": \" the cat \", \"continuation\": \"sat\\n\"}\n\n"
      "{\"context\": \"a dog\", \"continuation\": \"ran\"}\n";
  auto runs = open("icl_task_type: language_modeling, num_fewshot: [0, 1], prompt_string: 'Go. '",
                   lines, *bytes);
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].name, "t/0-shot");
  EXPECT_EQ(runs[1].name, "t/1-shot");
  EXPECT_EQ(shown(runs[0].questions[0].choices[0], *bytes), "Go. \nthe cat| sat");
  EXPECT_EQ(shown(runs[1].questions[0].choices[0], *bytes), "Go. \na dog ran\nthe cat| sat");
  EXPECT_EQ(shown(runs[1].questions[1].choices[0], *bytes), "Go. \nthe cat sat\na dog| ran");
  // A tokenizer whose words begin with their space, and that puts a BOS in front.
  const SpacedLetters spaced;
  runs = open("icl_task_type: language_modeling, num_fewshot: [0, 1], example_delimiter: ';'",
              lines, spaced);
  EXPECT_EQ(shown(runs[0].questions[0].choices[0], spaced), "<s>the cat| sat");
  EXPECT_EQ(shown(runs[1].questions[0].choices[0], spaced), "<s>a dog ran;the cat| sat");
  const SpacedTexts texts;
  runs = open("icl_task_type: language_modeling, num_fewshot: 0", lines, texts);
  EXPECT_EQ(shown(runs[0].questions[0].choices[0], texts), "<s> the cat| sat");
  EXPECT_THAT(refusal("icl_task_type: language_modeling, num_fewshot: 0",
                      "{\"context\": \"a\", \"continuation\": \"\"}\n"),
              HasSubstr("the continuation has no token"));
}

TEST_F(TaskTest, MultipleChoiceAndSchema) {
  const auto bytes = make_tokenizer("bytes");
  auto runs = open(
      "icl_task_type: multiple_choice, num_fewshot: 1, question_prelimiter: 'Q: ', "
      "continuation_delimiter: \"\\nA: \"",
      "{\"query\": \"up?\", \"choices\": [\"yes\", \"no \"], \"gold\": 1}\n"
      "{\"query\": \"down?\", \"choices\": [\"no\", \"yes\", \"so\"], \"gold\": 0}\n",
      *bytes);
  const Question& up = runs[0].questions[0];
  EXPECT_EQ(up.gold, 1);
  ASSERT_EQ(up.choices.size(), 2u);
  EXPECT_EQ(shown(up.choices[0], *bytes), "Q: down?\nA: no\nQ: up?\nA:| yes");
  EXPECT_EQ(shown(up.choices[1], *bytes), "Q: down?\nA: no\nQ: up?\nA:| no ");
  EXPECT_EQ(runs[0].questions[1].choices.size(), 3u);
  const std::string schema =
      "{\"context_options\": [\"The cup fell as the table\", \"The cup fell as the cup\"], "
      "\"continuation\": \"broke.\", \"gold\": 1}\n"
      "{\"context_options\": [\"X\", \"Y\"], \"continuation\": \"ran.\", \"gold\": 0}\n";
  runs = open("icl_task_type: schema, num_fewshot: [0, 1]", schema, *bytes);
  EXPECT_EQ(shown(runs[0].questions[1].choices[0], *bytes), "X| ran.");
  EXPECT_EQ(shown(runs[0].questions[1].choices[1], *bytes), "Y| ran.");
  EXPECT_EQ(shown(runs[1].questions[1].choices[1], *bytes),
            "The cup fell as the cup broke.\nY| ran.");
}

TEST_F(TaskTest, GenerationAndItsAnswers) {
  const auto bytes = make_tokenizer("bytes");
  const auto runs = open(
      "icl_task_type: generation_task_with_answers, num_fewshot: 0, cot_delimiter: ' ### ', "
      "continuation_delimiter: \"\\nA:\", early_stopping_criteria: [\"\\n\\n\"]",
      "{\"context\": \"2+2\", \"answer\": \"4\", \"aliases\": [\"four\"], \"chain_of_thought\": "
      "\"think\"}\n",
      *bytes);
  const Question& question = runs[0].questions[0];
  EXPECT_EQ(bytes->decode(question.prompt), "2+2\nA:");
  EXPECT_EQ(question.answers, (std::vector<std::string>{"4", "four"}));
  EXPECT_EQ(runs[0].max_new_tokens, 14 + 10);  // "think ### four", and ten
  const TaskConfig& task = *runs[0].task;
  EXPECT_TRUE(gives_answer(task, "no ### 3 ###  The Four.", question.answers));
  EXPECT_TRUE(gives_answer(task, "4 of them", question.answers));
  EXPECT_FALSE(gives_answer(task, "four ### five", question.answers));
  EXPECT_FALSE(gives_answer(task, "well\n\n ### 4", question.answers));
  // Of which normalisation leaves nothing.
  for (const char* said : {"dog", "", " "}) EXPECT_FALSE(gives_answer(task, said, {"The", "-"}));
  EXPECT_TRUE(gives_answer(task, " The", {"The"}));
  EXPECT_EQ(normalize_answer("  The_cat, \xe2\x80\x98"
                             "an\xe2\x80\x99 A \xc3\x89t\xc3\xa9!"),
            "cat \xc3\xa9t\xc3\xa9");
}

TEST_F(TaskTest, CategoriesAreTasksOfTheirOwn) {
  const auto runs = open("icl_task_type: language_modeling, num_fewshot: 2, has_categories: true",
                         "{\"context\": \"a\", \"continuation\": \"b\", \"category\": \"sea\"}\n"
                         "{\"context\": \"c\", \"continuation\": \"d\", \"category\": \"land\"}\n"
                         "{\"context\": \"e\", \"continuation\": \"f\", \"category\": \"sea\"}\n",
                         *make_tokenizer("bytes"));
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].name, "t/2-shot/land");
  EXPECT_EQ(runs[0].questions.size(), 1u);
  EXPECT_EQ(runs[1].name, "t/2-shot/sea");
  EXPECT_EQ(shown(runs[1].questions[0].choices[0], *make_tokenizer("bytes")), "e f\na| b");
}

TEST_F(TaskTest, LongContextsLoseTheirBeginning) {
  const auto bytes = make_tokenizer("bytes");
  const std::string line = "{\"context\": \"0123456789\", \"continuation\": \"abc\"}\n";
  const auto runs =
      open("icl_task_type: language_modeling, num_fewshot: 0, max_seq_len: 8", line, *bytes);
  EXPECT_EQ(shown(runs[0].questions[0].choices[0], *bytes), "6789| abc");
  EXPECT_THAT(refusal("icl_task_type: language_modeling, num_fewshot: 0, max_seq_len: 3", line),
              HasSubstr(".jsonl:1: a continuation of 4 tokens"));
}

TEST_F(TaskTest, BadLinesAndKeysAreNamed) {
  const std::string lm = "icl_task_type: language_modeling, num_fewshot: 0";
  EXPECT_THAT(refusal(lm, "{\"context\": \"a\"}\n"), HasSubstr(".jsonl:1: no key continuation"));
  EXPECT_THAT(refusal(lm, "{\"context\": \"a\", \"continuation\": \"b\"}\n[1]\n"),
              HasSubstr(".jsonl:2: not a JSON object"));
  EXPECT_THAT(refusal(lm, "{\"context\": \"a\", \"continuation\": 3}\n"),
              HasSubstr("holds number"));
  EXPECT_THAT(refusal(lm, "{\"context\""), HasSubstr(".jsonl:1"));
  EXPECT_THAT(refusal(lm, "\n \n"), HasSubstr("no questions"));
  EXPECT_THAT(refusal("icl_task_type: multiple_choice, num_fewshot: 0",
                      "{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 2}\n"),
              HasSubstr("gold is 2 of 2 choices"));
  EXPECT_THAT(refusal("icl_task_type: code_evaluation, num_fewshot: 0", ""),
              HasSubstr("code_evaluation"));
  EXPECT_THAT(refusal(lm + ", metric_names: [Perplexity]", ""), HasSubstr("Perplexity"));
  EXPECT_THAT(refusal(lm + ", batch_sizes: 3", ""), HasSubstr("batch_sizes"));
  EXPECT_THAT(refusal("icl_task_type: schema, num_fewshot: -1", ""), HasSubstr("num_fewshot"));
}

TEST(Gauntlet, AveragesAboveChance) {
  const GauntletConfig config = GauntletConfig::from_yaml(
      YamlDocument::parse(
          "{weighting: EQUAL, subtract_random_baseline: true, rescale_accuracy: true, categories: "
          "[{name: x, benchmarks: [{name: a, num_fewshot: 0, random_baseline: 0.5}, {name: b, "
          "num_fewshot: 5, random_baseline: 0}]}, {name: y, benchmarks: [{name: c, num_fewshot: 0, "
          "random_baseline: 0.25}]}, {name: z, benchmarks: [{name: absent, num_fewshot: 0, "
          "random_baseline: 0}]}], averages: {core: [x, y]}}",
          "g.yaml")
          .root());
  const std::vector<TaskScore> scores{{"a/0-shot", "m", 0.75, 10},
                                      {"b/5-shot/one", "m", 0.2, 10},
                                      {"b/5-shot/two", "m", 0.4, 30},
                                      {"b/50-shot", "m", 0.9, 30},
                                      {"c/0-shot", "m", 0.25, 10}};
  const auto averages = gauntlet_scores(config, scores);
  ASSERT_EQ(averages.size(), 3u);
  EXPECT_EQ(averages[0].first, "x");
  EXPECT_NEAR(averages[0].second, (0.5 + 0.3) / 2, 1e-12);
  EXPECT_NEAR(averages[1].second, 0, 1e-12);
  EXPECT_EQ(averages[2].first, "core");
  EXPECT_NEAR(averages[2].second, 0.2, 1e-12);
  GauntletConfig weighted = config;
  weighted.weighting = GauntletConfig::Weighting::kSampleSize;
  EXPECT_NEAR(gauntlet_scores(weighted, scores)[0].second, (10 * 0.5 + 40 * 0.3) / 50, 1e-12);
  weighted.averages.clear();
  EXPECT_EQ(gauntlet_scores(weighted, scores).back().first, "default_average");
}

}  // namespace
}  // namespace dropless::train
