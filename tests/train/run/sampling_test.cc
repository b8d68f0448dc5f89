// The short way to the likeliest token is the long way's.
#include "train/run/sampling.h"

#include <gtest/gtest.h>

#include <limits>

#include "dropless/error.h"

namespace dropless::train {
namespace {

TokenId chosen(const at::Tensor& logits, GenerateOptions options, bool the_long_way) {
  options.temperature = 0;
  // A penalty of tokens that were not seen changes nothing.
  if (the_long_way) options.repetition_penalty = 2;
  std::mt19937_64 rng;
  return choose_token(logits, {}, {}, options, rng);
}

TEST(Sampling, TheLikeliestIsFoundInAnyType) {
  at::manual_seed(4);
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (int i = 0; i < 200; ++i) {
      at::Tensor logits = at::randn({50}).mul(i % 3 == 0 ? 0.01 : 30).to(type);
      if (i % 4 == 1) logits = logits.abs().neg();           // all negative
      if (i % 5 == 2) logits = logits.round().clamp_max(0);  // ties of 0 and -0
      EXPECT_EQ(chosen(logits, {}, false), chosen(logits, {}, true)) << i << " " << logits;
    }
  }
}

TEST(Sampling, RefusesWhatIsNotFinite) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
          -std::numeric_limits<double>::infinity()}) {
      at::Tensor logits = at::zeros({9}, type);
      logits[5] = bad;
      for (const bool the_long_way : {false, true}) {
        EXPECT_THROW(chosen(logits, {}, the_long_way), Error) << type << bad;
      }
    }
  }
}

}  // namespace
}  // namespace dropless::train
