// `report.html`: one page without any network access that shows runs; written as training goes.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/report/history.h"

namespace dropless::train {

// What a page shows of `runs` (RunHistory::json), as one JSON document. A `live` page keeps asking
// its server for a newer one, under data.json.
std::string report_data(const std::vector<nlohmann::ordered_json>& runs, bool live = false);

// The page itself. Nothing in the data can become markup.
std::string report_page(const std::string& data, bool live = false);

// The page of what stands in these run folders, for all of them together at most some megabytes.
// Throws Error(kInvalidArgument) for a folder without metrics.
std::string report_of_folders(const std::vector<std::string>& folders);

// Old content or new content, but without waiting for the disk: a page can be made again. Throws
// Error(kInvalidArgument) where the folder is missing, kResource.
void write_report(const std::string& path, const std::string& page);

// Keeps RUN_FOLDER/report.html and events.jsonl while a run goes. Nothing here stops a run: what
// fails is one warning.
class ReportWriter {
 public:
  // `step`: where the run begins; 0 starts its events anew.
  ReportWriter(std::string run_folder, std::string config_yaml, std::int64_t step);

  // "save", "resume", ...; they stand in the page and mark its curves.
  void event(const std::string& name, std::int64_t step, const std::string& detail = "");
  void update();  // writes the page, where 30 s have passed since the last one
  void finish();  // writes it

 private:
  template <class Write>
  void attempt(const Write& write);

  std::string folder_, config_yaml_;
  RunHistory history_;
  std::optional<std::chrono::steady_clock::time_point> written_;
  bool warned_ = false;
};

}  // namespace dropless::train
