#include "train/data/order.h"

#include <algorithm>
#include <numeric>

#include "tests/train/data/fixture.h"
#include "train/data/rng.h"

namespace dropless::train {
namespace {

using nlohmann::json;

json golden(const char* name) { return json::parse(slurp(fixture_path("mds_order.json")))[name]; }

TEST(Partition, EqualsThePackage) {
  const json cases = golden("partition");
  ASSERT_GE(cases.size(), 100u);
  for (const json& c : cases) {
    SCOPED_TRACE(c.dump());
    const World world{c["P"], c["R"], c["W"], c["B"]};
    const auto run = [&] { return partition_orig(c["N"], c["C"], world, c["drop"]); };
    if (c.contains("error")) {
      EXPECT_THROW(run(), Error);
      continue;
    }
    const Partition got = run();
    EXPECT_EQ(got.batches, c["shape"][3].get<std::int64_t>());
    EXPECT_EQ(digest(got.ids_PRWNB), c["digest"].get<std::string>());
    if (c.contains("ids")) {
      EXPECT_EQ(json(got.ids_PRWNB), c["ids"]);
    }
  }
}

TEST(Shuffle, Py1eEqualsThePackage) {
  const json cases = golden("shuffle");
  ASSERT_GE(cases.size(), 50u);
  for (const json& c : cases) {
    SCOPED_TRACE(c.dump());
    const std::vector<std::int64_t> sizes = c["sizes"];
    const auto run = [&] {
      return shuffle_ids(ShuffleAlgo::kPy1e, sizes, c["C"], c["seed"], c["epoch"], c["block"]);
    };
    if (c.contains("error")) {
      EXPECT_THROW(run(), Error);
      continue;
    }
    const auto got = run();
    EXPECT_EQ(digest(got), c["digest"].get<std::string>());
    if (c.contains("ids")) {
      EXPECT_EQ(json(got), c["ids"]);
    }
  }
}

TEST(Shuffle, IsAPermutation) {
  NumpyRng rng(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(rng.integers(1, 20)));
    for (auto& size : sizes) size = rng.integers(1, 400);
    auto ids = shuffle_ids(ShuffleAlgo::kPy1e, sizes, 1, round, 2, 100);
    std::sort(ids.begin(), ids.end());
    std::vector<std::int64_t> all(ids.size());
    std::iota(all.begin(), all.end(), std::int64_t{0});
    EXPECT_EQ(ids, all);
  }
}

TEST(EpochOrder, EqualsWhatTheDatasetYields) {
  for (const json& c : golden("epoch")) {
    SCOPED_TRACE(c.dump());
    ShuffleConfig config;
    if (c["shuffle"]) config.algo = ShuffleAlgo::kPy1e;
    config.seed = 11;
    config.block_size = 30;
    if (!c["canonical"].is_null()) config.num_canonical_nodes = c["canonical"].get<std::int64_t>();
    const json index = json::parse(slurp(fixture_path("mds_tokens/index.json")));
    std::vector<std::int64_t> sizes;
    for (const json& shard : index["shards"]) sizes.push_back(shard["samples"]);
    auto order = epoch_order(config, sizes, c["epoch"], c["drop"]);
    std::erase(order, -1);
    EXPECT_EQ(json(order), c["ids"]);
  }
}

TEST(EpochOrder, ResumesAsTheSuffixOfTheEpoch) {
  const std::vector<std::int64_t> sizes = {7, 0, 13, 1, 20};
  ShuffleConfig config;
  config.algo = ShuffleAlgo::kPy1e;
  const auto all = epoch_order(config, sizes, 5);
  ASSERT_EQ(all.size(), 41u);
  for (std::int64_t drop = 0; drop <= 41; ++drop) {
    const auto rest = epoch_order(config, sizes, 5, drop);
    EXPECT_TRUE(std::equal(rest.begin(), rest.end(), all.begin() + drop, all.end())) << drop;
  }
}

TEST(DivideSpans, CutsAtTheBorders) {
  const auto parts = divide_spans({{0, 3}, {3, 3}, {3, 10}}, 10, 3);
  const std::vector<std::vector<Span>> want = {{{0, 3}, {3, 3}}, {{3, 6}}, {{6, 10}}};
  EXPECT_EQ(parts, want);
}

TEST(Order, RefusesWhatCannotBe) {
  const auto refuse = [](const std::vector<std::string>& parts,
                         const std::function<void()>& action) {
    expect_error(ErrorKind::kInvalidArgument, parts, action);
  };
  refuse({"neither divides"}, [] { partition_orig(100, 3, World{2, 1, 1, 1}, 0); });
  refuse({"resume at sample 200"}, [] { partition_orig(100, 1, World{}, 200); });
  refuse({"no samples"}, [] { partition_orig(0, 1, World{}, 0); });
  refuse({"positive"}, [] { partition_orig(5, 1, World{1, 1, 1, 0}, 0); });
  refuse({"py1s", "not supported"}, [] { parse_shuffle_algo("py1s"); });
  refuse({"unknown", "py9"}, [] { parse_shuffle_algo("py9"); });
}

}  // namespace
}  // namespace dropless::train
