// The rivals of `bench moe` are the layer that they are timed against, and one that is not is found out.
#include "apps/bench_moe_rivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "dropless/error.h"

namespace dropless::apps {
namespace {

using at::Tensor;

LayerCase make_case(const LayerShape& shape, at::ScalarType type,
                    Routing routing = Routing::kRouter) {
  at::manual_seed(7);
  return {shape, {.name = "", .kind = routing, .loads = {}}, at::TensorOptions().dtype(type)};
}

TEST(BenchMoeRivals, AreTheLayer) {
  const LayerShape shapes[] = {{96, 32, 48, 8, 1}, {96, 32, 48, 8, 2},
                               {96, 32, 48, 8, 5}, {64, 30, 18, 6, 6},
                               {1, 32, 8, 8, 1},   {3, 32, 8, 40, 4},  // most experts without rows
                               {70, 16, 8, 1, 1},  {16, 8, 8, 40'000, 2}};
  for (const LayerShape& s : shapes) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      if (s.E > 1024 && type != at::kFloat) continue;
      SCOPED_TRACE(fmt::format("{} {} {} {} {} {}", s.T, s.d, s.f, s.E, s.k, c10::toString(type)));
      const Agreement agreement = compare_with_rivals(make_case(s, type));
      EXPECT_TRUE(agreement.unknown.empty());
      const double most = type == at::kFloat ? 1e-5 : 0.02;
      EXPECT_LT(agreement.output.value(), most);
      EXPECT_LT(agreement.gradients.value(), most);
    }
  }
}

TEST(BenchMoeRivals, AreTheLayerUnderSkew) {
  const auto c = make_case({200, 64, 24, 16, 3}, at::kFloat, Routing::kZipf);
  EXPECT_LT(compare_with_rivals(c).gradients.value(), 1e-5);
}

// The layer with one argument as `change` makes it.
LayerFunction changed(int which, const std::function<Tensor(const Tensor&)>& change) {
  return [which, change](const MoEConfig& config, const Tensor& x, const Tensor& router,
                         const Tensor& w1, const Tensor& v1, const Tensor& w2) {
    Tensor in[] = {x, router, w1, v1, w2};
    in[which] = change(in[which]);
    return own_layer(config, in[0], in[1], in[2], in[3], in[4]);
  };
}

testing::AssertionResult is_refused(const LayerFunction& layer) {
  const auto c = make_case({96, 32, 48, 8, 2}, at::kFloat);
  try {
    compare_with_rivals(c, {{"wrong", layer}});
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInternal) return testing::AssertionSuccess() << error.what();
    return testing::AssertionFailure() << error.what();
  }
  return testing::AssertionFailure() << "taken for the same layer";
}

TEST(BenchMoeRivals, WrongOnesAreFound) {
  for (int which = 0; which < 5; ++which) {
    SCOPED_TRACE(which);
    EXPECT_TRUE(is_refused(changed(which, [](const Tensor& t) { return t * 1.1; })));
    // Only the gradient: twice as large, or without the first row or expert.
    EXPECT_TRUE(is_refused(changed(which, [](const Tensor& t) { return 2 * t - t.detach(); })));
    EXPECT_TRUE(is_refused(changed(which, [](const Tensor& t) {
      const auto part = std::max<std::int64_t>(t.size(0) / 8, 1);
      return at::cat({t.narrow(0, 0, part).detach(), t.narrow(0, part, t.size(0) - part)});
    })));
  }
  EXPECT_TRUE(is_refused(
      changed(0, [](const Tensor& t) { return t * std::numeric_limits<float>::quiet_NaN(); })));
}

TEST(BenchMoeRivals, ThoseWithoutMemoryAreNamed) {
  const auto c = make_case({96, 32, 48, 8, 2}, at::kFloat);
  const LayerFunction large = [](const MoEConfig&, const Tensor& x, const Tensor&, const Tensor&,
                                 const Tensor&, const Tensor&) {
    return at::empty({std::int64_t{1} << 60}, x.options());
  };
  const Agreement agreement = compare_with_rivals(c, {{"same", own_layer}, {"large", large}});
  EXPECT_THAT(agreement.unknown, testing::ElementsAre("large"));
  EXPECT_EQ(agreement.output, 0);
  EXPECT_FALSE(compare_with_rivals(c, {{"large", large}}).output.has_value());
}

}  // namespace
}  // namespace dropless::apps
