// Text to token ids and back.
//
// | name                                 | what it is                                               |
// | `bytes`                              | ids 0-255 are the bytes of the text, 256 is end-of-text  |
// | a `tokenizer.json`                   | Hugging Face's file: byte-level or character BPE         |
// | a `.tiktoken` file                   | OpenAI's ranks, with the patterns of cl100k and others   |
// | a `.model` file                      | SentencePiece: unigram or BPE                            |
// | a folder                             | its tokenizer.json, tokenizer.model or .tiktoken file    |
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/tokenizer/unicode.h"
#include "train/tokenizer/vocabulary.h"

namespace dropless::train {

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

  // What the tokenizer's own template puts around a text: often nothing, or a BOS.
  virtual std::vector<TokenId> prefix_ids() const { return {}; }
  virtual std::vector<TokenId> suffix_ids() const { return {}; }

  // Without the template. Any bytes are taken; all but `bytes` replace invalid UTF-8 by U+FFFD
  // first. A tokenizer.json's added tokens are recognised in the text, as `tokenizers` does; the
  // others' special tokens are not. Safe to call from several threads.
  virtual std::vector<TokenId> encode(std::string_view text) const = 0;
  // Valid UTF-8: broken sequences become U+FFFD, as Python's errors='replace' makes them. Special
  // tokens decode to nothing. An id outside the vocabulary: Error(kInvalidArgument).
  virtual std::string decode(std::span<const TokenId> ids) const = 0;
  // The undecoded bytes of the ids, for output that is streamed id by id. `first`: they stand at the
  // beginning of the text, where some vocabularies have a space too many.
  virtual std::string decode_bytes(std::span<const TokenId> ids, bool first = true) const = 0;

  // encode() between prefix_ids() and suffix_ids().
  std::vector<TokenId> encode_with_template(std::string_view text) const;
};

// Whether a tokenizer of this name is here: `bytes` or a path that exists. Others, such as names on
// the Hugging Face hub, make_tokenizer refuses.
bool is_tokenizer(const std::string& name);

// Throws Error(kInvalidArgument): an unknown name, an unreadable file, a file that is damaged or of
// a kind that is not supported.
std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name);

}  // namespace dropless::train
