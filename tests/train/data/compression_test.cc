// Compressed shards: the package's sets of every algorithm, and streams that are broken or lie.
#include "train/data/compression.h"

#include <filesystem>
#include <thread>

#include "tests/train/data/fixture.h"
#include "train/data/file_hash.h"
#include "train/data/mds_reader.h"
#include "train/data/mds_writer.h"
#include "train/data/merge.h"
#include "train/data/rng.h"
#include "train/data/sample_line.h"
#include "train/data/shard_store.h"
#include "train/data/verify.h"

namespace dropless::train {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kAlgorithms = {"zstd", "gz", "bz2", "br", "snappy"};

std::string make_bytes(std::size_t size, bool repeats) {
  NumpyRng rng(size);
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = repeats ? static_cast<char>(i / 100 % 7) : static_cast<char>(rng.next32());
  }
  return bytes;
}

std::string unpack(const std::string& name, const std::string& packed, std::uint64_t size) {
  return decompress(Compression::parse(name), packed, size);
}
std::string pack(const std::string& name, const std::string& bytes) {
  return compress(Compression::parse(name), bytes);
}

TEST(Compression, EveryLevelComesBack) {
  for (const auto& [name, low, high] : {std::tuple("zstd", 1, 22), std::tuple("gz", 0, 9),
                                        std::tuple("bz2", 1, 9), std::tuple("br", 0, 11)}) {
    for (int level = low; level <= high; ++level) {
      const std::string full = std::string(name) + ":" + std::to_string(level);
      for (const std::size_t size : {0, 1, 5000}) {
        for (const bool repeats : {false, true}) {
          const std::string bytes = make_bytes(size, repeats);
          EXPECT_EQ(unpack(full, pack(full, bytes), size), bytes) << full << " " << size;
        }
      }
    }
  }
  for (const std::string& name : kAlgorithms) {
    for (const bool repeats : {false, true}) {
      const std::string bytes = make_bytes(3'000'001, repeats);
      EXPECT_TRUE(unpack(name, pack(name, bytes), bytes.size()) == bytes) << name;
    }
  }
}

TEST(Compression, NamesAndLevelsAreChecked) {
  for (const char* name : {"", "lz4", "zstd:", "zstd:0", "zstd:23", "zstd:7x", "gz:10", "gz:-1",
                           "bz2:0", "br:12", "snappy:1", "ZSTD", "zstd:7:7"}) {
    expect_error(ErrorKind::kInvalidArgument, {"compression"}, [&] { Compression::parse(name); });
  }
  EXPECT_EQ(Compression::parse("br:4").level, 4);
  EXPECT_EQ(Compression::parse("br:4").extension, "br");
}

TEST(Compression, ASizeThatLiesIsDamage) {
  const std::string bytes = make_bytes(10'000, true);
  for (const std::string& name : kAlgorithms) {
    SCOPED_TRACE(name);
    const std::string packed = pack(name, bytes);
    for (const std::uint64_t size : {0u, 1u, 9'999u, 10'001u, 20'000u}) {
      expect_error(ErrorKind::kDamaged, {"decompresses to", std::to_string(size)},
                   [&] { unpack(name, packed, size); });
    }
    // What the index claims costs no memory until it comes.
    expect_error(ErrorKind::kDamaged, {}, [&] { unpack(name, packed, std::uint64_t{1} << 50); });
  }
}

TEST(Compression, BrokenStreamsAreDamage) {
  const std::string bytes = make_bytes(3000, true) + make_bytes(200, false);
  for (const std::string& name : kAlgorithms) {
    SCOPED_TRACE(name);
    const std::string packed = pack(name, bytes);
    for (std::size_t length = 0; length < packed.size(); ++length) {
      expect_error(ErrorKind::kDamaged, {}, [&] { unpack(name, packed.substr(0, length), 3200); });
    }
    expect_error(ErrorKind::kDamaged, {}, [&] { unpack(name, packed + "xyz", 3200); });
    for (std::size_t at = 0; at < packed.size(); ++at) {  // an error or some bytes: never a crash
      std::string flipped = packed;
      flipped[at] = static_cast<char>(flipped[at] ^ 0x41);
      try {
        EXPECT_EQ(unpack(name, flipped, 3200).size(), 3200u);
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
      }
    }
  }
}

TEST(Compression, SeveralFramesAreOneFile) {
  for (const std::string name : {"zstd", "gz", "bz2"}) {
    const std::string a = make_bytes(4000, true), b = make_bytes(300, false);
    EXPECT_TRUE(unpack(name, pack(name, a) + pack(name, b), 4300) == a + b) << name;
  }
}

// ---- sets of the package ----

const std::vector<std::string> kFolders = {"zstd", "zstd-7", "gz-5", "bz2", "br-4", "snappy"};

std::vector<std::string> lines_of(MdsReader reader) {
  std::vector<std::string> lines;
  for (std::int64_t i = 0; i < reader.num_samples(); ++i) {
    lines.push_back(sample_line(reader.columns(i), reader.read(i), i));
  }
  return lines;
}

std::string zip_set(const std::string& name) { return fixture_path("mds_zip/" + name); }

std::string compression_of(std::string folder) {
  std::replace(folder.begin(), folder.end(), '-', ':');
  return folder;
}

TEST(CompressedSet, ReadsThePackagesOfEveryAlgorithm) {
  const auto want = lines_of(MdsReader(zip_set("none")));
  ASSERT_EQ(want.size(), 12u);
  for (const std::string& folder : kFolders) {
    EXPECT_EQ(lines_of(MdsReader(zip_set(folder))), want) << folder;
    EXPECT_TRUE(verify_set(zip_set(folder)).empty()) << folder;  // its 17 hashes, raw and zip
  }
  EXPECT_TRUE(verify_set(zip_set("none")).empty());
}

TEST(CompressedSet, WritesThePackagesShardsAndIndex) {
  const auto lines = lines_of(MdsReader(zip_set("none")));
  for (std::string folder : {"none", "zstd", "zstd-7", "gz-5", "bz2", "br-4", "snappy"}) {
    SCOPED_TRACE(folder);
    const MdsIndex want = MdsIndex::load(zip_set(folder));
    ScratchFolder scratch;
    MdsWriterOptions options;
    options.size_limit = 700;
    options.hashes = want.shards[0].hashes;
    if (folder != "none") options.compression = compression_of(folder);
    MdsWriter writer(scratch / "set", {{"text", "str"}, {"id", "int"}}, options);
    for (const std::string& line : lines) {
      const auto values = encode_sample_line(writer.columns(), line);
      writer.write(std::vector<std::string_view>(values.begin(), values.end()));
    }
    writer.finish();
    EXPECT_EQ(lines_of(MdsReader(scratch / "set")), lines);
    EXPECT_TRUE(verify_set(scratch / "set").empty());
    MdsIndex got = MdsIndex::load(scratch / "set");
    if (folder == "none") {
      EXPECT_EQ(slurp(scratch / "set/index.json"), slurp(zip_set("none") + "/index.json"));
      continue;
    }
    // The compressors' versions differ, so their output may; all else is the same.
    ASSERT_EQ(got.shards.size(), want.shards.size());
    for (std::size_t i = 0; i < got.shards.size(); ++i) {
      EXPECT_EQ(got.shards[i].zip->basename, want.shards[i].zip->basename);
      got.shards[i].zip = want.shards[i].zip;
    }
    EXPECT_EQ(got.dump(), slurp(zip_set(folder) + "/index.json"));
  }
}

TEST(CompressedSet, MergesAsThePackageDoes) {
  ScratchFolder scratch;
  fs::copy(fixture_path("mds_zip"), scratch / "all", fs::copy_options::recursive);
  fs::remove(scratch / "all/index.json");
  write_merged_index(find_partitions(scratch / "all"), scratch / "all");
  EXPECT_EQ(slurp(scratch / "all/index.json"), slurp(fixture_path("mds_zip/index.json")));
  EXPECT_EQ(lines_of(MdsReader(scratch / "all")).size(), 7u * 12);
  // A folder of folders: the package loses the upper level, and then its shards.
  fs::create_directories(scratch / "deep/a");
  fs::copy(zip_set("none"), scratch / "deep/a/b", fs::copy_options::recursive);
  write_merged_index(find_partitions(scratch / "deep"), scratch / "deep");
  EXPECT_EQ(lines_of(MdsReader(scratch / "deep")).size(), 12u);
  EXPECT_EQ(merge_indexes({zip_set("none"), zip_set("none") + "/index.json"}, scratch / "x")
                .index.shards.size(),
            3u);
  fs::create_directories(scratch / "empty");
  expect_error(ErrorKind::kInvalidArgument, {"empty"}, [&] { find_partitions(scratch / "empty"); });
}

TEST(CompressedSet, DamageIsNamed) {
  for (const std::string& folder : kFolders) {
    SCOPED_TRACE(folder);
    ScratchFolder scratch;
    fs::copy(zip_set(folder), scratch / "set");
    const std::string name = MdsIndex::load(scratch / "set").shards[1].zip->basename;
    const std::string path = scratch / ("set/" + name);
    std::string bytes = slurp(path);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
    spill(path, bytes);
    auto damage = verify_set(scratch / "set");
    ASSERT_EQ(damage.size(), 1u);
    EXPECT_EQ(damage[0].first, name);
    bytes.pop_back();
    spill(path, bytes);
    damage = verify_set(scratch / "set");
    ASSERT_EQ(damage.size(), 1u);
    EXPECT_NE(damage[0].second.find("but the index says"), std::string::npos) << damage[0].second;
    expect_error(ErrorKind::kDamaged, {name}, [&] { lines_of(MdsReader(scratch / "set")); });
    fs::remove(path);
    expect_error(ErrorKind::kDamaged, {"missing"}, [&] { lines_of(MdsReader(scratch / "set")); });
  }
}

TEST(FileHash, NamesAreChecked) {
  expect_error(ErrorKind::kInvalidArgument, {"crc32"}, [] { FileHash hash("crc32"); });
  EXPECT_EQ(hash_hex("md5", {"a", "bc"}), "900150983cd24fb0d6963f7d28e17f72");
  EXPECT_EQ(hash_hex("xxh32", {}), "02cc5d05");
}

// ---- the cache ----

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(ShardStore, DecompressesIntoTheCacheAndLeavesTheSource) {
  const auto want = lines_of(MdsReader(zip_set("none")));
  for (const std::string& folder : kFolders) {
    ScratchFolder scratch;
    const auto before = names_in(zip_set(folder));
    const auto store = std::make_shared<ShardStore>(zip_set(folder), scratch / "cache");
    EXPECT_EQ(lines_of(MdsReader(store)), want);
    EXPECT_EQ(names_in(scratch / "cache"),
              (std::vector<std::string>{"index.json", "shard.00000.mds", "shard.00001.mds",
                                        "shard.00002.mds"}));
    EXPECT_EQ(names_in(zip_set(folder)), before);
    // A shard that is there is not made again; one of another size is.
    spill(scratch / "cache/shard.00000.mds", "cut short");
    EXPECT_EQ(lines_of(MdsReader(std::make_shared<ShardStore>(zip_set(folder), scratch / "cache"))),
              want);
  }
}

TEST(ShardStore, ValidatesTheHashAskedFor) {
  for (const char* folder : {"none", "zstd"}) {
    ScratchFolder scratch;
    fs::copy(zip_set(folder), scratch / "set");
    ShardStoreOptions options;
    options.validate_hash = "sha1";
    EXPECT_EQ(
        lines_of(MdsReader(std::make_shared<ShardStore>(scratch / "set", "", options))).size(),
        12u);
    const bool raw = std::string(folder) == "none";
    const std::string path = scratch / (raw ? "set/shard.00002.mds" : "set/shard.00002.mds.zstd");
    std::string bytes = slurp(path);
    bytes[bytes.size() - 2] = static_cast<char>(bytes[bytes.size() - 2] ^ 1);
    spill(path, bytes);
    for (const std::string& cache : {std::string(), scratch / "cache"}) {
      expect_error(ErrorKind::kDamaged, {path, "sha1"}, [&] {
        lines_of(MdsReader(std::make_shared<ShardStore>(scratch / "set", cache, options)));
      });
    }
    options.validate_hash = "crc";
    expect_error(ErrorKind::kInvalidArgument, {"crc"},
                 [&] { ShardStore(scratch / "set", "", options); });
  }
}

// 2,000 samples, each its own number, in shards of at most 2,000 bytes.
void write_ids(const std::string& folder) {
  MdsWriterOptions writing;
  writing.size_limit = 2000;
  MdsWriter writer(folder, {{"id", "int"}}, writing);
  for (std::int64_t i = 0; i < 2000; ++i) {
    const std::string_view value(reinterpret_cast<const char*>(&i), 8);
    writer.write(std::span(&value, 1));
  }
  writer.finish();
}

std::int64_t read_id(MdsReader& reader, std::int64_t sample) {
  std::int64_t id = 0;
  std::memcpy(&id, reader.read(sample)[0].data(), 8);
  return id;
}

TEST(ShardStore, KeepsToTheLimitAndToTheOnlyCopy) {
  ScratchFolder scratch;
  write_ids(scratch / "set");
  ShardStoreOptions options;
  options.cache_limit = 4 * 2000;
  const auto store = std::make_shared<ShardStore>(scratch / "set", scratch / "cache", options);
  MdsReader reader(store);
  ASSERT_GT(reader.index().shards.size(), 10u);
  NumpyRng rng(3);
  for (int i = 0; i < 300; ++i) {
    const std::int64_t sample = rng.integers(0, 2000);
    ASSERT_EQ(read_id(reader, sample), sample);
    std::uint64_t used = 0;
    for (const auto& entry : fs::directory_iterator(scratch / "cache")) {
      if (entry.path().extension() == ".mds") used += entry.file_size();
    }
    ASSERT_LE(used, *options.cache_limit);
  }
  // Where the cache is the source, nothing is ever removed.
  const auto before = names_in(scratch / "set");
  const auto same = std::make_shared<ShardStore>(scratch / "set", scratch / "set", options);
  MdsReader in_place(same);
  for (std::int64_t i = 0; i < 2000; ++i) in_place.read(i);
  EXPECT_EQ(names_in(scratch / "set"), before);
  options.cache_limit = 7000;
  expect_error(ErrorKind::kInvalidArgument, {"7000"},
               [&] { ShardStore(scratch / "set", scratch / "cache", options); });
}

std::string cached_shards(const std::string& cache, std::size_t count) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) {
    if (fs::exists(cache + fmt::format("/shard.{:05}.mds", i))) out += fmt::format("{} ", i);
  }
  return out;
}

TEST(ShardStore, KeepsWhatIsNeededSoonest) {
  ScratchFolder scratch;
  write_ids(scratch / "set");
  ShardStoreOptions options;
  options.cache_limit = 6 * 2000;
  ShardStore store(scratch / "set", scratch / "cache", options);
  ASSERT_GT(store.index().shards.size(), 10u);
  const auto make_all = [&] {
    while (store.make_next()) {
    }
    return cached_shards(scratch / "cache", store.index().shards.size());
  };
  const std::vector<std::size_t> order = {0, 1, 2, 0, 3, 4, 5, 1, 6, 7, 0, 8, 9};
  for (std::size_t place = 0; place < order.size(); ++place) store.expect(order[place], place);
  // The shard that is read, and half of the limit ahead of it.
  EXPECT_EQ(make_all(), "0 1 2 3 ");
  EXPECT_EQ(store.next_ahead(), std::nullopt);
  store.open(0);
  store.pass(4);
  EXPECT_EQ(make_all(), "0 1 2 3 4 5 ");  // 0 is none of those ahead, but there is room for it
  store.pass(6);
  EXPECT_EQ(make_all(), "0 1 4 5 6 7 ");  // 2 and 3 do not come again
  // What is needed now comes in, in the place of what is needed last.
  store.open(9);
  EXPECT_EQ(cached_shards(scratch / "cache", 10), "0 1 5 6 7 9 ");
  store.open(3);
  EXPECT_EQ(cached_shards(scratch / "cache", 10), "0 1 3 5 6 7 ");
  store.pass(9);
  EXPECT_EQ(store.next_ahead(), 11u);
  EXPECT_EQ(make_all(), "0 3 6 7 8 9 ");
  // With what was expected forgotten, the longest unused goes.
  store.resume();
  EXPECT_EQ(store.next_ahead(), std::nullopt);
  store.open(2);
  EXPECT_EQ(cached_shards(scratch / "cache", 10), "2 3 6 7 8 9 ");
}

// A cache that is the source by another name is no copy of it, and nothing in it is removed; nor where only a folder
// or a file of it is.
TEST(ShardStore, NothingOfTheSourceGoesByAnotherName) {
  ScratchFolder scratch;
  write_ids(scratch / "set");
  fs::create_directory(scratch / "merged");
  fs::copy(scratch / "set", scratch / "merged/a");
  MdsIndex index = MdsIndex::load(scratch / "set");
  for (MdsShard& shard : index.shards) shard.raw.basename = "a/" + shard.raw.basename;
  spill(scratch / "merged/index.json", index.dump());
  fs::create_directory_symlink(scratch / "set", scratch / "link");
  fs::create_directory(scratch / "mixed");
  fs::create_directory_symlink(scratch / "merged/a", scratch / "mixed/a");
  // The other way round: what the source names lies in the cache.
  fs::create_directory(scratch / "names");
  fs::copy(scratch / "set", scratch / "files");
  fs::copy(scratch / "set/index.json", scratch / "names/index.json");
  for (const std::string& name : names_in(scratch / "files")) {
    if (name.ends_with(".mds"))
      fs::create_symlink(scratch / ("files/" + name), scratch / ("names/" + name));
  }
  ShardStoreOptions options;
  options.cache_limit = 4 * 2000;
  for (const auto& [source, cache] : {std::pair("set", "link"),
                                      {"link", "set"},
                                      {"set", "link/../set/."},
                                      {"merged", "mixed"},
                                      {"names", "files"}}) {
    SCOPED_TRACE(cache);
    const std::string real = std::string(source) == "merged"  ? "merged/a"
                             : std::string(source) == "names" ? "files"
                                                              : "set";
    const auto before = names_in(scratch / real);
    const auto store = std::make_shared<ShardStore>(scratch / source, scratch / cache, options);
    fs::rename(scratch / (real + "/shard.00003.mds"), scratch / "held");
    MdsReader reader(store);
    for (std::int64_t i = 0; i < 600; ++i) {
      if (reader.shard_of(i) != 3) {
        EXPECT_EQ(read_id(reader, i), i);
      }
    }
    EXPECT_THROW(store->open(3), Error);  // room would be made for it
    fs::rename(scratch / "held", scratch / (real + "/shard.00003.mds"));
    EXPECT_EQ(names_in(scratch / real), before);
  }
  // Nor is one removed whose bytes the index does not know.
  for (MdsShard& shard : index.shards) shard.raw.hashes = {{"sha1", std::string(40, '0')}};
  spill(scratch / "merged/index.json", index.dump());
  fs::copy(scratch / "merged/index.json", scratch / "mixed/index.json",
           fs::copy_options::overwrite_existing);
  options.validate_hash = "sha1";
  expect_error(ErrorKind::kDamaged, {"shard.00001.mds", "sha1"},
               [&] { ShardStore(scratch / "merged", scratch / "mixed", options).open(1); });
  EXPECT_TRUE(fs::exists(scratch / "merged/a/shard.00001.mds"));
  // A name that leads nowhere is an error, no crash.
  fs::create_symlink("loop", scratch / "loop");
  EXPECT_THROW(ShardStore(scratch / "set", scratch / "loop/x", options).open(0), Error);
}

// As two processes would: what one makes the other evicts, at any moment.
TEST(ShardStore, SharesALimitedCache) {
  ScratchFolder scratch;
  write_ids(scratch / "set");
  ShardStoreOptions options;
  options.cache_limit = 4 * 2000;
  std::vector<std::thread> threads;
  std::vector<std::string> wrong(3);
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      try {
        MdsReader reader(std::make_shared<ShardStore>(scratch / "set", scratch / "cache", options));
        NumpyRng rng(static_cast<std::uint32_t>(t));
        for (int i = 0; i < 300; ++i) {
          const std::int64_t sample = rng.integers(0, 2000);
          if (read_id(reader, sample) != sample) wrong[t] = "another sample";
        }
      } catch (const std::exception& error) {
        wrong[t] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<std::string>(3));
}

TEST(ShardStore, ACopyThatCannotBeUnpackedDoesNotStay) {
  ScratchFolder scratch;
  const auto want = lines_of(MdsReader(zip_set("none")));
  std::string broken = slurp(zip_set("zstd") + "/shard.00001.mds.zstd");
  for (std::size_t i = broken.size() / 2; i < broken.size() / 2 + 8; ++i) {
    broken[i] = static_cast<char>(broken[i] ^ 0x55);
  }
  fs::create_directories(scratch / "cache");
  fs::copy(zip_set("zstd") + "/index.json", scratch / "cache/index.json");
  spill(scratch / "cache/shard.00001.mds.zstd", broken);
  EXPECT_EQ(lines_of(MdsReader(std::make_shared<ShardStore>(zip_set("zstd"), scratch / "cache"))),
            want);
  EXPECT_FALSE(fs::exists(scratch / "cache/shard.00001.mds.zstd"));
  // The source's own stays, and is named.
  fs::copy(zip_set("zstd"), scratch / "set");
  spill(scratch / "set/shard.00001.mds.zstd", broken);
  expect_error(ErrorKind::kDamaged, {scratch / "set/shard.00001.mds.zstd"}, [&] {
    lines_of(MdsReader(std::make_shared<ShardStore>(scratch / "set", scratch / "cache2")));
  });
  EXPECT_TRUE(fs::exists(scratch / "set/shard.00001.mds.zstd"));
}

TEST(Verify, UnpacksToCheckTheRawHashes) {
  ScratchFolder scratch;
  fs::copy(zip_set("zstd"), scratch / "set");
  EXPECT_TRUE(verify_set(scratch / "set").empty());
  auto index = nlohmann::json::parse(slurp(scratch / "set/index.json"));
  auto& hashes = index["shards"][1]["raw_data"]["hashes"];
  ASSERT_TRUE(hashes.contains("sha1"));
  hashes["sha1"] = std::string(40, '0');
  spill(scratch / "set/index.json", index.dump());
  const auto damage = verify_set(scratch / "set");
  ASSERT_EQ(damage.size(), 1u);
  EXPECT_EQ(damage[0].first, "shard.00001.mds.zstd");
  EXPECT_NE(damage[0].second.find("unpacked, its sha1 is"), std::string::npos) << damage[0].second;
}

TEST(ShardStore, ManyThreadsMakeEachShardOnce) {
  ScratchFolder scratch;
  const auto store = std::make_shared<ShardStore>(zip_set("zstd"), scratch / "cache");
  const auto want = lines_of(MdsReader(zip_set("none")));
  std::vector<std::thread> threads;
  std::vector<int> good(8);
  for (std::size_t t = 0; t < good.size(); ++t) {
    threads.emplace_back([&, t] { good[t] = lines_of(MdsReader(store)) == want; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, std::vector<int>(8, 1));
}

TEST(ShardStore, WhatFailsAheadIsSaidWhenOpened) {
  ScratchFolder scratch;
  fs::copy(zip_set("gz-5"), scratch / "set");
  fs::remove(scratch / "set/shard.00001.mds.gz");
  ShardStore store(scratch / "set", scratch / "cache");
  store.expect(1, 0);
  EXPECT_TRUE(store.make_next());
  EXPECT_FALSE(store.make_next());  // tried once
  EXPECT_FALSE(store.is_ready(1));
  expect_error(ErrorKind::kDamaged, {"shard.00001.mds.gz", "missing"}, [&] { store.open(1); });
  fs::copy(zip_set("gz-5") + "/shard.00001.mds.gz", scratch / "set/shard.00001.mds.gz");
  EXPECT_GT(store.open(1).bytes(), 0u);  // tried again: the failure does not stay
}

}  // namespace
}  // namespace dropless::train
