#include "train/convert/tensor_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/bridge/views.h"
#include "train/checkpoint/checkpoint.h"

namespace dropless::train {
namespace {

constexpr std::int64_t kChunkBytes = 16 << 20;  // of rows that are passed on as they are
constexpr std::size_t kMostNames = 8;           // in one message

std::string list_names(const std::vector<std::string>& names) {
  const std::size_t shown = std::min(names.size(), kMostNames);
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + shown, ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

std::optional<at::ScalarType> weight_type(StorageType type) {
  switch (type) {
    case StorageType::kF32:
      return at::kFloat;
    case StorageType::kF64:
      return at::kDouble;
    case StorageType::kBF16:
      return at::kBFloat16;
    case StorageType::kF16:
      return at::kHalf;
    default:
      return std::nullopt;
  }
}

at::ScalarType type_of(const TensorFolder::Entry& entry) {
  const auto type = weight_type(entry.info.dtype);
  if (!type) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("{}: {} is {}, no type that this version takes weights in", entry.file->path(),
                    entry.info.name, storage_type_name(entry.info.dtype)),
        "one of: F64, F32, BF16, F16");
  }
  return *type;
}

}  // namespace

TensorFolder TensorFolder::open(const std::string& folder) {
  TensorFolder result;
  result.folder_ = folder;
  const std::string index_path = weight_index_path(folder), index_name = base_name(index_path);
  WeightIndex read;
  if (!index_path.empty()) read = read_weight_index(index_path);
  const std::map<std::string, std::string>& index = read.files;
  for (const std::string& name : weight_files(folder)) {
    const std::string path = join_path(folder, name);
    if (!path_exists(path)) {
      throw Error(ErrorKind::kDamaged, fmt::format("{} is missing; {} names it", path, index_name),
                  "copy the folder again");
    }
    result.files_.push_back(std::make_unique<SafetensorsFile>(SafetensorsFile::open(path)));
    const SafetensorsFile& file = *result.files_.back();
    for (const TensorInfo& info : file.tensors()) {
      const auto listed = index.find(info.name);
      if (!index.empty() && (listed == index.end() || listed->second != name)) {
        throw Error(ErrorKind::kDamaged,
                    fmt::format("{} holds {}, which {} has in {}", path, info.name, index_name,
                                listed == index.end() ? "no file" : listed->second));
      }
      if (!result.tensors_.emplace(info.name, Entry{&file, info, {}}).second) {
        throw Error(ErrorKind::kDamaged,
                    fmt::format("{} holds {}, and so does another file", path, info.name));
      }
    }
  }
  for (const auto& [tensor, file] : index) {
    if (!result.contains(tensor)) {
      throw Error(ErrorKind::kDamaged, fmt::format("{} does not hold {}; {} says so",
                                                   join_path(folder, file), tensor, index_name));
    }
  }
  if (!index_path.empty()) result.compare_with_index(index_path, read.total_size);
  return result;
}

// What transformers would read instead is an error; what only says something false is odd.
void TensorFolder::compare_with_index(const std::string& path,
                                      std::optional<std::uint64_t> total_size) {
  const std::string index_name = base_name(path);
  std::uint64_t bytes = 0;
  for (const auto& [name, entry] : tensors_) bytes += entry.info.bytes();
  if (total_size && *total_size != bytes) {
    oddities_.push_back(fmt::format("{}: total_size is {}, and the tensors have {} bytes", path,
                                    *total_size, bytes));
  }
  std::set<std::string> listed;
  for (const auto& file : files_) listed.insert(base_name(file->path()));
  const bool ours = index_name == kModelFiles.index();
  const FileNames& names = ours ? kModelFiles : kMistralFiles;
  for (const std::string& name : list_folder(folder_)) {
    if (listed.contains(name) || !name.ends_with(".safetensors")) continue;
    if (name == names.single()) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} holds both {} and {}, which names other files", folder_, name,
                              index_name),
                  "remove the one that is not the model's: transformers would read " + name);
    }
    if (name.starts_with(names.stem + "-")) {
      oddities_.push_back(
          fmt::format("{} is left out: {} does not name it", join_path(folder_, name), index_name));
    }
  }
}

TensorFolder TensorFolder::open_file(const std::string& path) {
  TensorFolder result;
  result.folder_ = path;
  result.files_.push_back(std::make_unique<SafetensorsFile>(SafetensorsFile::open(path)));
  const SafetensorsFile& file = *result.files_.back();
  for (const TensorInfo& info : file.tensors()) {
    result.tensors_.emplace(info.name, Entry{&file, info, {}});
  }
  return result;
}

void TensorFolder::add_tensor(const std::string& name, const at::Tensor& tensor) {
  TensorInfo info;
  info.name = name;
  info.shape = tensor.sizes().vec();
  info.end = tensor.nbytes();
  tensors_.insert_or_assign(name, Entry{nullptr, info, tensor});
}

const TensorFolder::Entry& TensorFolder::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{} holds no tensor {}", folder_, name));
  }
  return found->second;
}

void TensorFolder::check(const std::vector<TensorShape>& wanted,
                         const std::function<bool(const std::string&)>& optional) const {
  std::set<std::string> known;
  std::vector<std::string> missing, extra, wrong;
  for (const TensorShape& tensor : wanted) {
    known.insert(tensor.name);
    const auto found = tensors_.find(tensor.name);
    if (found == tensors_.end()) {
      missing.push_back(tensor.name);
    } else if (found->second.info.shape != tensor.shape) {
      wrong.push_back(fmt::format("{} is [{}] and not [{}]", tensor.name,
                                  fmt::join(found->second.info.shape, ", "),
                                  fmt::join(tensor.shape, ", ")));
    }
  }
  for (const auto& [name, entry] : tensors_) {
    if (!known.contains(name) && !optional(name)) extra.push_back(name);
  }
  std::vector<std::string> problems;
  if (!missing.empty()) problems.push_back("it lacks " + list_names(missing));
  if (!extra.empty()) problems.push_back("it has no place for " + list_names(extra));
  if (!wrong.empty()) problems.push_back("of another shape: " + list_names(wrong));
  if (problems.empty()) {
    for (const std::string& name : known) {
      if (tensors_.at(name).file != nullptr) type_of(tensors_.at(name));  // throws for integers
    }
    return;
  }
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{}: the tensors are not those of its config: {}", folder_,
                          fmt::join(problems, "; ")));
}

at::Tensor TensorFolder::with_terms(const std::string& name, std::int64_t first_row,
                                    const at::Tensor& rows) const {
  const auto found = terms_.find(name);
  if (found == terms_.end()) return rows;
  at::Tensor sum = rows.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  for (const LowRankTerm& term : found->second) {
    const std::int64_t first = std::max(first_row, term.first_row);
    const std::int64_t end = std::min(first_row + rows.size(0), term.first_row + term.left.size(0));
    if (first >= end) continue;
    sum.narrow(0, first - first_row, end - first)
        .addmm_(term.left.narrow(0, first - term.first_row, end - first), term.right);
  }
  return sum;
}

at::ScalarType common_type(const TensorFolder& source, const MappedTensor& target) {
  std::optional<at::ScalarType> type;
  for (const Piece& piece : target.pieces) {
    const TensorFolder::Entry& entry = source.at(piece.source);
    const at::ScalarType mine = type_of(entry);
    if (type && *type != mine) {
      throw Error(
          ErrorKind::kInvalidArgument,
          fmt::format("{}: {} is {}, other parts of {} are of another type", entry.file->path(),
                      piece.source, storage_type_name(entry.info.dtype), target.tensor.name),
          "give --dtype");
    }
    type = mine;
  }
  return *type;
}

void stream_tensor(const TensorFolder& source, const MappedTensor& target, at::ScalarType type,
                   const std::function<void(const at::Tensor&)>& sink) {
  for (const Piece& piece : target.pieces) {
    const TensorFolder::Entry& entry = source.at(piece.source);
    const at::ScalarType stored = type_of(entry);
    if (piece.rows == 0 || piece.columns == 0) continue;
    const std::int64_t row_bytes =
        piece.columns * static_cast<std::int64_t>(c10::elementSize(stored));
    const std::int64_t step =
        piece.transpose ? piece.rows
                        : std::clamp<std::int64_t>(kChunkBytes / row_bytes, 1, piece.rows);
    const at::Tensor buffer = at::empty({step, piece.columns}, stored);
    for (std::int64_t row = 0; row < piece.rows; row += step) {
      const std::int64_t rows = std::min(step, piece.rows - row);
      at::Tensor read = buffer.narrow(0, 0, rows);
      if (entry.file == nullptr) {
        read = entry.added.view({-1, piece.columns}).narrow(0, piece.first_row + row, rows);
      } else {
        entry.file->read_part(entry.info, (piece.first_row + row) * row_bytes,
                              read.mutable_data_ptr(), rows * row_bytes);
      }
      const at::Tensor whole = source.with_terms(piece.source, piece.first_row + row, read);
      sink((piece.transpose ? whole.t() : whole).to(type).contiguous());
    }
  }
}

at::Tensor map_tensor(const TensorFolder& source, const MappedTensor& target, at::ScalarType type) {
  if (target.pieces.size() != 1) return {};
  const Piece& piece = target.pieces[0];
  const TensorFolder::Entry& entry = source.at(piece.source);
  const bool as_it_is = entry.file != nullptr && !piece.transpose && type_of(entry) == type &&
                        !source.has_terms(piece.source);
  if (!as_it_is || entry.info.bytes() == 0) return {};
  const std::shared_ptr<std::byte> bytes = entry.file->map(entry.info);
  const std::size_t element = c10::elementSize(type);
  std::byte* at = bytes.get() + static_cast<std::size_t>(piece.first_row * piece.columns) * element;
  // The format asks for no alignment: other writers' headers may have any length.
  if (reinterpret_cast<std::uintptr_t>(at) % element != 0) return {};
  return at::from_blob(
      at, target.tensor.shape, [bytes](void*) {}, type);
}

at::Tensor read_whole(const TensorFolder& source, const std::string& name) {
  return read_whole(source, same_tensor({name, source.at(name).info.shape}));
}

at::Tensor read_whole(const TensorFolder& source, const MappedTensor& target) {
  const at::Tensor whole = at::empty(target.tensor.shape, at::kFloat);
  std::int64_t filled = 0;
  stream_tensor(source, target, at::kFloat, [&](const at::Tensor& part) {
    whole.view({-1}).narrow(0, filled, part.numel()).copy_(part.view({-1}));
    filled += part.numel();
  });
  return whole;
}

}  // namespace dropless::train
