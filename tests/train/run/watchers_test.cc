// Early stopping and loss spikes: when they stop, and that a resumed watcher stops at the same step.
#include "train/run/watchers.h"

#include <gtest/gtest.h>

#include <cmath>

#include "dropless/error.h"

namespace dropless::train {
namespace {

using Json = nlohmann::ordered_json;

YamlMap yaml(const std::string& text) { return YamlDocument::parse(text, "t.yaml").root(); }

EarlyStopper stopper(const std::string& text) {
  return EarlyStopper(EarlyStopperConfig::from_yaml(yaml(text), {"", "code"}));
}

// One step, and its evaluation where there is one.
void feed(Watcher& watcher, std::int64_t step, std::int64_t epoch, double train,
          double eval = NAN) {
  watcher.take(Json{{"step", step},
                    {"loss/train/total", train},
                    {"metrics/train/LanguageCrossEntropy", train},
                    {"time/epoch", epoch}});
  if (std::isnan(eval)) return;
  watcher.take(Json{{"step", step}, {"metrics/eval/LanguageCrossEntropy", eval}});
}

TEST(EarlyStopper, StopsWhenAnEvaluationHasNotImprovedForLongerThanPatience) {
  EarlyStopper watcher = stopper(
      "{monitor: LanguageCrossEntropy, dataloader_label: eval, patience: 20ba, min_delta: 0.1}");
  feed(watcher, 10, 0, 1.0, 2.0);
  feed(watcher, 20, 0, 1.0, 1.95);  // not by more than min_delta
  feed(watcher, 30, 0, 1.0, 1.8);   // better
  feed(watcher, 40, 0, 1.0, 3.0);
  feed(watcher, 50, 0, 1.0, 1.8);
  EXPECT_EQ(watcher.stop_reason(), "");
  feed(watcher, 51, 0, 1.0);
  EXPECT_EQ(
      watcher.stop_reason(),
      "early_stopper: metrics/eval/LanguageCrossEntropy has not improved on 1.8 of step 30 for "
      "more than 20ba");
}

TEST(EarlyStopper, ComparesATrainingMetricByEpochMeans) {
  EarlyStopper watcher =
      stopper("{monitor: LanguageCrossEntropy, dataloader_label: train, patience: 1ep}");
  // Means 2, 1, 1.5, 1.5: the best is epoch 1's, known when epoch 2 begins.
  const double losses[][2] = {{1, 3}, {0.5, 1.5}, {0.1, 2.9}, {1, 2}};
  std::int64_t step = 0;
  for (int epoch = 0; epoch < 4; ++epoch) {
    for (const double loss : losses[epoch]) {
      EXPECT_EQ(watcher.stop_reason(), "") << step;
      feed(watcher, ++step, epoch, loss);
    }
  }
  feed(watcher, ++step, 4, 1.0);
  EXPECT_NE(watcher.stop_reason(), "");
}

TEST(EarlyStopper, GoesOnFromItsRecord) {
  const std::string text = "{monitor: LanguagePerplexity, dataloader_label: code, patience: 3ba}";
  EarlyStopper straight = stopper(text), resumed = stopper(text);
  const auto line = [](int step) {
    return Json{{"step", step}, {"metrics/eval/code/LanguagePerplexity", step == 2 ? 5.0 : 7.0}};
  };
  for (int step = 1; step <= 4; ++step) straight.take(line(step));
  resumed.reload(nlohmann::json::parse(straight.record().dump()));
  for (int step = 5; step <= 6; ++step) {
    straight.take(line(step));
    resumed.take(line(step));
    EXPECT_EQ(straight.stop_reason(), resumed.stop_reason());
  }
  EXPECT_NE(resumed.stop_reason(), "");
}

TEST(EarlyStopper, NamesWhatThereIsNot) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      stopper(text);
    } catch (const Error& error) {
      return std::string(error.what()) + " / " + error.hint();
    }
    return "accepted";
  };
  EXPECT_EQ(message("{monitor: Accuracy, dataloader_label: eval}"),
            "t.yaml:1:11: monitor: there is no metric Accuracy / LanguageCrossEntropy or "
            "LanguagePerplexity");
  EXPECT_EQ(message("{monitor: LanguageCrossEntropy, dataloader_label: cod}"),
            "t.yaml:1:51: dataloader_label: no loader is called cod / one of: train, eval, code");
  EXPECT_NE(message("{monitor: LanguageCrossEntropy, dataloader_label: eval, patience: 5sp}")
                .find("ep or ba"),
            std::string::npos);
}

LossSpikeWatcher spike(const std::string& text) {
  return LossSpikeWatcher(LossSpikeConfig::from_yaml(yaml(text)));
}

TEST(LossSpikeWatcher, MoreThanPatienceOutliersInARowAreASpike) {
  LossSpikeWatcher watcher = spike("{log_only: false, patience: 2, window_size: 10}");
  int step = 0;
  for (; step < 10; ++step) feed(watcher, step, 0, 1.0);
  feed(watcher, ++step, 0, 9.0);
  feed(watcher, ++step, 0, 9.0);
  feed(watcher, ++step, 0, 1.0);  // breaks the row
  for (; step < 30; ++step) feed(watcher, step, 0, 1.0);
  feed(watcher, ++step, 0, 2.0);
  feed(watcher, ++step, 0, 3.0);
  EXPECT_THROW(feed(watcher, ++step, 0, 4.0), Error);
}

TEST(LossSpikeWatcher, HalfAWindowAboveTheCapIsAHighLoss) {
  LossSpikeWatcher watcher = spike("{log_only: false, window_size: 10, loss_cap: 5}");
  for (int step = 1; step <= 19; ++step) feed(watcher, step, 0, 6.0);
  EXPECT_THROW(feed(watcher, 20, 0, 6.0), Error);
}

TEST(LossSpikeWatcher, LogOnlyGoesOn) {
  LossSpikeWatcher watcher = spike("{window_size: 4, patience: 0}");
  for (int step = 1; step <= 8; ++step) feed(watcher, step, 0, 1.0);
  EXPECT_NO_THROW(feed(watcher, 9, 0, 100.0));
}

TEST(LossSpikeWatcher, GoesOnFromItsRecord) {
  LossSpikeWatcher straight = spike("{log_only: false, patience: 1, window_size: 4}");
  for (int step = 1; step <= 4; ++step) feed(straight, step, 0, 1.0);
  feed(straight, 5, 0, 8.0);
  LossSpikeWatcher resumed = spike("{log_only: false, patience: 1, window_size: 4}");
  resumed.reload(nlohmann::json::parse(straight.record().dump()));
  EXPECT_THROW(feed(resumed, 6, 0, 8.0), Error);
}

}  // namespace
}  // namespace dropless::train
