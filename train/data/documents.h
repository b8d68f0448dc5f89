// Where the documents of a set that is being made come from.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "train/data/json_text.h"

namespace dropless::train {

class DocumentSource {
 public:
  virtual ~DocumentSource() = default;
  // The next document, or false at the end.
  virtual bool next(std::string& document) = 0;
  // Of the last one, for messages: a file, or a file and a line.
  virtual std::string place() const = 0;
};

// Each file is one document. Throws Error(kInvalidArgument): one that is absent, before any is read.
class FileDocuments : public DocumentSource {
 public:
  explicit FileDocuments(std::vector<std::string> files);
  bool next(std::string& document) override;
  std::string place() const override { return files_[next_ - 1]; }

 private:
  std::vector<std::string> files_;
  std::size_t next_ = 0;
};

// Each line of the files is one document; empty ones are passed over.
class LineDocuments : public DocumentSource {
 public:
  explicit LineDocuments(std::vector<std::string> files);
  bool next(std::string& document) override;
  std::string place() const override { return files_[file_] + ":" + std::to_string(line_); }

 private:
  std::vector<std::string> files_;
  std::size_t file_ = 0;
  std::int64_t line_ = 0;
  std::ifstream stream_;
};

// What the JSON objects of a set of lines are.
enum class JsonKind { kText, kPromptResponse, kMessages };
// By the members of the object. Throws Error(kInvalidArgument).
JsonKind json_kind(const std::string& line);

// The string of a member; another value is named by its key. Throws Error(kInvalidArgument).
std::string text_of(const JsonMember& member);

// The member `text` of each line's object.
class JsonTexts : public DocumentSource {
 public:
  explicit JsonTexts(std::vector<std::string> files) : lines_(std::move(files)) {}
  bool next(std::string& document) override;
  std::string place() const override { return lines_.place(); }

 private:
  LineDocuments lines_;
};

// Throws Error(kInvalidArgument) where one of them is no file.
void require_files(const std::vector<std::string>& files);

}  // namespace dropless::train
