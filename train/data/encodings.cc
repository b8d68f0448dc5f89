#include "train/data/encodings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <cstring>
#include <limits>

#include "dropless/error.h"

namespace dropless::train {
namespace {

constexpr std::array<NumpyType, 11> kTypes = {{
    {"uint8", 8, 1, true, false},
    {"int8", 9, 1, true, true},
    {"uint16", 16, 2, true, false},
    {"int16", 17, 2, true, true},
    {"float16", 18, 2, false, true},
    {"uint32", 32, 4, true, false},
    {"int32", 33, 4, true, true},
    {"float32", 34, 4, false, true},
    {"uint64", 64, 8, true, false},
    {"int64", 65, 8, true, true},
    {"float64", 66, 8, false, true},
}};
constexpr std::uint64_t kMaxDims = 63;

[[noreturn]] void damaged(const std::string& reason) { throw Error(ErrorKind::kDamaged, reason); }

[[noreturn]] void unknown(const std::string& name) {
  throw Error(ErrorKind::kInvalidArgument, fmt::format("unknown column encoding '{}'", name));
}

// "4,8" into dims; the product of dims and the item size must be a size the format can hold.
void parse_fixed_shape(Encoding& encoding, std::string_view dims) {
  std::uint64_t total = encoding.type->bytes;
  for (;;) {
    const std::size_t comma = dims.find(',');
    const std::string_view one = dims.substr(0, comma);
    std::uint64_t dim = 0;
    const auto [end, error] = std::from_chars(one.data(), one.data() + one.size(), dim);
    if (error != std::errc{} || end != one.data() + one.size() || dim == 0 ||
        encoding.shape.size() == kMaxDims ||
        dim > std::numeric_limits<std::uint32_t>::max() / total) {
      unknown(encoding.name);
    }
    encoding.shape.push_back(dim);
    total *= dim;
    if (comma == std::string_view::npos) break;
    dims.remove_prefix(comma + 1);
  }
  encoding.fixed_size = static_cast<std::uint32_t>(total);
}

std::uint64_t load_little(const char* bytes, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    value |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(bytes[i])) << (8 * i);
  }
  return value;
}

template <class T>
void append_typed(std::string_view values, std::vector<std::int64_t>& out) {
  const std::size_t count = values.size() / sizeof(T);
  const std::size_t begin = out.size();
  out.resize(begin + count);
  for (std::size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, values.data() + i * sizeof(T), sizeof(T));
    out[begin + i] = static_cast<std::int64_t>(value);
  }
}

}  // namespace

const NumpyType* find_numpy_type(std::string_view name) {
  for (const NumpyType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

const NumpyType* find_numpy_type(std::uint8_t code) {
  for (const NumpyType& type : kTypes) {
    if (code == type.code) return &type;
  }
  return nullptr;
}

Encoding Encoding::parse(const std::string& name) {
  static constexpr std::pair<const char*, EncodingKind> kNames[] = {
      {"bytes", EncodingKind::kBytes},
      {"str", EncodingKind::kStr},
      {"int", EncodingKind::kInt},
      {"str_int", EncodingKind::kStrInt},
      {"str_float", EncodingKind::kStrFloat},
      {"str_decimal", EncodingKind::kStrDecimal},
      {"json", EncodingKind::kJson},
      {"ndarray", EncodingKind::kArray},
      {"pil", EncodingKind::kImage},
      {"png", EncodingKind::kImage},
      {"jpeg", EncodingKind::kImage},
      {"jpeg_array", EncodingKind::kImage},
      {"jpegarray", EncodingKind::kImage},
      {"list[pil]", EncodingKind::kImage},
      {"list[png]", EncodingKind::kImage},
      {"list[jpeg]", EncodingKind::kImage},
      {"pkl", EncodingKind::kPickle},
  };
  Encoding encoding;
  encoding.name = name;
  for (const auto& [known, kind] : kNames) {
    if (name != known) continue;
    encoding.kind = kind;
    if (kind == EncodingKind::kInt) {
      encoding.type = find_numpy_type("int64");
      encoding.fixed_size = 8;
    }
    return encoding;
  }
  if (const NumpyType* type = find_numpy_type(std::string_view(name))) {
    encoding.kind = EncodingKind::kScalar;
    encoding.type = type;
    encoding.fixed_size = type->bytes;
    return encoding;
  }
  constexpr std::string_view kArrayPrefix = "ndarray:";
  if (!name.starts_with(kArrayPrefix)) unknown(name);
  encoding.kind = EncodingKind::kArray;
  const std::string_view rest = std::string_view(encoding.name).substr(kArrayPrefix.size());
  const std::size_t colon = rest.find(':');
  encoding.type = find_numpy_type(rest.substr(0, colon));
  if (encoding.type == nullptr) unknown(name);
  if (colon != std::string_view::npos) parse_fixed_shape(encoding, rest.substr(colon + 1));
  return encoding;
}

ArrayView decode_array(const Encoding& encoding, std::string_view bytes) {
  ArrayView array{encoding.type, encoding.shape, bytes};
  if (encoding.fixed_size) {
    if (bytes.size() != *encoding.fixed_size) {
      damaged(fmt::format("{} bytes instead of {}", bytes.size(), *encoding.fixed_size));
    }
    return array;
  }
  if (array.type == nullptr) {
    if (bytes.empty()) damaged("an array without its type");
    array.type = find_numpy_type(static_cast<std::uint8_t>(bytes[0]));
    if (array.type == nullptr) {
      damaged(fmt::format("unknown array type {}", static_cast<std::uint8_t>(bytes[0])));
    }
    bytes.remove_prefix(1);
  }
  if (bytes.empty()) damaged("an array without its shape");
  const std::uint8_t head = static_cast<std::uint8_t>(bytes[0]);
  const std::size_t dims = head >> 2, dim_bytes = std::size_t{1} << (head & 3);
  bytes.remove_prefix(1);
  if (bytes.size() < dims * dim_bytes) damaged("an array shorter than its shape");
  std::uint64_t total = array.type->bytes;
  for (std::size_t i = 0; i < dims; ++i) {
    const std::uint64_t dim = load_little(bytes.data() + i * dim_bytes, dim_bytes);
    if (dim != 0 && total > std::numeric_limits<std::uint64_t>::max() / dim)
      damaged("an array too large");
    total *= dim;
    array.shape.push_back(dim);
  }
  array.values = bytes.substr(dims * dim_bytes);
  if (array.values.size() != total) {
    damaged(fmt::format("an array of shape [{}] with {} bytes of {}", fmt::join(array.shape, ", "),
                        array.values.size(), array.type->name));
  }
  return array;
}

std::string encode_array(const Encoding& encoding, const ArrayView& array) {
  const auto refuse = [&](const std::string& reason) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: {}", encoding.name, reason));
  };
  if (encoding.type != nullptr && array.type != encoding.type) {
    refuse(fmt::format("an array of {}", array.type->name));
  }
  if (!encoding.shape.empty() && array.shape != encoding.shape) {
    refuse(fmt::format("an array of shape [{}]", fmt::join(array.shape, ", ")));
  }
  if (array.shape.empty() || array.shape.size() > kMaxDims)
    refuse("an array of 1 to 63 dimensions is needed");
  std::uint64_t total = array.type->bytes, largest = 0;
  for (const std::uint64_t dim : array.shape) {
    if (dim == 0) refuse("arrays without elements cannot be stored");
    if (total > std::numeric_limits<std::uint32_t>::max() / dim) refuse("an array of over 4 GiB");
    total *= dim;
    largest = std::max(largest, dim);
  }
  if (array.values.size() != total) {
    refuse(
        fmt::format("{} bytes for shape [{}]", array.values.size(), fmt::join(array.shape, ", ")));
  }
  if (encoding.fixed_size) return std::string(array.values);
  const unsigned width = largest < (1u << 8) ? 0 : largest < (1u << 16) ? 1 : 2;
  std::string out;
  if (encoding.type == nullptr) out += static_cast<char>(array.type->code);
  out += static_cast<char>((array.shape.size() << 2) | width);
  for (const std::uint64_t dim : array.shape) {
    for (unsigned i = 0; i < (1u << width); ++i) out += static_cast<char>(dim >> (8 * i));
  }
  return out.append(array.values);
}

void append_as_int64(const NumpyType& type, std::string_view values,
                     std::vector<std::int64_t>& out) {
  switch (type.code) {
    case 8:
      return append_typed<std::uint8_t>(values, out);
    case 9:
      return append_typed<std::int8_t>(values, out);
    case 16:
      return append_typed<std::uint16_t>(values, out);
    case 17:
      return append_typed<std::int16_t>(values, out);
    case 32:
      return append_typed<std::uint32_t>(values, out);
    case 33:
      return append_typed<std::int32_t>(values, out);
    case 64:
      return append_typed<std::uint64_t>(values, out);
    case 65:
      return append_typed<std::int64_t>(values, out);
    default:
      throw Error(ErrorKind::kInvalidArgument, fmt::format("token ids of type {}", type.name),
                  "store token ids in an integer type");
  }
}

}  // namespace dropless::train
