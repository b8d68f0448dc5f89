#include "train/run/interval.h"

#include <string>

namespace dropless::train {

Interval interval_from_yaml(const YamlMap& map, const char* key,
                            const std::optional<Interval>& fallback) {
  const Interval interval = map.time(key, fallback);
  if (interval.unit == TimeUnit::kSecond) {
    map.fail(key, std::string(key) + " cannot be in seconds", "use ba, ep, sp, tok or dur");
  }
  return interval;
}

}  // namespace dropless::train
