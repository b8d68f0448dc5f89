#include "train/run/step_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"

namespace dropless::train {
namespace {

constexpr int kOpenFlags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;

// Calls take(line, JSON, its step) for each line; the step is nullopt for what is no whole line of one.
template <class Take>
void for_each_line(const std::string& text, Take take) {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    const bool whole = end != std::string::npos;
    const std::string line = text.substr(begin, whole ? end - begin : std::string::npos);
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    std::optional<std::int64_t> step;
    if (whole && json.is_object() && json.contains("step") && json["step"].is_number_integer()) {
      step = json["step"].get<std::int64_t>();
    }
    take(line, json, step);
    begin = whole ? end + 1 : text.size();
  }
}

// The lines up to `last_step`, and whether any was left out.
std::pair<std::string, bool> lines_up_to(const std::string& text, std::int64_t last_step) {
  std::string kept;
  bool dropped = false;
  for_each_line(
      text, [&](const std::string& line, const nlohmann::json&, std::optional<std::int64_t> step) {
        if (step && *step <= last_step) {
          kept += line + '\n';
        } else {
          dropped = true;
        }
      });
  return {kept, dropped};
}

}  // namespace

std::vector<nlohmann::json> lines_of_step(const std::string& path, std::int64_t step) {
  std::vector<nlohmann::json> lines;
  if (!path_exists(path)) return lines;
  for_each_line(read_file(path), [&](const std::string&, const nlohmann::json& json,
                                     std::optional<std::int64_t> found) {
    if (found == step) lines.push_back(json);
  });
  return lines;
}

StepLog::StepLog(std::string path, std::int64_t last_step) : path_(std::move(path)) {
  if (path_exists(path_)) {
    const auto [kept, dropped] = lines_up_to(read_file(path_), last_step);
    if (dropped) write_file_durable(path_, kept);
  }
  fd_ = ::open(path_.c_str(), kOpenFlags, 0644);
  if (fd_ < 0) throw_errno("open", path_, errno);
}

StepLog::~StepLog() {
  if (fd_ >= 0) ::close(fd_);
}

void StepLog::append(const nlohmann::ordered_json& line) {
  const std::string text = line.dump() + "\n";
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("write", path_, errno, text.size() - done);
    done += static_cast<std::size_t>(n);
  }
}

void StepLog::sync() {
  struct stat file = {};
  if (::fstat(fd_, &file) == 0 && file.st_nlink == 0) {
    log_warning("{} was removed while in use; the run goes on in a new one", path_);
    const int fresh = ::open(path_.c_str(), kOpenFlags, 0644);
    if (fresh < 0) throw_errno("open", path_, errno);
    ::close(std::exchange(fd_, fresh));
  }
  if (::fsync(fd_) != 0) throw_errno("sync", path_, errno);
}

}  // namespace dropless::train
