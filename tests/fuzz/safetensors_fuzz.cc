// The header of a .safetensors file: what is read is written, and read again, to the same tensors. Behind it
// stand as many bytes as the last tensor's offsets say, or one fewer or more, by the input's first byte.
#include <algorithm>
#include <cstdlib>

#include "tests/fuzz/fuzz.h"
#include "train/checkpoint/safetensors_header.h"

namespace dropless::train {
namespace {

// The largest number of the text is the end of the last tensor in a file that is in order.
std::uint64_t largest_number(std::string_view text) {
  std::uint64_t largest = 0, number = 0;
  for (const char c : text) {
    const bool digit = c >= '0' && c <= '9';
    number = digit ? number * 10 + static_cast<std::uint64_t>(c - '0') : 0;
    largest = std::max(largest, number);
  }
  return largest;
}

void check(std::string_view text, std::uint64_t data_bytes) {
  const SafetensorsHeader header = parse_header(text, data_bytes, "fuzz");
  const std::string written = make_header(header.tensors, header.metadata);
  const SafetensorsHeader again = parse_header(written, data_bytes, "fuzz");
  if (make_header(again.tensors, again.metadata) != written) std::abort();
}

}  // namespace
}  // namespace dropless::train

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text = dropless::fuzz::text_of(data + 1, size - 1);
  const std::uint64_t bytes =
      dropless::train::largest_number(text) + static_cast<std::uint64_t>(data[0] % 3) - 1;
  return dropless::fuzz::expect_no_other_error([&] { dropless::train::check(text, bytes); });
}
