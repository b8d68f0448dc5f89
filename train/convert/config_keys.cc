#include "train/convert/config_keys.h"

#include <algorithm>
#include <iterator>

namespace dropless::train {
namespace {

constexpr const char* kHarmless[] = {"architectures",
                                     "auto_map",
                                     "bos_token_id",
                                     "dtype",
                                     "eos_token_id",
                                     "initializer_range",
                                     "model_type",
                                     "output_attentions",
                                     "output_hidden_states",
                                     "output_router_logits",
                                     "pad_token_id",
                                     "pretraining_tp",
                                     "return_dict",
                                     "tokenizer_class",
                                     "torch_dtype",
                                     "transformers_version",
                                     "use_cache",
                                     "_name_or_path",
                                     "_attn_implementation"};

}  // namespace

bool is_harmless_key(const std::string& key) {
  return std::any_of(std::begin(kHarmless), std::end(kHarmless),
                     [&](const char* known) { return key == known; });
}

void inexpressible(const std::string& key, const std::string& value, const std::string& why) {
  throw Error(ErrorKind::kUnsupported,
              fmt::format("no family of released models that this version writes has {} {}{}", key,
                          value, why.empty() ? "" : ": " + why));
}

}  // namespace dropless::train
