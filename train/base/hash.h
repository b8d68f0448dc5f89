// Streaming hashes as lowercase hex: XXH3-128 against accidents (what `xxhsum -H2` prints), SHA-256
// where others must be able to check.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace dropless::train {

class Xxh3Hash {
 public:
  Xxh3Hash();
  ~Xxh3Hash();
  Xxh3Hash(Xxh3Hash&&) noexcept;
  Xxh3Hash& operator=(Xxh3Hash&&) noexcept;
  void update(const void* data, std::size_t bytes);
  std::string hex() const;  // of all bytes so far; 32 digits

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Sha256Hash {
 public:
  Sha256Hash();
  ~Sha256Hash();
  Sha256Hash(Sha256Hash&&) noexcept;
  Sha256Hash& operator=(Sha256Hash&&) noexcept;
  void update(const void* data, std::size_t bytes);
  std::string hex() const;  // of all bytes so far; 64 digits

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string xxh3_hex(std::string_view bytes);
std::string sha256_hex(std::string_view bytes);
std::string xxh3_file(const std::string& path);  // throws as FileReader does
std::string to_hex(const void* data, std::size_t bytes);

}  // namespace dropless::train
