// `dropless version [--json]`
#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <torch/headeronly/version.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/verbs.h"
#include "dropless/version.h"
#include "train/bridge/device.h"

namespace dropless::apps {

using namespace train;

namespace {

std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) features.push_back("avx2");
  if (__builtin_cpu_supports("fma")) features.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) features.push_back("avx512f");
  if (__builtin_cpu_supports("avx512bf16")) features.push_back("avx512bf16");
  if (__builtin_cpu_supports("amx-bf16")) features.push_back("amx-bf16");
#endif
  return features;
}

void run_version(bool as_json) {
  nlohmann::ordered_json json;
  json["version"] = DROPLESS_VERSION;
  json["commit"] = DROPLESS_COMMIT;
  json["torch"] = TORCH_VERSION;
  json["cuda"] = nullptr;  // the toolkit that compiled our kernels
  if (DROPLESS_HAS_CUDA_KERNELS) json["cuda"] = DROPLESS_CUDA_VERSION;
  json["gpu"] = nullptr;  // of this machine
  if (cuda_available()) json["gpu"] = describe_device(at::Device(at::kCUDA, 0));
  json["cpu_features"] = cpu_features();
  json["backends"] = nlohmann::json::array({"reference", "cpu", "torch"});
  if (DROPLESS_HAS_CUDA_KERNELS) json["backends"].push_back("cuda");
  if (as_json) {
    std::cout << json.dump() << "\n";
    return;
  }
  std::cout << "dropless " << DROPLESS_VERSION << " (" << DROPLESS_COMMIT << ")\n"
            << "torch " << TORCH_VERSION << "\n"
            << "GPU: " << (json["gpu"].is_null() ? "none" : json["gpu"].get<std::string>())
            << "\nCPU features:";
  for (const std::string& feature : cpu_features()) std::cout << " " << feature;
  std::cout << "\nkernels:";
  for (const auto& backend : json["backends"]) std::cout << " " << backend.get<std::string>();
  std::cout << "\n";
}

}  // namespace

void add_version_verb(CLI::App& app) {
  auto as_json = std::make_shared<bool>(false);
  CLI::App* verb = app.add_subcommand("version", "Version, commit, torch, CPU features, backends");
  verb->footer("Example: dropless version --json");
  verb->add_flag("--json", *as_json, "one JSON document");
  verb->callback([as_json] { run_version(*as_json); });
}

}  // namespace dropless::apps
