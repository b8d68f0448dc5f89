// What a person reads before the first step.
#pragma once

#include <cstdint>
#include <string>

#include "train/nn/transformer.h"
#include "train/optim/schedule.h"
#include "train/run/config.h"

namespace dropless::train {

std::string format_count(double value);  // "1.88 B", "131.6 M", "12,345"
std::string format_bytes(double bytes);  // "1.5 GiB"

// Several lines: model, memory, data, length, device.
std::string training_summary(const TrainConfig& config, const Transformer& model,
                             const TextLoader& loader, const TrainingLength& length);

}  // namespace dropless::train
