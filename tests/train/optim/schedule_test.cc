#include "train/optim/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "dropless/error.h"
#include "train/optim/loss_scale.h"

namespace dropless::train {
namespace {

constexpr TrainingLength kLength{
    .max_batches = 100, .batches_per_epoch = 40, .samples_per_batch = 8, .tokens_per_batch = 256};

Schedule make(const std::string& text) {
  return Schedule(ScheduleConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root()), kLength);
}

TEST(Schedule, CosineWithWarmup) {
  const Schedule schedule = make("{name: cosine_with_warmup, t_warmup: 10ba, alpha_f: 0.1}");
  EXPECT_EQ(schedule.multiplier(0), 0.0);
  EXPECT_DOUBLE_EQ(schedule.multiplier(5), 0.5);
  EXPECT_DOUBLE_EQ(schedule.multiplier(10), 1.0);
  EXPECT_DOUBLE_EQ(schedule.multiplier(55), 0.1 + 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(schedule.multiplier(100), 0.1);
  EXPECT_DOUBLE_EQ(schedule.multiplier(130), 0.1);
}

TEST(Schedule, LinearDecayAndConstant) {
  const Schedule linear =
      make("{name: linear_decay_with_warmup, t_warmup: 0ba, t_max: 200ba, alpha_f: 0.5}");
  EXPECT_DOUBLE_EQ(linear.multiplier(0), 1.0);
  EXPECT_DOUBLE_EQ(linear.multiplier(100), 0.75);
  EXPECT_DOUBLE_EQ(linear.multiplier(300), 0.5);
  const Schedule constant = make("{name: constant_with_warmup, t_warmup: 4ba}");
  EXPECT_DOUBLE_EQ(constant.multiplier(1), 0.25);
  EXPECT_DOUBLE_EQ(constant.multiplier(99), 1.0);
}

TEST(Schedule, InverseSquareRoot) {
  const Schedule schedule = make(
      "{name: inv_sqrt_with_warmup, t_warmup: 10ba, t_scale: 5ba, t_cooldown: 20ba, "
      "alpha_f_decay: 0.2, alpha_f_cooldown: 0.1}");
  EXPECT_DOUBLE_EQ(schedule.multiplier(5), 0.5);
  EXPECT_DOUBLE_EQ(schedule.multiplier(10), 1.0);
  EXPECT_DOUBLE_EQ(schedule.multiplier(25), 0.2 + 0.8 * 0.5);
  const double from = 0.2 + 0.8 / std::sqrt(15.0);  // at 80 = 100 - 20
  EXPECT_DOUBLE_EQ(schedule.multiplier(80), from);
  EXPECT_DOUBLE_EQ(schedule.multiplier(90), (from + 0.1) / 2);
  EXPECT_DOUBLE_EQ(schedule.multiplier(100), 0.1);
  EXPECT_DOUBLE_EQ(schedule.multiplier(120), 0.1);
  const Schedule open =
      make("{name: inv_sqrt_with_warmup, t_warmup: 1ep, t_scale: 1ep, t_cooldown: 0ba}");
  EXPECT_DOUBLE_EQ(open.multiplier(100), std::sqrt(40.0 / 100));
  for (const char* bad :
       {"{name: inv_sqrt_with_warmup, t_scale: 1ba}",
        "{name: inv_sqrt_with_warmup, t_scale: 0ba, t_cooldown: 0ba}",
        "{name: inv_sqrt_with_warmup, t_scale: 0.1dur, t_cooldown: 0ba}",
        "{name: inv_sqrt_with_warmup, t_scale: 1ba, t_cooldown: 0ba, alpha_f: 0.1}",
        "{name: inv_sqrt_with_warmup, t_scale: 1ba, t_cooldown: 0ba, alpha_f_cooldown: 0.1}"}) {
    EXPECT_THROW(make(bad), Error) << bad;
  }
}

TEST(Schedule, EveryUnitBecomesBatches) {
  EXPECT_DOUBLE_EQ(kLength.batches(Time::parse("7ba")), 7);
  EXPECT_DOUBLE_EQ(kLength.batches(Time::parse("2ep")), 80);
  EXPECT_DOUBLE_EQ(kLength.batches(Time::parse("20sp")), 2.5);
  EXPECT_DOUBLE_EQ(kLength.batches(Time::parse("512tok")), 2);
  EXPECT_DOUBLE_EQ(kLength.batches(Time::parse("0.02dur")), 2);
  EXPECT_THROW(kLength.batches(Time::parse("10sec")), Error);
}

TEST(Schedule, AWarmupBeyondTheEndIsAWarning) {
  for (const char* name :
       {"cosine_with_warmup", "linear_decay_with_warmup", "constant_with_warmup"}) {
    const Schedule schedule = make(std::string("{t_warmup: 400ba, name: ") + name + "}");
    EXPECT_THAT(schedule.short_run(), testing::HasSubstr("during the warm-up of 400ba")) << name;
    EXPECT_DOUBLE_EQ(schedule.multiplier(99), 99.0 / 400) << name;
    // Longer than the run, where Composer's formula gives the whole rate.
    EXPECT_DOUBLE_EQ(schedule.multiplier(400), 1.0) << name;
  }
  EXPECT_EQ(make("{name: cosine_with_warmup, t_warmup: 100ba}").multiplier(100), 1.0);
  EXPECT_EQ(make("{name: cosine_with_warmup, t_warmup: 99ba}").short_run(), "");
}

TEST(Schedule, RefusesATMaxBelowTheRun) {
  for (const char* t_max : {"99ba", "2ep", "0.5dur", "25000tok"}) {
    for (const char* name : {"cosine_with_warmup", "linear_decay_with_warmup"}) {
      EXPECT_THROW(make(std::string("{t_max: ") + t_max + ", name: " + name + "}"), Error) << t_max;
    }
    EXPECT_NO_THROW(make(std::string("{name: inv_sqrt_with_warmup, t_warmup: 0ba, t_scale: 1ba, "
                                     "t_cooldown: 0ba, t_max: ") +
                         t_max + "}"))
        << t_max;
  }
  // 99.6 batches are the hundred that the run counts.
  EXPECT_NO_THROW(make("{name: cosine_with_warmup, t_max: 797sp}"));
}

TEST(Schedule, RefusesWhatIsNoNumberOfBatches) {
  EXPECT_THROW(make("{name: cosine_with_warmup, t_warmup: 10sec}"), Error);
  EXPECT_THROW(make("{name: cosine_with_warmup, t_max: 10sec}"), Error);
  EXPECT_THROW(make("{name: inv_sqrt_with_warmup, t_warmup: 1ba}"), Error);
  EXPECT_THROW(make("{name: cosine_with_warmup, t_warmup: soon}"), Error);
}

TEST(LossScale, HalvesOnOverflowAndDoublesAfterGoodSteps) {
  LossScale scale(true);
  EXPECT_FALSE(scale.update(false));
  EXPECT_EQ(scale.scale(), 32768.0);
  for (int i = 0; i < 2000; ++i) EXPECT_TRUE(scale.update(true));
  EXPECT_EQ(scale.scale(), 65536.0);
  LossScale off(false);
  EXPECT_FALSE(off.update(false));
  EXPECT_EQ(off.scale(), 1.0);
}

}  // namespace
}  // namespace dropless::train
