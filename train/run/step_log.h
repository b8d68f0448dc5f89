// `metrics.jsonl`: one JSON object per line, one line per optimiser step and one per evaluation.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace dropless::train {

class MetricsFile {
 public:
  // Opens RUN_FOLDER/metrics.jsonl for appending and drops all lines of later steps than
  // `last_step` (and a torn last line), so that a resumed run has each step once.
  MetricsFile(const std::string& run_folder, std::int64_t last_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  // Appends one line in one write. Throws Error(kResource) when the disk refuses.
  void append(const nlohmann::ordered_json& line);
  void sync();  // fsync, before a checkpoint of the same step is published

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace dropless::train
