#include "train/optim/clip_config.h"

#include <string>

namespace dropless::train {

ClipConfig ClipConfig::from_yaml(const YamlMap& map) {
  ClipConfig config;
  const std::string type = map.get<std::string>("clipping_type");
  if (type == "norm") {
    config.type = ClipType::kNorm;
  } else if (type == "value") {
    config.type = ClipType::kValue;
  } else if (type == "adaptive") {
    config.type = ClipType::kAdaptive;
  } else {
    map.fail("clipping_type", "unknown clipping_type " + type, "one of: norm, value, adaptive");
  }
  config.threshold = map.positive<double>("clipping_threshold");
  map.finish();
  return config;
}

}  // namespace dropless::train
