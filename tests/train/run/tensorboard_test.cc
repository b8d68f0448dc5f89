// Event files: framing, checksums and fields, read back by rules written down apart from the
// writer's. TensorBoard's own package reads them in tests/cli/test_callbacks.py.
#include "train/run/tensorboard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "train/base/fs.h"

namespace dropless::train {
namespace {

// Castagnoli's polynomial, one bit at a time.
std::uint32_t crc32c(const std::string& bytes) {
  std::uint32_t crc = 0xFFFFFFFF;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82F63B78 : crc >> 1;
  }
  return ~crc;
}

std::uint32_t word_at(const std::string& bytes, std::size_t at) {
  std::uint32_t word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof word);
  return word;
}

std::uint32_t masked(std::uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xA282EAD8; }

std::vector<std::string> records(const std::string& file) {
  std::vector<std::string> records;
  for (std::size_t at = 0; at < file.size();) {
    const std::size_t size = word_at(file, at);
    EXPECT_EQ(word_at(file, at + 4), 0u);
    EXPECT_EQ(word_at(file, at + 8), masked(crc32c(file.substr(at, 8))));
    const std::string record = file.substr(at + 12, size);
    EXPECT_EQ(word_at(file, at + 12 + size), masked(crc32c(record)));
    records.push_back(record);
    at += 16 + size;
  }
  return records;
}

TEST(TensorBoardWriter, FramesEventsThatCanBeReadBack) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);  // the polynomial's check value, RFC 3720
  const std::string folder = testing::TempDir() + "tensorboard_" + std::to_string(::getpid());
  std::filesystem::remove_all(folder);
  {
    TensorBoardWriter writer(folder, /*first_step=*/300);
    writer.take(
        {{"step", 300}, {"a/loss", 1.5}, {"text", "no number"}, {"list", {1, 2}}, {"count", 7}});
  }
  const std::vector<std::string> files = list_folder(folder);
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].rfind("events.out.tfevents.", 0), 0u);
  const auto all = records(read_file(folder + "/" + files[0]));
  ASSERT_EQ(all.size(), 3u);
  // After wall time (tag 0x09, 8 bytes) the step (tag 0x10), then the payload.
  EXPECT_EQ(all[0].substr(9), std::string("\x10\x00\x1a\x0d", 4) + "brain.Event:2");
  EXPECT_EQ(all[1].substr(9), std::string("\x10\xac\x02\x3a\x02\x08\x01", 7));
  EXPECT_EQ(all[2].substr(9), std::string("\x10\xac\x02\x2a\x1d", 5) +
                                  std::string("\x0a\x0d\x0a\x06"
                                              "a/loss"
                                              "\x15\x00\x00\xc0\x3f",
                                              15) +
                                  std::string("\x0a\x0c\x0a\x05"
                                              "count"
                                              "\x15\x00\x00\xe0\x40",
                                              14));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace dropless::train
