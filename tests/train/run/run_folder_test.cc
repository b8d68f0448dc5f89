// Which names a run folder may have, and that refusing one leaves nothing behind.
#include "train/run/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "dropless/error.h"

namespace dropless::train {
namespace {

using ::testing::HasSubstr;

class RunFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/run-folder-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string path(const std::string& name) const { return join_path(root_, name); }
  std::string refusal(const std::string& name) const {
    try {
      RunFolder::check_name(path(name));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return error.what();
    }
    return "nothing";
  }
  std::string root_;
};

TEST_F(RunFolderTest, NamesThatNoFolderCanHave) {
  write_file_durable(path("file"), "x");
  std::filesystem::create_symlink("nowhere", path("dangling"));
  std::filesystem::create_directory(path("folder"));
  std::filesystem::create_symlink("folder", path("link"));
  EXPECT_THAT(refusal("file"), HasSubstr(path("file") + " is not a folder"));
  EXPECT_THAT(refusal("file/a/b"), HasSubstr(path("file") + " is not a folder"));
  EXPECT_THAT(refusal("dangling"), HasSubstr(path("dangling") + " is a link to nothing"));
  EXPECT_THAT(refusal("dangling/a"), HasSubstr(path("dangling") + " is a link to nothing"));
  for (const char* good : {"new", "new/a/b", "folder", "folder/a", "link", "link/a"}) {
    EXPECT_EQ(refusal(good), "nothing") << good;
  }
  EXPECT_FALSE(path_exists(path("new")));
}

TEST_F(RunFolderTest, AnotherRunIsReplacedOrResumedOnlyWhenAsked) {
  const std::string run = path("run");
  { const RunFolder first(run, {}); }
  EXPECT_FALSE(path_exists(run)) << "a run that left nothing leaves no folder";
  { const RunFolder deeper(path("a/b/c"), {}); }
  EXPECT_FALSE(path_exists(path("a")));
  std::filesystem::create_directory(run);
  { const RunFolder empty(run, {}); }
  EXPECT_TRUE(path_exists(run)) << "it was there before";
  write_file_durable(metrics_path(run), "{}\n");
  std::filesystem::create_directory(run + "/step-5");
  EXPECT_THROW(RunFolder(run, {}), Error);
  EXPECT_NO_THROW(RunFolder(run, {.resume = true}));
  write_file_durable(run + "/step-5/manifest.json", "{}\n");
  RunFolder over(run, {.overwrite = true});
  EXPECT_TRUE(path_exists(metrics_path(run))) << "not before it is asked to";
  EXPECT_THROW(RunFolder(run, {.resume = true}), Error) << "locked";
  std::filesystem::create_directory(run + "/step-6");
  write_file_durable(run + "/step-6/manifest.json", "{}\n");
  over.remove_old_run(run + "/step-5");
  EXPECT_FALSE(path_exists(metrics_path(run)));
  EXPECT_FALSE(path_exists(run + "/step-6"));
  EXPECT_TRUE(path_exists(run + "/latest/manifest.json")) << "what the run goes on from";
  replace_symlink(run + "/latest", "step-9");  // the first save
  over.remove_kept(run + "/step-9");
  EXPECT_FALSE(path_exists(run + "/step-5"));
}

TEST_F(RunFolderTest, LogsThatCannotBeWritten) {
  std::filesystem::create_directories(path("run/metrics.jsonl"));
  EXPECT_THROW(RunFolder(path("run"), {.resume = true}), Error);
  std::filesystem::remove(path("run/metrics.jsonl"));
  EXPECT_NO_THROW(RunFolder(path("run"), {.resume = true}));
  ASSERT_EQ(::mkfifo(path("run/events.jsonl").c_str(), 0600), 0);
  EXPECT_THROW(RunFolder(path("run"), {.resume = true}), Error) << "to open it would wait for ever";
  std::filesystem::remove(path("run/events.jsonl"));
  std::filesystem::create_symlink("nowhere/x", path("run/metrics.jsonl"));
  EXPECT_THROW(RunFolder(path("run"), {.resume = true}), Error) << "a link to nothing";
  std::filesystem::remove(path("run/metrics.jsonl"));
  if (::geteuid() == 0) return;  // who may write everything
  write_file_durable(path("run/metrics.jsonl"), "{}\n");
  ::chmod(path("run/metrics.jsonl").c_str(), 0444);
  EXPECT_THROW(RunFolder(path("run"), {.resume = true}), Error);
}

TEST_F(RunFolderTest, OverwriteRemovesNothingButCheckpoints) {
  const std::string run = path("run");
  std::filesystem::create_directories(path("run/step-7"));
  std::filesystem::create_directory(path("elsewhere"));
  write_file_durable(path("run/step-7/notes.txt"), "mine");
  write_file_durable(path("elsewhere/manifest.json"), "{}");
  const auto refusal_of_overwrite = [&] {
    try {
      RunFolder(run, {.overwrite = true});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(refusal_of_overwrite(), HasSubstr("step-7, which is no checkpoint"));
  EXPECT_TRUE(path_exists(path("run/step-7/notes.txt")));
  std::filesystem::remove_all(path("run/step-7"));
  std::filesystem::create_directory_symlink("../elsewhere", path("run/step-7"));
  EXPECT_THAT(refusal_of_overwrite(), HasSubstr("step-7, which is a link"));
}

TEST_F(RunFolderTest, MetricsOfARunThatSavedNothingStepAside) {
  const std::string run = path("run");
  std::filesystem::create_directory(run);
  write_file_durable(metrics_path(run), "{}\n");
  const RunFolder folder(run, {});
  EXPECT_FALSE(path_exists(metrics_path(run)));
  EXPECT_EQ(read_file(metrics_path(run) + ".old", 100), "{}\n");
}

}  // namespace
}  // namespace dropless::train
