#include "train/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <string_view>
#include <utility>

#include "dropless/error.h"
#include "train/base/hash.h"
#include "train/base/utf8.h"
#include "train/checkpoint/safetensors_header.h"

static_assert(std::endian::native == std::endian::little, "safetensors bytes are little-endian");

namespace dropless::train {
namespace {

constexpr std::uint64_t kLengthBytes = 8;
// Hashing and writing alternate in pieces that stay in the cache.
constexpr std::uint64_t kChunk = 4 << 20;

// Sorted as in the file, with offsets.
struct Layout {
  std::vector<TensorInfo> infos;
  std::string header;
  std::uint64_t data_bytes = 0;
};

Layout make_layout(const std::vector<NamedTensor>& tensors, const TensorMetadata& metadata) {
  const auto refuse = [](const std::string& name, const std::string& why) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("tensor \"{}\" {}", name, why));
  };
  Layout layout;
  std::vector<std::size_t> order(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (tensors[a].dtype != tensors[b].dtype) return tensors[a].dtype > tensors[b].dtype;
    return tensors[a].name < tensors[b].name;
  });
  if (tensors.size() > kMaxTensors) refuse(tensors.back().name, "is one too many for one file");
  std::map<std::string, int> seen;
  for (const std::size_t i : order) {
    const NamedTensor& tensor = tensors[i];
    const std::string problem = name_problem(tensor.name);
    if (!problem.empty()) refuse(tensor.name, problem);
    if (tensor.name == "__metadata__") refuse(tensor.name, "has the name of the metadata");
    if (++seen[tensor.name] > 1) refuse(tensor.name, "is given twice");
    if (tensor.shape.size() > kMaxRank) refuse(tensor.name, "has too many dimensions");
    const std::optional<std::uint64_t> bytes = tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes) refuse(tensor.name, "has a shape that overflows or is no whole number of bytes");
    layout.infos.push_back(
        {tensor.name, tensor.dtype, tensor.shape, layout.data_bytes, layout.data_bytes + *bytes});
    layout.data_bytes += *bytes;
  }
  for (const auto& [key, value] : metadata) {
    if (find_invalid_utf8(key + value) != std::string::npos) {
      throw Error(ErrorKind::kInvalidArgument, "safetensors metadata must be valid UTF-8");
    }
  }
  layout.header = make_header(layout.infos, metadata);
  if (layout.header.size() > kMaxHeaderBytes) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a safetensors header of {} bytes; the format allows {}",
                            layout.header.size(), kMaxHeaderBytes));
  }
  return layout;
}

}  // namespace

StorageType storage_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return StorageType::kF32;
    case DType::kFloat64:
      return StorageType::kF64;
    case DType::kBFloat16:
      return StorageType::kBF16;
    case DType::kFloat16:
      return StorageType::kF16;
    case DType::kInt32:
      return StorageType::kI32;
    case DType::kInt64:
      return StorageType::kI64;
    case DType::kUInt8:
      return StorageType::kU8;
  }
  throw Error(ErrorKind::kInternal, "a dtype without a storage type");
}

std::optional<DType> to_dtype(StorageType type) {
  switch (type) {
    case StorageType::kF32:
      return DType::kFloat32;
    case StorageType::kF64:
      return DType::kFloat64;
    case StorageType::kBF16:
      return DType::kBFloat16;
    case StorageType::kF16:
      return DType::kFloat16;
    case StorageType::kI32:
      return DType::kInt32;
    case StorageType::kI64:
      return DType::kInt64;
    case StorageType::kU8:
      return DType::kUInt8;
    default:
      return std::nullopt;
  }
}

// ---- reading ----

SafetensorsFile::SafetensorsFile(FileReader file, std::vector<TensorInfo> tensors,
                                 TensorMetadata metadata, std::uint64_t data_start)
    : file_(std::move(file)),
      tensors_(std::move(tensors)),
      metadata_(std::move(metadata)),
      data_start_(data_start) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  FileReader file(path);
  const auto fail = [&](const std::string& message) {
    throw Error(ErrorKind::kDamaged,
                fmt::format("{} is no valid safetensors file: {}", path, message));
  };
  if (file.bytes() < kLengthBytes) fail(fmt::format("it has only {} bytes", file.bytes()));
  unsigned char raw[kLengthBytes];
  file.read(0, raw, sizeof raw);
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) header_bytes |= std::uint64_t{raw[i]} << (8 * i);
  if (header_bytes > kMaxHeaderBytes) {
    fail(fmt::format("its header is said to have {} bytes; the format allows {}", header_bytes,
                     kMaxHeaderBytes));
  }
  if (header_bytes > file.bytes() - kLengthBytes) {
    fail(fmt::format("its header is said to have {} bytes, the file has {}", header_bytes,
                     file.bytes()));
  }
  std::string text(header_bytes, '\0');
  file.read(kLengthBytes, text.data(), text.size());
  const std::uint64_t data_start = kLengthBytes + header_bytes;
  SafetensorsHeader header = parse_header(text, file.bytes() - data_start, path);
  return SafetensorsFile(std::move(file), std::move(header.tensors), std::move(header.metadata),
                         data_start);
}

const TensorInfo* SafetensorsFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const TensorInfo& SafetensorsFile::at(const std::string& name) const {
  const TensorInfo* tensor = find(name);
  if (tensor == nullptr) {
    throw Error(ErrorKind::kDamaged, fmt::format("{} holds no tensor \"{}\"", path(), name));
  }
  return *tensor;
}

void SafetensorsFile::read_into(const std::string& name, void* data, std::size_t bytes) const {
  const TensorInfo& tensor = at(name);
  if (bytes != tensor.bytes()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: tensor \"{}\" has {} bytes, {} were asked for", path(), name,
                            tensor.bytes(), bytes));
  }
  file_.read(data_start_ + tensor.begin, data, bytes);
}

std::shared_ptr<std::byte> SafetensorsFile::map(const TensorInfo& tensor) const {
  if (!mapped_) mapped_ = file_.map();
  return {mapped_, mapped_.get() + data_start_ + tensor.begin};
}

void SafetensorsFile::read_part(const TensorInfo& tensor, std::uint64_t offset, void* data,
                                std::size_t bytes) const {
  if (offset > tensor.bytes() || bytes > tensor.bytes() - offset) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: bytes {} to {} of tensor \"{}\", which has {}", path(), offset,
                            offset + bytes, tensor.name, tensor.bytes()));
  }
  file_.read(data_start_ + tensor.begin + offset, data, bytes);
}

// ---- writing ----

std::uint64_t safetensors_bytes(const std::vector<NamedTensor>& tensors,
                                const TensorMetadata& metadata) {
  const Layout layout = make_layout(tensors, metadata);
  return kLengthBytes + layout.header.size() + layout.data_bytes;
}

struct SafetensorsWriter::Output {
  explicit Output(const std::string& path) : file(path) {}
  void put(const void* data, std::uint64_t bytes) {
    const char* from = static_cast<const char*>(data);
    for (std::uint64_t at = 0; at < bytes; at += kChunk) {
      const std::size_t piece = std::min(kChunk, bytes - at);
      hash.update(from + at, piece);
      file.write(from + at, piece);
    }
  }
  FileWriter file;
  Xxh3Hash hash;
};

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     const std::vector<NamedTensor>& tensors,
                                     const TensorMetadata& metadata) {
  Layout layout = make_layout(tensors, metadata);
  output_ = std::make_unique<Output>(path);
  unsigned char raw[kLengthBytes];
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    raw[i] = static_cast<unsigned char>(layout.header.size() >> (8 * i));
  }
  output_->put(raw, sizeof raw);
  output_->put(layout.header.data(), layout.header.size());
  infos_ = std::move(layout.infos);
  missing_ = layout.data_bytes;
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::append(const void* data, std::uint64_t bytes) {
  if (bytes > missing_) {
    throw Error(ErrorKind::kInternal,
                fmt::format("{} bytes for a file that lacks {}", bytes, missing_));
  }
  output_->put(data, bytes);
  missing_ -= bytes;
}

WrittenFile SafetensorsWriter::finish() {
  if (missing_ > 0) {
    throw Error(ErrorKind::kInternal, fmt::format("{} bytes were never appended", missing_));
  }
  output_->file.finish();
  return {output_->file.bytes(), output_->hash.hex()};
}

WrittenFile write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                              const TensorMetadata& metadata) {
  std::map<std::string_view, const void*> data;
  for (const NamedTensor& tensor : tensors) {
    data.emplace(tensor.name, tensor.data);
    const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
    if (tensor.data == nullptr && bytes && *bytes > 0) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("tensor \"{}\" has no data", tensor.name));
    }
  }
  SafetensorsWriter writer(path, tensors, metadata);
  for (const TensorInfo& tensor : writer.tensors()) {
    writer.append(data.at(tensor.name), tensor.bytes());
  }
  return writer.finish();
}

}  // namespace dropless::train
