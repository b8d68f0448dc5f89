#include "train/data/order.h"

#include <algorithm>
#include <numeric>

#include "tests/train/data/fixture.h"
#include "train/base/hash.h"
#include "train/data/epoch_plan.h"
#include "train/data/partition.h"
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
    const auto got = run();
    EXPECT_EQ(got.batches, c["shape"][3].get<std::int64_t>());
    EXPECT_EQ(digest(got.ids_PRWNB), c["digest"].get<std::string>());
    const auto narrow = partition_orig<std::int32_t>(c["N"], c["C"], world, c["drop"]);
    EXPECT_TRUE(std::ranges::equal(narrow.ids_PRWNB, got.ids_PRWNB));
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

// Longer than what py1e sorts at once; SHA-256 of the package's get_shuffle(...) as int64.
TEST(Shuffle, Py1eOfMillionsEqualsThePackage) {
  std::vector<std::int64_t> odd(1000, 5000);
  odd.insert(odd.end(), {1, 7, 250000});
  const auto sha256 = [](const auto& ids) {
    const std::vector<std::int64_t> wide(ids.begin(), ids.end());
    return sha256_hex({reinterpret_cast<const char*>(wide.data()), wide.size() * sizeof wide[0]});
  };
  constexpr auto kPy1e = ShuffleAlgo::kPy1e;
  EXPECT_EQ(sha256(shuffle_ids<std::int32_t>(kPy1e, odd, 1, 9176, 1, 4'000'000)),
            "2d87019d37d0692a78e4420e8277692f9ed005e4c59aa8c8988c7176066e9ed6");
  const std::vector<std::int64_t> one{4'500'000};
  EXPECT_EQ(sha256(shuffle_ids<std::int32_t>(kPy1e, one, 1, 1, 0, 6'000'000)),
            "31f809f3c4129b662ad21f454302e132f6d04137f2424e4f0fa49c44d13ebaf5");
  const std::vector<std::int64_t> even(900, 5003);
  EXPECT_EQ(sha256(shuffle_ids<std::int64_t>(kPy1e, even, 2, 7, 3, 1 << 20)),
            "4fdd09db05678b62e57772fb091c324fd01811df1b3cdf785afe682f5d1e4b81");
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

EpochStream stream_of(std::vector<std::int64_t> sizes) { return {std::move(sizes), {}}; }

TEST(EpochOrder, EqualsWhatTheDatasetYields) {
  for (const json& c : golden("epoch")) {
    SCOPED_TRACE(c.dump());
    EpochConfig config;
    if (c["shuffle"]) config.shuffle.algo = ShuffleAlgo::kPy1e;
    config.shuffle.seed = 11;
    config.shuffle.block_size = 30;
    if (!c["canonical"].is_null()) {
      config.shuffle.num_canonical_nodes = c["canonical"].get<std::int64_t>();
    }
    const json index = json::parse(slurp(fixture_path("mds_tokens/index.json")));
    std::vector<std::int64_t> sizes;
    for (const json& shard : index["shards"]) sizes.push_back(shard["samples"]);
    const EpochStream stream = stream_of(sizes);
    const SampleIds order = epoch_order(config, std::span(&stream, 1), 4, c["epoch"]);
    EXPECT_EQ(json(order.slice(c["drop"], order.size())), c["ids"]);
  }
}

// Every answer of the package to a random spec: tests/data/make_order_cases.py. The command's
// `data order` reads the same specs in tests/cli/test_data.py.
TEST(EpochPlan, SharesWhatTruncationLeaves) {
  std::vector<EpochStream> streams(3, stream_of({10}));
  for (EpochStream& stream : streams) stream.weight.proportion = 1;
  const StreamShares shares = share_epoch(streams, 100, 9176);
  EXPECT_EQ(shares.epoch_size, 100);
  EXPECT_EQ(std::accumulate(shares.choose.begin(), shares.choose.end(), std::int64_t{0}), 100);
  for (const std::int64_t choose : shares.choose) EXPECT_TRUE(choose == 33 || choose == 34);
}

TEST(EpochPlan, RefusesWhatCannotBe) {
  const auto refuse = [](const std::vector<std::string>& parts, const EpochConfig& config,
                         const std::vector<EpochStream>& streams, const World& world = {}) {
    expect_error(ErrorKind::kInvalidArgument, parts,
                 [&] { plan_epoch(config, streams, world, 0, 0); });
  };
  const EpochStream plain = stream_of({10, 20});
  EpochStream half = plain, twice = plain, both = plain;
  half.weight.proportion = 0.5;
  twice.weight.repeat = 2;
  both.weight.repeat = 2;
  both.weight.choose = 3;
  refuse({"no streams"}, {}, {});
  refuse({"stream 0", "no samples"}, {}, {stream_of({0})});
  refuse({"stream 1", "proportion"}, {}, {half, twice});
  refuse({"stream 0", "more than one"}, {}, {both});
  EpochConfig config;
  config.epoch_size = 5;
  refuse({"epoch_size"}, config, {twice});
  config = {};
  config.batching = BatchingMethod::kStratified;
  EpochStream little = plain;
  little.weight.proportion = 0.01;
  refuse({"stream 1", "global batch of 4"}, config, {half, little}, {1, 1, 1, 4});
  config.batching = BatchingMethod::kPerStream;
  refuse({"stream 0", "global batch of 64"}, config, {plain}, {1, 1, 1, 64});
  config.batching = BatchingMethod::kDevicePerStream;
  config.shuffle.num_canonical_nodes = 3;
  refuse({"3 canonical", "2 nodes"}, config, {plain}, {2, 1, 1, 1});
  config = {};
  config.replication = 3;
  refuse({"replication of 3"}, config, {plain}, {2, 1, 1, 1});
  config = {};
  config.shuffle.seed = -1;
  refuse({"seed"}, config, {plain});
  EXPECT_EQ(parse_sample_count("1.5k"), 1500);
  EXPECT_EQ(parse_sample_count("20"), 20);
  for (const char* bad : {"", "k", "1.5", "-1", "1x", "1e3"}) {
    expect_error(ErrorKind::kInvalidArgument, {}, [&] { parse_sample_count(bad); });
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
  refuse({"unknown", "py9"}, [] { parse_shuffle_algo("py9"); });
}

}  // namespace
}  // namespace dropless::train
