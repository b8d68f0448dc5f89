// `dropless convert`: a model folder of one layout to one of another, tensor by tensor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "train/bridge/torch.h"

namespace dropless::train {

enum class Layout { kDropless, kHf };

struct ConvertOptions {
  Layout to = Layout::kDropless;
  std::optional<at::ScalarType> dtype;  // absent: as stored
  bool overwrite = false;
  bool progress = false;                      // a line on standard error
  std::uint64_t shard_bytes = 5'000'000'000;  // of tensors in one file
};

// Writes `target` (complete or not at all) from the checkpoint, run folder or Hugging Face folder
// `source`. Cut off, it leaves its finished files beside the target and goes on from them when it is
// called again. Throws Error: kInvalidArgument for a target that is not empty, kUnsupported where the
// layout cannot express the model.
void convert_model(const std::string& source, const std::string& target,
                   const ConvertOptions& options);

}  // namespace dropless::train
