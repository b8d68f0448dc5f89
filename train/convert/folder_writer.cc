#include "train/convert/folder_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "dropless/error.h"
#include "train/base/hash.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/checkpoint/manifest.h"

namespace dropless::train {
namespace {

// In the temporary folder: the plan, and the files that are whole.
constexpr const char* kJournal = "conversion.json";

// The first thing in it is the journal, or what becomes the journal.
bool is_of_a_conversion(const std::string& temporary) {
  const std::string journal = join_path(temporary, kJournal);
  if (path_exists(journal)) {
    try {
      const nlohmann::json read = parse_json(read_file(journal), journal);
      return read.contains("plan") && read.contains("files");
    } catch (const Error&) {
      return false;
    }
  }
  const std::vector<std::string> names = list_folder(temporary);
  return std::all_of(names.begin(), names.end(), [](const std::string& name) {
    return name.starts_with(std::string(kJournal) + ".");
  });
}

}  // namespace

FolderWriter::FolderWriter(std::string target, bool overwrite, const std::string& plan)
    : target_(std::move(target)), plan_(plan) {
  while (target_.size() > 1 && target_.ends_with('/')) target_.pop_back();
  // What a link names is written, and the link stays. "." and ".." have no name that another folder could take.
  const std::string last = base_name(target_);
  std::error_code error;
  const bool link = std::filesystem::is_symlink(target_, error);
  if (link && !path_exists(target_)) {
    throw Error(ErrorKind::kInvalidArgument, target_ + " is a link to nothing",
                "remove it, or make the folder that it names");
  }
  const auto real = std::filesystem::weakly_canonical(target_, error);
  if (error) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("cannot write {}: {}", target_, error.message()),
                "name another folder");
  }
  if (link || last == "." || last == "..") target_ = real.string();
  if (real == "/") {
    throw Error(ErrorKind::kInvalidArgument, "the target is the root of all files",
                "name a folder");
  }
  if (path_exists(target_)) {
    if (!is_folder(target_)) {
      throw Error(ErrorKind::kInvalidArgument, target_ + " is a file", "name a folder");
    }
    if (!overwrite && !list_folder(target_).empty()) {
      throw Error(ErrorKind::kInvalidArgument, target_ + " is not empty",
                  "name another folder, or give --overwrite to replace it");
    }
  }
  temporary_ = target_ + ".dropless-tmp";
  const bool leads_away = std::filesystem::is_symlink(temporary_, error);
  if (!leads_away) {
    make_folders(temporary_);
    lock_.emplace(temporary_);
  }
  if (leads_away || !is_of_a_conversion(temporary_)) {
    throw Error(ErrorKind::kInvalidArgument,
                temporary_ + " is where the conversion would write, and no conversion made it",
                "move or remove it, or name another target");
  }
  load_journal();
  for (const std::string& name : list_folder(temporary_)) {
    if (!has(name) && name != kJournal) remove_all(join_path(temporary_, name));
  }
  write_journal();
}

FolderWriter::~FolderWriter() {
  if (published_) return;
  if (!finished_.empty()) {
    log_info(
        "{} files of {} are finished: the same command goes on from them; to give them up, "
        "remove {}",
        finished_.size(), target_, temporary_);
    return;
  }
  try {
    remove_all(temporary_);
  } catch (const Error& error) {
    log_warning("{}", error.what());
  }
}

// Anything that is not as this plan left it is written again.
void FolderWriter::load_journal() {
  const std::string path = join_path(temporary_, kJournal);
  if (!path_exists(path)) return;
  try {
    const nlohmann::json journal = parse_json(read_file(path), path);
    if (journal.at("plan").get<std::string>() != plan_) return;
    for (const auto& [name, file] : journal.at("files").items()) {
      const WrittenFile written{file.at("bytes").get<std::uint64_t>(),
                                file.at("xxh3").get<std::string>()};
      const std::string stamp = file_stamp(join_path(temporary_, name));
      if (file.at("stamp").get<std::string>() == stamp) finished_[name] = written;
    }
  } catch (const std::exception& error) {
    log_warning("{} cannot be read, starting anew: {}", path, error.what());
    finished_.clear();
  }
}

void FolderWriter::write_journal() const {
  nlohmann::json journal{{"plan", plan_}, {"files", nlohmann::json::object()}};
  for (const auto& [name, file] : finished_) {
    const std::string stamp = file_stamp(join_path(temporary_, name));
    journal["files"][name] = {{"bytes", file.bytes}, {"xxh3", file.xxh3}, {"stamp", stamp}};
  }
  write_file_durable(join_path(temporary_, kJournal), journal.dump(2) + "\n");
}

std::uint64_t FolderWriter::finished_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [name, file] : finished_) bytes += file.bytes;
  return bytes;
}

void FolderWriter::add_tensors(const std::string& name, const WrittenFile& file) {
  finished_[name] = file;
  write_journal();
}

void FolderWriter::add_text(const std::string& name, std::string_view text) {
  write_new_file(join_path(temporary_, name), text);
  texts_.push_back({name, text.size(), xxh3_hex(text)});
}

void FolderWriter::add_manifest() {
  std::vector<CheckpointFile> files = texts_;
  for (const auto& [name, file] : finished_) files.push_back({name, file.bytes, file.xxh3});
  write_new_file(join_path(temporary_, kManifestName),
                 make_manifest({/*step=*/0, /*sequence=*/0, files}));
}

void FolderWriter::publish() {
  fsync_path(temporary_);
  const std::string replaced = publish_folder(temporary_, target_, target_ + ".dropless-old");
  published_ = true;
  // Not before: without it the folder would be nobody's, were this the end.
  remove_all(join_path(target_, kJournal));
  if (!replaced.empty()) remove_all(replaced);
}

}  // namespace dropless::train
