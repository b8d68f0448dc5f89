// A SAX reader: nlohmann's DOM would keep the last of two equal names and hide the first.
#include "train/checkpoint/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_set>

#include "dropless/error.h"
#include "train/base/utf8.h"

namespace dropless::train {
namespace {

struct TypeRow {
  StorageType type;
  const char* name;
  int bits;
};
constexpr TypeRow kTypes[] = {
    {StorageType::kBool, "BOOL", 8},
    {StorageType::kF4, "F4", 4},
    {StorageType::kF6E2M3, "F6_E2M3", 6},
    {StorageType::kF6E3M2, "F6_E3M2", 6},
    {StorageType::kU8, "U8", 8},
    {StorageType::kI8, "I8", 8},
    {StorageType::kF8E5M2, "F8_E5M2", 8},
    {StorageType::kF8E4M3, "F8_E4M3", 8},
    {StorageType::kF8E8M0, "F8_E8M0", 8},
    {StorageType::kF8E4M3FNUZ, "F8_E4M3FNUZ", 8},
    {StorageType::kF8E5M2FNUZ, "F8_E5M2FNUZ", 8},
    {StorageType::kI16, "I16", 16},
    {StorageType::kU16, "U16", 16},
    {StorageType::kF16, "F16", 16},
    {StorageType::kBF16, "BF16", 16},
    {StorageType::kI32, "I32", 32},
    {StorageType::kU32, "U32", 32},
    {StorageType::kF32, "F32", 32},
    {StorageType::kC64, "C64", 64},
    {StorageType::kF64, "F64", 64},
    {StorageType::kI64, "I64", 64},
    {StorageType::kU64, "U64", 64},
};

const TypeRow& row(StorageType type) { return kTypes[static_cast<std::size_t>(type)]; }

// The grammar's states, named by what has been opened.
enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kDone };

class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& path) : path_(path) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kTop;
        return true;
      case State::kTop:
        if (key_ == "__metadata__") {
          state_ = State::kMetadata;
          return true;
        }
        header_.tensors.emplace_back();
        header_.tensors.back().name = key_;
        has_dtype_ = has_shape_ = has_offsets_ = false;
        state_ = State::kTensor;
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool end_object() override {
    if (state_ == State::kTensor) {
      if (!has_dtype_ || !has_shape_ || !has_offsets_) {
        fail(fmt::format("tensor \"{}\" lacks {}", header_.tensors.back().name,
                         !has_dtype_   ? "dtype"
                         : !has_shape_ ? "shape"
                                       : "data_offsets"));
      }
      state_ = State::kTop;
    } else if (state_ == State::kMetadata) {
      state_ = State::kTop;
    } else {
      state_ = State::kDone;
    }
    return true;
  }

  bool key(std::string& text) override {
    if (state_ == State::kTop) {
      if (!names_.insert(text).second)
        fail(fmt::format("\"{}\" stands twice", text.substr(0, 200)));
      if (names_.size() > kMaxTensors) fail(fmt::format("more than {} tensors", kMaxTensors));
      const std::string problem = name_problem(text);
      if (!problem.empty()) fail("a tensor name " + problem);
    }
    key_ = text;
    return true;
  }

  bool string(std::string& text) override {
    if (state_ == State::kMetadata) {
      if (!header_.metadata.emplace(key_, text).second) {
        fail(fmt::format("metadata key \"{}\" stands twice", key_));
      }
      return true;
    }
    if (state_ != State::kTensor || key_ != "dtype") return unexpected("a string");
    once(has_dtype_);
    const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                     [&](const TypeRow& type) { return text == type.name; });
    if (found == std::end(kTypes)) {
      fail(fmt::format("tensor \"{}\": unknown dtype \"{}\"", header_.tensors.back().name,
                       text.substr(0, 40)));
    }
    header_.tensors.back().dtype = found->type;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ == State::kTensor && key_ == "shape") {
      once(has_shape_);
      state_ = State::kShape;
    } else if (state_ == State::kTensor && key_ == "data_offsets") {
      once(has_offsets_);
      offsets_.clear();
      state_ = State::kOffsets;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    TensorInfo& tensor = header_.tensors.back();
    if (state_ == State::kOffsets) {
      if (offsets_.size() != 2) {
        fail(fmt::format("tensor \"{}\": data_offsets must hold two numbers", tensor.name));
      }
      tensor.begin = offsets_[0];
      tensor.end = offsets_[1];
    }
    state_ = State::kTensor;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      std::vector<std::int64_t>& shape = header_.tensors.back().shape;
      if (shape.size() == kMaxRank) {
        fail(fmt::format("tensor \"{}\": more than {} dimensions", header_.tensors.back().name,
                         kMaxRank));
      }
      if (value > static_cast<std::uint64_t>(INT64_MAX)) {
        fail(fmt::format("tensor \"{}\": dimension {} overflows", header_.tensors.back().name,
                         value));
      }
      shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (offsets_.size() < 3) offsets_.push_back(value);
      return true;
    }
    return unexpected("a number");
  }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a bool"); }
  bool number_integer(number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    return unexpected("a number that is no whole number of 64 bits");
  }
  bool binary(binary_t&) override { return unexpected("binary"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail(fmt::format("no valid JSON at byte {}", position));
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw Error(ErrorKind::kDamaged,
                fmt::format("{} is no valid safetensors file: {}", path_, message));
  }

 private:
  void once(bool& flag) const {
    if (flag)
      fail(fmt::format("tensor \"{}\": \"{}\" stands twice", header_.tensors.back().name, key_));
    flag = true;
  }

  bool unexpected(const std::string& what) const {
    if (state_ == State::kStart) fail("the header is not a JSON object");
    if (state_ == State::kTop) fail(fmt::format("entry \"{}\" is {}", key_.substr(0, 200), what));
    if (state_ == State::kMetadata) {
      fail(fmt::format("metadata \"{}\" is {}; only strings may stand there", key_.substr(0, 200),
                       what));
    }
    fail(fmt::format("tensor \"{}\": {} at \"{}\"", header_.tensors.back().name, what,
                     key_.substr(0, 200)));
  }

  const std::string& path_;
  SafetensorsHeader header_;
  State state_ = State::kStart;
  std::string key_;
  std::unordered_set<std::string> names_;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  std::vector<std::uint64_t> offsets_;
};

// No holes, no overlaps, nothing behind the last tensor; each range as long as dtype and shape say.
void check_layout(const std::vector<TensorInfo>& tensors, std::uint64_t data_bytes,
                  const HeaderReader& reader) {
  std::uint64_t expected = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != expected || tensor.end < tensor.begin) {
      reader.fail(fmt::format("tensor \"{}\": data_offsets [{}, {}], the bytes before end at {}",
                              tensor.name, tensor.begin, tensor.end, expected));
    }
    expected = tensor.end;
    const std::optional<std::uint64_t> bytes = tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes) {
      reader.fail(
          fmt::format("tensor \"{}\": {} of shape [{}] overflows or is no whole number of bytes",
                      tensor.name, storage_type_name(tensor.dtype), fmt::join(tensor.shape, ", ")));
    }
    if (tensor.bytes() != *bytes) {
      reader.fail(fmt::format(
          "tensor \"{}\": {} of shape [{}] takes {} bytes, data_offsets give {}", tensor.name,
          storage_type_name(tensor.dtype), fmt::join(tensor.shape, ", "), *bytes, tensor.bytes()));
    }
  }
  if (expected != data_bytes) {
    reader.fail(fmt::format("the tensors take {} bytes, the file holds {}", expected, data_bytes));
  }
}

}  // namespace

const char* storage_type_name(StorageType type) { return row(type).name; }
int storage_type_bits(StorageType type) { return row(type).bits; }

std::optional<std::uint64_t> tensor_bytes(StorageType dtype,
                                          const std::vector<std::int64_t>& shape) {
  // In the order of the format's own reader, so that both refuse the same shapes where a later
  // dimension is 0: elements from the left, then bits.
  std::uint64_t bits = 1;
  for (const std::int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bits, static_cast<std::uint64_t>(size), &bits)) {
      return std::nullopt;
    }
  }
  const auto width = static_cast<std::uint64_t>(storage_type_bits(dtype));
  if (__builtin_mul_overflow(bits, width, &bits) || bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

std::string name_problem(std::string_view name) {
  if (name.size() > kMaxTensorName) return fmt::format("has more than {} bytes", kMaxTensorName);
  const bool control = std::any_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
  if (control) return "holds a control character";
  return find_invalid_utf8(name) != std::string_view::npos ? "is not valid UTF-8" : "";
}

SafetensorsHeader parse_header(std::string_view text, std::uint64_t data_bytes,
                               const std::string& path) {
  HeaderReader reader(path);
  // nlohmann skips a byte-order mark and takes a NUL for the end of the text.
  if (text.substr(0, 3) == "\xef\xbb\xbf") reader.fail("the header begins with a byte-order mark");
  if (text.find('\0') != std::string_view::npos) reader.fail("the header holds a NUL byte");
  if (find_invalid_utf8(text) != std::string_view::npos)
    reader.fail("the header is not valid UTF-8");
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  SafetensorsHeader header = reader.take();
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  check_layout(header.tensors, data_bytes, reader);
  return header;
}

std::string make_header(const std::vector<TensorInfo>& tensors, const TensorMetadata& metadata) {
  // Assembled by hand: the order of the keys is part of the format's customs.
  const auto quoted = [](const std::string& text) { return nlohmann::json(text).dump(); };
  std::string out = "{";
  if (!metadata.empty()) {
    out += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      out += (out.back() == '{' ? "" : ",") + quoted(key) + ":" + quoted(value);
    }
    out += "}";
  }
  for (const TensorInfo& tensor : tensors) {
    out += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                       out.size() == 1 ? "" : ",", quoted(tensor.name),
                       storage_type_name(tensor.dtype), fmt::join(tensor.shape, ","), tensor.begin,
                       tensor.end);
  }
  out += "}";
  out.resize((out.size() + 7) / 8 * 8, ' ');
  return out;
}

}  // namespace dropless::train
