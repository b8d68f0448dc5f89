#include "train/data/file_hash.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <new>
#include <variant>

#include "dropless/error.h"
#include "train/base/hash.h"

namespace dropless::train {
namespace {

// Names of the package -> libcrypto's.
struct CryptoName {
  const char* name;
  const char* libcrypto;
};
constexpr CryptoName kCrypto[] = {
    {"blake2b", "BLAKE2b512"}, {"blake2s", "BLAKE2s256"}, {"md5", "MD5"},
    {"sha1", "SHA1"},          {"sha224", "SHA224"},      {"sha256", "SHA256"},
    {"sha384", "SHA384"},      {"sha512", "SHA512"},      {"sha3_224", "SHA3-224"},
    {"sha3_256", "SHA3-256"},  {"sha3_384", "SHA3-384"},  {"sha3_512", "SHA3-512"},
};
constexpr const char* kXxh[] = {"xxh32", "xxh64", "xxh128", "xxh3_64", "xxh3_128"};

const char* find_crypto(std::string_view name) {
  for (const CryptoName& known : kCrypto) {
    if (name == known.name) return known.libcrypto;
  }
  return nullptr;
}

void check(int result) {
  if (result != 1) throw Error(ErrorKind::kInternal, "libcrypto refuses a hash");
}

struct Crypto {
  explicit Crypto(const char* name) {
    if (!context) throw std::bad_alloc();
    const EVP_MD* kind = EVP_get_digestbyname(name);
    if (kind == nullptr) {
      throw Error(ErrorKind::kUnsupported, fmt::format("this libcrypto has no {}", name));
    }
    check(EVP_DigestInit_ex(context.get(), kind, nullptr));
  }
  void update(const void* data, std::size_t bytes) {
    check(EVP_DigestUpdate(context.get(), data, bytes));
  }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int bytes = 0;
    check(EVP_DigestFinal_ex(context.get(), digest, &bytes));
    return to_hex(digest, bytes);
  }
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(),
                                                                  EVP_MD_CTX_free};
};

struct Xxh32 {
  XXH32_state_t state;
  Xxh32() { XXH32_reset(&state, 0); }
  void update(const void* data, std::size_t bytes) { XXH32_update(&state, data, bytes); }
  std::string hex() { return fmt::format("{:08x}", XXH32_digest(&state)); }
};

struct Xxh64 {
  XXH64_state_t state;
  Xxh64() { XXH64_reset(&state, 0); }
  void update(const void* data, std::size_t bytes) { XXH64_update(&state, data, bytes); }
  std::string hex() { return fmt::format("{:016x}", XXH64_digest(&state)); }
};

struct Xxh3_64 {
  XXH3_state_t state;
  Xxh3_64() { XXH3_64bits_reset(&state); }
  void update(const void* data, std::size_t bytes) { XXH3_64bits_update(&state, data, bytes); }
  std::string hex() { return fmt::format("{:016x}", XXH3_64bits_digest(&state)); }
};

}  // namespace

struct FileHash::State {
  std::variant<Crypto, Sha256Hash, Xxh32, Xxh64, Xxh3_64, Xxh3Hash> hash;
};

bool is_hash_name(std::string_view name) {
  for (const char* known : kXxh) {
    if (name == known) return true;
  }
  return find_crypto(name) != nullptr;
}

const std::string& known_hashes() {
  static const std::string names = [] {
    std::string out;
    for (const CryptoName& known : kCrypto) out += fmt::format("{}, ", known.name);
    for (const char* known : kXxh) out += fmt::format("{}, ", known);
    return out.substr(0, out.size() - 2);
  }();
  return names;
}

void check_hash_name(const std::string& name) {
  if (is_hash_name(name)) return;
  throw Error(ErrorKind::kInvalidArgument, fmt::format("unknown hash '{}'", name),
              "one of: " + known_hashes());
}

FileHash::FileHash(const std::string& name) {
  check_hash_name(name);
  using Hash = decltype(State::hash);
  const auto make = [&]<class T>(std::in_place_type_t<T> type, auto... arguments) {
    state_ = std::make_unique<State>(State{Hash(type, arguments...)});
  };
  if (name == "sha256") {
    make(std::in_place_type<Sha256Hash>);
  } else if (const char* crypto = find_crypto(name)) {
    make(std::in_place_type<Crypto>, crypto);
  } else if (name == "xxh32") {
    make(std::in_place_type<Xxh32>);
  } else if (name == "xxh64") {
    make(std::in_place_type<Xxh64>);
  } else if (name == "xxh3_64") {
    make(std::in_place_type<Xxh3_64>);
  } else {
    make(std::in_place_type<Xxh3Hash>);
  }
}
FileHash::~FileHash() = default;
FileHash::FileHash(FileHash&&) noexcept = default;

void FileHash::update(const void* data, std::size_t bytes) {
  std::visit([&](auto& hash) { hash.update(data, bytes); }, state_->hash);
}

std::string FileHash::hex() {
  return std::visit([](auto& hash) { return hash.hex(); }, state_->hash);
}

std::string hash_hex(const std::string& name, std::initializer_list<std::string_view> parts) {
  FileHash hash(name);
  for (const std::string_view part : parts) hash.update(part.data(), part.size());
  return hash.hex();
}

}  // namespace dropless::train
