// The tensors of a folder: model.safetensors, or shards and the index that names them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/bridge/torch.h"
#include "train/checkpoint/safetensors.h"
#include "train/convert/tensor_map.h"

namespace dropless::train {

inline constexpr const char* kIndexFile = "model.safetensors.index.json";

// The files of the tensors, sorted: those that the index names, or model.safetensors. Throws Error:
// kInvalidArgument where there is neither (for pickles it says how to convert them), kDamaged for a
// broken index.
std::vector<std::string> weight_files(const std::string& folder);

class TensorFolder {
 public:
  // Throws Error as weight_files() does, and kDamaged for a missing or damaged shard and an index
  // that does not match them.
  static TensorFolder open(const std::string& folder);

  struct Entry {
    const SafetensorsFile* file;
    TensorInfo info;
  };
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  bool contains(const std::string& name) const { return tensors_.contains(name); }
  const Entry& at(const std::string& name) const;
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }

  // Throws Error(kInvalidArgument) listing the tensors that are missing, that nothing asks for, or
  // whose shape is another. `optional`: the names of tensors that may be there and are not used.
  void check(const std::vector<TensorShape>& wanted,
             const std::function<bool(const std::string&)>& optional) const;

 private:
  std::string folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

// The type in which `target` is stored: that of its pieces. Throws Error(kInvalidArgument) where
// they have several, or one that no weights have.
at::ScalarType common_type(const TensorFolder& source, const MappedTensor& target);

// The bytes of `target` as contiguous CPU tensors of `type`, one after the other. Memory is bounded
// by one piece that is transposed, else by a few megabytes.
void stream_tensor(const TensorFolder& source, const MappedTensor& target, at::ScalarType type,
                   const std::function<void(const at::Tensor&)>& sink);

}  // namespace dropless::train
