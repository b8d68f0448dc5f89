#include "train/convert/tensor_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/checkpoint/checkpoint.h"

namespace dropless::train {
namespace {

using testing::HasSubstr;

class TensorFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/tensor_folder_" + std::to_string(::getpid());
    make_folders(root_);
  }
  void TearDown() override { remove_all(root_); }

  void put_tensor(const std::string& file, const std::string& name,
                  StorageType type = StorageType::kF32) {
    const float value[2] = {1, 2};
    write_safetensors(join_path(root_, file), {{name, type, {2}, value}});
  }
  void put_index(const std::string& map) {
    write_file_durable(join_path(root_, kModelFiles.index()), R"({"weight_map": )" + map + "}");
  }
  // The message of what opening throws, after its kind.
  std::string refusal() const {
    try {
      TensorFolder::open(root_);
    } catch (const Error& error) {
      const char* kind = error.kind() == ErrorKind::kDamaged           ? "damaged: "
                         : error.kind() == ErrorKind::kInvalidArgument ? "argument: "
                                                                       : "other: ";
      return kind + std::string(error.what()) + " " + error.hint();
    }
    return "opened";
  }

  std::string root_;
};

TEST_F(TensorFolderTest, ShardsAreOneSetOfTensors) {
  put_tensor("one.safetensors", "a");
  put_tensor("two.safetensors", "b");
  put_tensor("not-listed.safetensors", "c");
  put_index(R"({"a": "one.safetensors", "b": "two.safetensors"})");
  const TensorFolder folder = TensorFolder::open(root_);
  EXPECT_EQ(folder.tensors().size(), 2u);
  EXPECT_EQ(folder.at("b").file->path(), join_path(root_, "two.safetensors"));
  EXPECT_EQ(weight_files(root_), (std::vector<std::string>{"one.safetensors", "two.safetensors"}));
}

TEST_F(TensorFolderTest, AnIndexThatLiesIsDamage) {
  put_tensor("one.safetensors", "a");
  put_index(R"({"a": "one.safetensors", "b": "one.safetensors"})");
  EXPECT_THAT(refusal(), HasSubstr("damaged: "));
  EXPECT_THAT(refusal(), HasSubstr("does not hold b"));
  put_index(R"({"a": "gone.safetensors"})");
  EXPECT_THAT(refusal(), HasSubstr("gone.safetensors is missing"));
  put_tensor("two.safetensors", "a");
  put_index(R"({"a": "one.safetensors", "b": "two.safetensors"})");
  EXPECT_THAT(refusal(), HasSubstr("damaged: "));
  put_index(R"({"a": "../one.safetensors"})");
  EXPECT_THAT(refusal(), HasSubstr("no plain file name"));
  put_index("7");
  EXPECT_THAT(refusal(), HasSubstr("no weight_map"));
}

TEST_F(TensorFolderTest, MapsWhatLiesAligned) {
  const std::string path = join_path(root_, kModelFiles.single());
  put_tensor(kModelFiles.single(), "a");
  const MappedTensor whole = same_tensor({"a", {2}});
  const at::Tensor mapped = map_tensor(TensorFolder::open(root_), whole, at::kFloat);
  ASSERT_TRUE(mapped.defined());
  EXPECT_TRUE(at::equal(mapped, at::tensor({1.0F, 2.0F})));
  mapped.fill_(3);  // in memory alone
  EXPECT_TRUE(at::equal(read_whole(TensorFolder::open(root_), "a"), at::tensor({1.0F, 2.0F})));
  EXPECT_FALSE(map_tensor(TensorFolder::open(root_), whole, at::kBFloat16).defined());
  // Headers of any length are allowed: with one space more the numbers begin at an odd byte.
  std::string bytes = read_file(path);
  ASSERT_LT(bytes[0], 127);
  ++bytes[0];
  bytes.insert(bytes.find('}', bytes.rfind(']')) + 1, " ");
  write_file_durable(path, bytes);
  EXPECT_FALSE(map_tensor(TensorFolder::open(root_), whole, at::kFloat).defined());
  EXPECT_TRUE(at::equal(read_whole(TensorFolder::open(root_), "a"), at::tensor({1.0F, 2.0F})));
}

TEST_F(TensorFolderTest, PicklesAndNothingAreArguments) {
  EXPECT_THAT(refusal(), HasSubstr("argument: "));
  write_file_durable(join_path(root_, "pytorch_model.bin"), "x");
  EXPECT_THAT(refusal(), HasSubstr("pytorch_model.bin is a pickle"));
  EXPECT_THAT(refusal(), HasSubstr("save_pretrained"));
}

TEST_F(TensorFolderTest, PartsOfOneTensorHaveOneType) {
  put_tensor("one.safetensors", "a");
  put_tensor("two.safetensors", "b", StorageType::kBF16);
  put_tensor("three.safetensors", "c", StorageType::kI32);
  put_index(R"({"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"})");
  const TensorFolder folder = TensorFolder::open(root_);
  const auto both = [](const char* first, const char* second) {
    return MappedTensor{{"ours", {4}}, {{first, 0, 1, 2, false}, {second, 0, 1, 2, false}}};
  };
  EXPECT_EQ(common_type(folder, both("a", "a")), at::kFloat);
  EXPECT_EQ(common_type(folder, both("b", "b")), at::kBFloat16);
  EXPECT_THROW(common_type(folder, both("a", "b")), Error);
  EXPECT_THROW(common_type(folder, both("c", "c")), Error);
}

TEST_F(TensorFolderTest, CheckListsAllThatIsWrong) {
  put_tensor(kModelFile, "a");
  const TensorFolder folder = TensorFolder::open(root_);
  const auto none = [](const std::string&) { return false; };
  EXPECT_NO_THROW(folder.check({{"a", {2}}}, none));
  try {
    folder.check({{"b", {2}}, {"c", {1}}}, none);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("it lacks b, c; it has no place for a"));
  }
  try {
    folder.check({{"a", {1, 2}}}, none);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("a is [2] and not [1, 2]"));
  }
  EXPECT_NO_THROW(folder.check({}, [](const std::string& name) { return name == "a"; }));
}

}  // namespace
}  // namespace dropless::train
