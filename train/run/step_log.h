// JSON Lines that belong to steps: `metrics.jsonl`, a line per optimiser step and one per evaluation,
// and `samples.jsonl`, a line per sampled text. Each line has the key `step`.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace dropless::train {

// The lines of one step, in a file that may be absent; whatever is none is left out.
std::vector<nlohmann::json> lines_of_step(const std::string& path, std::int64_t step);

class StepLog {
 public:
  // Opens the file for appending and drops all lines of later steps than `last_step` (and a torn
  // last line), so that a resumed run has each step once.
  StepLog(std::string path, std::int64_t last_step);
  ~StepLog();
  StepLog(const StepLog&) = delete;
  StepLog& operator=(const StepLog&) = delete;

  // Appends one line in one write. Throws Error(kResource) when the disk refuses.
  void append(const nlohmann::ordered_json& line);
  // fsync, before a checkpoint of the same step is published. A file that somebody removed is begun
  // anew, with a warning.
  void sync();

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace dropless::train
