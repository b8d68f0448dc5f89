// What a person reads before the first step.
#pragma once

#include <cstdint>
#include <string>

#include "train/nn/transformer.h"
#include "train/optim/schedule.h"
#include "train/run/config.h"

namespace dropless::train {

// LLM Foundry's formula: three times (2 n_active + 4 n_layers d_model seq_len), n_active without the
// embedding table where the output has a matrix of its own.
double training_flops_per_token(const ModelConfig& config, const ParameterCount& count,
                                std::int64_t seq_len);
// Of dense bf16 products, as the vendor gives it; 0 for devices that are not listed.
double peak_bf16_flops(at::Device device);

std::string format_count(double value);  // "1.88 B", "131.6 M", "12,345"
std::string format_bytes(double bytes);  // "1.5 GiB"

// Several lines: model, memory, data, length, device.
std::string training_summary(const TrainConfig& config, const Transformer& model,
                             const TextLoader& loader, const TrainingLength& length);

}  // namespace dropless::train
