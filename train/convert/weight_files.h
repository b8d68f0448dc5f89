// The files of a folder that hold its tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace dropless::train {

// What a folder's tensor files are called: one file STEM.safetensors, or shards and an index of them.
struct FileNames {
  std::string stem;
  std::string single() const { return stem + ".safetensors"; }
  std::string index() const { return single() + ".index.json"; }
  std::string shard(std::size_t i, std::size_t n) const;  // i from 0
};
inline const FileNames kModelFiles{"model"};
inline const FileNames kMistralFiles{"consolidated"};

// What an index says.
struct WeightIndex {
  std::map<std::string, std::string> files;  // of each tensor
  std::optional<std::uint64_t> total_size;   // of the tensors, in bytes
};
// The path of the folder's index; empty where there is none, or where another set of files counts.
std::string weight_index_path(const std::string& folder);
// Throws Error(kDamaged).
WeightIndex read_weight_index(const std::string& path);

bool has_weight_files(const std::string& folder);
bool has_pickled_weights(const std::string& folder);  // which are not read
// The files of the tensors, sorted; model.safetensors or its shards before Mistral's. Throws Error:
// kInvalidArgument where there are none (for pickles it says how to convert them), kDamaged for a
// broken index.
std::vector<std::string> weight_files(const std::string& folder);

}  // namespace dropless::train
