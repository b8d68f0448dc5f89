#include "train/run/step_log.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "train/base/fs.h"

namespace dropless::train {
namespace {

class StepLogTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "metrics_" + std::to_string(::getpid());
    std::filesystem::remove_all(folder_);
    make_folders(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string text() { return read_file(folder_ + "/metrics.jsonl"); }

  std::string folder_;
};

TEST_F(StepLogTest, ResumeKeepsEachStepOnce) {
  {
    StepLog file(folder_ + "/metrics.jsonl", 0);
    for (int step = 1; step <= 4; ++step) file.append({{"step", step}, {"x", 0.1 * step}});
    file.append({{"step", 4}, {"eval", 1}});
    file.sync();
  }
  StepLog file(folder_ + "/metrics.jsonl", 2);
  file.append({{"step", 3}, {"x", 7}});
  EXPECT_EQ(text(), "{\"step\":1,\"x\":0.1}\n{\"step\":2,\"x\":0.2}\n{\"step\":3,\"x\":7}\n");
}

TEST_F(StepLogTest, TornLastLineIsDropped) {
  write_file_durable(folder_ + "/metrics.jsonl", "{\"step\":1}\n{\"step\":2,\"lo");
  StepLog file(folder_ + "/metrics.jsonl", 5);
  EXPECT_EQ(text(), "{\"step\":1}\n");
}

TEST_F(StepLogTest, ARemovedFileIsBegunAnew) {
  StepLog file(folder_ + "/metrics.jsonl", 0);
  file.append({{"step", 1}});
  std::filesystem::remove(folder_ + "/metrics.jsonl");
  file.sync();
  file.append({{"step", 2}});
  EXPECT_EQ(text(), "{\"step\":2}\n");
}

TEST_F(StepLogTest, NonFiniteNumbersAreNull) {
  StepLog file(folder_ + "/metrics.jsonl", 0);
  file.append({{"step", 1}, {"loss", std::nan("")}});
  EXPECT_EQ(text(), "{\"step\":1,\"loss\":null}\n");
}

}  // namespace
}  // namespace dropless::train
