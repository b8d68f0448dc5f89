// Encodings and sample lines: every encoding, there and back, and damaged values of each.
#include "train/data/encodings.h"

#include <array>
#include <cmath>

#include "tests/train/data/fixture.h"
#include "train/data/rng.h"
#include "train/data/sample_line.h"

namespace dropless::train {
namespace {

MdsColumn column(const std::string& name, const std::string& encoding) {
  MdsColumn out{name, Encoding::parse(encoding), std::nullopt};
  out.size = out.encoding.fixed_size;
  return out;
}

std::string random_bytes(NumpyRng& rng, std::size_t size) {
  std::string out;
  for (std::size_t i = 0; i < size; ++i) out += static_cast<char>(rng.next32());
  return out;
}

std::string show(const std::string& encoding, std::string_view bytes) {
  const MdsColumn c = column("x", encoding);
  return sample_line(std::span(&c, 1), std::span(&bytes, 1), 3);
}

std::string store(const std::string& encoding, const std::string& typed) {
  const MdsColumn c = column("x", encoding);
  return encode_sample_line(std::span(&c, 1), "{\"x\":" + typed + "}").at(0);
}

TEST(Encodings, EveryNameOfThePackageIsKnown) {
  for (const char* name :
       {"bytes",     "str",       "int",       "uint8",     "uint16",      "uint32",
        "uint64",    "int8",      "int16",     "int32",     "int64",       "float16",
        "float32",   "float64",   "str_int",   "str_float", "str_decimal", "ndarray",
        "json",      "pkl",       "pil",       "png",       "jpeg",        "jpeg_array",
        "jpegarray", "list[pil]", "list[png]", "list[jpeg]"}) {
    EXPECT_EQ(Encoding::parse(name).name, name);
  }
  for (const char* name :
       {"", "Int", "int128", "ndarray:", "ndarray:bool", "ndarray:int32:", "ndarray:int32:0",
        "ndarray:int32:2,,3", "ndarray:int32:-1", "ndarray:int32:99999999999", "list[str]"}) {
    EXPECT_THROW(Encoding::parse(name), Error) << name;
  }
  EXPECT_EQ(Encoding::parse("ndarray:int16:3,5").fixed_size, 30u);
}

// stored bytes -> line -> stored bytes, with random values of every encoding that has a canonical
// form.
TEST(Encodings, RandomValuesSurviveTheRoundTrip) {
  NumpyRng rng(1);
  for (int round = 0; round < 300; ++round) {
    const auto check = [&](const std::string& encoding, const std::string& bytes) {
      const std::string line = show(encoding, bytes);
      EXPECT_EQ(store(encoding, line.substr(5, line.size() - 6)), bytes) << encoding << " " << line;
    };
    for (const char* name : {"bytes", "png", "jpeg", "pil", "list[pil]", "jpeg_array"}) {
      check(name, random_bytes(rng, static_cast<std::size_t>(rng.integers(0, 40))));
    }
    for (const char* name : {"int", "int64", "uint64", "float64"})
      check(name, random_bytes(rng, 8));
    for (const char* name : {"int32", "uint32", "float32"}) check(name, random_bytes(rng, 4));
    for (const char* name : {"int16", "uint16", "float16"}) check(name, random_bytes(rng, 2));
    for (const char* name : {"int8", "uint8"}) check(name, random_bytes(rng, 1));
    std::string text;
    for (std::int64_t i = rng.integers(0, 20); i > 0; --i) {
      const std::array<const char*, 8> pieces = {
          "a", "\"", "\\", "\n", "\x01", "\xc3\xa4", "\xf0\x9f\x98\x80", "\x7f"};
      text += pieces[static_cast<std::size_t>(rng.integers(0, 8))];
    }
    check("str", text);
    std::string digits = "7";
    for (std::int64_t i = rng.integers(0, 60); i > 0; --i)
      digits += static_cast<char>('0' + rng.integers(0, 10));
    check("str_int", (round % 2 == 0 ? "-" : "") + digits);
    check("str_decimal", digits + ".50");
    for (const char* name : {"ndarray", "ndarray:int16", "ndarray:float64", "ndarray:uint8:2,3"}) {
      const Encoding encoding = Encoding::parse(name);
      ArrayView array;
      array.type = encoding.type != nullptr ? encoding.type : find_numpy_type("uint32");
      array.shape = encoding.shape;
      std::uint64_t count = 6;
      if (array.shape.empty()) {
        count = 1;
        for (std::int64_t i = rng.integers(1, 4); i > 0; --i) {
          array.shape.push_back(static_cast<std::uint64_t>(rng.integers(1, i == 1 ? 300 : 5)));
          count *= array.shape.back();
        }
      }
      const std::string values = random_bytes(rng, count * array.type->bytes);
      array.values = values;
      const std::string bytes = encode_array(encoding, array);
      const ArrayView back = decode_array(encoding, bytes);
      EXPECT_EQ(back.shape, array.shape);
      EXPECT_EQ(back.values, array.values);
      check(name, bytes);
    }
  }
  EXPECT_EQ(show("str_float", "1e+300"),
            "{\"x\":{\"t\":\"float\",\"v\":\"1e+300\",\"hex\":\"9c7500883ce4377e\"}}");
  EXPECT_EQ(store("str_float", "{\"t\":\"float\",\"v\":\"9\",\"hex\":\"9c7500883ce4377e\"}"),
            "1e+300");
}

// Every positive half: the shown digits lie nearer to it than to its neighbours.
TEST(Encodings, HalvesAreShownWithDigitsThatReadBack) {
  const auto value = [](unsigned half) {
    const int exponent = static_cast<int>(half >> 10), fraction = static_cast<int>(half & 0x3ff);
    return exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
  };
  for (unsigned half = 1; half < 0x7c00; ++half) {
    const std::string bytes = {static_cast<char>(half), static_cast<char>(half >> 8)};
    const std::string shown = nlohmann::json::parse(show("float16", bytes))["x"]["v"];
    const double digits = std::strtod(shown.c_str(), nullptr);
    ASSERT_GT(digits, (value(half - 1) + value(half)) / 2) << shown;
    ASSERT_LT(digits, (value(half) + value(half + 1)) / 2) << shown;
  }
  EXPECT_NE(show("float16", "\x66\x2e").find("\"v\":\"0.1\""), std::string::npos);
  EXPECT_NE(show("float16", std::string("\x00\x80", 2)).find("\"v\":\"-0.0\""), std::string::npos);
}

TEST(Encodings, DamagedValuesNameSampleAndColumn) {
  const std::pair<const char*, std::string> cases[] = {
      {"str", "\xff"},
      {"str_int", "12x"},
      {"str_int", ""},
      {"str_float", "0x10"},
      {"str_float", "1e"},
      {"str_decimal", "1.2.3"},
      {"json", "{\"a\":"},
      {"int", "1234567"},
      {"float16", "abc"},
      {"ndarray", ""},
      {"ndarray", "\x21"},
      {"ndarray", std::string("\x07\x04\x01", 3)},      // unknown type
      {"ndarray", std::string("\x21\x04\x02zzzz", 7)},  // one value of two
      {"ndarray", std::string("\x21\xff", 2)},          // no room for 63 dims
      {"ndarray:int16",
       std::string("\x0b\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 17)},
      {"ndarray:int16:2", "abc"},
  };
  for (const auto& [encoding, bytes] : cases) {
    expect_error(ErrorKind::kDamaged, {"sample 3", "column 'x'", encoding},
                 [&] { show(encoding, bytes); });
  }
  expect_error(ErrorKind::kInvalidArgument, {"column 'x'", "pickle"},
               [] { show("pkl", "\x80\x04N."); });
}

TEST(Encodings, BadTypedValuesNameTheColumn) {
  const std::pair<const char*, const char*> cases[] = {
      {"int", "{\"t\":\"str\",\"v\":\"1\"}"},
      {"int", "{\"t\":\"int\",\"v\":\"9223372036854775808\"}"},
      {"int", "{\"t\":\"int\"}"},
      {"int", "3"},
      {"uint8", "{\"t\":\"uint8\",\"v\":\"-1\"}"},
      {"int32", "{\"t\":\"int32\",\"v\":\"1\",\"hex\":\"0102\"}"},
      {"bytes", "{\"t\":\"bytes\",\"hex\":\"0g\"}"},
      {"bytes", "{\"t\":\"bytes\",\"hex\":\"012\"}"},
      {"bytes", "{\"t\":\"bytes\"}"},
      {"str", "{\"t\":\"str\",\"v\":5}"},
      {"str_int", "{\"t\":\"int\",\"v\":\"1.5\"}"},
      {"ndarray", "{\"t\":\"ndarray\",\"dtype\":\"int32\",\"shape\":[2],\"hex\":\"00000000\"}"},
      {"ndarray", "{\"t\":\"ndarray\",\"dtype\":\"bool\",\"shape\":[1],\"hex\":\"00\"}"},
      {"ndarray", "{\"t\":\"ndarray\",\"dtype\":\"int8\",\"shape\":[0],\"hex\":\"\"}"},
      {"ndarray:int8", "{\"t\":\"ndarray\",\"dtype\":\"int16\",\"shape\":[1],\"hex\":\"0000\"}"},
  };
  for (const auto& [encoding, typed] : cases) {
    expect_error(ErrorKind::kInvalidArgument, {"column 'x'"}, [&] { store(encoding, typed); });
  }
  EXPECT_EQ(store("int", "{\"t\":\"int\",\"v\":\"-9223372036854775808\"}"),
            std::string("\0\0\0\0\0\0\0\x80", 8));
  EXPECT_EQ(store("int8", "{\"t\":\"int8\",\"v\":\"-5\"}"), "\xfb");
  EXPECT_EQ(store("str_int", "{\"t\":\"int\",\"v\":\"-007\"}"), "-7");
}

TEST(Encodings, IntegersOfEveryWidthBecomeInt64) {
  const std::pair<const char*, std::int64_t> cases[] = {
      {"uint8", 255},         {"int8", -1},  {"uint16", 65535}, {"int16", -1},
      {"uint32", 4294967295}, {"int32", -1}, {"int64", -1}};
  for (const auto& [name, want] : cases) {
    const NumpyType& type = *find_numpy_type(std::string_view(name));
    std::vector<std::int64_t> out = {5};
    append_as_int64(type, std::string(2u * type.bytes, '\xff'), out);
    EXPECT_EQ(out, (std::vector<std::int64_t>{5, want, want})) << name;
  }
  std::vector<std::int64_t> out;
  EXPECT_THROW(append_as_int64(*find_numpy_type("float32"), "abcd", out), Error);
}

}  // namespace
}  // namespace dropless::train
