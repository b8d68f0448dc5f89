#include "train/checkpoint/checkpoint.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/log.h"
#include "train/checkpoint/manifest.h"

namespace dropless::train {
namespace {

constexpr const char* kLatest = "latest";
constexpr const char* kTemporary = ".tmp";  // being written, or on its way out
constexpr const char* kReplaced = ".old";   // the former step-N while its successor takes the name
constexpr std::uint64_t kMaxManifestBytes = 64 << 20;

// N of "step-N" + suffix; nullopt for anything else, leading zeros included.
std::optional<std::int64_t> parse_step(std::string_view name, std::string_view suffix = "") {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix) || !name.ends_with(suffix)) return std::nullopt;
  if (name.size() <= kPrefix.size() + suffix.size()) return std::nullopt;
  name = name.substr(kPrefix.size(), name.size() - kPrefix.size() - suffix.size());
  std::int64_t step = 0;
  const auto result = std::from_chars(name.data(), name.data() + name.size(), step);
  if (result.ec != std::errc() || result.ptr != name.data() + name.size() || step < 0) {
    return std::nullopt;
  }
  return std::to_string(step) == name ? std::optional(step) : std::nullopt;
}

// What `latest` points to, as a path; empty when there is no such link.
std::string read_latest(const std::string& run_folder) {
  std::error_code error;
  const auto target = std::filesystem::read_symlink(join_path(run_folder, kLatest), error);
  if (error) return {};
  return target.is_absolute() ? target.string() : join_path(run_folder, target.string());
}

bool has_manifest(const std::string& folder) {
  return path_exists(join_path(folder, kManifestName));
}

// Not through a link.
bool is_real_folder(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(std::filesystem::symlink_status(path, error));
}

Manifest load_manifest(const std::string& folder) {
  const std::string path = join_path(folder, kManifestName);
  return parse_manifest(read_file(path, kMaxManifestBytes), path);
}

struct Candidate {
  std::string folder;
  std::int64_t step = 0;
  std::int64_t sequence = -1;  // -1: the manifest cannot be read; `reason` says why
  std::string reason;
};

// All step folders, the newest first; unreadable ones last.
std::vector<Candidate> candidates(const std::string& run_folder) {
  std::vector<Candidate> all;
  for (const std::int64_t step : list_steps(run_folder)) {
    Candidate candidate{join_path(run_folder, step_folder_name(step)), step, -1, {}};
    try {
      candidate.sequence = load_manifest(candidate.folder).sequence;
    } catch (const Error& error) {
      candidate.reason = error.what();
    }
    all.push_back(std::move(candidate));
  }
  std::sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) {
    return std::pair(a.sequence, a.step) > std::pair(b.sequence, b.step);
  });
  return all;
}

}  // namespace

std::string step_folder_name(std::int64_t step) { return fmt::format("step-{}", step); }

std::vector<std::int64_t> list_steps(const std::string& run_folder) {
  std::vector<std::int64_t> steps;
  if (!is_folder(run_folder)) return steps;
  for (const std::string& name : list_folder(run_folder)) {
    const std::optional<std::int64_t> step = parse_step(name);
    if (step && is_folder(join_path(run_folder, name))) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

// ---- writing ----

CheckpointWriter::CheckpointWriter(std::string run_folder, std::int64_t step,
                                   std::uint64_t expected_bytes)
    : run_folder_(std::move(run_folder)),
      temporary_(join_path(run_folder_, step_folder_name(step) + kTemporary)),
      step_(step) {
  if (step < 0)
    throw Error(ErrorKind::kInvalidArgument, fmt::format("checkpoint of step {}", step));
  make_folders(run_folder_);
  require_free(run_folder_, expected_bytes, "checkpoint " + step_folder_name(step));
  remove_all(temporary_);
  try {
    make_folders(temporary_);
  } catch (const Error&) {
    remove_all(temporary_);  // no destructor runs for a half-made object
    throw;
  }
}

CheckpointWriter::~CheckpointWriter() {
  if (committed_) return;
  try {
    remove_all(temporary_);
  } catch (const std::exception& error) {
    log_warning("{}; the next run removes it", error.what());
  }
}

std::string CheckpointWriter::path(const std::string& file) const {
  const bool taken = std::any_of(files_.begin(), files_.end(),
                                 [&](const CheckpointFile& known) { return known.name == file; });
  if (taken || !is_plain_file_name(file)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("checkpoint file \"{}\" {}", file,
                            taken ? "is added twice" : "has no plain name"));
  }
  return join_path(temporary_, file);
}

void CheckpointWriter::add_tensors(const std::string& file, std::vector<NamedTensor> tensors,
                                   const TensorMetadata& metadata) {
  const std::string target = path(file);
  const std::uint64_t bytes = safetensors_bytes(tensors, metadata);
  require_free(temporary_, bytes, file);
  // Else the write that goes beyond it tells of its own bytes alone.
  struct rlimit limit;
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && bytes > limit.rlim_cur) {
    throw_errno("write", target, EFBIG, bytes);
  }
  const WrittenFile written = write_safetensors(target, std::move(tensors), metadata);
  files_.push_back({file, written.bytes, written.xxh3});
}

void CheckpointWriter::add_text(const std::string& file, std::string_view text) {
  write_new_file(path(file), text);
  files_.push_back({file, text.size(), xxh3_hex(text)});
}

namespace {

// What stands at a checkpoint's name and is none is somebody's: it steps aside, and is kept.
void keep_foreign(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path, error))) return;
  if (is_real_folder(path) && has_manifest(path)) return;
  std::string aside = path + ".kept";
  for (int number = 2; path_exists(aside); ++number) {
    aside = fmt::format("{}.kept-{}", path, number);
  }
  rename_path(path, aside);
  log_warning("{} was no checkpoint; it is now {}", path, aside);
}

}  // namespace

std::string CheckpointWriter::commit() {
  std::int64_t sequence = 0;
  for (const Candidate& other : candidates(run_folder_)) {
    sequence = std::max(sequence, other.sequence + 1);
  }
  write_new_file(join_path(temporary_, kManifestName), make_manifest({step_, sequence, files_}));
  fsync_path(temporary_);

  const std::string final_path = join_path(run_folder_, step_folder_name(step_));
  keep_foreign(final_path);
  // sweep_stale knows what to do with either after a crash.
  const std::string replaced = publish_folder(temporary_, final_path, final_path + kReplaced);
  committed_ = true;
  try {
    point_latest(run_folder_, final_path);
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{} is complete, but {}", final_path, error.what()),
                error.hint());
  }
  if (!replaced.empty()) {
    try {
      remove_all(replaced);
    } catch (const Error& error) {
      log_warning("{}; the next run removes it", error.what());
    }
  }
  return final_path;
}

// ---- keeping the run folder in order ----

void check_latest(const std::string& run_folder) {
  const std::string latest = join_path(run_folder, kLatest);
  std::error_code error;
  const auto status = std::filesystem::symlink_status(latest, error);
  if (!std::filesystem::exists(status) || std::filesystem::is_symlink(status)) return;
  std::string hint = "move " + latest + " away";
  if (is_real_folder(latest) && has_manifest(latest)) {
    try {
      const std::string step = join_path(run_folder, step_folder_name(load_manifest(latest).step));
      hint = path_exists(step) ? fmt::format(
                                     "a copy that followed links makes {} a second {}: remove "
                                     "it, or move it away",
                                     latest, step)
                               : fmt::format("it is a checkpoint: mv {} {}", latest, step);
    } catch (const Error&) {  // what it holds is damaged
    }
  }
  throw Error(ErrorKind::kInvalidArgument,
              latest + " is not a link to a checkpoint, and every save has to make one", hint);
}

bool point_latest(const std::string& run_folder, const std::string& checkpoint) {
  const std::string name = base_name(checkpoint);
  if (read_latest(run_folder) == join_path(run_folder, name)) return false;
  replace_symlink(join_path(run_folder, kLatest), name);
  return true;
}

std::vector<std::string> sweep_stale(const std::string& run_folder) {
  std::vector<std::string> done;
  if (!is_folder(run_folder)) return done;
  const std::vector<std::string> names = list_folder(run_folder);
  for (const std::string& name : names) {
    const std::optional<std::int64_t> step = parse_step(name, kReplaced);
    if (!step) continue;
    const std::string replaced = join_path(run_folder, name);
    const std::string final_path = join_path(run_folder, step_folder_name(*step));
    if (path_exists(final_path)) {
      remove_all(replaced);
      done.push_back("removed " + replaced + ", replaced by a newer save");
    } else {
      rename_path(replaced, final_path);
      done.push_back("put back " + final_path + ", whose replacement was cut off");
    }
  }
  for (const std::string& name : names) {
    if (!parse_step(name, kTemporary) && name != std::string(kLatest) + kTemporary) continue;
    remove_all(join_path(run_folder, name));
    done.push_back("removed " + join_path(run_folder, name) + ", left by a save that was cut off");
  }
  return done;
}

void remove_checkpoint(const std::string& folder) {
  const std::string leaving = folder + kTemporary;
  remove_all(leaving);
  rename_path(folder, leaving);
  remove_all(leaving);
}

std::vector<std::string> prune_checkpoints(const std::string& run_folder, int keep) {
  if (keep < -1) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("cannot keep {} checkpoints", keep),
                "-1 keeps all");
  }
  std::vector<std::string> removed;
  if (keep == -1) return removed;
  const std::string latest = base_name(read_latest(run_folder));
  int kept = 0;
  for (const Candidate& candidate : candidates(run_folder)) {
    if (kept < keep || base_name(candidate.folder) == latest) {
      ++kept;
      continue;
    }
    remove_checkpoint(candidate.folder);
    removed.push_back(candidate.folder);
  }
  return removed;
}

// ---- reading ----

std::string resolve_checkpoint(const std::string& path) {
  if (!path_exists(path)) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("no such checkpoint: {}", path),
                "give a step-N folder, a run folder that holds one, or a Hugging Face folder");
  }
  if (has_manifest(path)) return path;
  const std::string copied = join_path(path, kLatest);
  if (is_real_folder(copied) && has_manifest(copied)) return copied;
  const std::string latest = read_latest(path);
  if (!latest.empty() && has_manifest(latest)) return latest;
  for (const Candidate& candidate : candidates(path)) {
    if (candidate.sequence < 0) continue;
    if (latest.empty()) return candidate.folder;
    throw Error(ErrorKind::kDamaged,
                fmt::format("{} names {}, which {}", join_path(path, kLatest), latest,
                            path_exists(latest) ? "has no manifest.json" : "is not there"),
                fmt::format("{} is the newest complete one: name it to use it", candidate.folder));
  }
  throw Error(ErrorKind::kInvalidArgument, fmt::format("no complete checkpoint in {}", path),
              "give a step-N folder with a manifest.json, or a run folder that holds one");
}

namespace {

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::kDamaged, fmt::format("{}: {}", path, what));
}

void verify_entry(const std::string& folder, const CheckpointFile& file) {
  const std::string path = join_path(folder, file.name);
  if (!path_exists(path)) damaged(path, "missing; manifest.json lists it");
  if (is_folder(path)) damaged(path, "a folder; manifest.json lists a file");
  const std::uint64_t bytes = file_bytes(path);
  if (bytes != file.bytes) damaged(path, fmt::format("{} bytes, should be {}", bytes, file.bytes));
  const std::string hash = xxh3_file(path);
  if (hash != file.xxh3) {
    damaged(path, fmt::format("altered: XXH3-128 {}, should be {}", hash, file.xxh3));
  }
}

Manifest verify_all(const std::string& folder) {
  Manifest manifest = load_manifest(folder);
  for (const CheckpointFile& file : manifest.files) verify_entry(folder, file);
  return manifest;
}

// The newest of a checkpoint's neighbours that verifies; empty where none does.
std::string other_good(const std::string& folder) {
  const std::string run_folder = parent_folder(folder), own = base_name(folder);
  if (!parse_step(own) && own != kLatest) return {};
  for (const Candidate& candidate : candidates(run_folder)) {
    if (candidate.sequence < 0 || base_name(candidate.folder) == own) continue;
    try {
      verify_all(candidate.folder);
      return candidate.folder;
    } catch (const Error&) {  // the next
    }
  }
  return {};
}

// What `read` returns; where it fails, says which checkpoint is whole.
template <class Read>
auto read_whole(const std::string& folder, Read read) {
  try {
    return read();
  } catch (const Error& error) {
    const std::string other = other_good(folder);
    throw Error(error.kind(), error.what(),
                other.empty()
                    ? "no other checkpoint stands beside it: copy it again from where it was whole"
                    : fmt::format("last good checkpoint: {}; name it to use it", other),
                error.file(), error.line());
  }
}

}  // namespace

Manifest read_manifest(const std::string& folder) {
  return read_whole(folder, [&] { return load_manifest(folder); });
}

void verify_file(const std::string& folder, const Manifest& manifest, std::string_view name) {
  const auto file = std::find_if(manifest.files.begin(), manifest.files.end(),
                                 [&](const CheckpointFile& entry) { return entry.name == name; });
  read_whole(folder, [&] {
    if (file == manifest.files.end()) {
      damaged(join_path(folder, std::string(name)), "manifest.json does not list it");
    }
    verify_entry(folder, *file);
  });
}

Manifest verify_checkpoint(const std::string& folder) {
  return read_whole(folder, [&] { return verify_all(folder); });
}

NewestGood find_newest_good(const std::string& run_folder) {
  NewestGood result;
  for (const Candidate& candidate : candidates(run_folder)) {
    if (candidate.sequence < 0) {
      result.rejected.push_back({candidate.folder, candidate.reason});
    } else if (!result.folder) {
      try {
        verify_all(candidate.folder);
        result.folder = candidate.folder;
      } catch (const Error& error) {
        result.rejected.push_back({candidate.folder, error.what()});
      }
    }
  }
  return result;
}

std::optional<std::string> newest_complete(const std::string& run_folder) {
  const std::vector<Candidate> all = candidates(run_folder);
  if (all.empty() || all.front().sequence < 0) return std::nullopt;
  return all.front().folder;
}

}  // namespace dropless::train
