#include "train/convert/folder_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/checkpoint/manifest.h"

namespace dropless::train {
namespace {

class FolderWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/folder_writer_" + std::to_string(::getpid());
    make_folders(root_);
    target_ = root_ + "/model";
  }
  void TearDown() override { remove_all(root_); }

  static void put(FolderWriter& writer, const std::string& name) {
    const float value = 1;
    writer.add_tensors(name, write_safetensors(join_path(writer.folder(), name),
                                               {{"a", StorageType::kF32, {1}, &value}}));
  }

  std::string root_, target_;
};

TEST_F(FolderWriterTest, PublishesAWholeFolder) {
  FolderWriter writer(target_, false, "plan");
  put(writer, "model.safetensors");
  writer.add_text("config.yaml", "a: 1\n");
  EXPECT_FALSE(path_exists(target_));
  writer.add_manifest();
  writer.publish();
  EXPECT_EQ(list_folder(target_),
            (std::vector<std::string>{"config.yaml", "manifest.json", "model.safetensors"}));
  EXPECT_EQ(verify_checkpoint(target_).files.size(), 2u);
  EXPECT_EQ(list_folder(root_), std::vector<std::string>{"model"});
}

TEST_F(FolderWriterTest, GoesOnFromFinishedFilesOfTheSamePlan) {
  {
    FolderWriter writer(target_, false, "plan");
    put(writer, "one.safetensors");
    write_file_durable(join_path(writer.folder(), "two.safetensors"), "half");
  }
  {
    FolderWriter writer(target_, false, "plan");
    EXPECT_TRUE(writer.has("one.safetensors"));
    EXPECT_FALSE(writer.has("two.safetensors"));
    EXPECT_FALSE(path_exists(join_path(writer.folder(), "two.safetensors")));
    EXPECT_EQ(writer.finished_bytes(), file_bytes(join_path(writer.folder(), "one.safetensors")));
  }
  {
    FolderWriter writer(target_, false, "another plan");
    EXPECT_EQ(writer.finished_files(), 0u);
    EXPECT_FALSE(path_exists(join_path(writer.folder(), "one.safetensors")));
  }
  EXPECT_TRUE(list_folder(root_).empty());  // nothing was finished: nothing is left
}

TEST_F(FolderWriterTest, DoesNotTrustWhatChanged) {
  const std::string left = target_ + ".dropless-tmp";
  for (const std::string name : {"one.safetensors", "same size"}) {
    {
      FolderWriter writer(target_, false, "plan");
      put(writer, "one.safetensors");
    }
    const std::string tensors = join_path(left, "one.safetensors");
    if (name == "same size") {
      std::string bytes = read_file(tensors);
      bytes.back() ^= 1;
      write_file_durable(tensors, bytes);
    } else {
      write_file_durable(join_path(left, name), "{}");
    }
    FolderWriter writer(target_, false, "plan");
    EXPECT_FALSE(writer.has("one.safetensors"));
  }
}

TEST_F(FolderWriterTest, TargetsThatAreTaken) {
  make_folders(target_);
  write_file_durable(target_ + "/mine", "precious");
  EXPECT_THROW(FolderWriter(target_, false, "plan"), Error);
  EXPECT_THROW(FolderWriter(target_ + "/mine", true, "plan"), Error);
  FolderWriter first(target_, true, "plan");
  EXPECT_THROW(FolderWriter(target_, true, "plan"), Error);  // in use
  EXPECT_EQ(read_file(target_ + "/mine"), "precious");
}

TEST_F(FolderWriterTest, LeavesWhatNoConversionMade) {
  const std::string foreign = target_ + ".dropless-tmp";
  make_folders(foreign);
  write_file_durable(foreign + "/mine", "precious");
  EXPECT_THROW(FolderWriter(target_, false, "plan"), Error);
  EXPECT_EQ(read_file(foreign + "/mine"), "precious");
  // Nor is what has the journal's name a journal, or a link that leads elsewhere.
  write_file_durable(foreign + "/conversion.json", R"({"my": "data"})");
  EXPECT_THROW(FolderWriter(target_, false, "plan"), Error);
  EXPECT_EQ(read_file(foreign + "/mine"), "precious");
  make_folders(root_ + "/elsewhere");
  std::filesystem::create_symlink("elsewhere", root_ + "/linked.dropless-tmp");
  EXPECT_THROW(FolderWriter(root_ + "/linked", false, "plan"), Error);
  // What a start leaves that ends before its journal is whole.
  remove_all(foreign + "/mine");
  remove_all(foreign + "/conversion.json");
  write_file_durable(foreign + "/conversion.json.tmp", "{");
  FolderWriter writer(target_, false, "plan");
  EXPECT_EQ(list_folder(foreign), std::vector<std::string>{"conversion.json"});
}

TEST_F(FolderWriterTest, DotsNameTheFolder) {
  make_folders(target_ + "/below");
  for (const std::string& path : {target_ + "/.", target_ + "/./", target_ + "/below/.."}) {
    FolderWriter writer(path, true, "plan");
    put(writer, "model.safetensors");
    writer.publish();
    EXPECT_EQ(list_folder(target_), std::vector<std::string>{"model.safetensors"}) << path;
    make_folders(target_ + "/below");
  }
  EXPECT_EQ(list_folder(root_), std::vector<std::string>{"model"});
}

TEST_F(FolderWriterTest, ALinkToItselfIsRefused) {
  std::filesystem::create_symlink("model", target_);
  for (const std::string& path : {target_, target_ + "/below"}) {
    EXPECT_THROW(FolderWriter(path, true, "plan"), Error) << path;
  }
}

TEST_F(FolderWriterTest, ALinkStaysOne) {
  make_folders(root_ + "/real");
  write_file_durable(root_ + "/real/old", "old");
  std::filesystem::create_symlink("real", target_);
  FolderWriter writer(target_, true, "plan");
  put(writer, "model.safetensors");
  writer.publish();
  EXPECT_TRUE(std::filesystem::is_symlink(target_));
  EXPECT_EQ(list_folder(root_ + "/real"), std::vector<std::string>{"model.safetensors"});
}

}  // namespace
}  // namespace dropless::train
