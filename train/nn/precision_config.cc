#include "train/nn/precision_config.h"

#include <string>

namespace dropless::train {

const char* precision_name(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return "fp32";
    case Precision::kAmpBf16:
      return "amp_bf16";
    case Precision::kAmpFp16:
      return "amp_fp16";
    case Precision::kFp64:
      return "fp64";
  }
  return "unknown";
}

Precision precision_from_yaml(const YamlMap& map) {
  const std::string name = map.get<std::string>("precision", "amp_bf16");
  for (const Precision precision :
       {Precision::kFp32, Precision::kAmpBf16, Precision::kAmpFp16, Precision::kFp64}) {
    if (name == precision_name(precision)) return precision;
  }
  map.fail("precision", "precision " + name + " is not supported by this version",
           "one of: fp32, amp_bf16, amp_fp16, fp64");
}

}  // namespace dropless::train
