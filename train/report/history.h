// What a run folder tells of its run, in bounded memory: the curves of metrics.jsonl, the sample
// texts of samples.jsonl, the events of events.jsonl.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/report/series.h"

namespace dropless::train {

// The complete lines that were appended to a file since the last call.
class LineReader {
 public:
  explicit LineReader(std::string path) : path_(std::move(path)) {}
  // Calls `take(std::string_view line)` for each; nothing where the file is absent. Returns false,
  // before the first of them, where what was read is no longer there: it is another file, read from
  // its start.
  template <class Take>
  bool read(const Take& take);
  // Complete lines that are longer than any true one.
  std::int64_t oversized() const { return oversized_; }

 private:
  std::string path_;
  std::uint64_t offset_ = 0;  // of the first line not yet taken
  std::string tail_;          // what stands before it
  std::int64_t oversized_ = 0;
};

class RunHistory {
 public:
  explicit RunHistory(const std::string& folder);
  // Reads what was appended since the last call; lines that are no JSON object with a step are
  // skipped and counted.
  void read();
  bool has_metrics() const { return !series_.empty(); }
  // Grows whenever read() has found something new.
  std::int64_t version() const { return version_; }
  // One run of the page's data, from at most `most_points` buckets over all curves.
  nlohmann::ordered_json json(const std::string& name, const std::string& config_yaml,
                              std::size_t most_points) const;

 private:
  struct Samples {
    std::int64_t step = 0;
    std::vector<std::pair<std::string, std::string>> texts;  // prompt, what follows
  };
  bool read_files();
  void take_metrics(std::string_view line);
  void take_sample(std::string_view line);
  void take_event(std::string_view line);
  void add_event(nlohmann::ordered_json event);
  void add_value(const std::string& key, std::int64_t step, double value);

  std::string folder_;
  LineReader metrics_file_, samples_file_, events_file_;
  std::map<std::string, Series> series_;
  LoadMap load_;
  std::vector<Samples> samples_;
  std::int64_t sample_steps_ = 0, sample_stride_ = 1;
  std::vector<nlohmann::ordered_json> events_;
  std::int64_t events_dropped_ = 0;
  std::int64_t last_step_ = 0, broken_lines_ = 0, series_left_out_ = 0;
  std::int64_t version_ = 0;
};

}  // namespace dropless::train
