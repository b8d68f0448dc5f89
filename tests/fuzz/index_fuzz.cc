// index.json of a set: what is read is written, and read again, to the same text.
#include <cstdlib>

#include "tests/fuzz/fuzz.h"
#include "train/data/mds_index.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using dropless::train::MdsIndex;
  const std::string text(dropless::fuzz::text_of(data, size));
  return dropless::fuzz::expect_no_other_error([&] {
    const std::string written = MdsIndex::parse(text, "index.json").dump();
    // What stands in no order, such as hashes, has one after the first writing.
    if (MdsIndex::parse(written, "index.json").dump() != written) std::abort();
  });
}
