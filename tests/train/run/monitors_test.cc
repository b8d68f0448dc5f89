// The figures of Composer's and LLM Foundry's monitors, of given times.
#include "train/run/monitors.h"

#include <gtest/gtest.h>

#include <string>

#include "dropless/error.h"

namespace dropless::train {
namespace {

YamlMap yaml(const std::string& text) { return YamlDocument::parse(text, "t.yaml").root(); }

TEST(RuntimeEstimator, BatchesAndEvaluationsToCome) {
  RuntimeEstimator estimator(RuntimeEstimatorConfig::from_yaml(yaml("{time_unit: seconds}")), 11);
  estimator.batch_begins(0, 100.0);  // the slow one that is skipped
  EXPECT_FALSE(estimator.batch_ended(1, 150.0));
  estimator.batch_begins(1, 150.0);
  EXPECT_DOUBLE_EQ(*estimator.batch_ended(2, 152.0), 2.0 * 9);
  estimator.batch_begins(2, 152.0);
  EXPECT_DOUBLE_EQ(*estimator.batch_ended(3, 154.0), 2.0 * 8);
  estimator.evaluated(3, 30.0);
  // One in two batches: five in the ten, of which four are to come, of thirty seconds each.
  estimator.batch_begins(3, 184.0);
  EXPECT_DOUBLE_EQ(*estimator.batch_ended(4, 186.0), 2.0 * 7 + 4 * 30);
  estimator.batch_begins(4, 186.0);
  estimator.batch_ended(5, 188.0);
  estimator.evaluated(5, 10.0);  // the first is left out of the mean
  estimator.batch_begins(5, 198.0);
  EXPECT_DOUBLE_EQ(*estimator.batch_ended(6, 200.0), 2.0 * 5 + 3 * 10);
  for (int done = 6; done < 10; ++done) {
    estimator.batch_begins(done, 200.0 + 2 * (done - 6));
    estimator.batch_ended(done + 1, 202.0 + 2 * (done - 6));
  }
  estimator.batch_begins(10, 208.0);
  EXPECT_GE(*estimator.batch_ended(11, 210.0), 0.0);
}

TEST(RuntimeEstimator, AnEvaluationBeforeTheClockDoesNotCount) {
  RuntimeEstimator estimator(RuntimeEstimatorConfig::from_yaml(yaml("{skip_batches: 0}")), 4);
  estimator.evaluated(0, 1000.0);
  estimator.batch_begins(0, 0.0);
  EXPECT_DOUBLE_EQ(*estimator.batch_ended(1, 3600.0), 3.0);  // hours
}

TEST(Monitors, KeysAreChecked) {
  EXPECT_DOUBLE_EQ(SpeedMonitorConfig::from_yaml(yaml("{time_unit: days}")).unit_seconds, 86400);
  EXPECT_THROW(SpeedMonitorConfig::from_yaml(yaml("{window_sise: 1}")), Error);
  EXPECT_THROW(SpeedMonitorConfig::from_yaml(yaml("{time_unit: weeks}")), Error);
  EXPECT_THROW(RuntimeEstimatorConfig::from_yaml(yaml("{skip_batches: -1}")), Error);
  EXPECT_THROW(ExpertMonitorConfig::from_yaml(yaml("{log_interval: 0}")), Error);
}

}  // namespace
}  // namespace dropless::train
