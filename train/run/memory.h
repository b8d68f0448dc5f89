// Whether a model can fit in memory at all, asked before anything is allocated; and libtorch's
// errors, running out of memory above all, as one line.
#pragma once

#include <exception>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/nn/model_config.h"
#include "train/nn/precision.h"
#include "train/optim/optimizer_config.h"

namespace dropless::train {

inline constexpr double kWeightBytesPerParameter = 4;
// Of weight, gradient and the optimizer's moments, all of one type.
double training_bytes_per_parameter(const OptimizerConfig& optimizer, Precision precision);

// What this process could get at most: of a CPU, free memory and swap within the control group's
// limit; of a GPU, its whole memory. nullopt where the system does not say.
std::optional<double> available_bytes(at::Device device);

// Throws Error(kInvalidArgument) with both figures where the parameters alone need more than there
// is.
void require_memory(const ModelConfig& config, at::Device device, double bytes_per_parameter);

// Whether libtorch or the system had no memory to give.
bool is_out_of_memory(const std::exception& error);
// Gives what libtorch keeps of a GPU's memory for later back to it; a CPU's is not kept.
void release_cached_memory(at::Device device);
// What is in use now and was at most, for metrics.jsonl, in GB (1e9 bytes): of a GPU libtorch's
// figures (Composer's names), of a CPU the process's resident set.
std::vector<std::pair<std::string, double>> memory_in_use(at::Device device);

// libtorch's message without stack trace, its source line and advice for its Python users.
std::string torch_message(const c10::Error& error);

// Runs `action`; what libtorch throws becomes Error(kResource) without its stack trace.
template <class Action>
decltype(auto) with_torch_errors(const std::string& hint, Action&& action) {
  try {
    return std::forward<Action>(action)();
  } catch (const c10::Error& error) {
    throw Error(ErrorKind::kResource, torch_message(error), hint);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::kResource, "out of memory", hint);
  }
}

}  // namespace dropless::train
