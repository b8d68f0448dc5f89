// Which steps are recorded.
#include "train/run/profiler.h"

#include <gtest/gtest.h>

#include <string>

namespace dropless::train {
namespace {

using Action = ProfilerConfig::Action;

// A letter a step: nothing, warming up, recorded, recorded and saved.
std::string actions(const ProfilerConfig& config, std::int64_t steps, std::int64_t entered) {
  std::string text;
  for (std::int64_t step = 0; step < steps; ++step) {
    switch (config.action(step, steps, entered)) {
      case Action::kSkip:
        text += '.';
        break;
      case Action::kWarmUp:
        text += 'w';
        break;
      case Action::kRecord:
        text += 'r';
        break;
      case Action::kRecordAndSave:
        text += 'S';
    }
  }
  return text;
}

TEST(ProfilerConfig, CyclesAreComposers) {
  EXPECT_EQ(actions({}, 10, 0), "wrrrS.....");
  const ProfilerConfig config{.skip_first = 1, .wait = 2, .warmup = 1, .active = 2, .repeat = 2};
  EXPECT_EQ(actions(config, 14, 0), "...wrS..wrS...");
  EXPECT_EQ(actions(config, 14, 3), "......wrS..wrS");
  // Cut off by the end of the epoch, and until then.
  EXPECT_EQ(actions(config, 10, 0), "...wrS..wS");
  EXPECT_EQ(actions({.wait = 1, .warmup = 0, .active = 1, .repeat = 0}, 6, 0), ".S.S.S");
}

}  // namespace
}  // namespace dropless::train
