// The 16-bit storage types: every bit pattern, and rounding to nearest even between neighbours.
#include "src/common/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace dropless {
namespace {

// The value of a pattern with the given field widths, from the definition.
double value_of(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1 + fraction, exponent - bias);
}

template <class S>
class Float16Types : public ::testing::Test {};
using Types = ::testing::Types<BFloat16, Float16>;
TYPED_TEST_SUITE(Float16Types, Types);

TYPED_TEST(Float16Types, EveryPatternConvertsThereAndBack) {
  using S = TypeParam;
  constexpr bool kHalf = std::is_same_v<S, Float16>;
  for (int i = 0; i < 0x10000; ++i) {
    const S stored{static_cast<std::uint16_t>(i)};
    const double expected = value_of(stored.bits, kHalf ? 5 : 8, kHalf ? 10 : 7);
    const float value = to_float(stored);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << i;
      EXPECT_TRUE(std::isnan(to_float(from_float<S>(value)))) << i;
    } else {
      EXPECT_EQ(value, expected) << i;
      EXPECT_EQ(from_float<S>(value).bits, stored.bits) << i;
    }
  }
}

// Between neighbours: just below, at and just above the midpoint.
TYPED_TEST(Float16Types, RoundsToNearestEven) {
  using S = TypeParam;
  constexpr int kInfinity = std::is_same_v<S, Float16> ? 0x7c00 : 0x7f80;
  for (int i = 0; i + 1 < kInfinity; ++i) {
    const float low = to_float(S{static_cast<std::uint16_t>(i)});
    const float high = to_float(S{static_cast<std::uint16_t>(i + 1)});
    const float middle = static_cast<float>((static_cast<double>(low) + high) / 2);
    if (middle == low || middle == high) continue;  // subnormal floats
    EXPECT_EQ(from_float<S>(middle).bits, i % 2 == 0 ? i : i + 1) << i;
    EXPECT_EQ(from_float<S>(std::nextafter(middle, low)).bits, i) << i;
    EXPECT_EQ(from_float<S>(std::nextafter(-middle, -high)).bits, (i + 1) | 0x8000) << i;
  }
}

TYPED_TEST(Float16Types, LargeValuesBecomeInfinite) {
  using S = TypeParam;
  constexpr int kInfinity = std::is_same_v<S, Float16> ? 0x7c00 : 0x7f80;
  EXPECT_EQ(from_float<S>(std::numeric_limits<float>::max()).bits, kInfinity);
  EXPECT_EQ(from_float<S>(-std::numeric_limits<float>::infinity()).bits, kInfinity | 0x8000);
  EXPECT_EQ(from_float<Float16>(65519.0f).bits, 0x7bff);
  EXPECT_EQ(from_float<Float16>(65520.0f).bits, 0x7c00);
}

}  // namespace
}  // namespace dropless
