// Training time in LLM Foundry's strings: "10ba", "1ep", "3e4tok", "0.02dur", "1h30m10s".
#pragma once

#include <cstdint>
#include <string>

namespace dropless::train {

enum class TimeUnit { kBatch, kEpoch, kSample, kToken, kDuration, kSecond, kIteration };

struct Time {
  double value = 0;  // whole but for kDuration (a fraction of max_duration) and kSecond
  TimeUnit unit = TimeUnit::kBatch;

  // `^(.+)(iter|ep|ba|sp|tok|dur|sec)$`, case-insensitive, the number as a float; also "1h30m10s"
  // (seconds); a bare integer is epochs. Throws Error(kInvalidArgument).
  static Time parse(const std::string& text);
  std::string str() const;  // "10ba"; parses back to the same value
  friend bool operator==(const Time&, const Time&) = default;
};

const char* time_unit_suffix(TimeUnit unit);

}  // namespace dropless::train
