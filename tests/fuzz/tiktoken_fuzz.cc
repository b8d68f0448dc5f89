// .tiktoken files; the first byte chooses the pattern, by the file's name.
#include <iterator>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tokenizer_target.h"
#include "train/tokenizer/tokenizer_files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const char* const kNames[] = {"cl100k_base.tiktoken", "o200k_base.tiktoken",
                                       "r50k_base.tiktoken", "qwen.tiktoken"};
  if (size == 0) return 0;
  const std::string path = std::string("/nowhere/") + kNames[data[0] % std::size(kNames)];
  return dropless::fuzz::expect_no_other_error([&] {
    dropless::fuzz::use(*dropless::train::read_rank_tokenizer(
        "fuzz", path, dropless::fuzz::text_of(data + 1, size - 1)));
  });
}
