#include "apps/eval_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <optional>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::apps {

using namespace train;

TaskSuite load_tasks(const std::string& path, const TaskDefaults& defaults) {
  const YamlMap root = YamlDocument::load(path).root();
  const TaskSuite suite = TaskSuite::from_yaml(root, defaults);
  root.finish();
  if (suite.tasks.empty()) root.fail("", "no icl_tasks");
  return suite;
}

TaskResults run_tasks(const TaskSuite& suite, const LoadedModel& loaded, Precision precision,
                      const std::string& samples) {
  if (!loaded.tokenizer) {
    throw Error(ErrorKind::kInvalidArgument,
                "in-context tasks need the model's tokenizer, which is not here");
  }
  std::optional<FileWriter> file;
  QuestionSink sink;
  if (!samples.empty()) {
    file.emplace(samples);
    sink = [&](const nlohmann::ordered_json& line) {
      const std::string text = line.dump() + "\n";
      file->write(text.data(), text.size());
    };
  }
  TaskResults results;
  for (const TaskRun& run : suite.open(*loaded.tokenizer)) {
    results.scores.push_back(evaluate_task(*loaded.model, *loaded.tokenizer, run, precision,
                                           suite.subset_num_batches, sink));
  }
  if (file) file->finish();
  results.averages = gauntlet_scores(suite.gauntlet, results.scores);
  return results;
}

nlohmann::ordered_json tasks_as_json(const TaskResults& results) {
  auto json = nlohmann::ordered_json::object();
  for (const TaskScore& score : results.scores) {
    json["icl"][score.name] = {{score.metric, score.accuracy}, {"questions", score.questions}};
  }
  for (const auto& [name, score] : results.averages) json["eval_gauntlet"][name] = score;
  return json;
}

void print_tasks(const TaskResults& results) {
  std::size_t width = 8;
  for (const TaskScore& score : results.scores) width = std::max(width, score.name.size());
  for (const auto& [name, score] : results.averages) width = std::max(width, name.size());
  std::cout << fmt::format("{:<{}}  accuracy  questions\n", "task", width);
  for (const TaskScore& score : results.scores) {
    std::cout << fmt::format("{:<{}}  {:>8.4f}  {:>9}\n", score.name, width, score.accuracy,
                             score.questions);
  }
  if (results.averages.empty()) return;
  std::cout << fmt::format("{:<{}}  score\n", "gauntlet", width);
  for (const auto& [name, score] : results.averages) {
    std::cout << fmt::format("{:<{}}  {:.4f}\n", name, width, score);
  }
}

}  // namespace dropless::apps
