// What is done with a tokenizer that could be read.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "train/tokenizer/tokenizer.h"

namespace dropless::fuzz {

// Its ids are in its vocabulary, and any of that can be decoded.
inline void use(const train::Tokenizer& tokenizer) {
  const std::string_view text =
      "Hello world's 123  \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x98\x80 "
      "\xc3\x84 ffin\n\t\xff<s></s><|endoftext|>";
  const std::vector<train::TokenId> ids = tokenizer.encode_with_template(text);
  for (const train::TokenId id : ids) {
    if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
  }
  tokenizer.decode(ids);
  for (std::int64_t id = 0; id < std::min<std::int64_t>(tokenizer.vocab_size(), 300); ++id) {
    const auto one = static_cast<train::TokenId>(id);
    tokenizer.decode_bytes({&one, 1}, false);
  }
}

}  // namespace dropless::fuzz
