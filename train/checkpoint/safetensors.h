// The safetensors file: 8 bytes of header length N (little-endian), N bytes of JSON, tensor bytes.
//
// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__":
// {...}} Format: github.com/huggingface/safetensors (README, "Format"). Everything the header says
// is checked before anything is allocated for it: N <= 100,000,000 and within the file, UTF-8 JSON,
// no duplicate names, known dtypes, sizes without overflow, and offsets that cover the rest of the
// file without holes, overlaps or trailing bytes. Ours beyond that: names <= 1,024 bytes without
// control characters, rank <= 32,
// <= 1,000,000 tensors, no other keys in an entry. Reading is by pread, so that a file that is cut short
// meanwhile is an error; only map() maps, for weights that are used where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dropless/dtype.h"
#include "train/base/fs.h"

namespace dropless::train {

// The names of the format, in its own order (by alignment): the writer sorts tensors by it,
// descending.
enum class StorageType : std::uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};
const char* storage_type_name(StorageType type);  // "BF16"
int storage_type_bits(StorageType type);
StorageType storage_type(DType dtype);
std::optional<DType> to_dtype(
    StorageType type);  // nullopt for types dropless does not compute with

struct TensorInfo {
  std::string name;
  StorageType dtype = StorageType::kF32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // offsets into the file's data part
  std::uint64_t end = 0;
  std::uint64_t bytes() const { return end - begin; }
};

using TensorMetadata = std::map<std::string, std::string>;

class SafetensorsFile {
 public:
  // Throws Error: kInvalidArgument for an absent or unreadable file, kDamaged for a file that
  // breaks a rule above; the message names the file, the rule and the tensor.
  static SafetensorsFile open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const {
    return tensors_;
  }  // in the order of their bytes
  const TensorMetadata& metadata() const { return metadata_; }
  const TensorInfo* find(const std::string& name) const;  // nullptr when absent
  const TensorInfo& at(const std::string& name) const;    // absent: kDamaged naming tensor and file

  // All bytes of one tensor; `bytes` must be its size.
  void read_into(const std::string& name, void* data, std::size_t bytes) const;
  // Part of one tensor, `offset` bytes into it.
  void read_part(const TensorInfo& tensor, std::uint64_t offset, void* data,
                 std::size_t bytes) const;
  // All bytes of a tensor, as FileReader::map() has them; every call shares one mapping. For one thread at a time.
  std::shared_ptr<std::byte> map(const TensorInfo& tensor) const;

 private:
  SafetensorsFile(FileReader file, std::vector<TensorInfo> tensors, TensorMetadata metadata,
                  std::uint64_t data_start);
  FileReader file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::size_t> index_;
  TensorMetadata metadata_;
  std::uint64_t data_start_ = 0;
  mutable std::shared_ptr<std::byte> mapped_;
};

struct NamedTensor {
  std::string name;
  StorageType dtype = StorageType::kF32;
  std::vector<std::int64_t> shape;
  const void* data =
      nullptr;  // contiguous, row-major, little-endian; lives until the write returns
};

struct WrittenFile {
  std::uint64_t bytes = 0;
  std::string xxh3;  // of the whole file
};

// A file whose tensors come one after the other, so that memory need not hold them all. Writes,
// hashes and fsyncs in one pass; for equal input the bytes equal those of the Python package
// (metadata keys sorted).
class SafetensorsWriter {
 public:
  // Of `tensors` name, dtype and shape are looked at, never data; their order does not matter.
  // Throws kInvalidArgument for a name or shape that breaks a rule, kResource when the disk
  // refuses.
  SafetensorsWriter(const std::string& path, const std::vector<NamedTensor>& tensors,
                    const TensorMetadata& metadata = {});
  ~SafetensorsWriter();
  // In the order in which their bytes must be appended.
  const std::vector<TensorInfo>& tensors() const { return infos_; }
  void append(const void* data, std::uint64_t bytes);
  // Every byte of every tensor must have been appended.
  WrittenFile finish();

 private:
  struct Output;
  std::unique_ptr<Output> output_;
  std::vector<TensorInfo> infos_;
  std::uint64_t missing_ = 0;  // bytes still to be appended
};

// Bytes the file will have.
std::uint64_t safetensors_bytes(const std::vector<NamedTensor>& tensors,
                                const TensorMetadata& metadata = {});
// The same file from tensors that are all in memory.
WrittenFile write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                              const TensorMetadata& metadata = {});

}  // namespace dropless::train
