#include "train/data/documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::train {

void require_files(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    // Before any work: an absent last file should not cost the reading of all before it.
    if (!path_exists(file) || is_folder(file)) {
      throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is not a file", file),
                  "name files that exist");
    }
    // Lines are read twice, the first one for what all are.
    std::error_code error;
    if (!std::filesystem::is_regular_file(file, error)) {
      throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is not a regular file", file),
                  "write what a pipe carries to a file first");
    }
  }
}

FileDocuments::FileDocuments(std::vector<std::string> files) : files_(std::move(files)) {
  require_files(files_);
}

bool FileDocuments::next(std::string& document) {
  if (next_ == files_.size()) return false;
  document = read_file(files_[next_++]);
  return true;
}

LineDocuments::LineDocuments(std::vector<std::string> files) : files_(std::move(files)) {
  require_files(files_);
}

bool LineDocuments::next(std::string& document) {
  for (;;) {
    if (!stream_.is_open()) {
      if (file_ == files_.size()) return false;
      stream_.open(files_[file_], std::ios::binary);
      if (!stream_) throw_errno("open", files_[file_], errno);
      line_ = 0;
    }
    while (std::getline(stream_, document)) {
      ++line_;
      // Editors on Windows begin a file with it; JSON does not allow it.
      constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
      if (line_ == 1 && document.starts_with(kByteOrderMark)) {
        document.erase(0, kByteOrderMark.size());
      }
      if (document.ends_with('\r')) document.pop_back();
      if (document.find_first_not_of(" \t") != std::string::npos) return true;
    }
    if (stream_.bad()) throw_errno("read", files_[file_], errno);
    stream_.close();
    stream_.clear();
    // The place stays that of the last document.
    if (file_ + 1 == files_.size()) {
      ++file_;
      return false;
    }
    ++file_;
  }
}

JsonKind json_kind(const std::string& line) {
  std::string names;
  bool prompt = false, response = false;
  for (const JsonMember& member : split_json_object(line)) {
    if (member.key == "text") return JsonKind::kText;
    if (member.key == "messages") return JsonKind::kMessages;
    prompt = prompt || member.key == "prompt";
    response = response || member.key == "response" || member.key == "completion";
    names += (names.empty() ? "" : ", ") + member.key;
  }
  if (prompt && response) return JsonKind::kPromptResponse;
  throw Error(
      ErrorKind::kInvalidArgument,
      fmt::format("the object has neither 'text' nor 'messages' nor 'prompt' and 'response', "
                  "only: {}",
                  names.empty() ? "nothing" : names),
      "rename the members");
}

std::string text_of(const JsonMember& member) {
  constexpr std::size_t kShown = 40;
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("'{}'{}", member.key, what));
  };
  if (!member.value.starts_with('"')) {
    const bool longer = member.value.size() > kShown;
    fail(
        fmt::format(" is {}{}, not a string", member.value.substr(0, kShown), longer ? "..." : ""));
  }
  try {
    return json_unquote(member.value);
  } catch (const Error& error) {
    fail(fmt::format(": {}", error.what()));
  }
  return {};
}

bool JsonTexts::next(std::string& document) {
  std::string line;
  if (!lines_.next(line)) return false;
  try {
    for (const JsonMember& member : split_json_object(line)) {
      if (member.key != "text") continue;
      document = text_of(member);
      return true;
    }
    throw Error(ErrorKind::kInvalidArgument, "the object has no 'text'");
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", place(), error.what()), error.hint());
  }
}

}  // namespace dropless::train
