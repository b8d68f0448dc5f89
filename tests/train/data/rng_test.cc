#include "train/data/rng.h"

#include <numeric>

#include "tests/train/data/fixture.h"

namespace dropless::train {
namespace {

using nlohmann::json;

TEST(NumpyRng, EqualsNumpyDrawForDraw) {
  const json cases = json::parse(slurp(fixture_path("mds_order.json")))["rng"];
  ASSERT_GE(cases.size(), 8u);
  for (const json& c : cases) {
    SCOPED_TRACE(c["seed"].get<std::string>());
    NumpyRng rng(std::stoull(c["seed"].get<std::string>()));
    for (const auto& draw : c["next64"])
      EXPECT_EQ(std::to_string(rng.next64()), draw.get<std::string>());
    const std::int64_t ranges[] = {1,
                                   2,
                                   10,
                                   std::int64_t{1} << 31,
                                   std::int64_t{1} << 32,
                                   (std::int64_t{1} << 33) + 1,
                                   std::int64_t{1} << 62};
    for (std::size_t i = 0; i < std::size(ranges); ++i) {
      EXPECT_EQ(rng.integers(0, ranges[i]), c["integers"][i].get<std::int64_t>()) << ranges[i];
    }
    // The half word that integers keeps must survive the doubles drawn in between.
    for (std::size_t i = 0; i < 8; i += 2) {
      EXPECT_EQ(rng.integers(5, 1000), c["mixed"][i].get<std::int64_t>());
      const std::string hex = c["mixed"][i + 1];
      EXPECT_EQ(rng.uniform(-2.5, 3.0), std::strtod(hex.c_str(), nullptr)) << hex;
    }
    EXPECT_EQ(json(rng.permutation(37)), c["permutation"]);
    std::vector<std::int64_t> items(21);
    std::iota(items.begin(), items.end(), std::int64_t{0});
    rng.shuffle(std::span(items));
    EXPECT_EQ(json(items), c["shuffle"]);
    const std::pair<std::int64_t, std::int64_t> choices[] = {
        {1, 1}, {10, 0}, {10, 10}, {1000, 7}, {10001, 100}};
    for (std::size_t i = 0; i < std::size(choices); ++i) {
      EXPECT_EQ(json(rng.choice(choices[i].first, choices[i].second)), c["choice"][i]);
    }
    EXPECT_EQ(digest(rng.choice(10001, 300)), c["choice_tail"].get<std::string>());
  }
}

TEST(NumpyRng, BoundedDrawsStayInRange) {
  NumpyRng rng(3);
  for (std::uint64_t max : {1ull, 2ull, 1000ull, (1ull << 32) - 1, 1ull << 32, ~0ull}) {
    for (int i = 0; i < 200; ++i) {
      EXPECT_LE(rng.masked(max), max);
      EXPECT_LE(rng.lemire(max), max);
    }
  }
}

}  // namespace
}  // namespace dropless::train
