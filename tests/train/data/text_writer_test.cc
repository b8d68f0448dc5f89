// Sets of text that are cut off and gone on with equal those written in one go.
#include "train/data/text_writer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "dropless/error.h"
#include "tests/train/data/fixture.h"
#include "train/base/fs.h"

namespace dropless::train {
namespace {

namespace fs = std::filesystem;

// Documents of 0 to 200 bytes; throws before document `cut`.
class CutDocuments : public DocumentSource {
 public:
  explicit CutDocuments(std::int64_t cut = -1) : cut_(cut) {}
  bool next(std::string& document) override {
    if (count_ == cut_) throw Error(ErrorKind::kResource, "cut");
    if (count_ == 100) return false;
    ++count_;
    document.resize(random_() % 200);
    for (char& c : document) c = static_cast<char>('a' + random_() % 26);
    return true;
  }
  std::string place() const override { return "a document"; }
  std::int64_t count() const { return count_; }

 private:
  std::int64_t cut_, count_ = 0;
  std::mt19937 random_{7};
};

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const std::string& name : list_folder(folder)) {
    files[name] = read_file(join_path(folder, name));
  }
  return files;
}

TextSetOptions options_of(std::int64_t concat_tokens, bool wrap = true) {
  TextSetOptions options;
  options.tokenizer = make_tokenizer("bytes");
  options.concat_tokens = concat_tokens;
  options.eos_text = concat_tokens > 0 ? "<|endoftext|>" : "";
  options.wrap = wrap;
  options.source = "these documents";
  options.mds.size_limit = 2000;
  options.mds.hashes = {"xxh128"};
  return options;
}

// The same documents, and a folder where a shard's file should come, as soon as the writer is there.
class BlockingDocuments : public CutDocuments {
 public:
  explicit BlockingDocuments(std::string blocked) : blocked_(std::move(blocked)) {}
  bool next(std::string& document) override {
    fs::create_directories(blocked_);
    return CutDocuments::next(document);
  }

 private:
  std::string blocked_;
};

// Rows are cut in the midst of a document too: writing shard `cut` fails.
void expect_same_set_after_cut(const TextSetOptions& options, int cut) {
  ScratchFolder scratch;
  CutDocuments whole;
  const TextSetCounts expected = write_text_set(whole, scratch / "whole", options);
  const std::string temporary = scratch / "set.dropless-tmp";
  const std::string blocked = temporary + "/shard.0000" + std::to_string(cut) + ".mds";
  BlockingDocuments documents(blocked);
  EXPECT_THROW(write_text_set(documents, scratch / "set", options), Error);
  EXPECT_TRUE(path_exists(temporary + "/journal.json"));
  CutDocuments again;
  const TextSetCounts counts = write_text_set(again, scratch / "set", options);
  EXPECT_EQ(counts.documents, expected.documents);
  EXPECT_EQ(counts.samples, expected.samples);
  EXPECT_EQ(counts.tokens, expected.tokens);
  EXPECT_EQ(counts.dropped_tokens, expected.dropped_tokens);
  EXPECT_TRUE(contents(scratch / "set") == contents(scratch / "whole"));
  EXPECT_FALSE(path_exists(temporary));
}

TEST(TextWriter, GoesOnAfterACut) {
  // Rows of 600 tokens are larger than the limit of a shard.
  for (const std::int64_t row : {0, 16, 600}) {
    for (const int shard : {1, 3}) expect_same_set_after_cut(options_of(row), shard);
  }
  expect_same_set_after_cut(options_of(16, /*wrap=*/false), 2);
}

// Finished shards of other documents or options are of no use.
TEST(TextWriter, AnotherPlanBeginsAnew) {
  ScratchFolder scratch;
  const TextSetOptions options = options_of(0);
  CutDocuments cut(80);
  EXPECT_THROW(write_text_set(cut, scratch / "set", options), Error);
  EXPECT_TRUE(path_exists(scratch / "set.dropless-tmp/shard.00003.mds"));
  TextSetOptions other = options;
  other.source = "other documents";
  CutDocuments documents;
  write_text_set(documents, scratch / "set", other);
  CutDocuments again;
  write_text_set(again, scratch / "whole", options);
  EXPECT_TRUE(contents(scratch / "set") == contents(scratch / "whole"));
}

// A shard that was altered since: also anew.
TEST(TextWriter, ALostShardBeginsAnew) {
  ScratchFolder scratch;
  const TextSetOptions options = options_of(0);
  CutDocuments cut(80);
  EXPECT_THROW(write_text_set(cut, scratch / "set", options), Error);
  fs::remove(scratch / "set.dropless-tmp/shard.00001.mds");
  CutDocuments documents;
  EXPECT_EQ(write_text_set(documents, scratch / "set", options).samples, 100);
}

TEST(TextWriter, WithoutAPlanNothingStays) {
  ScratchFolder scratch;
  TextSetOptions options = options_of(0);
  options.source.clear();
  CutDocuments cut(80);
  EXPECT_THROW(write_text_set(cut, scratch / "set", options), Error);
  EXPECT_TRUE(list_folder(scratch.path()).empty());
}

}  // namespace
}  // namespace dropless::train
