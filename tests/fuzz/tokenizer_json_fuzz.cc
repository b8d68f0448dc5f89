// tokenizer.json and tekken.json.
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tokenizer_target.h"
#include "train/tokenizer/tokenizer_files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return dropless::fuzz::expect_no_other_error([&] {
    dropless::fuzz::use(*dropless::train::read_json_tokenizer("fuzz", "/nowhere/tokenizer.json",
                                                              dropless::fuzz::text_of(data, size)));
  });
}
