#include "train/base/fs.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "dropless/error.h"
#include "train/base/failpoint.h"

namespace dropless::train {
namespace {

std::string errno_text(int number) { return std::generic_category().message(number); }

// Runs a system call that returns -1 on error, again after a signal; the fail point may speak
// first.
template <class Call>
int changing(const char* operation, const std::string& path, Call&& call) {
  if (const int injected = fail_point(operation, path)) {
    errno = injected;
    return -1;
  }
  int result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

[[noreturn]] void throw_unreadable(const std::string& path, int number) {
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("cannot read {}: {}", path, errno_text(number)));
}

}  // namespace

// ---- paths ----

bool path_exists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0;
}

bool is_folder(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

std::string parent_folder(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  const std::size_t slash = path.rfind('/', end);
  if (slash == std::string::npos) return ".";
  const std::size_t last = path.find_last_not_of('/', slash);
  return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

std::string base_name(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "" : "/";
  const std::size_t slash = path.rfind('/', end);
  const std::size_t begin = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(begin, end + 1 - begin);
}

std::string join_path(const std::string& folder, const std::string& name) {
  if (folder.empty() || folder.back() == '/') return folder + name;
  return folder + "/" + name;
}

std::vector<std::string> list_folder(const std::string& path) {
  DIR* folder = ::opendir(path.c_str());
  if (folder == nullptr) throw_unreadable(path, errno);
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(folder)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  ::closedir(folder);
  std::sort(names.begin(), names.end());
  return names;
}

bool is_taken(const std::string& path) {
  return path_exists(path) && (!is_folder(path) || !list_folder(path).empty());
}

// ---- reading ----

std::string read_file(const std::string& path, std::uint64_t max_bytes) {
  const FileReader reader(path);
  if (reader.bytes() > max_bytes) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("{} has {} bytes; at most {} are read", path, reader.bytes(), max_bytes),
        "is this the right file?");
  }
  std::string text(reader.bytes(), '\0');
  reader.read(0, text.data(), text.size());
  return text;
}

std::uint64_t file_bytes(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) throw_unreadable(path, errno);
  return static_cast<std::uint64_t>(info.st_size);
}

std::string file_stamp(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return path;
  // Whoever puts a file's time of change back cannot put back that of its inode; and clocks tick too slowly for a file
  // that another takes the place of at once.
  return fmt::format("{} {} {} {}{:09} {}{:09}", path, info.st_size, info.st_ino,
                     info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_ctim.tv_sec,
                     info.st_ctim.tv_nsec);
}

FileReader::FileReader(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: a named pipe must not hang us before fstat can refuse it; no effect on regular
  // files.
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ == -1) throw_unreadable(path_, errno);
  struct stat info;
  const bool known = ::fstat(fd_, &info) == 0;
  if (!known || !S_ISREG(info.st_mode)) {
    const int number = errno;
    ::close(fd_);
    fd_ = -1;
    if (!known) throw_unreadable(path_, number);
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("cannot read {}: {}", path_,
                    S_ISDIR(info.st_mode) ? "it is a folder" : "it is not a regular file"),
        S_ISFIFO(info.st_mode) ? "write what the pipe carries to a file first" : "name a file");
  }
  bytes_ = static_cast<std::uint64_t>(info.st_size);
}

FileReader::~FileReader() {
  if (fd_ != -1) ::close(fd_);
}

FileReader::FileReader(FileReader&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), bytes_(other.bytes_) {}

FileReader& FileReader::operator=(FileReader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void FileReader::read(std::uint64_t offset, void* data, std::size_t bytes) const {
  char* out = static_cast<char*>(data);
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(fd_, out + done, bytes - done, static_cast<off_t>(offset + done));
    if (got == -1 && errno == EINTR) continue;
    if (got == -1) {
      throw Error(ErrorKind::kDamaged, fmt::format("cannot read {} at byte {}: {}", path_,
                                                   offset + done, errno_text(errno)));
    }
    if (got == 0) {
      throw Error(ErrorKind::kDamaged, fmt::format("{} ends at byte {}, {} bytes early", path_,
                                                   offset + done, bytes - done));
    }
    done += static_cast<std::size_t>(got);
  }
}

std::shared_ptr<std::byte> FileReader::map() const {
  if (bytes_ == 0) return nullptr;
  void* address =
      ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd_, 0);
  if (address == MAP_FAILED) throw_errno("map", path_, errno);
  return {static_cast<std::byte*>(address),
          [bytes = bytes_](std::byte* at) { ::munmap(at, bytes); }};
}

// ---- changing the disk ----

TemporaryFolder::TemporaryFolder()
    : path_((std::filesystem::temp_directory_path() / "dropless-XXXXXX").string()) {
  if (::mkdtemp(path_.data()) == nullptr) throw_errno("make a folder", path_, errno);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void throw_errno(const std::string& action, const std::string& path, int error_number,
                 std::uint64_t needed) {
  std::string message = fmt::format("cannot {} {}: {}", action, path, errno_text(error_number));
  std::string hint;
  if (error_number == ENOSPC || error_number == EDQUOT) {
    struct statvfs info;
    const std::string folder = parent_folder(path);
    message += needed != 0 ? fmt::format("; needed {} bytes", needed)
                           : std::string("; needed room for a name in its folder");
    if (::statvfs(folder.c_str(), &info) == 0) {
      message +=
          fmt::format(", {} bytes free", static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize);
    }
    hint = "free some space, or write elsewhere";
  } else if (error_number == EFBIG) {
    struct rlimit limit;
    if (needed != 0) message += fmt::format("; needed {} bytes", needed);
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
      message += fmt::format("{} a file may have {}", needed != 0 ? "," : ";",
                             static_cast<std::uint64_t>(limit.rlim_cur));
      hint = "raise the limit of this shell (ulimit -f), or write elsewhere";
    }
  }
  throw Error(ErrorKind::kResource, message, hint);
}

void make_folders(const std::string& path) {
  if (is_folder(path)) return;
  const std::string parent = parent_folder(path);
  if (parent != path) make_folders(parent);
  const int made = changing("mkdir", path, [&] { return ::mkdir(path.c_str(), 0777); });
  if (made == -1 && errno == EEXIST) {
    if (is_folder(path)) return;  // another process was first
    errno = ENOTDIR;
  }
  if (made == -1) throw_errno("create folder", path, errno);
  fsync_path(parent);
}

void remove_all(const std::string& path) {
  if (fail_point("remove", path) != 0) throw_errno("remove", path, ENOSPC);
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) throw_errno("remove", path, error.value());
}

void fsync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd == -1) throw_errno("open", path, errno);
  const int synced = changing("fsync", path, [&] { return ::fsync(fd); });
  const int number = errno;
  ::close(fd);
  // Some network file systems cannot fsync a folder and say EINVAL; they have nothing to lose
  // there.
  if (synced == -1 && number != EINVAL) throw_errno("fsync", path, number);
}

void rename_path(const std::string& from, const std::string& to) {
  const int renamed = changing("rename", from, [&] { return ::rename(from.c_str(), to.c_str()); });
  if (renamed == -1) throw_errno("rename " + from + " to", to, errno);
  fsync_path(parent_folder(to));
}

void replace_symlink(const std::string& link, const std::string& target) {
  const std::string temporary = link + ".tmp";
  if (::unlink(temporary.c_str()) == -1 && errno != ENOENT) throw_errno("remove", temporary, errno);
  const int made =
      changing("symlink", temporary, [&] { return ::symlink(target.c_str(), temporary.c_str()); });
  if (made == -1) throw_errno("create symlink", temporary, errno);
  rename_path(temporary, link);
}

bool exchange_paths(const std::string& a, const std::string& b) {
  const int exchanged = changing("exchange", a, [&] {
    return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE);
  });
  if (exchanged == 0) {
    fsync_path(parent_folder(b));
    return true;
  }
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  throw_errno("exchange " + a + " with", b, errno);
}

std::string publish_folder(const std::string& temporary, const std::string& final_path,
                           const std::string& aside) {
  if (!path_exists(final_path)) {
    rename_path(temporary, final_path);
    return {};
  }
  if (exchange_paths(temporary, final_path)) return temporary;
  remove_all(aside);
  rename_path(final_path, aside);
  rename_path(temporary, final_path);
  return aside;
}

void write_new_file(const std::string& path, std::string_view bytes) {
  FileWriter writer(path);
  writer.write(bytes.data(), bytes.size());
  writer.finish();
}

void write_file_durable(const std::string& path, std::string_view bytes) {
  const std::string temporary = path + ".tmp";
  try {
    write_new_file(temporary, bytes);
    rename_path(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

std::uint64_t free_bytes(const std::string& path) {
  struct statvfs info;
  if (::statvfs(path.c_str(), &info) != 0) throw_errno("look at", path, errno);
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

void require_free(const std::string& path, std::uint64_t needed, const std::string& what) {
  const std::uint64_t available = free_bytes(path);
  if (available >= needed) return;
  throw Error(ErrorKind::kResource,
              fmt::format("no room for {} in {}: needed {} bytes, {} bytes free", what, path,
                          needed, available),
              "free some space, or write elsewhere");
}

FileWriter::FileWriter(std::string path) : path_(std::move(path)) {
  fd_ = changing("create", path_, [&] {
    return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  });
  if (fd_ == -1) throw_errno("create", path_, errno);
}

FileWriter::~FileWriter() {
  if (fd_ != -1) ::close(fd_);
}

void FileWriter::write(const void* data, std::size_t bytes) {
  const char* from = static_cast<const char*>(data);
  std::size_t done = 0;
  while (done < bytes) {
    // A write may stop short at 2 GiB or at a full disk: go on, the next call says why.
    if (fail_point("write", path_) != 0) throw_errno("write", path_, ENOSPC, bytes - done);
    const ssize_t wrote = ::write(fd_, from + done, bytes - done);
    if (wrote == -1 && errno == EINTR) continue;
    if (wrote == -1) throw_errno("write", path_, errno, bytes - done);
    done += static_cast<std::size_t>(wrote);
    bytes_ += static_cast<std::uint64_t>(wrote);
  }
}

void FileWriter::finish() {
  if (changing("fsync", path_, [&] { return ::fsync(fd_); }) == -1) {
    throw_errno("fsync", path_, errno, bytes_);
  }
  // NFS reports a full disk only here.
  if (::close(std::exchange(fd_, -1)) == -1) throw_errno("close", path_, errno, bytes_);
}

FolderLock::FolderLock(const std::string& folder)
    : fd_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (fd_ < 0) throw_errno("open", folder, errno);
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
  const int error_number = errno;
  ::close(fd_);
  if (error_number != EWOULDBLOCK) throw_errno("lock", folder, error_number);
  throw Error(ErrorKind::kInvalidArgument, folder + " is in use by another process",
              "wait for it or stop it; or choose another folder");
}

FolderLock::~FolderLock() { ::close(fd_); }

bool FolderLock::names(const std::string& folder) const {
  struct stat locked = {}, named = {};
  if (::fstat(fd_, &locked) != 0) throw_errno("look at", folder, errno);
  return ::stat(folder.c_str(), &named) == 0 && locked.st_dev == named.st_dev &&
         locked.st_ino == named.st_ino;
}

}  // namespace dropless::train
