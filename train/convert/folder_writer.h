// A model folder being written: beside its target, whose name it takes when it is whole. What a
// conversion that was cut off has finished stays there, and the same conversion goes on from it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/base/fs.h"
#include "train/checkpoint/checkpoint.h"

namespace dropless::train {

class FolderWriter {
 public:
  // `plan` says all that decides what the files will hold: finished files of another plan are
  // removed. Throws Error(kInvalidArgument) where `target` is a file or, unless `overwrite`, not
  // empty, and where another process writes it.
  FolderWriter(std::string target, bool overwrite, const std::string& plan);
  // Not published: keeps finished tensor files and says so; without any, removes everything.
  ~FolderWriter();
  FolderWriter(const FolderWriter&) = delete;
  FolderWriter& operator=(const FolderWriter&) = delete;

  const std::string& folder() const { return temporary_; }
  // Whether a tensor file stands already; its bytes count as written.
  bool has(const std::string& name) const { return finished_.contains(name); }
  std::size_t finished_files() const { return finished_.size(); }
  std::uint64_t finished_bytes() const;
  // A tensor file that was written under folder() and fsynced.
  void add_tensors(const std::string& name, const WrittenFile& file);
  void add_text(const std::string& name, std::string_view text);
  void add_manifest();
  void publish();

 private:
  void load_journal();
  void write_journal() const;

  std::string target_, temporary_, plan_;
  std::optional<FolderLock> lock_;
  std::map<std::string, WrittenFile> finished_;  // tensor files
  std::vector<CheckpointFile> texts_;
  bool published_ = false;
};

}  // namespace dropless::train
