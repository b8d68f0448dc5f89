#include "train/report/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <set>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/checkpoint/checkpoint.h"
#include "train/report/page.h"

namespace dropless::train {
namespace {

// About 25 bytes of page each.
constexpr std::size_t kMostPoints = 60'000;
constexpr auto kBetweenWrites = std::chrono::seconds(30);

std::string utc_now() {
  char text[32];
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts));
  return text;
}

// The config of the newest checkpoint; empty where there is none to read.
std::string saved_config(const std::string& folder) {
  std::vector<std::int64_t> steps = list_steps(folder);
  std::reverse(steps.begin(), steps.end());
  for (const std::int64_t step : steps) {
    const std::string path = join_path(join_path(folder, step_folder_name(step)), "config.yaml");
    if (!path_exists(path)) continue;
    try {
      return read_file(path, 16u << 20);
    } catch (const Error& error) {
      log_warning("{}", error.what());
    }
  }
  return "";
}

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void replace_mark(std::string& page, std::string_view mark, std::string_view text) {
  page.replace(page.find(mark), mark.size(), text);
}

}  // namespace

std::string report_data(const std::vector<nlohmann::ordered_json>& runs, bool live) {
  nlohmann::ordered_json data;
  data["written"] = utc_now();
  data["live"] = live;
  data["runs"] = runs;
  return data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string report_page(const std::string& data, bool live) {
  // "</script>" and "<!--" would end or change the element that holds the data.
  std::string safe;
  safe.reserve(data.size());
  for (const char c : data) {
    if (c == '<') {
      safe += "\\u003c";
    } else {
      safe += c;
    }
  }
  std::string page(kPageHtml);
  replace_mark(page, "/*CONNECT*/", live ? "'self'" : "'none'");
  replace_mark(page, "/*STYLE*/", kPageCss);
  replace_mark(page, "/*SCRIPT*/", kPageJs);
  replace_mark(page, "/*DATA*/", safe);
  return page;
}

std::string report_of_folders(const std::vector<std::string>& folders) {
  std::set<std::string> names;
  for (const std::string& folder : folders) names.insert(base_name(without_trailing_slash(folder)));
  const bool distinct = names.size() == folders.size();
  std::vector<nlohmann::ordered_json> runs;
  for (const std::string& given : folders) {
    const std::string folder = without_trailing_slash(given);
    if (!is_folder(folder)) {
      throw Error(ErrorKind::kInvalidArgument, folder + " is not a folder",
                  "name a run folder: the save_folder of a training run");
    }
    RunHistory history(folder);
    history.read();
    if (!history.has_metrics()) {
      throw Error(ErrorKind::kInvalidArgument, folder + " has no metrics.jsonl with a figure in it",
                  "name a run folder: the save_folder of a training run");
    }
    runs.push_back(history.json(distinct ? base_name(folder) : folder, saved_config(folder),
                                kMostPoints / folders.size()));
  }
  return report_page(report_data(runs));
}

void write_report(const std::string& path, const std::string& page) {
  if (is_folder(path)) {
    throw Error(ErrorKind::kInvalidArgument, path + " is a folder", "name a file to write");
  }
  if (!is_folder(parent_folder(path))) {
    throw Error(ErrorKind::kInvalidArgument, "there is no folder " + parent_folder(path));
  }
  const std::string temporary = path + ".tmp";
  errno = 0;
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(page.data(), static_cast<std::streamsize>(page.size()));
  file.close();
  if (!file) {
    const int error_number = errno;
    std::remove(temporary.c_str());
    throw_errno("write", path, error_number, page.size());
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error_number = errno;
    std::remove(temporary.c_str());
    throw_errno("replace", path, error_number);
  }
}

ReportWriter::ReportWriter(std::string run_folder, std::string config_yaml, std::int64_t step)
    : folder_(std::move(run_folder)), config_yaml_(std::move(config_yaml)), history_(folder_) {
  if (step == 0) std::remove(join_path(folder_, "events.jsonl").c_str());
  event(step == 0 ? "start" : "resume", step);
}

template <class Write>
void ReportWriter::attempt(const Write& write) {
  try {
    write();
  } catch (const std::exception& error) {
    if (!warned_) log_warning("no report is written: {}", error.what());
    warned_ = true;
  }
}

void ReportWriter::event(const std::string& name, std::int64_t step, const std::string& detail) {
  attempt([&] {
    nlohmann::ordered_json line{{"time", utc_now()}, {"step", step}, {"event", name}};
    if (!detail.empty()) line["detail"] = detail;
    const std::string path = join_path(folder_, "events.jsonl");
    errno = 0;
    std::ofstream file(path, std::ios::binary | std::ios::app);
    file << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
    file.close();
    if (!file) throw_errno("write", path, errno);
  });
}

void ReportWriter::update() {
  if (written_ && std::chrono::steady_clock::now() - *written_ < kBetweenWrites) return;
  finish();
}

void ReportWriter::finish() {
  attempt([&] {
    history_.read();
    write_report(
        join_path(folder_, "report.html"),
        report_page(report_data({history_.json(base_name(folder_), config_yaml_, kMostPoints)})));
  });
  written_ = std::chrono::steady_clock::now();
}

}  // namespace dropless::train
