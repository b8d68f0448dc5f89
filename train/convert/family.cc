#include "train/convert/family.h"

namespace dropless::train {

const char* family_name(Family family) {
  switch (family) {
    case Family::kMixtral:
      return "mixtral";
    case Family::kOlmoe:
      return "olmoe";
    case Family::kQwen3Moe:
      return "qwen3_moe";
    case Family::kDbrx:
      return "dbrx";
    case Family::kLlama:
      return "llama";
    case Family::kMistral:
      return "mistral";
    case Family::kQwen3:
      return "qwen3";
    case Family::kQwen2:
      return "qwen2";
    case Family::kQwen2Moe:
      return "qwen2_moe";
    case Family::kMpt:
    case Family::kMptFusedNorms:
      return "mpt";
    case Family::kMistralNative:
      return "Mistral's own layout";
  }
  return "unknown";
}

}  // namespace dropless::train
