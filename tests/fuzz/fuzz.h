// What the fuzz targets share. Each file X_fuzz.cc here is one target, in libFuzzer's form; it is built
// twice: with libFuzzer (preset fuzz, clang) and with replay.cc, which runs it once on every file of
// some folders (any compiler). A target may meet any Error; every other exception ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "dropless/error.h"

// libFuzzer calls it with every input that it makes.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace dropless::fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Damaged files are refused by one of these kinds, which are exit codes 1 and 2.
template <class Work>
int expect_no_other_error(Work&& work) {
  try {
    work();
  } catch (const Error& error) {
    const bool expected = error.kind() == ErrorKind::kDamaged ||
                          error.kind() == ErrorKind::kInvalidArgument ||
                          error.kind() == ErrorKind::kUnsupported;
    if (!expected || std::string_view(error.what()).empty()) throw;
  }
  return 0;
}

}  // namespace dropless::fuzz
