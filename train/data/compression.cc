#include "train/data/compression.h"

#include <brotli/decode.h>
#include <brotli/encode.h>
#include <bzlib.h>
#include <fmt/format.h>
#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <memory>
#include <new>

#include "dropless/error.h"

namespace dropless::train {
namespace {

struct Family {
  const char* name;  // also the extension
  CompressionAlgo algo;
  int lowest, highest, usual;  // levels; snappy has none
};
constexpr Family kFamilies[] = {
    {"zstd", CompressionAlgo::kZstd, 1, 22, 3},     {"gz", CompressionAlgo::kGz, 0, 9, 9},
    {"bz2", CompressionAlgo::kBz2, 1, 9, 9},        {"br", CompressionAlgo::kBrotli, 0, 11, 11},
    {"snappy", CompressionAlgo::kSnappy, 0, -1, 0},
};

[[noreturn]] void damaged(const std::string& reason) { throw Error(ErrorKind::kDamaged, reason); }
[[noreturn]] void failed(const char* library) {
  throw Error(ErrorKind::kInternal, fmt::format("{} cannot compress", library));
}

// zlib and bzip2 count in 32 bits: they are fed in pieces of at most this.
constexpr std::size_t kPiece = std::size_t{1} << 30;

template <class T>
T* mutable_bytes(const char* bytes) {  // their C interfaces lack the const
  return reinterpret_cast<T*>(const_cast<char*>(bytes));
}

// Where decompressed bytes go. Room is made as they come, up to the declared size: a lie about it
// costs no memory.
class Sink {
 public:
  explicit Sink(std::uint64_t size) : size_(size) {}

  // Room for at least one byte, or none once the declared size is there.
  std::size_t make_room() {
    if (bytes_.size() == used_) {
      constexpr std::uint64_t kFirst = 1 << 20;
      bytes_.resize(std::min(size_, std::max(kFirst, 2 * std::uint64_t{used_})));
    }
    return bytes_.size() - used_;
  }
  char* room() { return bytes_.data() + used_; }
  void take(std::size_t count) { used_ += count; }
  bool full() const { return used_ == size_; }
  [[noreturn]] void too_many() const {
    damaged(fmt::format("decompresses to more than the {} bytes of the index", size_));
  }
  std::string finish() {
    if (used_ != size_) {
      damaged(fmt::format("decompresses to {} bytes, but the index says {}", used_, size_));
    }
    bytes_.resize(used_);
    return std::move(bytes_);
  }

 private:
  std::string bytes_;
  std::uint64_t size_;
  std::size_t used_ = 0;
};

// ---- zstd ----

std::string zstd_compress(std::string_view bytes, int level) {
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  const std::size_t size = ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), level);
  if (ZSTD_isError(size)) failed("zstd");
  out.resize(size);
  return out;
}

std::string zstd_decompress(std::string_view bytes, std::uint64_t size) {
  const std::unique_ptr<ZSTD_DStream, decltype(&ZSTD_freeDStream)> stream(ZSTD_createDStream(),
                                                                          ZSTD_freeDStream);
  if (!stream) throw std::bad_alloc();
  Sink sink(size);
  ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
  std::size_t left = 1;  // 0 where a frame has just ended
  char beyond = 0;       // a byte past the declared size lands here
  while (in.pos < in.size || left != 0) {
    const std::size_t room = sink.make_room();
    ZSTD_outBuffer out{room > 0 ? sink.room() : &beyond, room > 0 ? room : 1, 0};
    const std::size_t before = in.pos;
    left = ZSTD_decompressStream(stream.get(), &out, &in);
    if (ZSTD_isError(left)) damaged(fmt::format("zstd: {}", ZSTD_getErrorName(left)));
    if (room == 0 && out.pos > 0) sink.too_many();
    sink.take(out.pos);
    if (left != 0 && in.pos == in.size && in.pos == before && out.pos == 0) {
      damaged("zstd: the frame ends early");
    }
  }
  return sink.finish();
}

// ---- gz ----

constexpr int kGzipWindow = 15 + 16;  // the largest window, in a gzip member

std::string gz_compress(std::string_view bytes, int level) {
  z_stream stream = {};
  if (deflateInit2(&stream, level, Z_DEFLATED, kGzipWindow, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
    failed("zlib");
  }
  std::string out;
  int result = Z_OK;
  std::size_t fed = 0;
  do {
    if (stream.avail_in == 0 && fed < bytes.size()) {
      const std::size_t piece = std::min(kPiece, bytes.size() - fed);
      stream.next_in = mutable_bytes<Bytef>(bytes.data() + fed);
      stream.avail_in = static_cast<uInt>(piece);
      fed += piece;
    }
    constexpr std::size_t kStep = 1 << 18;
    const std::size_t used = out.size();
    out.resize(used + kStep);
    stream.next_out = mutable_bytes<Bytef>(out.data() + used);
    stream.avail_out = kStep;
    result = deflate(&stream, fed == bytes.size() ? Z_FINISH : Z_NO_FLUSH);
    out.resize(out.size() - stream.avail_out);
  } while (result == Z_OK || result == Z_BUF_ERROR);
  deflateEnd(&stream);
  if (result != Z_STREAM_END) failed("zlib");
  return out;
}

std::string gz_decompress(std::string_view bytes, std::uint64_t size) {
  z_stream stream = {};
  if (inflateInit2(&stream, kGzipWindow) != Z_OK) throw std::bad_alloc();
  const std::unique_ptr<z_stream, decltype(&inflateEnd)> end(&stream, inflateEnd);
  Sink sink(size);
  std::size_t fed = 0;
  char beyond = 0;
  for (;;) {
    if (stream.avail_in == 0 && fed < bytes.size()) {
      const std::size_t piece = std::min(kPiece, bytes.size() - fed);
      stream.next_in = mutable_bytes<Bytef>(bytes.data() + fed);
      stream.avail_in = static_cast<uInt>(piece);
      fed += piece;
    }
    const std::size_t room = std::min(kPiece, sink.make_room());
    stream.next_out = mutable_bytes<Bytef>(room > 0 ? sink.room() : &beyond);
    stream.avail_out = room > 0 ? static_cast<uInt>(room) : 1;
    const uInt before = stream.avail_out;
    const int result = inflate(&stream, Z_NO_FLUSH);
    const std::size_t got = before - stream.avail_out;
    if (room == 0 && got > 0) sink.too_many();
    sink.take(got);
    if (result == Z_STREAM_END) {
      if (stream.avail_in == 0 && fed == bytes.size()) return sink.finish();
      inflateReset(&stream);  // the next member
    } else if (result == Z_BUF_ERROR ||
               (result == Z_OK && got == 0 && stream.avail_in == 0 && fed == bytes.size())) {
      damaged("gz: the stream ends early");
    } else if (result != Z_OK) {
      damaged(fmt::format("gz: {}", stream.msg != nullptr ? stream.msg : "broken stream"));
    }
  }
}

// ---- bz2 ----

std::string bz2_compress(std::string_view bytes, int level) {
  bz_stream stream = {};
  if (BZ2_bzCompressInit(&stream, level, 0, 0) != BZ_OK) failed("bzip2");
  std::string out;
  int result = BZ_RUN_OK;
  std::size_t fed = 0;
  do {
    if (stream.avail_in == 0 && fed < bytes.size()) {
      const std::size_t piece = std::min(kPiece, bytes.size() - fed);
      stream.next_in = mutable_bytes<char>(bytes.data() + fed);
      stream.avail_in = static_cast<unsigned>(piece);
      fed += piece;
    }
    constexpr std::size_t kStep = 1 << 18;
    const std::size_t used = out.size();
    out.resize(used + kStep);
    stream.next_out = out.data() + used;
    stream.avail_out = kStep;
    result = BZ2_bzCompress(&stream, fed == bytes.size() ? BZ_FINISH : BZ_RUN);
    out.resize(out.size() - stream.avail_out);
  } while (result == BZ_RUN_OK || result == BZ_FINISH_OK);
  BZ2_bzCompressEnd(&stream);
  if (result != BZ_STREAM_END) failed("bzip2");
  return out;
}

std::string bz2_decompress(std::string_view bytes, std::uint64_t size) {
  Sink sink(size);
  std::size_t fed = 0;
  while (fed < bytes.size()) {  // one round a stream
    bz_stream stream = {};
    if (BZ2_bzDecompressInit(&stream, 0, 0) != BZ_OK) throw std::bad_alloc();
    const std::unique_ptr<bz_stream, decltype(&BZ2_bzDecompressEnd)> end(&stream,
                                                                         BZ2_bzDecompressEnd);
    char beyond = 0;
    for (int result = BZ_OK; result != BZ_STREAM_END;) {
      const std::size_t piece = std::min(kPiece, bytes.size() - fed);
      stream.next_in = mutable_bytes<char>(bytes.data() + fed);
      stream.avail_in = static_cast<unsigned>(piece);
      const std::size_t room = std::min(kPiece, sink.make_room());
      stream.next_out = room > 0 ? sink.room() : &beyond;
      stream.avail_out = room > 0 ? static_cast<unsigned>(room) : 1;
      const unsigned before = stream.avail_out;
      result = BZ2_bzDecompress(&stream);
      const std::size_t got = before - stream.avail_out, used = piece - stream.avail_in;
      if (result != BZ_OK && result != BZ_STREAM_END) damaged("bz2: broken stream");
      if (room == 0 && got > 0) sink.too_many();
      sink.take(got);
      fed += used;
      if (result == BZ_OK && got == 0 && used == 0) damaged("bz2: the stream ends early");
    }
  }
  return sink.finish();
}

// ---- br ----

std::string br_compress(std::string_view bytes, int level) {
  std::size_t size = BrotliEncoderMaxCompressedSize(bytes.size());
  std::string out(size, '\0');
  if (BrotliEncoderCompress(level, BROTLI_DEFAULT_WINDOW, BROTLI_MODE_GENERIC, bytes.size(),
                            reinterpret_cast<const std::uint8_t*>(bytes.data()), &size,
                            reinterpret_cast<std::uint8_t*>(out.data())) != BROTLI_TRUE) {
    failed("brotli");
  }
  out.resize(size);
  return out;
}

std::string br_decompress(std::string_view bytes, std::uint64_t size) {
  const std::unique_ptr<BrotliDecoderState, decltype(&BrotliDecoderDestroyInstance)> state(
      BrotliDecoderCreateInstance(nullptr, nullptr, nullptr), BrotliDecoderDestroyInstance);
  if (!state) throw std::bad_alloc();
  Sink sink(size);
  std::size_t in_left = bytes.size();
  const auto* in = reinterpret_cast<const std::uint8_t*>(bytes.data());
  std::uint8_t beyond = 0;
  for (;;) {
    const std::size_t room = sink.make_room();
    std::size_t out_left = room > 0 ? room : 1;
    auto* out = room > 0 ? reinterpret_cast<std::uint8_t*>(sink.room()) : &beyond;
    const std::size_t before = out_left;
    const auto result =
        BrotliDecoderDecompressStream(state.get(), &in_left, &in, &out_left, &out, nullptr);
    const std::size_t got = before - out_left;
    if (room == 0 && got > 0) sink.too_many();
    sink.take(got);
    if (result == BROTLI_DECODER_RESULT_SUCCESS) break;
    if (result == BROTLI_DECODER_RESULT_ERROR) damaged("br: broken stream");
    if (result == BROTLI_DECODER_RESULT_NEEDS_MORE_INPUT) damaged("br: the stream ends early");
  }
  if (in_left > 0) damaged(fmt::format("br: {} bytes follow the stream", in_left));
  return sink.finish();
}

// ---- snappy ----

std::string snappy_compress(std::string_view bytes) {
  std::string out;
  snappy::Compress(bytes.data(), bytes.size(), &out);
  return out;
}

std::string snappy_decompress(std::string_view bytes, std::uint64_t size) {
  std::size_t stored = 0;
  if (!snappy::GetUncompressedLength(bytes.data(), bytes.size(), &stored)) {
    damaged("snappy: broken stream");
  }
  if (stored != size) {
    damaged(fmt::format("decompresses to {} bytes, but the index says {}", stored, size));
  }
  // Checked before memory is taken for it: its output is at most 64 bytes for each 3 of input.
  if (!snappy::IsValidCompressedBuffer(bytes.data(), bytes.size()))
    damaged("snappy: broken stream");
  std::string out(size, '\0');
  if (!snappy::RawUncompress(bytes.data(), bytes.size(), out.data())) {
    damaged("snappy: broken stream");
  }
  return out;
}

}  // namespace

Compression Compression::parse(const std::string& name) {
  const std::size_t colon = name.find(':');
  const std::string family_name = name.substr(0, colon);
  for (const Family& family : kFamilies) {
    if (family_name != family.name) continue;
    Compression out{family.algo, family.usual, name, family.name};
    if (colon == std::string::npos) return out;
    const char* const begin = name.data() + colon + 1;
    const char* const end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(begin, end, out.level);
    if (error == std::errc{} && stop == end && out.level >= family.lowest &&
        out.level <= family.highest) {
      return out;
    }
    throw Error(ErrorKind::kInvalidArgument, fmt::format("compression '{}'", name),
                family.lowest > family.highest
                    ? fmt::format("{} has no levels", family.name)
                    : fmt::format("the levels of {} are {} to {}", family.name, family.lowest,
                                  family.highest));
  }
  throw Error(ErrorKind::kInvalidArgument, fmt::format("unknown compression '{}'", name),
              "one of: zstd, gz, bz2, br, snappy; with a level: zstd:7");
}

std::string compress(const Compression& compression, std::string_view bytes) {
  switch (compression.algo) {
    case CompressionAlgo::kZstd:
      return zstd_compress(bytes, compression.level);
    case CompressionAlgo::kGz:
      return gz_compress(bytes, compression.level);
    case CompressionAlgo::kBz2:
      return bz2_compress(bytes, compression.level);
    case CompressionAlgo::kBrotli:
      return br_compress(bytes, compression.level);
    case CompressionAlgo::kSnappy:
      return snappy_compress(bytes);
  }
  throw Error(ErrorKind::kInternal, "unknown compression");
}

std::string decompress(const Compression& compression, std::string_view bytes, std::uint64_t size) {
  switch (compression.algo) {
    case CompressionAlgo::kZstd:
      return zstd_decompress(bytes, size);
    case CompressionAlgo::kGz:
      return gz_decompress(bytes, size);
    case CompressionAlgo::kBz2:
      return bz2_decompress(bytes, size);
    case CompressionAlgo::kBrotli:
      return br_decompress(bytes, size);
    case CompressionAlgo::kSnappy:
      return snappy_decompress(bytes, size);
  }
  throw Error(ErrorKind::kInternal, "unknown compression");
}

}  // namespace dropless::train
