#include "train/data/mds_index.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/data/compression.h"
#include "train/data/json_text.h"

namespace dropless::train {
namespace {

using nlohmann::json;

constexpr std::int64_t kVersion = 2;

// ---- reading ----

// A NUL in a name of the index would end the message.
std::string without_nul(std::string text) {
  for (std::size_t at = 0; (at = text.find('\0', at)) != std::string::npos;)
    text.replace(at, 1, "\\u0000");
  return text;
}

// One object of the index, read strictly; errors name the file and the place in it.
class Reader {
 public:
  Reader(const json& node, std::string where) : node_(node), where_(std::move(where)) {
    if (!node.is_object()) damaged("is not an object");
  }

  [[noreturn]] void damaged(const std::string& what) const {
    throw Error(ErrorKind::kDamaged, fmt::format("{} {}", where_, without_nul(what)));
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: {}", where_, without_nul(what)));
  }

  const json& at(const char* key) const {
    const auto found = node_.find(key);
    if (found == node_.end()) damaged(fmt::format("has no '{}'", key));
    return *found;
  }
  std::uint64_t whole(const char* key, std::uint64_t max) const {
    const json& value = at(key);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > max) {
      damaged(fmt::format("has '{}': {}, not a whole number up to {}", key, value.dump(), max));
    }
    return value.get<std::uint64_t>();
  }
  std::string text(const char* key) const {
    const json& value = at(key);
    if (!value.is_string()) damaged(fmt::format("has a '{}' that is not a string", key));
    return value.get<std::string>();
  }
  std::vector<std::string> texts(const char* key) const {
    const json& list = at(key);
    if (!list.is_array()) damaged(fmt::format("has a '{}' that is not a list", key));
    std::vector<std::string> out;
    for (const json& value : list) {
      if (!value.is_string()) damaged(fmt::format("has a '{}' that holds other than strings", key));
      out.push_back(value.get<std::string>());
    }
    return out;
  }
  const std::string& where() const { return where_; }

 private:
  const json& node_;
  std::string where_;
};

// Offsets in a shard are 32-bit; compressing may add some bytes.
constexpr std::uint64_t kMostRawBytes = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kMostZipBytes = 2 * kMostRawBytes;

// A relative path that stays inside the folder, and not the name that the index has in a cache.
bool stays_inside(const std::string& name) {
  if (base_name(name) == "index.json") return false;
  if (name.empty() || name.front() == '/' || name.find('\0') != std::string::npos) return false;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

MdsFile read_file_entry(const json& node, std::uint64_t most_bytes, const std::string& where) {
  const Reader reader(node, where);
  MdsFile file;
  file.basename = reader.text("basename");
  if (!stays_inside(file.basename)) {
    reader.damaged(fmt::format(
        "names '{}', which is not a file inside the set's folder, or its index", file.basename));
  }
  file.bytes = reader.whole("bytes", most_bytes);
  const json& hashes = reader.at("hashes");
  if (!hashes.is_object()) reader.damaged("has 'hashes' that are not an object");
  for (const auto& [name, hex] : hashes.items()) {
    if (!hex.is_string()) reader.damaged(fmt::format("has a hash '{}' that is not a string", name));
    file.hashes.emplace_back(name, hex.get<std::string>());
  }
  return file;
}

std::vector<MdsColumn> read_columns(const Reader& reader) {
  const auto names = reader.texts("column_names");
  const auto encodings = reader.texts("column_encodings");
  const json& sizes = reader.at("column_sizes");
  if (!sizes.is_array() || names.size() != encodings.size() || names.size() != sizes.size()) {
    reader.damaged("has column names, encodings and sizes of different number");
  }
  if (names.empty()) reader.damaged("has no columns");
  if (std::set<std::string>(names.begin(), names.end()).size() != names.size()) {
    reader.damaged("names a column twice");
  }
  std::vector<MdsColumn> columns;
  for (std::size_t i = 0; i < names.size(); ++i) {
    MdsColumn column;
    column.name = names[i];
    try {
      column.encoding = Encoding::parse(encodings[i]);
    } catch (const Error& error) {
      reader.unsupported(fmt::format("column '{}': {}", names[i], error.what()));
    }
    if (!sizes[i].is_null()) {
      if (!sizes[i].is_number_unsigned() ||
          sizes[i].get<std::uint64_t>() > std::numeric_limits<std::uint32_t>::max()) {
        reader.damaged(
            fmt::format("has a size of column '{}' that is not a 32-bit number", names[i]));
      }
      column.size = sizes[i].get<std::uint32_t>();
      if (column.encoding.fixed_size && column.encoding.fixed_size != column.size) {
        reader.damaged(fmt::format("gives column '{}' of encoding {} the size {}", names[i],
                                   encodings[i], *column.size));
      }
    }
    columns.push_back(std::move(column));
  }
  return columns;
}

MdsShard read_shard(const json& node, const std::string& where) {
  const Reader reader(node, where);
  if (reader.text("format") != "mds") {
    reader.unsupported(fmt::format("format '{}'; only mds can be read", reader.text("format")));
  }
  if (reader.at("version") != kVersion) {
    reader.unsupported(
        fmt::format("version {}; only version 2 can be read", reader.at("version").dump()));
  }
  MdsShard shard;
  shard.columns = read_columns(reader);
  if (!reader.at("compression").is_null()) {
    shard.compression = reader.text("compression");
    try {
      Compression::parse(*shard.compression);
    } catch (const Error& error) {
      reader.unsupported(error.what());
    }
  }
  shard.hashes = reader.texts("hashes");
  shard.raw = read_file_entry(reader.at("raw_data"), kMostRawBytes, where + ".raw_data");
  if (!reader.at("zip_data").is_null()) {
    shard.zip = read_file_entry(reader.at("zip_data"), kMostZipBytes, where + ".zip_data");
  }
  if (shard.compression.has_value() != shard.zip.has_value()) {
    reader.damaged("has only one of 'compression' and 'zip_data'");
  }
  // Offsets are 32-bit, one a sample: more samples than this cannot be.
  shard.samples = static_cast<std::int64_t>(
      reader.whole("samples", std::numeric_limits<std::uint32_t>::max() / 4));
  if (!reader.at("size_limit").is_null()) {
    shard.size_limit = reader.whole("size_limit", std::numeric_limits<std::int64_t>::max());
  }
  return shard;
}

// ---- reading many shards ----

// Reads what an index in order says without a tree of all of it: a set of 100,000 shards has an index
// of tens of megabytes, in which all but names, sizes and counts is the same from shard to shard. Gives
// up (false) at anything that is not quite as expected; the strict reader above then says what it is.
class PlainShards {
 public:
  bool read(std::string_view shards, std::vector<MdsShard>& out) {
    for (const std::string_view text : split_json_array(shards)) {
      MdsShard shard;
      if (!read_shard(text, shard)) return false;
      out.push_back(std::move(shard));
    }
    return true;
  }

 private:
  bool read_shard(std::string_view text, MdsShard& shard) {
    std::string common;
    std::string_view raw, zip, samples;
    const auto members = split_json_object(text);
    for (const JsonMember& member : members) {
      if (member.key == "raw_data") {
        raw = member.value;
      } else if (member.key == "zip_data") {
        zip = member.value;
      } else if (member.key == "samples") {
        samples = member.value;
      } else {
        (common += member.key) += member.value;
      }
    }
    if (raw.empty() || zip.empty() || samples.empty()) return false;
    if (common != common_) {
      // The first of its kind is read strictly.
      shard = train::read_shard(parse_json(text, "shard", ErrorKind::kDamaged), "shard");
      common_ = common;
      like_ = shard;
      return true;
    }
    shard = like_;
    const bool zipped = zip != "null";
    if (zipped != shard.zip.has_value()) return false;
    constexpr std::uint64_t kMostSamples = std::numeric_limits<std::uint32_t>::max() / 4;
    std::uint64_t count = 0;
    if (!read_number(samples, kMostSamples, count)) return false;
    shard.samples = static_cast<std::int64_t>(count);
    return read_file(raw, kMostRawBytes, shard.raw) &&
           (!zipped || read_file(zip, kMostZipBytes, *shard.zip));
  }

  static bool read_file(std::string_view text, std::uint64_t most_bytes, MdsFile& file) {
    file.hashes.clear();
    bool name = false, bytes = false, hashes = false;
    for (const JsonMember& member : split_json_object(text)) {
      if (member.key == "basename") {
        if (!member.value.starts_with('"')) return false;
        file.basename = json_unquote(member.value);
        name = stays_inside(file.basename);
      } else if (member.key == "bytes") {
        bytes = read_number(member.value, most_bytes, file.bytes);
      } else if (member.key == "hashes" && member.value.starts_with('{')) {
        hashes = true;
        for (const JsonMember& hash : split_json_object(member.value)) {
          if (!hash.value.starts_with('"')) return false;
          file.hashes.emplace_back(hash.key, json_unquote(hash.value));
        }
      }
    }
    std::sort(file.hashes.begin(), file.hashes.end());
    return name && bytes && hashes;
  }

  static bool read_number(std::string_view text, std::uint64_t most, std::uint64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() && value <= most;
  }

  std::string common_;  // of the last shard that was read strictly
  MdsShard like_;
};

// The index, if it is in order; nullopt where the strict reader has to look.
std::optional<MdsIndex> read_plain_index(const std::string& text) {
  MdsIndex index;
  try {
    std::string_view shards;
    bool version = false;
    for (const JsonMember& member : split_json_object(text)) {
      if (member.key == "shards" && member.value.starts_with('[')) shards = member.value;
      version = version || (member.key == "version" && member.value == "2");
    }
    if (!version || shards.empty()) return std::nullopt;
    if (!PlainShards().read(shards, index.shards)) return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
  return index;
}

// ---- writing ----

template <class List, class Show>
std::string join_list(const List& list, Show show) {
  std::vector<std::string> parts;
  for (const auto& item : list) parts.push_back(show(item));
  return fmt::format("[{}]", fmt::join(parts, ", "));
}

// The keys that stand both in the index and in a shard's own head, up to `hashes`.
std::string common_keys(const MdsShard& shard) {
  return fmt::format(
      "\"column_encodings\": {}, \"column_names\": {}, \"column_sizes\": {}, \"compression\": {}, "
      "\"format\": \"mds\", \"hashes\": {}",
      join_list(shard.columns,
                [](const MdsColumn& c) { return json_quote_ascii(c.encoding.name); }),
      join_list(shard.columns, [](const MdsColumn& c) { return json_quote_ascii(c.name); }),
      join_list(shard.columns,
                [](const MdsColumn& c) { return c.size ? std::to_string(*c.size) : "null"; }),
      shard.compression ? json_quote_ascii(*shard.compression) : "null",
      join_list(shard.hashes, [](const std::string& name) { return json_quote_ascii(name); }));
}

std::string size_limit_text(const MdsShard& shard) {
  return shard.size_limit ? std::to_string(*shard.size_limit) : "null";
}

std::string file_json(const MdsFile& file) {
  std::vector<std::string> hashes;
  for (const auto& [name, hex] : file.hashes) {
    hashes.push_back(json_quote_ascii(name) + ": " + json_quote_ascii(hex));
  }
  return fmt::format("{{\"basename\": {}, \"bytes\": {}, \"hashes\": {{{}}}}}",
                     json_quote_ascii(file.basename), file.bytes, fmt::join(hashes, ", "));
}

}  // namespace

MdsIndex MdsIndex::load(const std::string& folder) {
  const std::string path = join_path(folder, "index.json");
  if (!path_exists(path)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} is absent: no MDS set in this folder", path),
                "name the folder that holds index.json, or give its split");
  }
  return parse(read_file(path, kMostIndexBytes), path);
}

MdsIndex MdsIndex::parse(const std::string& text, const std::string& path) {
  if (auto plain = read_plain_index(text)) return std::move(*plain);
  const json root = parse_json(text, path, ErrorKind::kDamaged);
  const Reader reader(root, path);
  if (reader.at("version") != kVersion) {
    reader.unsupported(
        fmt::format("version {}; only version 2 can be read", reader.at("version").dump()));
  }
  const json& shards = reader.at("shards");
  if (!shards.is_array()) reader.damaged("has 'shards' that are not a list");
  MdsIndex index;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    index.shards.push_back(read_shard(shards[i], fmt::format("{}: shards[{}]", path, i)));
  }
  return index;
}

std::string MdsIndex::dump(bool version_first) const {
  const std::string list = join_list(shards, [](const MdsShard& shard) {
    return fmt::format(
        "{{{}, \"raw_data\": {}, \"samples\": {}, \"size_limit\": {}, \"version\": {}, "
        "\"zip_data\": {}}}",
        common_keys(shard), file_json(shard.raw), shard.samples, size_limit_text(shard), kVersion,
        shard.zip ? file_json(*shard.zip) : "null");
  });
  if (version_first) return fmt::format("{{\"version\": {}, \"shards\": {}}}", kVersion, list);
  return fmt::format("{{\"shards\": {}, \"version\": {}}}", list, kVersion);
}

std::int64_t MdsIndex::num_samples() const {
  std::int64_t total = 0;  // cannot overflow: a shard has under 2^30 samples
  for (const MdsShard& shard : shards) total += shard.samples;
  return total;
}

std::vector<std::int64_t> MdsIndex::shard_sizes() const {
  std::vector<std::int64_t> sizes;
  for (const MdsShard& shard : shards) sizes.push_back(shard.samples);
  return sizes;
}

std::string shard_config_json(const MdsShard& shard) {
  return fmt::format("{{{}, \"size_limit\": {}, \"version\": {}}}", common_keys(shard),
                     size_limit_text(shard), kVersion);
}

std::string split_folder(const std::string& folder, const std::string& split) {
  if (!is_folder(folder)) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is not a folder", folder),
                "name the folder of an MDS set (the one with index.json)");
  }
  if (split.empty()) return folder;
  const std::string path = join_path(folder, split);
  if (!is_folder(path)) {
    std::vector<std::string> splits;
    for (const std::string& name : list_folder(folder)) {
      if (path_exists(join_path(join_path(folder, name), "index.json"))) splits.push_back(name);
    }
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{} has no split '{}'", folder, split),
                splits.empty() ? "this folder has no splits"
                               : fmt::format("its splits: {}", fmt::join(splits, ", ")));
  }
  return path;
}

}  // namespace dropless::train
