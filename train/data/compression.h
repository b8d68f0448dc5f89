// Compression of whole shard files: the five algorithms of MosaicML streaming.
//
// | name          | levels (default) | extension | stored as                            |
// | zstd[:LEVEL]  | 1..22 (3)        | .zstd     | one frame; several are read too      |
// | gz[:LEVEL]    | 0..9 (9)         | .gz       | one member; several are read too     |
// | bz2[:LEVEL]   | 1..9 (9)         | .bz2      | one stream; several are read too     |
// | br[:LEVEL]    | 0..11 (11)       | .br       | one Brotli stream                    |
// | snappy        | none             | .snappy   | the raw block format, without frames |
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dropless::train {

enum class CompressionAlgo { kZstd, kGz, kBz2, kBrotli, kSnappy };

struct Compression {
  CompressionAlgo algo = CompressionAlgo::kZstd;
  int level = 0;
  std::string name;       // as given: "zstd:7"
  std::string extension;  // "zstd"

  // Throws Error(kInvalidArgument) for an unknown algorithm or a level that it does not have.
  static Compression parse(const std::string& name);
};

std::string compress(const Compression& compression, std::string_view bytes);

// Exactly `size` bytes: memory is taken for no more, whatever the input claims. Throws
// Error(kDamaged) for a broken stream, for more or fewer bytes, and for what follows the stream.
std::string decompress(const Compression& compression, std::string_view bytes, std::uint64_t size);

}  // namespace dropless::train
