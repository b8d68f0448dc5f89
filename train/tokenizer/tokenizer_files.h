// The kinds of tokenizer files, behind make_tokenizer. `name` is what the user gave, `path` the file,
// `bytes` what it holds. All throw Error(kInvalidArgument) naming the path.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/tokenizer/tokenizer.h"
#include "train/tokenizer/vocabulary.h"

namespace dropless::train {

// tokenizer.json (Hugging Face) or tekken.json (Mistral).
std::shared_ptr<const Tokenizer> read_json_tokenizer(const std::string& name,
                                                     const std::string& path,
                                                     std::string_view bytes);
// Lines of base64 and a rank. Which pattern goes with them is told by the path (cl100k, o200k, p50k,
// r50k, gpt2) or by how many they are.
std::shared_ptr<const Tokenizer> read_rank_tokenizer(const std::string& name,
                                                     const std::string& path,
                                                     std::string_view bytes);
bool looks_like_ranks(std::string_view bytes);
std::shared_ptr<const Tokenizer> read_sentencepiece(const std::string& name,
                                                    const std::string& path,
                                                    std::string_view bytes);

void check_ids(std::span<const TokenId> ids, std::int64_t vocab_size);

// Which of the special tokens end a text, begin it, and fill rows.
struct SpecialRoles {
  std::optional<TokenId> eos, bos, pad;
};

// Word caches for the threads that encode: each takes one for the time of a call.
class WordCaches {
 public:
  // Calls use(WordCache&).
  template <class Use>
  void with(Use use) const {
    std::unique_ptr<WordCache> cache;
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        cache = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!cache) cache = std::make_unique<WordCache>();
    use(*cache);
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(cache));
  }

 private:
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<WordCache>> free_;
};

}  // namespace dropless::train
