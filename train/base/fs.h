// Files that survive a crash: durable writes, exact errno texts, free-space checks.
//
// Every operation that changes the disk is a fail point (failpoint.h), so that tests can kill the
// process at each of them. Errors: kInvalidArgument for an absent or unreadable path given by the
// user, kResource for what the operating system refuses later; a full disk names the path, the
// needed and the free bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dropless::train {

bool path_exists(const std::string& path);  // follows symlinks
bool is_folder(const std::string& path);
std::string parent_folder(const std::string& path);  // "." for a bare name
std::string base_name(const std::string& path);
std::string join_path(const std::string& folder, const std::string& name);
std::vector<std::string> list_folder(const std::string& path);  // names without . and .., sorted
bool is_taken(const std::string& path);  // something is there, other than an empty folder

// The whole file; more than max_bytes is kInvalidArgument.
std::string read_file(const std::string& path, std::uint64_t max_bytes = UINT64_MAX);
std::uint64_t file_bytes(const std::string& path);
// "PATH SIZE MTIME CTIME", the times in nanoseconds: another text once the file has changed, as far as a look at
// its folder tells. "PATH" where it is no regular file.
std::string file_stamp(const std::string& path);

void make_folders(
    const std::string& path);  // like mkdir -p; each new level is fsynced into its parent
void remove_all(const std::string& path);  // absent: nothing; never follows symlinks
void fsync_path(const std::string& path);  // a file or a folder
void rename_path(const std::string& from, const std::string& to);  // then fsyncs the parent of `to`
// Makes `link` a symlink to `target` in one step (temporary link + rename), then fsyncs its parent.
void replace_symlink(const std::string& link, const std::string& target);
// Swaps two paths of one file system in one step; false where the file system cannot.
bool exchange_paths(const std::string& a, const std::string& b);
// Gives a complete temporary folder its name. Where that name is taken, the two swap in one step,
// or, on a file system without that, the old one steps aside first, to `aside`. Returns the folder
// that holds what was replaced, for the caller to remove; empty when nothing was.
std::string publish_folder(const std::string& temporary, const std::string& final_path,
                           const std::string& aside);

// Fsynced, but not into its folder: for one that is published as a whole.
void write_new_file(const std::string& path, std::string_view bytes);
// Old content or new content, whatever happens: temporary sibling, fsync, rename, fsync of the
// folder.
void write_file_durable(const std::string& path, std::string_view bytes);

std::uint64_t free_bytes(
    const std::string& path);  // for an unprivileged writer, on path's file system
// Throws kResource when fewer than `needed` bytes are free; `what` is "checkpoint step-40".
void require_free(const std::string& path, std::uint64_t needed, const std::string& what);

// Throws kResource "cannot ACTION PATH: errno text", with the free bytes when the disk is full.
[[noreturn]] void throw_errno(const std::string& action, const std::string& path, int error_number,
                              std::uint64_t needed = 0);

// A new file, written front to back. Not finished: the destructor closes it and leaves it as it is.
class FileWriter {
 public:
  explicit FileWriter(std::string path);  // creates or truncates
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void write(const void* data, std::size_t bytes);
  void finish();  // fsync and close
  std::uint64_t bytes() const { return bytes_; }

 private:
  std::string path_;
  int fd_ = -1;
  std::uint64_t bytes_ = 0;
};

// A new folder under $TMPDIR, removed with all in it at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Random access by pread: a file that shrinks under us gives an error, where a mapping gives SIGBUS.
class FileReader {
 public:
  explicit FileReader(std::string path);  // a regular file, else kInvalidArgument
  ~FileReader();
  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&& other) noexcept;
  // Exactly `bytes` at `offset`; fewer are kDamaged.
  void read(std::uint64_t offset, void* data, std::size_t bytes) const;
  // The whole file in memory, read as it is touched; writing to it changes no file. It outlives the
  // reader. A file that somebody cuts short meanwhile ends the process by SIGBUS. Null for an empty one;
  // kResource where the system refuses.
  std::shared_ptr<std::byte> map() const;
  std::uint64_t bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_ = -1;
  std::uint64_t bytes_ = 0;
};

// Keeps other processes that ask for the same lock out of a folder, until it is destroyed or the
// process ends in any way. Held by another: kInvalidArgument.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  // Whether `folder` still names the folder that is locked: it may have been removed or replaced.
  bool names(const std::string& folder) const;

 private:
  int fd_ = -1;
};

}  // namespace dropless::train
