#include "train/base/hash.h"

#include <openssl/evp.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::train {

std::string to_hex(const void* data, std::size_t bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  const auto* from = static_cast<const unsigned char*>(data);
  std::string out;
  out.reserve(2 * bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    out += kDigits[from[i] >> 4];
    out += kDigits[from[i] & 15];
  }
  return out;
}

// ---- XXH3 ----

struct Xxh3Hash::State {
  XXH3_state_t state;  // 64-byte aligned: operator new of C++17 sees to it
};

Xxh3Hash::Xxh3Hash() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->state); }
Xxh3Hash::~Xxh3Hash() = default;
Xxh3Hash::Xxh3Hash(Xxh3Hash&&) noexcept = default;
Xxh3Hash& Xxh3Hash::operator=(Xxh3Hash&&) noexcept = default;

void Xxh3Hash::update(const void* data, std::size_t bytes) {
  XXH3_128bits_update(&state_->state, data, bytes);
}

std::string Xxh3Hash::hex() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_->state));
  return to_hex(canonical.digest, sizeof canonical.digest);
}

// ---- SHA-256 ----

struct Sha256Hash::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

namespace {
void check(int result) {
  if (result != 1) throw Error(ErrorKind::kInternal, "libcrypto refuses SHA-256");
}
}  // namespace

Sha256Hash::Sha256Hash() : state_(std::make_unique<State>()) {
  if (state_->context == nullptr) throw std::bad_alloc();
  check(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr));
}
Sha256Hash::~Sha256Hash() = default;
Sha256Hash::Sha256Hash(Sha256Hash&&) noexcept = default;
Sha256Hash& Sha256Hash::operator=(Sha256Hash&&) noexcept = default;

void Sha256Hash::update(const void* data, std::size_t bytes) {
  check(EVP_DigestUpdate(state_->context, data, bytes));
}

std::string Sha256Hash::hex() const {
  State copy;  // finishing ends a context; the copy may be spent
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int bytes = 0;
  if (copy.context == nullptr) throw std::bad_alloc();
  check(EVP_MD_CTX_copy_ex(copy.context, state_->context));
  check(EVP_DigestFinal_ex(copy.context, digest, &bytes));
  return to_hex(digest, bytes);
}

// ---- in one call ----

std::string xxh3_hex(std::string_view bytes) {
  Xxh3Hash hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

std::string sha256_hex(std::string_view bytes) {
  Sha256Hash hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

std::string xxh3_file(const std::string& path) {
  constexpr std::uint64_t kChunk = 1 << 20;
  const FileReader reader(path);
  std::vector<char> chunk(std::min(kChunk, reader.bytes()));
  Xxh3Hash hash;
  for (std::uint64_t at = 0; at < reader.bytes(); at += kChunk) {
    const std::size_t bytes = std::min(kChunk, reader.bytes() - at);
    reader.read(at, chunk.data(), bytes);
    hash.update(chunk.data(), bytes);
  }
  return hash.hex();
}

}  // namespace dropless::train
