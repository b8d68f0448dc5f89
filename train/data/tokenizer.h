// Text to token ids and back.
//
// `bytes` needs no file: ids 0-255 are the bytes of the UTF-8 text, 256 is end-of-text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dropless::train {

using TokenId = std::int32_t;

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // What make_tokenizer takes to build it again; stored in checkpoints.
  virtual std::string name() const = 0;
  // Ids are in [0, vocab_size).
  virtual std::int64_t vocab_size() const = 0;
  virtual std::optional<TokenId> eos_id() const = 0;
  virtual std::optional<TokenId> bos_id() const = 0;
  // What short rows of a batch are filled up with; never scored.
  virtual TokenId pad_id() const = 0;

  // The id of the special token that is written like this ("<|endoftext|>"); nullopt for any other
  // text.
  virtual std::optional<TokenId> special_id(std::string_view text) const = 0;

  // No special tokens are added or recognised. Any bytes are taken, valid UTF-8 or not.
  virtual std::vector<TokenId> encode(std::string_view text) const = 0;
  // Valid UTF-8: broken sequences become U+FFFD, as Python's errors='replace' makes them. Special
  // tokens decode to nothing. An id outside the vocabulary: Error(kInvalidArgument).
  virtual std::string decode(std::span<const TokenId> ids) const = 0;
  // The undecoded bytes of the ids, for output that is streamed id by id.
  virtual std::string decode_bytes(std::span<const TokenId> ids) const = 0;
};

// `bytes`. Any other name: Error(kInvalidArgument).
std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name);

// Replaces every maximal ill-formed part by U+FFFD (Unicode 3.9, table 3-7; what Python does).
std::string replace_invalid_utf8(std::string_view bytes);

}  // namespace dropless::train
