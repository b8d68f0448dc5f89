// The JSON header of a safetensors file, text to entries and back. Internal to safetensors.cc and
// its tests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train/checkpoint/safetensors.h"

namespace dropless::train {

inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
inline constexpr std::size_t kMaxTensors = 1'000'000;
inline constexpr std::size_t kMaxTensorName = 1024;
inline constexpr std::size_t kMaxRank = 32;

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // by their offsets
  TensorMetadata metadata;
};

// Checks every rule; data_bytes is what the file holds behind the header. Throws Error(kDamaged)
// whose message begins with `path`.
SafetensorsHeader parse_header(std::string_view text, std::uint64_t data_bytes,
                               const std::string& path);

// The header of these tensors, which stand in the order of their bytes; padded with spaces to 8
// bytes.
std::string make_header(const std::vector<TensorInfo>& tensors, const TensorMetadata& metadata);

// Bytes of a tensor; nullopt on overflow, a negative size or a size that is no whole number of
// bytes.
std::optional<std::uint64_t> tensor_bytes(StorageType dtype,
                                          const std::vector<std::int64_t>& shape);

// Why a tensor may not have this name; empty when it may.
std::string name_problem(std::string_view name);

}  // namespace dropless::train
