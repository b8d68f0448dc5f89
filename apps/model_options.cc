#include "apps/model_options.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "dropless/error.h"
#include "train/bridge/device.h"

namespace dropless::apps {

using namespace train;

void ModelOptions::add_to(CLI::App& verb) {
  device_option_ =
      verb.add_option("--device", device, "cpu, cuda, cuda:N or auto")->capture_default_str();
  dtype_option_ = verb.add_option("--dtype", dtype, "fp32, bf16 or fp16 for the matrix products")
                      ->capture_default_str();
  verb.add_option("--adapter", adapter,
                  "folder of a LoRA adapter that PEFT saved, to stand beside the weights");
}

Precision parse_dtype(const std::string& dtype) {
  if (dtype == "fp32") return Precision::kFp32;
  if (dtype == "bf16") return Precision::kAmpBf16;
  if (dtype == "fp16") return Precision::kAmpFp16;
  throw Error(ErrorKind::kInvalidArgument, "unknown dtype " + dtype, "one of: fp32, bf16, fp16");
}

LoadedModel ModelOptions::open(const std::string& path) const {
  return load_model(path, choose_device(device), adapter, parse_dtype(dtype));
}

void name_ruined_weights(const LoadedModel& loaded, const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kNonFinite) throw;
    const std::string ruined = ruined_weights(loaded.folder, *loaded.model);
    if (ruined.empty()) {
      throw Error(
          error.kind(), error.what(),
          "its weights are finite numbers, which overflow on the way: --dtype fp32 has more "
          "room than fp16; else take an older checkpoint");
    }
    throw Error(error.kind(), fmt::format("{}: {}", error.what(), ruined),
                "take an older checkpoint, or another copy of the weights");
  }
}

}  // namespace dropless::apps
