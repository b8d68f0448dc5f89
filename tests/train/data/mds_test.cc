// MDS sets: byte-equal to the package's, there and back, and every way in which a set can be
// broken.
#include <sys/stat.h>

#include <filesystem>

#include "tests/train/data/fixture.h"
#include "train/base/hash.h"
#include "train/data/file_hash.h"
#include "train/data/mds_reader.h"
#include "train/data/mds_writer.h"
#include "train/data/rng.h"
#include "train/data/sample_line.h"
#include "train/data/verify.h"

namespace dropless::train {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> file_names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

void expect_same_folder(const std::string& got, const std::string& want) {
  ASSERT_EQ(file_names(got), file_names(want));
  for (const std::string& name : file_names(want))
    EXPECT_EQ(slurp(got + "/" + name), slurp(want + "/" + name)) << name;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string_view> views(const std::vector<std::string>& values) {
  return {values.begin(), values.end()};
}

// NaN has no place in the parser used here; the digits shown for a half or a float are a matter of
// taste.
nlohmann::ordered_json comparable(std::string line) {
  if (const std::size_t at = line.find("\"v\":NaN"); at != std::string::npos)
    line.replace(at, 7, "\"v\":5.25");
  auto json = nlohmann::ordered_json::parse(line);
  for (const char* name : {"f16", "f32"}) json[name].erase("v");
  return json;
}

TEST(Mds, ShowsThePackagesSetAsItsValuesWere) {
  MdsReader reader(fixture_path("mds_all_encodings"));
  const auto want = lines_of(slurp(fixture_path("mds_all_encodings.jsonl")));
  ASSERT_EQ(reader.num_samples(), static_cast<std::int64_t>(want.size()));
  for (std::int64_t i = 0; i < reader.num_samples(); ++i) {
    const std::string line = sample_line(reader.columns(i), reader.read(i), i);
    EXPECT_EQ(comparable(line), comparable(want[static_cast<std::size_t>(i)]));
  }
}

TEST(Mds, WritesThePackagesSetByteForByte) {
  ScratchFolder scratch;
  MdsReader reader(fixture_path("mds_all_encodings"));
  std::vector<std::pair<std::string, std::string>> columns;
  for (const MdsColumn& column : reader.columns(0))
    columns.emplace_back(column.name, column.encoding.name);
  std::reverse(columns.begin(), columns.end());
  MdsWriter writer(scratch / "set", columns, {.size_limit = 4000});
  for (const std::string& line : lines_of(slurp(fixture_path("mds_all_encodings.jsonl")))) {
    writer.write(views(encode_sample_line(writer.columns(), line)));
  }
  EXPECT_FALSE(fs::exists(scratch / "set"));
  writer.finish();
  expect_same_folder(scratch / "set", fixture_path("mds_all_encodings"));
  EXPECT_EQ(file_names(scratch.path()), std::vector<std::string>{"set"});
}

TEST(Mds, RandomSetsSurviveTheRoundTrip) {
  NumpyRng rng(8);
  for (int round = 0; round < 30; ++round) {
    ScratchFolder scratch;
    MdsWriterOptions options;
    options.size_limit = static_cast<std::uint64_t>(rng.integers(300, 2000));
    if (round % 5 == 0) options.size_limit.reset();
    MdsWriter writer(scratch / "a/b/set", {{"x", "bytes"}, {"n", "int32"}, {"s", "str"}}, options);
    std::vector<std::vector<std::string>> samples;
    for (std::int64_t i = rng.integers(0, 60); i > 0; --i) {
      std::vector<std::string> sample;
      for (const std::int64_t size :
           {std::int64_t{4}, rng.integers(0, 50), rng.integers(0, round == 3 ? 3000 : 100)}) {
        sample.push_back(
            std::string(static_cast<std::size_t>(size), static_cast<char>(rng.next32())));
      }
      samples.push_back(sample);
      writer.write(views(sample));
    }
    writer.finish();
    MdsReader reader(scratch / "a/b/set");
    ASSERT_EQ(reader.num_samples(), static_cast<std::int64_t>(samples.size()));
    for (const std::int64_t i : rng.permutation(reader.num_samples())) {
      const auto got = reader.read(i);
      EXPECT_EQ(std::vector<std::string>(got.begin(), got.end()),
                samples[static_cast<std::size_t>(i)]);
    }
    for (const MdsShard& shard : reader.index().shards) {
      EXPECT_EQ(fs::file_size((scratch / "a/b/set/") + shard.raw.basename), shard.raw.bytes);
      if (options.size_limit && shard.samples > 1) {
        EXPECT_LE(shard.raw.bytes, *options.size_limit);
      }
    }
    EXPECT_EQ(MdsIndex::load(scratch / "a/b/set").dump(), slurp(scratch / "a/b/set/index.json"));
  }
}

TEST(Mds, ManyShardsTakeTurnsInTheOpenFiles) {
  ScratchFolder scratch;
  MdsWriter writer(scratch / "set", {{"x", "bytes"}}, {.size_limit = 1});
  const std::int64_t count = 30 + static_cast<std::int64_t>(MdsReader::kOpenShards);
  for (std::int64_t i = 0; i < count; ++i) writer.write(views({std::to_string(i)}));
  writer.finish();
  MdsReader reader(scratch / "set");
  EXPECT_EQ(reader.index().shards.size(),
            static_cast<std::size_t>(count) + 1);  // and the empty first one
  NumpyRng rng(2);
  for (const std::int64_t i : rng.permutation(count))
    EXPECT_EQ(reader.read(i)[0], std::to_string(i));
}

// ---- broken sets ----

class BrokenSet : public ::testing::Test {
 protected:
  BrokenSet() { fs::copy(fixture_path("mds_tokens"), scratch_ / "set"); }
  std::string set() { return scratch_ / "set"; }
  std::string shard() { return scratch_ / "set/shard.00001.mds"; }
  void read_all() {
    MdsReader reader(set());
    for (std::int64_t i = 0; i < reader.num_samples(); ++i) reader.read(i);
  }
  void expect_damaged(const std::vector<std::string>& parts) {
    expect_error(ErrorKind::kDamaged, parts, [&] { read_all(); });
  }
  // Replaces the first `from` in the index.
  void edit_index(const std::string& from, const std::string& to) {
    std::string text = slurp(fixture_path("mds_tokens/index.json"));
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    spill(scratch_ / "set/index.json", text.replace(at, from.size(), to));
  }
  ScratchFolder scratch_;
};

TEST_F(BrokenSet, MissingShard) {
  fs::remove(shard());
  expect_damaged({"shard.00001.mds", "missing"});
}

TEST_F(BrokenSet, TruncatedAtEveryLength) {
  const std::string whole = slurp(shard());
  for (std::size_t size = 0; size < whole.size(); size += 7) {
    spill(shard(), whole.substr(0, size));
    expect_damaged({"shard.00001.mds", std::to_string(size) + " bytes"});
    // The same with an index that agrees with the truncated file.
    edit_index("\"shard.00001.mds\", \"bytes\": 394",
               "\"shard.00001.mds\", \"bytes\": " + std::to_string(size));
    expect_damaged({"shard.00001.mds"});
    edit_index("shards", "shards");
  }
}

TEST_F(BrokenSet, LyingOffsetsAndSizes) {
  const std::string whole = slurp(shard());
  const auto with_u32 = [&](std::size_t at, std::uint32_t value) {
    std::string bytes = whole;
    bytes.replace(at, 4, std::string(reinterpret_cast<const char*>(&value), 4));
    spill(shard(), bytes);
  };
  for (const std::uint32_t value : {0u, 3u, 5000u, 0xffffffffu}) {
    with_u32(4, value);  // the first offset
    expect_damaged({"shard.00001.mds", "offsets"});
    with_u32(8, value);  // the second
    expect_damaged({"shard.00001.mds"});
    with_u32(0, value);  // the number of samples
    expect_damaged({"shard.00001.mds", "samples"});
  }
  std::uint32_t first = 0;
  std::memcpy(&first, whole.data() + 4, 4);
  for (const std::uint32_t value : {0u, 33u, 0xffffffffu}) {
    with_u32(first, value);  // the size of the first value
    expect_damaged({"shard.00001.mds", "sample 0"});
  }
}

TEST_F(BrokenSet, EveryFlippedByteOfTheIndexIsAnErrorOrHarmless) {
  const std::string text = slurp(fixture_path("mds_tokens/index.json"));
  for (std::size_t i = 0; i < 700; ++i) {
    std::string bad = text;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 7)));
    spill(scratch_ / "set/index.json", bad);
    try {
      read_all();
    } catch (const Error& error) {
      EXPECT_NE(error.kind(), ErrorKind::kInternal) << i << " " << error.what();
    }
  }
}

TEST_F(BrokenSet, IndexThatIsNotOne) {
  for (const char* text :
       {"", "{", "[]", "{}", "{\"version\": 2}", "{\"version\": 2, \"shards\": 5}",
        "{\"version\": 2, \"shards\": [5]}", "{\"version\": 2, \"shards\": [{}]}"}) {
    spill(scratch_ / "set/index.json", text);
    expect_damaged({"index.json"});
  }
}

TEST_F(BrokenSet, IndexEntriesThatCannotBe) {
  const std::pair<const char*, const char*> damaged[] = {
      {"\"samples\": 5", "\"samples\": -5"},
      {"\"samples\": 5", "\"samples\": 1e3"},
      {"\"samples\": 5", "\"samples\": 99999999999"},
      {"\"samples\": 5", "\"samples\": 6"},
      {"\"bytes\": 394", "\"bytes\": 395"},
      {"\"bytes\": 394", "\"bytes\": \"394\""},
      {"\"shard.00000.mds\"", "\"../shard.00000.mds\""},
      {"\"shard.00000.mds\"", "\"/etc/passwd\""},
      {"\"shard.00000.mds\"", "\"a/../../x\""},
      {"\"shard.00000.mds\"", "\"\""},
      {"\"shard.00000.mds\"", "\"x\\u0000.mds\""},
      {"[\"tokens\"]", "[]"},
      {"[\"tokens\"]", "[5]"},
      {"\"column_sizes\": [null]", "\"column_sizes\": [-1]"},
      {"\"column_sizes\": [null]", "\"column_sizes\": [4294967296]"},
      {"\"hashes\": []", "\"hashes\": null"},
      {"\"compression\": null", "\"compression\": \"zstd\""},
  };
  for (const auto& [from, to] : damaged) {
    edit_index(from, to);
    SCOPED_TRACE(to);
    expect_damaged({});
  }
  // Before any file is looked at: a shard in the place of the cache's index, and sizes that 32-bit offsets cannot reach.
  const std::pair<const char*, const char*> impossible[] = {
      {"\"shard.00000.mds\"", "\"index.json\""},
      {"\"shard.00000.mds\"", "\"a/index.json\""},
      {"\"bytes\": 394", "\"bytes\": 4294967296"},
      {"\"bytes\": 394", "\"bytes\": 9223372036854775807"},
  };
  for (const auto& [from, to] : impossible) {
    edit_index(from, to);
    SCOPED_TRACE(to);
    expect_error(ErrorKind::kDamaged, {"shards[0].raw_data"}, [&] { MdsIndex::load(set()); });
  }
  const std::pair<const char*, const char*> unknown[] = {
      {"\"format\": \"mds\"", "\"format\": \"csv\""},
      {"\"version\": 2", "\"version\": 3"},
      {"[\"ndarray:int32\"]", "[\"ndarray:bool\"]"},
      {"\"compression\": null", "\"compression\": \"lz4\""},
  };
  for (const auto& [from, to] : unknown) {
    edit_index(from, to);
    SCOPED_TRACE(to);
    expect_error(ErrorKind::kInvalidArgument, {"index.json"}, [&] { read_all(); });
  }
}

TEST_F(BrokenSet, NulBytesDoNotEndTheMessage) {
  edit_index("\"shard.00000.mds\"", "\"x\\u0000.mds\"");
  expect_damaged({"x\\u0000.mds", "not a file inside"});
  edit_index("\"mds\"", "\"m\\u0000ds\"");
  expect_error(ErrorKind::kInvalidArgument, {"m\\u0000ds", "only mds"}, [&] { read_all(); });
}

TEST_F(BrokenSet, ShardsThatAreNoFiles) {
  const std::function<void()> makers[] = {[&] { ASSERT_EQ(::mkfifo(shard().c_str(), 0600), 0); },
                                          [&] { fs::create_directory(shard()); },
                                          [&] { fs::create_symlink("/dev/zero", shard()); }};
  for (const auto& make : makers) {
    fs::remove(shard());
    make();
    expect_damaged({"shard.00001.mds", "not a regular file"});
    expect_error(ErrorKind::kDamaged, {"shard.00001.mds", "not a regular file"},
                 [&] { ShardStore(set(), "").check_files(); });
    expect_error(ErrorKind::kDamaged, {"set/shard.00001.mds", "not a regular file"},
                 [&] { ShardStore(set(), scratch_ / "cache").open(1); });
    const auto damage = verify_set(set());
    ASSERT_EQ(damage.size(), 1u);
    EXPECT_NE(damage[0].second.find("not a regular file"), std::string::npos) << damage[0].second;
  }
}

TEST_F(BrokenSet, HashesThatAreNotKnownAreNamed) {
  const auto said = [&] {
    testing::internal::CaptureStderr();
    read_all();
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(said(), "");
  edit_index("\"hashes\": {}", "\"hashes\": {\"crc0\": \"00\", \"sha1\": \"00\"}");
  EXPECT_EQ(said(), "warning: " + set() +
                        "/index.json: unknown hash 'crc0' is not checked; known are: " +
                        known_hashes() + "\n");
}

TEST_F(BrokenSet, TheRawShardServesWhereTheCompressedOneIsMissing) {
  edit_index("\"compression\": null", "\"compression\": \"zstd:7\"");
  std::string text = slurp(scratch_ / "set/index.json");
  text.replace(
      text.find("\"zip_data\": null"), 16,
      "\"zip_data\": {\"basename\": \"shard.00000.mds.zstd\", \"bytes\": 9, \"hashes\": {}}");
  spill(scratch_ / "set/index.json", text);
  read_all();  // decompressed beside it: readable
  fs::remove(scratch_ / "set/shard.00000.mds");
  expect_error(ErrorKind::kDamaged, {"shard.00000.mds.zstd", "missing"}, [&] { read_all(); });
}

TEST_F(BrokenSet, VerifyNamesEachDamagedShardOnce) {
  EXPECT_TRUE(verify_set(set()).empty());
  EXPECT_TRUE(verify_set(fixture_path("mds_all_encodings")).empty());
  fs::remove(shard());
  fs::resize_file(scratch_ / "set/shard.00004.mds", 100);
  std::string bytes = slurp(scratch_ / "set/shard.00007.mds");
  bytes[bytes.size() - 33] = '\x09';  // the last array's length
  spill(scratch_ / "set/shard.00007.mds", bytes);
  const auto damage = verify_set(set());
  ASSERT_EQ(damage.size(), 3u);
  EXPECT_EQ(damage[0].first, "shard.00001.mds");
  EXPECT_EQ(damage[1].first, "shard.00004.mds");
  EXPECT_EQ(damage[1].second, "100 bytes, but the index says 394");
  EXPECT_EQ(damage[2].first, "shard.00007.mds");
  EXPECT_NE(damage[2].second.find("tokens"), std::string::npos) << damage[2].second;
}

TEST_F(BrokenSet, VerifyComparesHashes) {
  const std::string wrong(64, '0');
  edit_index("\"hashes\": {}", "\"hashes\": {\"sha256\": \"" + wrong + "\"}");
  const auto damage = verify_set(set());
  ASSERT_EQ(damage.size(), 1u);
  EXPECT_EQ(damage[0].first, "shard.00000.mds");
  EXPECT_NE(damage[0].second.find("sha256"), std::string::npos);
  edit_index("\"hashes\": {}", "\"hashes\": {\"sha256\": \"" +
                                   sha256_hex(slurp(scratch_ / "set/shard.00000.mds")) + "\"}");
  EXPECT_TRUE(verify_set(set()).empty());
  spill(scratch_ / "set/index.json", "{");
  ASSERT_EQ(verify_set(set()).size(), 1u);
  EXPECT_EQ(verify_set(set())[0].first, "index.json");
}

TEST(Mds, AbsentPathsAreTheUsersMistake) {
  ScratchFolder scratch;
  expect_error(ErrorKind::kInvalidArgument, {"index.json"},
               [&] { MdsReader reader(scratch.path()); });
  expect_error(ErrorKind::kInvalidArgument, {"nowhere"},
               [&] { split_folder(scratch / "nowhere", ""); });
  fs::create_directories(scratch / "set");
  fs::copy(fixture_path("mds_tokens"), scratch / "set/train");
  try {
    split_folder(scratch / "set", "val");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    EXPECT_NE(error.hint().find("train"), std::string::npos);
  }
  MdsReader reader(split_folder(scratch / "set", "train"));
  expect_error(ErrorKind::kInvalidArgument, {"no sample 50"}, [&] { reader.read(50); });
  expect_error(ErrorKind::kInvalidArgument, {"no sample -1"}, [&] { reader.read(-1); });
}

// ---- the writer ----

TEST(MdsWriter, UnfinishedLeavesNothing) {
  ScratchFolder scratch;
  {
    MdsWriter writer(scratch / "set", {{"x", "str"}});
    writer.write(views({"text"}));
  }
  EXPECT_TRUE(file_names(scratch.path()).empty());
}

TEST(MdsWriter, ReplacesOnlyWhenAsked) {
  ScratchFolder scratch;
  const auto write = [&](const std::string& text, bool replace) {
    MdsWriter writer(scratch / "set", {{"x", "str"}}, {.replace = replace});
    writer.write(views({text}));
    EXPECT_TRUE(!fs::exists(scratch / "set") || !fs::is_empty(scratch / "set") || text == "one");
    writer.finish();
  };
  fs::create_directory(scratch / "set");
  write("one", false);
  expect_error(ErrorKind::kInvalidArgument, {"not empty"}, [&] { write("two", false); });
  EXPECT_EQ(MdsReader(scratch / "set").read(0)[0], "one");
  write("two", true);
  EXPECT_EQ(MdsReader(scratch / "set").read(0)[0], "two");
  EXPECT_EQ(file_names(scratch.path()), std::vector<std::string>{"set"});
}

TEST(MdsWriter, RefusesWhatTheFormatCannotHold) {
  ScratchFolder scratch;
  const auto refuse = [&](const std::vector<std::pair<std::string, std::string>>& columns,
                          MdsWriterOptions options = {}) {
    EXPECT_THROW(MdsWriter(scratch / "set", columns, options), Error);
  };
  refuse({});
  refuse({{"a", "str"}, {"a", "int"}});
  refuse({{"a", "pkl"}});
  refuse({{"a", "nonsense"}});
  refuse({{"\xff", "str"}});
  refuse({{"a", "str"}}, {.size_limit = std::uint64_t{1} << 32});
  MdsWriter writer(scratch / "set", {{"a", "int"}});
  expect_error(ErrorKind::kInvalidArgument, {"column 'a'", "3 bytes"},
               [&] { writer.write(views({"abc"})); });
}

TEST(MdsWriter, ByteSizes) {
  EXPECT_EQ(parse_byte_size("100"), 100u);
  EXPECT_EQ(parse_byte_size("100b"), 100u);
  EXPECT_EQ(parse_byte_size("1.5KB"), 1536u);
  EXPECT_EQ(parse_byte_size("64mb"), 67108864u);
  for (const char* text :
       {"", "b", "kb", "-1", "1.5", "1,5kb", "12xb", "1e3", "9999999yb", ".5kb", "1.2.3kb"}) {
    EXPECT_THROW(parse_byte_size(text), Error) << text;
  }
}

}  // namespace
}  // namespace dropless::train
