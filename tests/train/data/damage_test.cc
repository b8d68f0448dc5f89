// Damaged indexes and shards are errors that name them; nothing crashes or hangs.
#include "tests/train/data/fixture.h"
#include "tests/train/data/mutate.h"
#include "train/data/mds_reader.h"

namespace dropless::train {
namespace {

TEST(DamagedSets, AreReadOrRefused) {
  ScratchFolder scratch;
  const std::filesystem::path set = scratch / "set";
  std::filesystem::copy(fixture_path("mds_tokens"), set, std::filesystem::copy_options::recursive);
  int refused = 0;
  for (const char* name : {"index.json", "shard.00000.mds"}) {
    const std::string path = (set / name).string();
    ASSERT_TRUE(std::filesystem::exists(path));
    const std::string whole = slurp(path);
    for (std::uint32_t seed = 0; seed < mutations(150); ++seed) {
      SCOPED_TRACE(std::string(name) + ", seed " + std::to_string(seed));
      spill(path, mutated(whole, seed));
      try {
        MdsReader reader(set.string());
        for (std::int64_t i = 0; i < std::min<std::int64_t>(reader.num_samples(), 200); ++i)
          reader.read(i);
      } catch (const Error& error) {
        EXPECT_TRUE(error.kind() == ErrorKind::kDamaged ||
                    error.kind() == ErrorKind::kInvalidArgument)
            << error.what();
        EXPECT_NE(std::string(error.what()).find(scratch.path()), std::string::npos)
            << error.what();
        ++refused;
      }
    }
    spill(path, whole);
  }
  EXPECT_GT(refused, 100);
}

// An index in order is read without a tree of it; any other by the strict reader. Both say the same.
TEST(LargeIndexes, AreReadAsSmallOnesAre) {
  MdsIndex index = MdsIndex::load(fixture_path("mds_tokens"));
  const MdsShard first = index.shards.at(0);
  for (int i = 0; i < 500; ++i) {
    MdsShard shard = first;
    shard.raw.basename = "shard.\xc3\xa4" + std::to_string(i) + ".mds";
    shard.raw.bytes += static_cast<std::uint64_t>(i);
    shard.samples = i;
    if (i % 100 == 0) shard.size_limit = 7;  // another head
    index.shards.push_back(shard);
  }
  const std::string text = index.dump();
  const MdsIndex plain = MdsIndex::parse(text, "index.json");
  EXPECT_EQ(plain.dump(), text);
  // A key more sends it to the strict reader.
  std::string odd = text;
  odd.insert(odd.rfind("\"samples\""), "\"more\": 1, ");
  EXPECT_EQ(MdsIndex::parse(odd, "index.json").dump(), text);
  std::string bad = text;
  bad.replace(bad.rfind("\"samples\": 499"), 14, "\"samples\": -99");
  expect_error(ErrorKind::kDamaged, {"samples"}, [&] { MdsIndex::parse(bad, "index.json"); });
}

}  // namespace
}  // namespace dropless::train
