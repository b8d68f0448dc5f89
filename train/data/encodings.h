// MDS column encodings: the 28 names of MosaicML streaming 0.13 and the bytes behind them.
//
// | name                                     | bytes | | bytes, str, json                         |
// as is; UTF-8; json.dumps text                            | | int, int8..64, uint8..64,
// float16..64    | raw little-endian scalar, fixed size (int = int64)       | | str_int, str_float,
// str_decimal          | Python's str() of the number                             | | ndarray | u8
// dtype code, u8 (ndim << 2 | s), dims as u(8 << s), data | | ndarray:DT and ndarray:DT:d0,d1 | the
// same without the code; the data alone, fixed size    | | pil, png, jpeg, jpeg_array, list[...] |
// stored image bytes; not looked into here                 | | pkl | a pickle: executes code when
// loaded, always refused      |
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dropless::train {

struct NumpyType {
  const char* name;   // "int32"
  std::uint8_t code;  // in the `ndarray` encoding
  std::uint8_t bytes;
  bool is_integer;
  bool is_signed;
};

// nullptr for an unknown name or code.
const NumpyType* find_numpy_type(std::string_view name);
const NumpyType* find_numpy_type(std::uint8_t code);

enum class EncodingKind {
  kBytes,
  kStr,
  kInt,
  kScalar,
  kStrInt,
  kStrFloat,
  kStrDecimal,
  kJson,
  kArray,
  kImage,
  kPickle,
};

struct Encoding {
  std::string name;
  EncodingKind kind = EncodingKind::kBytes;
  const NumpyType* type = nullptr;          // kInt, kScalar; kArray when the name fixes it
  std::vector<std::uint64_t> shape;         // kArray when the name fixes it
  std::optional<std::uint32_t> fixed_size;  // bytes of every value

  // Throws Error(kInvalidArgument) for a name that is none of the 28.
  static Encoding parse(const std::string& name);
};

// An array inside a stored value; `values` is in C order, little-endian, not aligned.
struct ArrayView {
  const NumpyType* type = nullptr;
  std::vector<std::uint64_t> shape;
  std::string_view values;
  std::uint64_t count() const { return values.size() / type->bytes; }
};

// Throws Error(kDamaged) when the header and the number of bytes do not agree.
ArrayView decode_array(const Encoding& encoding, std::string_view bytes);
// Throws Error(kInvalidArgument): no dimension or one of size 0 (the format has no such arrays), a
// type or shape other than the encoding's, values that do not fill the shape.
std::string encode_array(const Encoding& encoding, const ArrayView& array);

// Integers of any of numpy's types as int64. uint64 values above the maximum wrap, as numpy's
// astype does.
void append_as_int64(const NumpyType& type, std::string_view values,
                     std::vector<std::int64_t>& out);

}  // namespace dropless::train
