// The folder of one run: its name, who may write to it, and what is removed from it when.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/base/fs.h"

namespace dropless::train {

class RunFolder {
 public:
  // `save_folder` with {run_name} filled in; where it is empty, runs/<run_name or the time>. Throws
  // Error(kInvalidArgument).
  static std::string name(const std::string& save_folder, const std::string& run_name);
  // Throws Error(kInvalidArgument) where no folder can be made; makes none.
  static void check_name(const std::string& path);

  struct Policy {
    bool overwrite = false;  // remove_old_run() will be called
    bool resume = false;     // go on with the run that is there
    int keep = -1;           // newest checkpoints that prune() leaves; -1: all
  };
  // Makes the folder, locks it against other processes and clears away what crashed saves left.
  // Another run's checkpoints in it, which the policy neither replaces nor resumes, are
  // kInvalidArgument; the metrics of a run that saved none are renamed to metrics.jsonl.old (.old-2 ...).
  RunFolder(const std::string& path, const Policy& policy);
  // Removes what the constructor made and nobody has filled.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  bool holds(const std::string& checkpoint) const { return parent_folder(checkpoint) == path_; }
  // The newest checkpoint that verifies, with a warning for each newer one that does not; nullopt
  // where there is none at all. Throws Error(kDamaged) where there are some and none verifies.
  std::optional<std::string> newest_good() const;
  // Throws Error(kDamaged) where the folder was removed or replaced since it was locked: what is
  // there now may be another run's.
  void check_in_place() const;
  bool in_place() const { return lock_->names(path_); }
  // Removes the checkpoints and metrics of the run that was there before, but for `kept`, one of its
  // checkpoints or "": what this run goes on from stands until remove_kept(), after its first save,
  // of which `saved` came.
  void remove_old_run(const std::string& kept);
  void remove_kept(const std::string& saved);
  void prune() const;
  // The run goes on from `checkpoint`, one of this folder: does what the save of it had left to do
  // where it was cut off after publishing it, `latest` and prune().
  void settle(const std::string& checkpoint) const;

 private:
  // Throws Error(kInvalidArgument) where what remove_old_run() would remove is no checkpoint.
  void check_old_run() const;

  std::string path_;
  std::vector<std::string>
      made_;  // the folder and those above it that were not there, deepest first
  Policy policy_;
  std::optional<FolderLock> lock_;
  std::string kept_;
};

// Throws Error(kInvalidArgument) where `text` holds a word in braces that is none of `known`, or a brace
// without its other.
void check_variables(const std::string& text, const std::vector<std::string>& known);

// RUN_FOLDER/metrics.jsonl, RUN_FOLDER/samples.jsonl
std::string metrics_path(const std::string& run_folder);
std::string samples_path(const std::string& run_folder);

}  // namespace dropless::train
