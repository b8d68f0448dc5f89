// `dropless convert`: a model folder of one layout to one of another, tensor by tensor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "train/bridge/torch.h"

namespace dropless::train {

enum class Layout {
  kDropless,
  kHf,       // Hugging Face's transformers
  kFoundry,  // LLM Foundry's own models, for its loader and transformers' remote code
  kMistral,  // mistral-inference
  kPeft,     // of a model with adapters, these alone
};

struct ConvertOptions {
  Layout to = Layout::kDropless;
  std::optional<at::ScalarType> dtype;  // absent: as stored
  bool overwrite = false;
  bool merge_adapter = false;  // what has no word for adapters gets them merged in any case
  std::string adapter = {};    // a folder of PEFT's, beside the source's weights; empty: none
  bool progress = false;       // a line on standard error
  std::uint64_t shard_bytes = 5'000'000'000;  // of tensors in one file
};

// Writes `target` (complete or not at all) from the checkpoint, run folder or released model's
// folder `source`. Cut off, it leaves its finished files beside the target and goes on from them when it is
// called again. Throws Error: kInvalidArgument for a target that is not empty, kUnsupported where the
// layout cannot express the model; those of open_adapter_folder().
void convert_model(const std::string& source, const std::string& target,
                   const ConvertOptions& options);

}  // namespace dropless::train
