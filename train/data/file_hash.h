// The hashes that an index may hold of a shard file, by the names of MosaicML streaming, as
// lowercase hex. xxh* are the canonical (big-endian) form; xxh128 and xxh3_128 are one hash.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

namespace dropless::train {

bool is_hash_name(std::string_view name);
// All of them, with commas between, for messages.
const std::string& known_hashes();
// Throws Error(kInvalidArgument) for an unknown name.
void check_hash_name(const std::string& name);

class FileHash {
 public:
  explicit FileHash(const std::string& name);  // throws as check_hash_name does
  ~FileHash();
  FileHash(FileHash&&) noexcept;
  void update(const void* data, std::size_t bytes);
  std::string hex();  // once, at the end

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Of all parts one after another.
std::string hash_hex(const std::string& name, std::initializer_list<std::string_view> parts);

}  // namespace dropless::train
