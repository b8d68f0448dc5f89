// That the observer hears what the layer tells; what a GPU's layer tells is tested in tests/cuda.
#include "dropless/observe.h"

#include <gtest/gtest.h>

#include <string>

#include "src/ops/observed.h"

namespace dropless {
namespace {

TEST(Observe, HearsUntilItIsReplaced) {
  tell_observer({"nobody listens", 0, 0, nullptr});
  std::string heard;
  EXPECT_FALSE(observe_parts([&](const QueuedPart& part) { heard += part.name; }));
  tell_observer({"up", 1, 2, nullptr});
  tell_observer({"down", 1, 2, nullptr});
  EXPECT_TRUE(observe_parts({})) << "returns the one before";
  tell_observer({"late", 0, 0, nullptr});
  EXPECT_EQ(heard, "updown");
}

}  // namespace
}  // namespace dropless
