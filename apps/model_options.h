// What the verbs that run a model have in common: --device, --dtype and --adapter, and how a MODEL is opened.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

#include "train/nn/precision.h"
#include "train/run/model_files.h"

namespace dropless::apps {

// fp32, or autocast to bf16 or fp16. Throws Error(kInvalidArgument).
train::Precision parse_dtype(const std::string& dtype);

struct ModelOptions {
  std::string device = "cpu";
  std::string dtype = "fp32";
  std::string adapter;  // a folder of PEFT's; empty: none

  void add_to(CLI::App& verb);
  bool device_given() const { return device_option_->count() > 0; }
  bool dtype_given() const { return dtype_option_->count() > 0; }
  train::Precision precision() const { return parse_dtype(dtype); }
  train::LoadedModel open(const std::string& path) const;

 private:
  const CLI::Option* device_option_ = nullptr;
  const CLI::Option* dtype_option_ = nullptr;
};

// Runs it, and where it throws Error(kNonFinite) says which of the model's tensors are the cause.
void name_ruined_weights(const train::LoadedModel& loaded, const std::function<void()>& run);

}  // namespace dropless::apps
