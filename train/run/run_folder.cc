#include "train/run/run_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/manifest.h"

namespace dropless::train {
namespace {

std::string time_stamp() {
  char stamp[32];
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  std::strftime(stamp, sizeof(stamp), "%Y%m%d-%H%M%S", localtime_r(&now, &parts));
  return fmt::format("{}-{}", stamp, ::getpid());  // runs begun in one second stay apart
}

bool is_link(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_symlink(std::filesystem::symlink_status(path, error));
}

}  // namespace

std::string metrics_path(const std::string& run_folder) {
  return join_path(run_folder, "metrics.jsonl");
}

std::string samples_path(const std::string& run_folder) {
  return join_path(run_folder, "samples.jsonl");
}

void check_variables(const std::string& text, const std::vector<std::string>& known) {
  for (std::size_t at = 0; (at = text.find_first_of("{}", at)) != text.npos;) {
    const std::size_t end = text[at] == '{' ? text.find('}', at) : text.npos;
    const std::string word = text.substr(at, end == text.npos ? end : end - at + 1);
    if (std::find(known.begin(), known.end(), word) == known.end()) {
      throw Error(
          ErrorKind::kInvalidArgument, fmt::format("nothing is filled in for {} in {}", word, text),
          fmt::format("{} is; other braces are no part of a name here", fmt::join(known, " or ")));
    }
    at = end + 1;
  }
}

std::string RunFolder::name(const std::string& save_folder, const std::string& run_name) {
  if (save_folder.empty()) return "runs/" + (run_name.empty() ? time_stamp() : run_name);
  std::string name = save_folder;
  constexpr std::string_view kVariable = "{run_name}";
  if (const auto at = name.find(kVariable); at != std::string::npos) {
    if (run_name.empty()) {
      throw Error(ErrorKind::kInvalidArgument, "{run_name} needs run_name to be set");
    }
    name.replace(at, kVariable.size(), run_name);
  }
  check_variables(name, {"{run_name}"});
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  return name;
}

void RunFolder::check_name(const std::string& path) {
  const auto refuse = [&](const std::string& why, const std::string& hint) {
    throw Error(ErrorKind::kInvalidArgument, "run folder " + path + ": " + why, hint);
  };
  const std::string elsewhere = "name another save_folder";
  if (path.find("://") != std::string::npos) {
    refuse("checkpoints are saved in folders of this machine", elsewhere + ", and copy from there");
  }
  // The part of the path that is there already must be a folder.
  std::string part = path;
  while (!path_exists(part)) {
    if (is_link(part)) {
      refuse(part + " is a link to nothing", "mend or remove the link, or " + elsewhere);
    }
    const std::string parent = parent_folder(part);
    if (parent == part) break;
    part = parent;
  }
  if (!is_folder(part)) {
    refuse(part + " is not a folder", "move it out of the way, or " + elsewhere);
  }
  if (::access(part.c_str(), W_OK | X_OK) != 0) {
    refuse("no right to write in " + part, elsewhere);
  }
}

RunFolder::RunFolder(const std::string& path, const Policy& policy) : path_(path), policy_(policy) {
  for (std::string part = path_; !path_exists(part); part = parent_folder(part)) {
    made_.push_back(part);
  }
  try {
    make_folders(path_);
  } catch (const Error& error) {
    if (std::string_view(error.what()).find(std::generic_category().message(ENOSPC)) !=
        std::string_view::npos) {
      throw;
    }
    throw Error(ErrorKind::kInvalidArgument, error.what(), "name another save_folder");
  }
  lock_.emplace(path_);
  check_latest(path_);
  for (const std::string& log :
       {metrics_path(path_), samples_path(path_), join_path(path_, "events.jsonl")}) {
    const bool there = path_exists(log);
    if (!there && !is_link(log)) continue;
    const bool regular = there && std::filesystem::is_regular_file(log);
    if (regular && ::access(log.c_str(), R_OK | W_OK) == 0) continue;
    throw Error(ErrorKind::kInvalidArgument,
                regular ? "no right to read and write " + log
                : there ? log + " is not a regular file"
                        : log + " is a link to nothing",
                "mend that, or name another save_folder");
  }
  for (const std::string& line : sweep_stale(path_)) log_warning("{}", line);
  if (policy_.overwrite) check_old_run();
  if (policy_.overwrite || policy_.resume) return;
  if (!list_steps(path_).empty()) {
    throw Error(ErrorKind::kInvalidArgument, "run folder " + path_ + " holds another run",
                "autoresume=true goes on with it, save_overwrite=true removes it, "
                "save_folder=DIR puts this run elsewhere");
  }
  // A run that ended before its first save, or never began.
  const std::string metrics = metrics_path(path_);
  if (path_exists(metrics) && file_bytes(metrics) > 0) {
    std::string aside = metrics + ".old";
    for (int number = 2; path_exists(aside); ++number) {
      aside = metrics + ".old-" + std::to_string(number);
    }
    rename_path(metrics, aside);
    log_warning("{} is of a run that saved no checkpoint; it is now {}", metrics, aside);
  }
}

RunFolder::~RunFolder() {
  if (!in_place()) return;  // what stands there now is somebody else's
  for (const std::string& folder : made_) {
    if (::rmdir(folder.c_str()) != 0) return;  // holds something
  }
}

void RunFolder::check_old_run() const {
  for (const std::int64_t step : list_steps(path_)) {
    const std::string folder = join_path(path_, step_folder_name(step));
    if (!is_link(folder) && path_exists(join_path(folder, kManifestName))) continue;
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("save_overwrite would remove {}, which is {}", folder,
                            is_link(folder) ? "a link" : "no checkpoint: it has no manifest"),
                "move it away, or name another save_folder");
  }
}

std::optional<std::string> RunFolder::newest_good() const {
  const NewestGood newest = find_newest_good(path_);
  for (const RejectedCheckpoint& rejected : newest.rejected) {
    log_warning("{} is not used: {}", rejected.folder, rejected.reason);
  }
  if (!newest.folder && !newest.rejected.empty()) {
    throw Error(ErrorKind::kDamaged, "no checkpoint under " + path_ + " verifies",
                "restore one of them, or start anew in another save_folder");
  }
  return newest.folder;
}

void RunFolder::check_in_place() const {
  if (in_place()) return;
  throw Error(ErrorKind::kDamaged, "run folder " + path_ + " was removed or replaced while in use",
              "nothing more is saved there");
}

void RunFolder::remove_old_run(const std::string& kept) {
  if (!kept.empty() && holds(kept)) kept_ = base_name(kept);
  const std::string latest = join_path(path_, "latest");
  if (kept_.empty()) {
    remove_all(latest);
  } else {
    replace_symlink(latest, kept_);
  }
  for (const std::int64_t step : list_steps(path_)) {
    const std::string name = step_folder_name(step);
    if (name != kept_) remove_checkpoint(join_path(path_, name));
  }
  remove_all(metrics_path(path_));
  remove_all(samples_path(path_));
}

void RunFolder::remove_kept(const std::string& saved) {
  if (kept_.empty()) return;
  // A save of the same step has taken its place.
  if (base_name(saved) != kept_) remove_checkpoint(join_path(path_, kept_));
  kept_.clear();
}

void RunFolder::settle(const std::string& checkpoint) const {
  if (point_latest(path_, checkpoint)) {
    log_warning("{} did not name the newest checkpoint that verifies; now it names {}",
                join_path(path_, "latest"), base_name(checkpoint));
  }
  prune();
}

void RunFolder::prune() const { prune_checkpoints(path_, policy_.keep); }

}  // namespace dropless::train
