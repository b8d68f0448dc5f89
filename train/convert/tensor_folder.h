// The tensors of a folder: model.safetensors, or shards and the index that names them; in Mistral's layout
// consolidated*.safetensors, with an index or without.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "train/bridge/torch.h"
#include "train/checkpoint/safetensors.h"
#include "train/convert/tensor_map.h"
#include "train/convert/weight_files.h"

namespace dropless::train {

// Rows first_row ... of a matrix plus left right; left [rows, r], right [r, columns], fp32 on the CPU.
struct LowRankTerm {
  std::int64_t first_row = 0;
  at::Tensor left, right;
};

class TensorFolder {
 public:
  // Throws Error as weight_files() does, kDamaged for a missing or damaged shard and an index that does
  // not match them, and kInvalidArgument for an index beside model.safetensors that it does not name.
  static TensorFolder open(const std::string& folder);
  // The tensors of one file.
  static TensorFolder open_file(const std::string& path);

  struct Entry {
    const SafetensorsFile* file;  // null for a tensor that was added
    TensorInfo info;
    at::Tensor added;
  };
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  bool contains(const std::string& name) const { return tensors_.contains(name); }
  const Entry& at(const std::string& name) const;
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  // Sentences on what is wrong in the folder without changing what is read.
  const std::vector<std::string>& oddities() const { return oddities_; }

  // From now on it does not have these.
  void leave_out(const std::set<std::string>& names) {
    std::erase_if(tensors_, [&](const auto& tensor) { return names.contains(tensor.first); });
  }
  // From now on it has this one too: fp32, contiguous, on the CPU.
  void add_tensor(const std::string& name, const at::Tensor& tensor);
  // From now on stream_tensor() gives tensor `name`, seen as rows of its last dimension, plus `term`.
  void add_term(const std::string& name, LowRankTerm term) {
    terms_[name].push_back(std::move(term));
  }
  // `rows`, which are those of tensor `name` from first_row on, plus its terms (then in fp32).
  at::Tensor with_terms(const std::string& name, std::int64_t first_row,
                        const at::Tensor& rows) const;
  bool has_terms(const std::string& name) const { return terms_.contains(name); }

  // Throws Error(kInvalidArgument) listing the tensors that are missing, that nothing asks for, or
  // whose shape is another. `optional`: the names of tensors that may be there and are not used.
  void check(const std::vector<TensorShape>& wanted,
             const std::function<bool(const std::string&)>& optional) const;

 private:
  void compare_with_index(const std::string& path, std::optional<std::uint64_t> total_size);

  std::string folder_;
  std::vector<std::string> oddities_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
  std::map<std::string, std::vector<LowRankTerm>> terms_;
};

// All of tensor `name`, or of `target`, in fp32.
at::Tensor read_whole(const TensorFolder& source, const std::string& name);
at::Tensor read_whole(const TensorFolder& source, const MappedTensor& target);

// The type in which `target` is stored: that of its pieces. Throws Error(kInvalidArgument) where
// they have several, or one that no weights have.
at::ScalarType common_type(const TensorFolder& source, const MappedTensor& target);

// `target` where it lies in its file (SafetensorsFile::map); undefined where it is not stored as it is:
// in pieces, transposed, unaligned, with terms, or of another type than `type`.
at::Tensor map_tensor(const TensorFolder& source, const MappedTensor& target, at::ScalarType type);

// The bytes of `target` as contiguous CPU tensors of `type`, one after the other. Memory is bounded
// by one piece that is transposed, else by a few megabytes.
void stream_tensor(const TensorFolder& source, const MappedTensor& target, at::ScalarType type,
                   const std::function<void(const at::Tensor&)>& sink);

}  // namespace dropless::train
