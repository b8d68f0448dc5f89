// Against figures of CPython 3.11.
#include "train/icl/few_shot.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace dropless::train {
namespace {

TEST(FewShot, DrawsAndOrderAreCPythons) {
  struct Case {
    std::uint64_t seed;
    std::int64_t size, shots;
    std::uint64_t digest;  // over the examples in front of the first 40: digest * 1000003 + i + 1
  };
  const Case cases[] = {
      {1234, 4, 10, 17961922978405607606u},
      {1234, 7, 3, 1731609142168093796u},
      {1234, 30, 5, 1326984463912918226u},
      {1234, 200, 5, 1719285727283161102u},
      {1234, 200, 10, 3407546149100241220u},
      {1234, 5000, 25, 13796636240964061968u},
      {1234, 40, 39, 13304683578815948476u},
      {0, 4, 10, 17961922978405607606u},
      {0, 7, 3, 9786340918431902184u},
      {0, 30, 5, 5443617608375220190u},
      {0, 200, 5, 4438683525619904099u},
      {0, 200, 10, 16147289573501277562u},
      {0, 5000, 25, 7994032670039585313u},
      {0, 40, 39, 13304683578815948476u},
      {1099511627781, 4, 10, 17961922978405607606u},
      {1099511627781, 7, 3, 594666651850918639u},
      {1099511627781, 30, 5, 13459352690532042792u},
      {1099511627781, 200, 5, 3666205676840233861u},
      {1099511627781, 200, 10, 4434696217661535350u},
      {1099511627781, 5000, 25, 7281463197770769200u},
      {1099511627781, 40, 39, 13304683578815948476u},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(testing::Message() << one.seed << " " << one.size << " " << one.shots);
    PythonRandom random(one.seed);
    std::uint64_t digest = 0;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(one.size, 40); ++i) {
      const auto chosen = few_shot_examples(one.size, one.shots, i, random);
      EXPECT_EQ(static_cast<std::int64_t>(chosen.size()), std::min(one.size - 1, one.shots));
      EXPECT_EQ(std::count(chosen.begin(), chosen.end(), i), 0);
      for (const std::int64_t example : chosen) {
        digest = digest * 1000003 + static_cast<std::uint64_t>(example) + 1;
      }
    }
    EXPECT_EQ(digest, one.digest);
  }
}

TEST(FewShot, AsManyAsThereAre) {
  PythonRandom random(1);
  EXPECT_TRUE(few_shot_examples(1, 5, 0, random).empty());
  EXPECT_EQ(few_shot_examples(2, 5, 0, random), std::vector<std::int64_t>{1});
}

}  // namespace
}  // namespace dropless::train
