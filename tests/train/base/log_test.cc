#include "train/base/log.h"

#include <gtest/gtest.h>

namespace dropless::train {
namespace {

TEST(HeldLog, WritesWhatItHeldAndThenLetsThrough) {
  testing::internal::CaptureStderr();
  {
    HeldLog log;
    log_info("first");
    log_warning("second");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
    testing::internal::CaptureStderr();
    log.write();
    log_info("third");
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "first\nwarning: second\nthird\n");
}

TEST(HeldLog, DropsWhatNobodyWrote) {
  testing::internal::CaptureStderr();
  {
    HeldLog log;
    log_info("dropped");
  }
  log_info("after");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "after\n");
}

TEST(Log, OneLineStaysOne) {
  EXPECT_EQ(in_one_line("a\nb\u2028c\u202ed \u00e9"), "a\\nb\\u2028c\\u202ed \u00e9");
}

}  // namespace
}  // namespace dropless::train
