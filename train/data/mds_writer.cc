#include "train/data/mds_writer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/base/utf8.h"
#include "train/data/file_hash.h"
#include "train/data/set_journal.h"

namespace dropless::train {
namespace {

constexpr std::uint64_t kMaxShardBytes = std::numeric_limits<std::uint32_t>::max();

void append_u32(std::string& out, std::uint64_t value) {
  const std::uint32_t word = static_cast<std::uint32_t>(value);
  out.append(reinterpret_cast<const char*>(&word), sizeof word);
}

std::vector<MdsColumn> make_columns(
    const std::vector<std::pair<std::string, std::string>>& columns) {
  std::vector<MdsColumn> out;
  for (const auto& [name, encoding] : columns) {
    const auto refuse = [&name = name](const std::string& why) {
      throw Error(ErrorKind::kInvalidArgument, fmt::format("column '{}': {}", name, why));
    };
    if (find_invalid_utf8(name) != std::string_view::npos) refuse("the name is not valid UTF-8");
    MdsColumn column;
    column.name = name;
    column.encoding = Encoding::parse(encoding);
    column.size = column.encoding.fixed_size;
    if (column.encoding.kind == EncodingKind::kPickle) refuse("pickles are not written");
    out.push_back(std::move(column));
  }
  if (out.empty()) throw Error(ErrorKind::kInvalidArgument, "a data set needs at least one column");
  // UTF-8 sorts by bytes as its code points do, which is Python's order of strings.
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  for (std::size_t i = 1; i < out.size(); ++i) {
    if (out[i].name == out[i - 1].name) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("column '{}' stands twice", out[i].name));
    }
  }
  return out;
}

// Sorted, as the format wants them.
std::vector<std::string> check_hashes(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) check_hash_name(name);
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end()) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("hash '{}' stands twice", *twice));
  }
  return names;
}

// An existing target must be empty or, to be replaced, hold nothing but a set.
void check_target(const std::string& folder, bool replace) {
  if (!path_exists(folder)) return;
  if (is_folder(folder) && list_folder(folder).empty()) return;
  if (!replace || !is_folder(folder)) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{} exists and is not empty", folder),
                "name another folder, or remove this one");
  }
  for (const std::string& name : list_folder(folder)) {
    if (name != "index.json" && !name.starts_with("shard.")) {
      throw Error(
          ErrorKind::kInvalidArgument,
          fmt::format("{} holds {}, which is no part of a set: it is not replaced", folder, name),
          "name another folder");
    }
  }
}

// Before any work: what keeps the folder from being made is the caller's to mend. A full disk is
// not, and it alone comes with a hint.
void make_output_folder(const std::string& path) {
  try {
    make_folders(path);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kResource || !error.hint().empty()) throw;
    throw Error(ErrorKind::kInvalidArgument, error.what(), "name a folder that can be written");
  }
}

}  // namespace

MdsWriter::MdsWriter(std::string folder,
                     const std::vector<std::pair<std::string, std::string>>& columns,
                     const MdsWriterOptions& options)
    : folder_(std::move(folder)),
      replace_(options.replace),
      plan_(options.plan),
      state_(options.state) {
  if (folder_.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "the name of the folder to write is empty",
                "name a folder");
  }
  while (folder_.size() > 1 && folder_.back() == '/') folder_.pop_back();
  shard_.columns = make_columns(columns);
  shard_.hashes = check_hashes(options.hashes);
  shard_.size_limit = options.size_limit;
  if (!options.compression.empty()) {
    compression_ = Compression::parse(options.compression);
    shard_.compression = options.compression;
  }
  config_ = shard_config_json(shard_);
  if (options.size_limit.value_or(0) > kMaxShardBytes) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a shard size limit of {} bytes; the format ends at 4 GiB",
                            *options.size_limit),
                "use a smaller limit, such as 64mb");
  }
  check_target(folder_, replace_);
  make_output_folder(parent_folder(folder_));
  open_temporary();
}

void MdsWriter::open_temporary() {
  temporary_ =
      plan_.empty() ? fmt::format("{}.tmp-{}", folder_, getpid()) : folder_ + ".dropless-tmp";
  if (plan_.empty()) remove_all(temporary_);
  make_output_folder(temporary_);
  if (plan_.empty()) return;
  lock_.emplace(temporary_);
  SetJournal journal = SetJournal::load(temporary_, plan_);
  index_ = std::move(journal.index);
  resumed_state_ = std::move(journal.state);
  std::set<std::string> whole{"journal.json"};
  for (const MdsShard& shard : index_.shards) {
    whole.insert((shard.zip ? *shard.zip : shard.raw).basename);
  }
  for (const std::string& name : list_folder(temporary_)) {
    if (index_.shards.empty() || !whole.contains(name)) remove_all(join_path(temporary_, name));
  }
}

MdsWriter::~MdsWriter() {
  if (finished_) return;
  if (!plan_.empty() && !index_.shards.empty()) {
    log_info("{} of {} are written: the same command goes on from them; to give them up, remove {}",
             index_.shards.size() == 1 ? "1 shard" : fmt::format("{} shards", index_.shards.size()),
             folder_, temporary_);
    return;
  }
  try {
    remove_all(temporary_);
  } catch (const Error&) {
    // Nothing more can be done about a folder that cannot be removed; the final name is untouched.
  }
}

std::uint64_t MdsWriter::file_bytes() const {
  return 8 + config_.size() + 4 * sizes_.size() + body_.size();
}

void MdsWriter::write(std::span<const std::string_view> values) {
  if (values.size() != shard_.columns.size()) {
    throw Error(ErrorKind::kInternal,
                fmt::format("{} values for {} columns", values.size(), shard_.columns.size()));
  }
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const MdsColumn& column = shard_.columns[i];
    if (column.size && values[i].size() != *column.size) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("sample {}, column '{}' of encoding {}: {} bytes instead of {}",
                              num_samples(), column.name, column.encoding.name, values[i].size(),
                              *column.size));
    }
    bytes += values[i].size() + (column.size ? 0 : 4);
  }
  // An empty shard stands before a large first sample only: not where a set is gone on with.
  const bool flushable = shard_.samples > 0 || index_.shards.empty();
  if (flushable && shard_.size_limit && *shard_.size_limit < file_bytes() + bytes + 4) {
    flush_shard();
  }
  if (file_bytes() + bytes + 4 > kMaxShardBytes) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("sample {} takes its shard past 4 GiB, where the format ends", num_samples()),
        "set a size limit, or store smaller samples");
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!shard_.columns[i].size) append_u32(body_, values[i].size());
  }
  for (const std::string_view value : values) body_.append(value);
  sizes_.push_back(static_cast<std::uint32_t>(bytes));
  ++shard_.samples;
}

void MdsWriter::write_shard_file(const std::string& basename,
                                 std::initializer_list<std::string_view> parts) const {
  FileWriter file(join_path(temporary_, basename));
  for (const std::string_view part : parts) file.write(part.data(), part.size());
  file.finish();
}

void MdsWriter::flush_shard() {
  std::string head;
  append_u32(head, sizes_.size());
  std::uint64_t offset = 8 + 4 * sizes_.size() + config_.size();
  append_u32(head, offset);
  for (const std::uint32_t size : sizes_) append_u32(head, offset += size);
  head += config_;

  shard_.raw.basename = fmt::format("shard.{:05}.mds", index_.shards.size());
  shard_.raw.bytes = file_bytes();
  shard_.raw.hashes.clear();
  for (const std::string& name : shard_.hashes) {
    shard_.raw.hashes.emplace_back(name, hash_hex(name, {head, body_}));
  }
  if (compression_) {
    const std::string zip = compress(*compression_, head + body_);
    MdsFile entry{shard_.raw.basename + "." + compression_->extension, zip.size(), {}};
    for (const std::string& name : shard_.hashes) {
      entry.hashes.emplace_back(name, hash_hex(name, {zip}));
    }
    write_shard_file(entry.basename, {zip});
    shard_.zip = std::move(entry);
  } else {
    write_shard_file(shard_.raw.basename, {head, body_});
  }
  index_.shards.push_back(shard_);
  shard_.samples = 0;
  sizes_.clear();
  body_.clear();
  if (!plan_.empty()) SetJournal{index_, state_()}.store(temporary_, plan_);
}

void MdsWriter::finish() {
  if (shard_.samples > 0) flush_shard();
  if (!plan_.empty()) SetJournal::remove(temporary_);
  write_file_durable(join_path(temporary_, "index.json"), index_.dump());
  fsync_path(temporary_);
  if (replace_) {
    const std::string replaced = publish_folder(temporary_, folder_, temporary_ + ".old");
    if (!replaced.empty()) remove_all(replaced);
  } else {
    rename_path(temporary_, folder_);  // refused where files came to stand there meanwhile
  }
  finished_ = true;
}

std::uint64_t parse_byte_size(const std::string& text) {
  const auto refuse = [&] {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("'{}' is not a size", text),
                "write a number of bytes, or 100b, 1.5kb, 64mb, 1gb");
  };
  constexpr std::string_view kUnits = "kmgtpezy";
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  double unit = 1;
  bool fraction = false;
  if (!lower.empty() && lower.back() == 'b') {
    lower.pop_back();
    const std::size_t which = lower.empty() ? std::string_view::npos : kUnits.find(lower.back());
    if (which != std::string_view::npos) {
      unit = std::pow(1024.0, static_cast<double>(which + 1));
      lower.pop_back();
    }
    fraction = true;
  }
  const std::size_t digits = lower.find_first_not_of("0123456789");
  const bool plain = digits == std::string::npos;
  const bool decimal = fraction && !plain && digits > 0 && lower[digits] == '.' &&
                       lower.find_first_not_of("0123456789", digits + 1) == std::string::npos;
  if (lower.empty() || (!plain && !decimal)) refuse();
  const double bytes = std::strtod(lower.c_str(), nullptr) * unit;
  if (bytes >= 0x1p63) refuse();
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace dropless::train
