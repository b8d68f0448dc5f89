// The codec against one file per rule, good and bad, and against random tensors.
#include "train/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "dropless/error.h"
#include "train/base/hash.h"
#include "train/checkpoint/safetensors_header.h"

namespace dropless::train {
namespace {

using ::testing::HasSubstr;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "dropless_st_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string path(const std::string& name) const { return join_path(root_, name); }

  void put(const std::string& bytes) {
    // A new file each time: ext4 flushes one that is truncated and written again.
    std::filesystem::remove(path("t"));
    std::ofstream(path("t"), std::ios::binary) << bytes;
  }
  std::string root_;
};

std::string little_endian(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

// A file of this header and `data_bytes` bytes behind it.
std::string file_of(const std::string& header, std::size_t data_bytes) {
  return little_endian(header.size()) + header + std::string(data_bytes, '\x01');
}

struct Case {
  const char* rule;
  std::string bytes;
  const char* message;  // part of the error; empty for good files
};

std::vector<Case> bad_files() {
  const std::string tensor = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  std::string not_utf8 = R"({"a?":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  not_utf8[3] = '\xff';
  std::string deep = "{\"a\":" + std::string(200'000, '[');
  std::string many_dims = "1";
  for (int i = 0; i < 40; ++i) many_dims += ",1";
  return {
      {"empty file", "", "only 0 bytes"},
      {"shorter than the length", "1234567", "only 7 bytes"},
      {"header length beyond the limit", little_endian(100'000'001) + "{}", "the format allows"},
      {"header length overflows", little_endian(UINT64_MAX) + "{}", "the format allows"},
      {"header longer than the file", little_endian(50) + "{}", "the file has 10"},
      {"empty header", little_endian(0), "JSON"},
      {"not UTF-8", file_of(not_utf8, 8), "not valid UTF-8"},
      {"not JSON", file_of("{\"a\":", 0), "no valid JSON"},
      {"deep nesting", file_of(deep, 0), "entry \"a\" is an array"},
      {"an array", file_of("[]", 0), "not a JSON object"},
      {"a number", file_of("5", 0), "not a JSON object"},
      {"trailing text after the header's object", file_of("{}x", 0), "no valid JSON"},
      {"NUL after the object", file_of(std::string("{}\0\0", 4), 0), "NUL"},
      {"byte-order mark", file_of("\xef\xbb\xbf{}", 0), "byte-order mark"},
      {"duplicate name", file_of("{\"a\":{" + tensor + "},\"a\":{" + tensor + "}}", 8),
       "\"a\" stands twice"},
      {"duplicate metadata", file_of(R"({"__metadata__":{},"__metadata__":{}})", 0),
       "stands twice"},
      {"duplicate metadata key", file_of(R"({"__metadata__":{"k":"1","k":"2"}})", 0),
       "metadata key \"k\" stands twice"},
      {"metadata of numbers", file_of(R"({"__metadata__":{"k":1}})", 0), "only strings"},
      {"metadata of objects", file_of(R"({"__metadata__":{"k":{}}})", 0), "only strings"},
      {"metadata is a string", file_of(R"({"__metadata__":"x"})", 0), "is a string"},
      {"entry is null", file_of(R"({"a":null})", 0), "entry \"a\" is null"},
      {"no dtype", file_of(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8), "lacks dtype"},
      {"no shape", file_of(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8), "lacks shape"},
      {"no offsets", file_of(R"({"a":{"dtype":"F32","shape":[2]}})", 8), "lacks data_offsets"},
      {"unknown key", file_of("{\"a\":{" + tensor + ",\"strides\":[1]}}", 8), "strides"},
      {"key twice", file_of("{\"a\":{" + tensor + ",\"dtype\":\"F32\"}}", 8),
       "\"dtype\" stands twice"},
      {"unknown dtype", file_of(R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8),
       "unknown dtype \"F31\""},
      {"dtype in small letters",
       file_of(R"({"a":{"dtype":"f32","shape":[2],"data_offsets":[0,8]}})", 8), "unknown dtype"},
      {"negative dimension",
       file_of(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "negative"},
      {"fractional dimension",
       file_of(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8), "whole number"},
      {"dimension as text",
       file_of(R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", 8),
       "a string at \"shape\""},
      {"dimension beyond 64 bits",
       file_of(R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}})", 8),
       "whole number"},
      {"nested shape", file_of(R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8),
       "an array at \"shape\""},
      {"too many dimensions",
       file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[" + many_dims + "],\"data_offsets\":[0,4]}}",
               4),
       "dimensions"},
      {"one offset", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8),
       "two numbers"},
      {"three offsets", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", 8),
       "two numbers"},
      {"first tensor not at 0",
       file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12),
       "data_offsets [4, 12]"},
      {"end before begin",
       file_of(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
               R"("b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
               R"("c":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})",
               8),
       "data_offsets [8, 4]"},
      {"hole",
       file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}})",
               12),
       "data_offsets [8, 12]"},
      {"overlap",
       file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
               6),
       "data_offsets [2, 6]"},
      {"elements overflow",
       file_of(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8),
       "overflows"},
      {"bits overflow",
       file_of(R"({"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,8]}})", 8),
       "overflows"},
      {"no whole number of bytes",
       file_of(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2),
       "whole number of bytes"},
      {"offsets do not fit the shape",
       file_of(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), "takes 12 bytes"},
      {"trailing bytes", file_of("{\"a\":{" + tensor + "}}", 9), "take 8 bytes, the file holds 9"},
      {"truncated data", file_of("{\"a\":{" + tensor + "}}", 7), "take 8 bytes, the file holds 7"},
      {"data without tensors", file_of("{}", 1), "take 0 bytes"},
      {"control character in a name", file_of("{\"a\\u0007\":{" + tensor + "}}", 8),
       "control character"},
      {"endless name", file_of("{\"" + std::string(5000, 'n') + "\":{" + tensor + "}}", 8),
       "more than 1024 bytes"},
      {"a pickle", std::string("\x80\x02}q\x00X\x01\x00\x00\x00", 11), "the format allows"},
      {"a zip", "PK\x03\x04" + std::string(60, '\0'), "is no valid safetensors file"},
  };
}

std::vector<Case> good_files() {
  const std::string tensor = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  return {
      {"no tensors", file_of("{}", 0), ""},
      {"only metadata", file_of(R"({"__metadata__":{"format":"pt","":"\u00e9"}})", 0), ""},
      {"one tensor", file_of("{\"a\":{" + tensor + "}}", 8), ""},
      {"rank 0", file_of(R"({"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", 8), ""},
      {"zero-size dimension",
       file_of(R"({"a":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]},)"
               R"("b":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}})",
               1),
       ""},
      {"padded with spaces", file_of("{\"a\":{" + tensor + "}}      \n", 8), ""},
      {"leading space", file_of("  {\"a\":{" + tensor + "}}", 8), ""},
      {"order of names unlike order of bytes",
       file_of(R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]},)"
               R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
               8),
       ""},
      {"half a byte each", file_of(R"({"a":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}})", 3),
       ""},
      {"six bits each", file_of(R"({"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}})", 3),
       ""},
      {"escaped name", file_of("{\"\\u0061\\\"\":{" + tensor + "}}", 8), ""},
  };
}

TEST_F(Safetensors, RefusesEveryBrokenRule) {
  const std::vector<Case> cases = bad_files();
  ASSERT_GE(cases.size(), 25u);
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.rule);
    put(bad.bytes);
    try {
      SafetensorsFile::open(path("t"));
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
      EXPECT_THAT(error.what(), HasSubstr(path("t")));
      EXPECT_THAT(error.what(), HasSubstr(bad.message));
    }
  }
}

TEST_F(Safetensors, RefusalAllocatesLittle) {
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  for (const Case& bad : bad_files()) {
    put(bad.bytes);
    EXPECT_THROW(SafetensorsFile::open(path("t")), Error) << bad.rule;
  }
  getrusage(RUSAGE_SELF, &after);
#ifndef __SANITIZE_ADDRESS__
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 8 * 1024);
#endif
}

TEST_F(Safetensors, AcceptsGoodFiles) {
  for (const Case& good : good_files()) {
    SCOPED_TRACE(good.rule);
    put(good.bytes);
    EXPECT_NO_THROW(SafetensorsFile::open(path("t")));
  }
}

TEST_F(Safetensors, AbsentOrNoFileIsAnArgumentError) {
  for (const std::string& where : {path("none"), root_}) {
    try {
      SafetensorsFile::open(where);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    }
  }
}

// ---- writing ----

TEST_F(Safetensors, BytesOfAKnownFile) {
  const float weights[] = {1, 2};
  const std::uint16_t halves[] = {3, 4, 5};
  const std::uint8_t flags[] = {1};
  const WrittenFile written = write_safetensors(path("t"),
                                                {{"flag", StorageType::kU8, {1}, flags},
                                                 {"b", StorageType::kF32, {2, 1}, weights},
                                                 {"half", StorageType::kBF16, {3}, halves},
                                                 {"a", StorageType::kF32, {1}, weights}},
                                                {{"format", "pt"}});
  // Wider types first, then by name; the header padded with spaces to a multiple of 8.
  std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
      R"("half":{"dtype":"BF16","shape":[3],"data_offsets":[12,18]},)"
      R"("flag":{"dtype":"U8","shape":[1],"data_offsets":[18,19]}})";
  while (header.size() % 8 != 0) header += ' ';
  std::string expected = little_endian(header.size()) + header;
  expected.append(reinterpret_cast<const char*>(weights), 4);
  expected.append(reinterpret_cast<const char*>(weights), 8);
  expected.append(reinterpret_cast<const char*>(halves), 6);
  expected += '\x01';
  EXPECT_EQ(read_file(path("t")), expected);
  EXPECT_EQ(written.bytes, expected.size());
  EXPECT_EQ(written.xxh3, xxh3_hex(expected));
}

TEST_F(Safetensors, RefusesWhatItCouldNotRead) {
  const float value = 1;
  const auto refused = [&](std::vector<NamedTensor> tensors, const TensorMetadata& metadata = {}) {
    EXPECT_THROW(write_safetensors(path("t"), std::move(tensors), metadata), Error);
    EXPECT_FALSE(path_exists(path("t")));
  };
  refused({{"a", StorageType::kF32, {1}, &value}, {"a", StorageType::kF32, {1}, &value}});
  refused({{"a", StorageType::kF32, {1}, &value}, {"a", StorageType::kI32, {1}, &value}});
  refused({{"__metadata__", StorageType::kF32, {1}, &value}});
  refused({{"a", StorageType::kF32, {-1}, &value}});
  refused({{"a", StorageType::kF32, {1}, nullptr}});
  refused({{"a", StorageType::kF4, {3}, &value}});
  refused({{"a\n", StorageType::kF32, {1}, &value}});
  refused({{"\xff", StorageType::kF32, {1}, &value}});
  refused({{"a", StorageType::kF32, {INT64_MAX, 4}, &value}});
  refused({{"a", StorageType::kF32, {1}, &value}}, {{"k", "\xff"}});
}

TEST_F(Safetensors, RandomTensorsComeBackEqual) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::string> bytes;
    std::vector<NamedTensor> tensors;
    const std::size_t count = random() % 20;
    for (std::size_t i = 0; i < count; ++i) {
      const auto dtype = static_cast<StorageType>(random() % 22);
      std::vector<std::int64_t> shape(random() % 4);
      for (std::int64_t& size : shape) size = static_cast<std::int64_t>(random() % 9);
      shape.push_back(8);  // whole bytes for the 4- and 6-bit types too
      std::string data(*tensor_bytes(dtype, shape), '\0');
      for (char& c : data) c = static_cast<char>(random());
      bytes.push_back(std::move(data));
      tensors.push_back({"layer." + std::to_string(i) + ".\xc3\xa9\"\\", dtype, shape, nullptr});
    }
    for (std::size_t i = 0; i < count; ++i) tensors[i].data = bytes[i].data();
    const TensorMetadata metadata = {{"round", std::to_string(round)}, {"quote", "\"\n"}};
    const std::uint64_t expected = safetensors_bytes(tensors, metadata);
    EXPECT_EQ(write_safetensors(path("t"), tensors, metadata).bytes, expected);

    const SafetensorsFile file = SafetensorsFile::open(path("t"));
    EXPECT_EQ(file.metadata(), metadata);
    ASSERT_EQ(file.tensors().size(), count);
    for (std::size_t i = 0; i < count; ++i) {
      const TensorInfo& info = file.at(tensors[i].name);
      EXPECT_EQ(info.dtype, tensors[i].dtype);
      EXPECT_EQ(info.shape, tensors[i].shape);
      ASSERT_EQ(info.bytes(), bytes[i].size());
      std::string back(bytes[i].size(), '\0');
      file.read_into(info.name, back.data(), back.size());
      EXPECT_EQ(back, bytes[i]);
      if (back.size() > 3) {
        char part[2];
        file.read_part(info, 1, part, 2);
        EXPECT_EQ(std::memcmp(part, bytes[i].data() + 1, 2), 0);
      }
      EXPECT_THROW(file.read_into(info.name, back.data(), back.size() + 1), Error);
      EXPECT_THROW(file.read_part(info, back.size(), back.data(), 1), Error);
    }
    EXPECT_EQ(file.find("absent"), nullptr);
    EXPECT_THROW(file.at("absent"), Error);
  }
}

TEST_F(Safetensors, MutatedHeadersNeverCrash) {
  // Random edits of a real header: either refused, or what is accepted covers the file exactly.
  std::vector<float> data(64, 1.0f);
  write_safetensors(path("t"),
                    {{"w", StorageType::kF32, {8, 4}, data.data()},
                     {"v", StorageType::kBF16, {16}, data.data()},
                     {"u", StorageType::kU8, {3}, data.data()}},
                    {{"k", "v"}});
  const std::string original = read_file(path("t"));
  std::mt19937 random(11);
  int accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = original;
    for (unsigned edits = random() % 3 + 1; edits > 0; --edits) {
      const std::size_t at = 8 + random() % (bytes.size() - 8 - 163);
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = "0123456789{}[]\",:"[random() % 17];
          break;
        default:
          std::swap(bytes[at], bytes[at + 1]);
      }
    }
    put(bytes);
    try {
      const SafetensorsFile file = SafetensorsFile::open(path("t"));
      ++accepted;
      std::uint64_t sum = 0;
      for (const TensorInfo& tensor : file.tensors()) sum += tensor.bytes();
      EXPECT_EQ(sum, 128u + 32 + 3);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 3000);
}

TEST(StorageTypes, MapToOurs) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16,
                            DType::kInt32, DType::kInt64, DType::kUInt8}) {
    EXPECT_EQ(to_dtype(storage_type(dtype)), dtype);
    EXPECT_EQ(storage_type_bits(storage_type(dtype)), static_cast<int>(8 * dtype_bytes(dtype)));
  }
  EXPECT_EQ(to_dtype(StorageType::kF8E4M3), std::nullopt);
  EXPECT_STREQ(storage_type_name(StorageType::kU64), "U64");
  EXPECT_STREQ(storage_type_name(StorageType::kF8E5M2FNUZ), "F8_E5M2FNUZ");
}

}  // namespace
}  // namespace dropless::train
