#include "train/data/loader.h"

#include <numeric>

#include "tests/train/data/fixture.h"
#include "train/data/mds_reader.h"
#include "train/data/mds_writer.h"
#include "train/data/mini_text.h"
#include "train/data/text_writer.h"

namespace dropless::train {
namespace {

using nlohmann::json;

// A set of n rows, row i holding i + 1 tokens of value i (values of one type), `per_shard` rows a
// shard or so.
void write_rows(const std::string& folder, std::int64_t n, const std::string& type = "int32",
                std::uint64_t size_limit = 600, const std::string& compression = "") {
  const Encoding encoding = Encoding::parse("ndarray:" + type);
  MdsWriter writer(folder, {{"tokens", encoding.name}},
                   {.size_limit = size_limit, .compression = compression});
  for (std::int64_t i = 0; i < n; ++i) {
    std::string values;
    for (std::int64_t k = 0; k <= i; ++k) {
      for (int b = 0; b < encoding.type->bytes; ++b)
        values += static_cast<char>(b < 8 ? i >> (8 * b) : 0);
    }
    const std::string value =
        encode_array(encoding, {encoding.type, {static_cast<std::uint64_t>(i) + 1}, values});
    const std::string_view view = value;
    writer.write(std::span(&view, 1));
  }
  writer.finish();
}

TextDatasetConfig config_of(const std::string& local, bool shuffle) {
  TextDatasetConfig config;
  config.local = local;
  config.order.shuffle.algo = shuffle ? ShuffleAlgo::kPy1e : ShuffleAlgo::kNone;
  config.order.shuffle.block_size = 30;
  return config;
}

std::vector<Batch> drain(TextLoader& loader) {
  std::vector<Batch> out;
  for (Batch batch; loader.next(batch);) out.push_back(batch);
  return out;
}

bool same(const Batch& a, const Batch& b) {
  return a.batch == b.batch && a.seq_len == b.seq_len && a.tokens_BS == b.tokens_BS &&
         a.lengths_B == b.lengths_B && a.tokens == b.tokens;
}

TEST(TextLoader, YieldsThePackagesOrder) {
  const json cases = json::parse(slurp(fixture_path("mds_order.json")))["epoch"];
  for (const json& c : cases) {
    if (c["drop"] != 0) continue;
    SCOPED_TRACE(c.dump());
    TextDatasetConfig config = config_of(fixture_path("mds_tokens"), c["shuffle"]);
    config.order.shuffle.seed = 11;
    if (!c["canonical"].is_null())
      config.order.shuffle.num_canonical_nodes = c["canonical"].get<std::int64_t>();
    TextLoader loader(config, {.batch_size = 4, .seq_len = 8});
    loader.begin_epoch(c["epoch"]);
    std::vector<std::int64_t> ids;
    for (const Batch& batch : drain(loader)) {
      EXPECT_EQ(batch.seq_len, 8);
      for (std::int64_t b = 0; b < batch.batch; ++b)
        ids.push_back(batch.tokens_BS[static_cast<std::size_t>(8 * b)]);
    }
    EXPECT_EQ(json(ids), c["ids"]);
    EXPECT_EQ(loader.samples_per_epoch(), static_cast<std::int64_t>(ids.size()));
  }
}

TEST(TextLoader, PadsCutsAndCounts) {
  ScratchFolder scratch;
  write_rows(scratch / "set", 10);
  const auto tokenizer = make_tokenizer("bytes");
  TextLoader loader(config_of(scratch / "set", false),
                    {.batch_size = 4, .seq_len = 6, .tokenizer = tokenizer});
  EXPECT_EQ(loader.batches_per_epoch(), 3);
  const auto batches = drain(loader);
  ASSERT_EQ(batches.size(), 3u);
  EXPECT_EQ(batches[0].seq_len, 4);
  EXPECT_EQ(batches[0].lengths_B, (std::vector<std::int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(batches[0].tokens_BS, (std::vector<std::int64_t>{0, 256, 256, 256, 1, 1, 256, 256, 2, 2,
                                                             2, 256, 3, 3, 3, 3}));
  EXPECT_EQ(batches[0].scored_tokens(), 6);
  EXPECT_EQ(batches[1].lengths_B, (std::vector<std::int32_t>{5, 6, 6, 6}));
  EXPECT_EQ(batches[2].batch, 2);
  Batch batch;
  EXPECT_FALSE(loader.next(batch));

  TextDatasetConfig dropping = config_of(scratch / "set", false);
  dropping.drop_last = true;
  TextLoader full(dropping, {.batch_size = 4, .seq_len = 6});
  EXPECT_EQ(full.batches_per_epoch(), 2);
  EXPECT_EQ(drain(full).size(), 2u);
}

TEST(TextLoader, ResumesAtEveryPosition) {
  ScratchFolder scratch;
  write_rows(scratch / "set", 23);
  TextDatasetConfig config = config_of(scratch / "set", true);
  config.order.shuffle.num_canonical_nodes = 4;  // 24 samples an epoch, one of them twice
  const TextLoaderOptions options{.batch_size = 3, .seq_len = 5};
  TextLoader straight(config, options);
  for (const std::int64_t epoch : {0, 1}) {
    straight.begin_epoch(epoch);
    const auto want = drain(straight);
    ASSERT_EQ(want.size(), 8u);
    for (std::size_t stop = 0; stop <= want.size(); ++stop) {
      TextLoader first(config, options);
      first.begin_epoch(epoch);
      Batch batch;
      for (std::size_t i = 0; i < stop; ++i) ASSERT_TRUE(first.next(batch));
      const json position = json::parse(first.record_position().dump());
      TextLoader second(config, options);
      second.next(batch);  // a loader in use can be moved too
      second.reload_position(position);
      EXPECT_EQ(second.epoch(), epoch);
      EXPECT_EQ(second.record_position(), position);
      const auto rest = drain(second);
      ASSERT_EQ(rest.size(), want.size() - stop);
      for (std::size_t i = 0; i < rest.size(); ++i)
        EXPECT_TRUE(same(rest[i], want[stop + i])) << stop << " " << i;
    }
  }
}

// Positions are samples, not batches: another batch size goes on with the same samples.
TEST(TextLoader, ResumesWithAnotherBatchSize) {
  ScratchFolder scratch;
  write_rows(scratch / "set", 23);
  const TextDatasetConfig config = config_of(scratch / "set", true);
  TextLoader a(config, {.batch_size = 5, .seq_len = 1}), b(config, {.batch_size = 2, .seq_len = 1});
  std::vector<std::int64_t> all;
  for (const Batch& batch : drain(a))
    all.insert(all.end(), batch.tokens_BS.begin(), batch.tokens_BS.end());
  a.begin_epoch(0);
  Batch batch;
  a.next(batch);
  b.reload_position(a.record_position());
  std::vector<std::int64_t> rest;
  for (const Batch& two : drain(b))
    rest.insert(rest.end(), two.tokens_BS.begin(), two.tokens_BS.end());
  EXPECT_TRUE(std::equal(rest.begin(), rest.end(), all.begin() + 5, all.end()));
}

TEST(TextLoader, RefusesAPositionOfOtherData) {
  ScratchFolder scratch;
  write_rows(scratch / "set", 23);
  write_rows(scratch / "other", 23, "int32", 500);
  const TextLoaderOptions options{.batch_size = 3, .seq_len = 5};
  const TextDatasetConfig config = config_of(scratch / "set", true);
  const json position = TextLoader(config, options).record_position();
  const auto refuse = [&](const std::string& key, TextDatasetConfig changed) {
    TextLoader loader(changed, options);
    expect_error(ErrorKind::kInvalidArgument, {key}, [&] { loader.reload_position(position); });
  };
  TextDatasetConfig changed = config;
  changed.order.shuffle.seed = 5;
  refuse("shuffle_seed", changed);
  changed = config;
  changed.order.shuffle.block_size = 31;
  refuse("shuffle_block_size", changed);
  changed = config;
  changed.order.shuffle.num_canonical_nodes = 2;
  refuse("num_canonical_nodes", changed);
  refuse("shuffle", config_of(scratch / "set", false));
  refuse("fingerprint", config_of(scratch / "other", true));
  // What the user changed is named, and nothing that follows from it.
  const auto refuse_alone = [&](const std::string& text, TextDatasetConfig changed) {
    const std::string start = "cannot resume the data where it stopped: ";
    TextLoader loader(changed, options);
    try {
      loader.reload_position(position);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), start + text);
    }
  };
  changed = config;
  changed.order.shuffle.algo = ShuffleAlgo::kPy1s;
  changed.order.shuffle.num_canonical_nodes.reset();
  refuse_alone("shuffle_algo was \"py1e\", and is now \"py1s\"", changed);
  changed = config;
  changed.order.batching = BatchingMethod::kPerStream;
  refuse_alone("batching_method was \"random\", and is now \"per_stream\"", changed);
  changed = config;
  changed.order.epoch_size = 20;
  refuse_alone("what epoch_size or the weights of the streams choose was [23], and is now [20]",
               changed);

  TextLoader loader(config, options);
  for (const auto& [key, value] : {std::pair("epoch", json(-1)),
                                   {"epoch", json("x")},
                                   {"sample_in_epoch", json()},
                                   {"sample_in_epoch", json(24)}}) {
    json bad = position;
    bad[key] = value;
    expect_error(ErrorKind::kDamaged, {}, [&] { loader.reload_position(bad); });
  }
  expect_error(ErrorKind::kDamaged, {}, [&] { loader.reload_position(json::array()); });
}

TEST(TextLoader, ReadsEveryIntegerTypeAndBytes) {
  for (const char* type :
       {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}) {
    ScratchFolder scratch;
    write_rows(scratch / "set", 3, type);
    TextLoader loader(config_of(scratch / "set", false), {.batch_size = 3, .seq_len = 3});
    EXPECT_EQ(drain(loader)[0].tokens_BS, (std::vector<std::int64_t>{0, 0, 0, 1, 1, 0, 2, 2, 2}))
        << type;
  }
  ScratchFolder scratch;
  MdsWriter writer(scratch / "set", {{"tokens", "bytes"}});
  const std::string_view value("\x05\x00\x06\x01", 4);
  writer.write(std::span(&value, 1));
  writer.finish();
  TextDatasetConfig config = config_of(scratch / "set", false);
  config.token_encoding_type = "int16";
  TextLoader loader(config, {.batch_size = 1, .seq_len = 8});
  EXPECT_EQ(drain(loader)[0].tokens_BS, (std::vector<std::int64_t>{5, 262}));
  config.token_encoding_type = "int64";
  TextLoader wrong(config, {.batch_size = 1, .seq_len = 8});
  expect_error(ErrorKind::kDamaged, {"sample 0", "int64"}, [&] { drain(wrong); });
}

TEST(TextLoader, TokenisesText) {
  ScratchFolder scratch;
  MdsWriter writer(scratch / "set", {{"text", "str"}, {"tokens", "bytes"}});
  for (const std::string_view text : {"abc", "", "defghi"}) {
    const std::string_view values[] = {text, ""};
    writer.write(values);
  }
  writer.finish();
  TextLoader loader(config_of(scratch / "set", false),
                    {.batch_size = 3, .seq_len = 4, .tokenizer = make_tokenizer("bytes")});
  const auto batches = drain(loader);
  EXPECT_EQ(batches[0].lengths_B, (std::vector<std::int32_t>{3, 1, 4}));
  EXPECT_EQ(batches[0].tokens_BS,
            (std::vector<std::int64_t>{97, 98, 99, 256, 256, 256, 256, 256, 100, 101, 102, 103}));
  expect_error(ErrorKind::kInvalidArgument, {"tokenizer"}, [&] {
    TextLoader(config_of(scratch / "set", false), {.batch_size = 3, .seq_len = 4});
  });
}

TEST(TextLoader, ThreadErrorsComeAtTheirBatch) {
  ScratchFolder scratch;
  write_rows(scratch / "set", 10);
  TextLoader loader(config_of(scratch / "set", false),
                    {.batch_size = 2, .seq_len = 4, .vocab_size = 7});
  Batch batch;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(loader.next(batch));
  for (int again = 0; again < 2; ++again) {
    expect_error(ErrorKind::kDamaged, {"sample 7", "token id 7", "vocabulary of 7"},
                 [&] { loader.next(batch); });
  }
  loader.begin_epoch(1);
  EXPECT_TRUE(loader.next(batch));
}

// The reader waits in every state a loader can be destroyed or moved in.
TEST(TextLoader, StopsCleanlyWhereverItStands) {
  ScratchFolder scratch;
  write_rows(scratch / "set", 40);
  TextDatasetConfig config = config_of(scratch / "set", true);
  for (int taken = 0; taken < 45; ++taken) {
    config.prefetch_batches = 1 + taken % 3;
    TextLoader loader(config, {.batch_size = 1, .seq_len = 4});
    Batch batch;
    for (int i = 0; i < taken; ++i) EXPECT_EQ(loader.next(batch), i < 40);
    if (taken % 2 == 0) {
      loader.begin_epoch(3);
      EXPECT_TRUE(loader.next(batch));
      EXPECT_EQ(loader.sample_in_epoch(), 1);
    }
  }
}

TEST(TextLoader, RefusesImpossibleSettings) {
  ScratchFolder scratch;
  write_rows(scratch / "set", 3);
  const auto refuse = [&](const std::vector<std::string>& parts, const TextDatasetConfig& config,
                          const TextLoaderOptions& options) {
    expect_error(ErrorKind::kInvalidArgument, parts, [&] { TextLoader(config, options); });
  };
  const TextDatasetConfig good = config_of(scratch / "set", true);
  refuse({"batch size"}, good, {.batch_size = 0, .seq_len = 4});
  refuse({"max_seq_len"}, good, {.batch_size = 1});
  refuse({"nowhere"}, config_of(scratch / "nowhere", true), {.seq_len = 4});
  TextDatasetConfig bad = good;
  bad.max_seq_len = 9;
  refuse({"max_seq_len 9"}, bad, {.seq_len = 4});
  bad = good;
  bad.order.shuffle.num_canonical_nodes = 4;
  refuse({"num_canonical_nodes"}, bad, {.seq_len = 4});
  bad = good;
  bad.drop_last = true;
  refuse({"drop_last"}, bad, {.batch_size = 4, .seq_len = 4});
  bad = good;
  bad.local.clear();
  bad.remote = "s3://bucket/set";
  refuse({"s3://bucket/set"}, bad, {.seq_len = 4});
  bad.remote = "ftp://host/set";
  bad.local = scratch / "cache";
  refuse({"ftp://host/set"}, bad, {.seq_len = 4});
  bad.local.clear();
  bad.remote = scratch / "set";
  EXPECT_EQ(TextLoader(bad, {.seq_len = 4}).num_samples(), 3);
  MdsWriter(scratch / "empty", {{"tokens", "bytes"}}).finish();
  refuse({"no samples"}, config_of(scratch / "empty", true), {.seq_len = 4});
  for (const auto& [name, encoding] :
       {std::pair("x", "int"), {"tokens", "ndarray:float32"}, {"text", "bytes"}}) {
    MdsWriter writer(scratch / "odd", {{name, encoding}}, {.replace = true});
    const std::string_view value("12345678");
    writer.write(std::span(&value, 1));
    writer.finish();
    refuse({"odd"}, config_of(scratch / "odd", true), {.seq_len = 4});
  }
}

// ---- configuration ----

TextDatasetConfig from_text(const std::string& text) {
  return TextDatasetConfig::from_yaml(
      YamlDocument::parse(text, "c.yaml").root().map("train_loader"));
}

TEST(TextDatasetConfig, ReadsLlmFoundrysBlock) {
  const TextDatasetConfig config = from_text(R"(
train_loader:
  name: text
  dataset:
    local: data
    remote:
    split: train
    shuffle: true
    max_seq_len: 128
    shuffle_seed: 17
    num_canonical_nodes: 128
    shuffle_block_size: 1000
    token_encoding_type: int32
    predownload: 64
  drop_last: true
  num_workers: 8
  prefetch_factor: 3
  pin_memory: true
  persistent_workers: true
  timeout: 0
)");
  EXPECT_EQ(config.local, "data");
  EXPECT_EQ(config.remote, "");
  EXPECT_EQ(config.split, "train");
  EXPECT_EQ(config.order.shuffle.algo, ShuffleAlgo::kPy1e);
  EXPECT_EQ(config.order.shuffle.seed, 17);
  EXPECT_EQ(config.order.shuffle.num_canonical_nodes, 128);
  EXPECT_EQ(config.order.shuffle.block_size, 1000);
  EXPECT_EQ(config.max_seq_len, 128);
  EXPECT_EQ(config.token_encoding_type, "int32");
  EXPECT_TRUE(config.drop_last);
  EXPECT_EQ(config.prefetch_batches, 3);
  const TextDatasetConfig streams = from_text(R"(
train_loader:
  name: text
  dataset:
    shuffle: false
    remote: s3://bucket/all
    split: val
    download_retry: 7
    cache_limit: 10gb
    epoch_size: 1.5k
    predownload: 99
    batching_method: stratified
    sampling_method: fixed
    sampling_granularity: 16
    partition_algo: orig
    streams:
      one: {local: d, proportion: 0.25, download_timeout: 5}
      two: {local: e, remote: http://h/x, split: train, proportion: 0.75, keep_zip: true, validate_hash: sha1}
)");
  ASSERT_EQ(streams.streams.size(), 2u);
  const StreamConfig &one = streams.streams[0], &two = streams.streams[1];
  EXPECT_EQ(one.local + one.remote + one.split, "ds3://bucket/allval");
  EXPECT_EQ(two.local + two.remote + two.split, "ehttp://h/xtrain");
  EXPECT_EQ(one.weight.proportion, 0.25);
  EXPECT_EQ(one.store.remote.retries, 7);
  EXPECT_EQ(one.store.remote.timeout, 5);
  EXPECT_EQ(two.store.remote.timeout, 60);
  EXPECT_TRUE(two.store.keep_zip);
  EXPECT_EQ(two.store.validate_hash, "sha1");
  EXPECT_EQ(streams.cache_limit, std::uint64_t{10} << 30);
  EXPECT_EQ(streams.predownload, 99);
  EXPECT_EQ(streams.order.epoch_size, 1500);
  EXPECT_EQ(streams.order.batching, BatchingMethod::kStratified);
  EXPECT_EQ(streams.order.sampling, SamplingMethod::kFixed);
  EXPECT_EQ(streams.order.sampling_granularity, 16);
  EXPECT_EQ(streams.order.partition, PartitionAlgo::kOrig);
  EXPECT_EQ(streams.order.shuffle.algo, ShuffleAlgo::kNone);
  EXPECT_EQ(streams.order.shuffle.seed, 9176);
}

TEST(TextDatasetConfig, ErrorsNameThePlace) {
  const std::pair<const char*, const char*> cases[] = {
      {"name: contrastive_pairs, dataset: {local: d}", "contrastive_pairs"},
      {"name: text", "dataset"},
      {"name: text, dataset: {split: x}", "local"},
      {"name: text, dataset: {local: d, shufle: true}", "shufle"},
      {"name: text, dataset: {local: d}, drop_lats: true", "drop_lats"},
      {"name: text, dataset: {local: d, shuffle_algo: py9}", "py9"},
      {"name: text, dataset: {local: d, shuffle_seed: -1}", "shuffle_seed"},
      {"name: text, dataset: {local: d, max_seq_len: 0}", "max_seq_len"},
      {"name: text, dataset: {local: d, shuffle_block_size: 1}", "shuffle_block_size"},
      {"name: text, dataset: {local: d, epoch_size: ten}", "epoch_size"},
      {"name: text, dataset: {local: d, token_encoding_type: float32}", "token_encoding_type"},
      {"name: text, dataset: {local: d, batching_method: odd}", "batching_method"},
      {"name: text, dataset: {local: d, cache_limit: much}", "cache_limit"},
      {"name: text, dataset: {local: d, validate_hash: crc}", "validate_hash"},
      {"name: text, dataset: {streams: {a: {local: d, proportion: 1}, b: {local: e}}}",
       "proportion"},
      {"name: text, dataset: {streams: {a: {local: d, repeat: 1, choose: 2}}}", "choose"},
      {"name: text, dataset: {streams: {a: {local: d, choose: -2}}}", "choose"},
      {"name: text, dataset: {streams: {a: {split: d}}}", "local"},
      {"name: text, dataset: {remote: r, streams: {a: {local: d}, b: {local: d}}}", "local"},
      {"name: text, dataset: {remote: r, streams: {a: {local: d}, b: {local: ./x/../d}}}", "local"},
      {"name: text, dataset: {remote: r, streams: {a: {local: d/e}, b: {local: d, split: e}}}",
       "local"},
      {"name: text, dataset: {streams: {a: {local: d, remote: r}, b: {local: d}}}", "local"},
      {"name: text, dataset: {streams: {a: {local: d, repeat: 1e400}}}", "repeat"},
      {"name: text, dataset: {streams: {a: {local: d, repeat: .inf}}}", "repeat"},
      {"name: text, dataset: {streams: {a: {local: d, repeat: .nan}}}", "repeat"},
      {"name: text, dataset: {streams: {a: {local: d, proportion: 1e400}}}", "proportion"},
      {"name: text, dataset: {streams: {a: {local: d, proportion: .nan}}}", "proportion"},
      {"name: text, dataset: {streams: {a: {local: d, choose: 1e400}}}", "choose"},
      {"name: text, dataset: {streams: {a: {local: d, choose: .inf}}}", "choose"},
  };
  for (const auto& [text, part] : cases) {
    expect_error(ErrorKind::kInvalidArgument, {"c.yaml:1:", part},
                 [&] { from_text(std::string("train_loader: {") + text + "}"); });
  }
}

// ---- text files ----

TEST(TextFileSource, CutsAFileIntoPieces) {
  ScratchFolder scratch;
  spill(scratch / "t", "abcdefghijk");
  const auto tokenizer = make_tokenizer("bytes");
  TextFileSource source(scratch / "t", *tokenizer, 2, 4);
  EXPECT_EQ(source.num_pieces(), 3);
  for (int round = 0; round < 2; ++round) {
    Batch batch;
    ASSERT_TRUE(source.next(batch));
    EXPECT_EQ(batch.tokens_BS, (std::vector<std::int64_t>{97, 98, 99, 100, 101, 102, 103, 104}));
    EXPECT_EQ(batch.scored_tokens(), 6);
    ASSERT_TRUE(source.next(batch));
    EXPECT_EQ(batch.lengths_B, std::vector<std::int32_t>{3});
    EXPECT_FALSE(source.next(batch));
    source.rewind();
  }
  spill(scratch / "empty", "");
  EXPECT_THROW(TextFileSource(scratch / "empty", *tokenizer, 2, 4), Error);
  EXPECT_THROW(TextFileSource(scratch / "absent", *tokenizer, 2, 4), Error);
}

std::vector<std::vector<std::int64_t>> rows_of(const std::string& folder, std::int64_t length) {
  TextLoader loader(config_of(folder, false), {.batch_size = 1, .seq_len = length});
  std::vector<std::vector<std::int64_t>> rows;
  for (const Batch& batch : drain(loader)) rows.push_back(batch.tokens_BS);
  return rows;
}

// Compressed streams, one of them fetched into a small cache: a loader that goes on at any batch yields
// what the first one did from there.
TEST(TextLoader, ResumesCompressedStreams) {
  ScratchFolder scratch;
  write_rows(scratch / "a", 30, "int32", 600, "zstd:7");
  write_rows(scratch / "b", 20, "int32", 600, "br:3");
  TextDatasetConfig config = config_of("", true);
  config.streams = {
      {.local = scratch / "a", .weight = {.proportion = 0.75}},
      {.local = scratch / "cache", .remote = scratch / "b", .weight = {.proportion = 0.25}}};
  config.order.epoch_size = 44;
  config.order.batching = BatchingMethod::kStratified;
  config.cache_limit = 5000;
  const TextLoaderOptions options{.batch_size = 4, .seq_len = 8};
  TextLoader straight(config, options);
  std::vector<Batch> batches;
  std::vector<json> positions{straight.record_position()};
  for (Batch batch; straight.next(batch);) {
    batches.push_back(batch);
    positions.push_back(straight.record_position());
  }
  ASSERT_GE(batches.size(), 10u);
  for (std::size_t from = 0; from < positions.size(); from += 3) {
    TextLoader resumed(config, options);
    resumed.reload_position(positions[from]);
    const std::vector<Batch> rest = drain(resumed);
    ASSERT_EQ(rest.size(), batches.size() - from);
    for (std::size_t i = 0; i < rest.size(); ++i) EXPECT_TRUE(same(rest[i], batches[from + i]));
  }
}

TextSetCounts write_files(const std::vector<std::string>& files, const std::string& folder,
                          const TextSetOptions& options) {
  FileDocuments documents(files);
  return write_text_set(documents, folder, options);
}

TEST(TextWriter, ConcatenatesAsLlmFoundryDoes) {
  ScratchFolder scratch;
  spill(scratch / "a", "abcde");
  spill(scratch / "b", "");
  spill(scratch / "c", "fgh");
  const std::vector<std::string> files = {scratch / "a", scratch / "b", scratch / "c"};
  TextSetOptions options;
  options.tokenizer = make_tokenizer("bytes");
  options.concat_tokens = 3;
  auto counts = write_files(files, scratch / "wrap", options);
  using Rows = std::vector<std::vector<std::int64_t>>;
  EXPECT_EQ(rows_of(scratch / "wrap", 3), (Rows{{97, 98, 99}, {100, 101, 102}}));
  EXPECT_EQ(counts.documents, 3);
  EXPECT_EQ(counts.tokens, 6);
  EXPECT_EQ(counts.dropped_tokens, 2);

  options.threads = 3;  // the same rows
  options.eos_text = "<|endoftext|>";
  options.bos_text = "<";
  write_files(files, scratch / "marks", options);
  EXPECT_EQ(rows_of(scratch / "marks", 3),
            (Rows{{60, 97, 98}, {99, 100, 101}, {256, 60, 256}, {60, 102, 103}}));

  options.bos_text = options.eos_text = "";
  options.wrap = false;
  counts = write_files(files, scratch / "cut", options);
  EXPECT_EQ(rows_of(scratch / "cut", 3), (Rows{{97, 98, 99}, {102, 103, 104}}));
  EXPECT_EQ(counts.dropped_tokens, 2);
}

TEST(TextWriter, WritesDocumentsWhole) {
  ScratchFolder scratch;
  spill(scratch / "a", "one");
  spill(scratch / "b", "two\n");
  write_files({scratch / "b", scratch / "a"}, scratch / "set", {});
  MdsReader reader(scratch / "set");
  EXPECT_EQ(reader.columns(0)[0].encoding.name, "str");
  EXPECT_EQ(reader.read(0)[0], "two\n");
  EXPECT_EQ(reader.read(1)[0], "one");
}

TEST(TextWriter, FailsWithoutLeavingASet) {
  ScratchFolder scratch;
  spill(scratch / "latin", "\xe4");
  spill(scratch / "short", "ab");
  TextSetOptions rows;
  rows.tokenizer = make_tokenizer("bytes");
  rows.concat_tokens = 3;
  const auto refuse = [&](const std::vector<std::string>& parts,
                          const std::vector<std::string>& files, const TextSetOptions& options) {
    expect_error(ErrorKind::kInvalidArgument, parts,
                 [&] { write_files(files, scratch / "set", options); });
    EXPECT_FALSE(std::filesystem::exists(scratch / "set"));
  };
  refuse({"latin", "byte 0"}, {scratch / "latin"}, {});
  refuse({"absent"}, {scratch / "short", scratch / "absent"}, {});
  refuse({"is not a file"}, {scratch.path()}, {});
  refuse({"cannot fill one row of 3"}, {scratch / "short"}, rows);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(scratch.path()), {}), 2);
}

}  // namespace
}  // namespace dropless::train
