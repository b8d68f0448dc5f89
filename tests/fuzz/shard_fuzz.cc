// A raw shard under an index that says of it what its own head says; every sample is decoded.
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/fuzz/fuzz.h"
#include "train/data/mds_reader.h"
#include "train/data/sample_line.h"

namespace dropless::train {
namespace {

// Removed at the end of the process.
class Folder {
 public:
  Folder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "dropless-fuzz-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void write(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// The first byte chooses the columns, the rest is the shard.
MdsShard describe(std::string_view input) {
  static const std::vector<std::vector<const char*>> kColumns = {
      {"ndarray:int32"},
      {"bytes", "str", "json"},
      {"int", "ndarray", "uint8"},
      {"ndarray:float16:2,3", "str_int"},
      {"str_float", "str_decimal", "float64", "ndarray:uint16"},
      {"png", "jpeg", "pil", "list[jpeg]", "jpeg_array"}};
  MdsShard shard;
  const auto which = static_cast<unsigned char>(input.empty() ? 0 : input[0]) % kColumns.size();
  for (const char* encoding : kColumns[which]) {
    MdsColumn column{std::string(1, static_cast<char>('a' + shard.columns.size())),
                     Encoding::parse(encoding), std::nullopt};
    column.size = column.encoding.fixed_size;
    shard.columns.push_back(std::move(column));
  }
  std::uint32_t samples = 0;
  if (input.size() >= 5) std::memcpy(&samples, input.data() + 1, sizeof samples);
  shard.samples = samples;
  shard.raw.basename = "shard.00000.mds";
  shard.raw.bytes = input.empty() ? 0 : input.size() - 1;
  return shard;
}

void read_all(std::string_view input) {
  static const Folder folder;
  const MdsIndex index{{describe(input)}};
  write(folder / "index.json", index.dump());
  write(folder / "shard.00000.mds", input.substr(std::min<std::size_t>(1, input.size())));
  MdsReader reader(folder.path());
  reader.check_shard(0);
  for (std::int64_t i = 0; i < std::min<std::int64_t>(reader.num_samples(), 64); ++i) {
    const auto values = reader.read(i);
    raw_sample_line(index.shards[0].columns, values);
    fuzz::expect_no_other_error([&] { sample_line(index.shards[0].columns, values, i); });
  }
}

}  // namespace
}  // namespace dropless::train

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return dropless::fuzz::expect_no_other_error(
      [&] { dropless::train::read_all(dropless::fuzz::text_of(data, size)); });
}
