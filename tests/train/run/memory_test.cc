#include "train/run/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dropless::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

ModelConfig model_of(const std::string& vocab_size) {
  const std::string text =
      "{d_model: 8, n_heads: 2, n_layers: 1, max_seq_len: 8, vocab_size: " + vocab_size + "}";
  return ModelConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root());
}

TEST(Memory, MoreThanThereIsIsRefusedWithBothFigures) {
  EXPECT_NO_THROW(require_memory(model_of("9"), at::kCPU, 16));
  const std::optional<double> available = available_bytes(at::kCPU);
  ASSERT_TRUE(available);
  EXPECT_GT(*available, 1e6);
  try {
    require_memory(model_of("1000000000000"), at::kCPU, 16);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    // 8e12 parameters of 16 bytes
    EXPECT_THAT(error.what(), AllOf(HasSubstr("116.4 TiB"), HasSubstr("cpu has")));
    EXPECT_THAT(error.hint(), HasSubstr("vocab_size 1000000000000"));
  }
}

TEST(Memory, LibtorchsErrorsLoseTheirStackTrace) {
  try {
    with_torch_errors("do less", [] { return at::empty({3}).view({2}); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResource);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("libtorch: "), HasSubstr("invalid"),
                                    Not(HasSubstr("Exception raised from"))));
    EXPECT_EQ(error.hint(), "do less");
  }
  EXPECT_EQ(with_torch_errors("", [] { return 3; }), 3);
}

TEST(Memory, OutOfMemorySaysOnlyTheFigures) {
  try {
    with_torch_errors("do less", [] { return at::empty({std::int64_t{1} << 60}); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "libtorch: can't allocate memory: you tried to allocate 4611686018427387904 bytes.");
  }
  // As libtorch 2.11 words it on an H100.
  const c10::Error gpu({"f", "f.cc", 1},
                       "CUDA out of memory. Tried to allocate 768.00 MiB. GPU 0 has a total "
                       "capacity of 79.18 GiB of which 718.19 MiB is free. Including non-PyTorch "
                       "memory, this process has 78.47 GiB memory in use.");
  EXPECT_EQ(
      torch_message(gpu),
      "libtorch: CUDA out of memory. Tried to allocate 768.00 MiB. GPU 0 has a total capacity "
      "of 79.18 GiB of which 718.19 MiB is free.");
}

}  // namespace
}  // namespace dropless::train
