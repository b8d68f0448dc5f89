#include "train/checkpoint/manifest.h"

#include <fmt/format.h>

#include "dropless/error.h"
#include "train/base/hash.h"
#include "train/base/json.h"

namespace dropless::train {
namespace {

constexpr const char* kFormat = "dropless-checkpoint";
constexpr int kWorldSize = 1;  // ranks that save together
constexpr std::size_t kHexDigits = 32;

std::string make_tail(std::string_view body) {
  return fmt::format(",\n  \"manifest_xxh3_128\": \"{}\"\n}}\n", xxh3_hex(body));
}

// How the end of the text stands to the text before it.
enum class Seal { kIntact, kBroken, kAbsent };

Seal check_seal(std::string_view text) {
  if (text.find("\"manifest_xxh3_128\"") == std::string_view::npos) return Seal::kAbsent;
  const std::size_t tail = make_tail("").size();
  if (text.size() < tail) return Seal::kBroken;
  const std::string_view body = text.substr(0, text.size() - tail);
  return text.substr(body.size()) == make_tail(body) ? Seal::kIntact : Seal::kBroken;
}

bool is_hex(const std::string& text) {
  return text.size() == kHexDigits &&
         text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace

bool is_plain_file_name(std::string_view name) {
  if (name.empty() || name.size() > 255 || name[0] == '.' || name == kManifestName) return false;
  for (const char c : name) {
    const bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!word && c != '.' && c != '_' && c != '-') return false;
  }
  return true;
}

std::string make_manifest(const Manifest& manifest) {
  std::string body = fmt::format(
      "{{\n  \"format\": \"{}\",\n  \"version\": {},\n  \"step\": {},\n  \"sequence\": {},\n"
      "  \"world_size\": {},\n  \"shards\": [],\n  \"files\": [",
      kFormat, kCheckpointVersion, manifest.step, manifest.sequence, kWorldSize);
  for (std::size_t i = 0; i < manifest.files.size(); ++i) {
    const CheckpointFile& file = manifest.files[i];
    body += fmt::format(
        "{}\n    {{\"name\": \"{}\", \"rank\": 0, \"bytes\": {}, \"xxh3_128\": \"{}\"}}",
        i == 0 ? "" : ",", file.name, file.bytes, file.xxh3);
  }
  body += "\n  ]";
  return body + make_tail(body);
}

namespace {

// What only checkpoints of several ranks have must not be taken for the whole of a tensor. Manifests
// of before the keys existed are of one rank.
void require_one_rank(const nlohmann::json& json, const std::string& path) {
  const auto world_size = json.value("world_size", std::int64_t{kWorldSize});
  if (world_size != kWorldSize) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: saved by {} ranks; this program reads checkpoints of one", path,
                            world_size),
                "save it whole with the program that wrote it");
  }
  bool whole = json.value("shards", nlohmann::json::array()).empty();
  for (const nlohmann::json& file : json.at("files")) {
    whole = whole && file.value("rank", std::int64_t{0}) == 0;
  }
  if (!whole) {
    throw Error(ErrorKind::kDamaged, path + ": one rank has neither shards nor another's files");
  }
}

}  // namespace

Manifest parse_manifest(std::string_view text, const std::string& path) {
  const auto fail = [&](ErrorKind kind, const std::string& message) {
    throw Error(kind, fmt::format("{}: {}", path, message));
  };
  const nlohmann::json json = parse_json(text, path, ErrorKind::kDamaged);
  // The seal comes first: a bit flipped in the version is damage, not a new version.
  const Seal seal = check_seal(text);
  if (seal == Seal::kBroken) fail(ErrorKind::kDamaged, "altered: it does not match its own hash");
  try {
    if (!json.is_object() || !json.contains("format") || json.at("format") != kFormat) {
      fail(ErrorKind::kInvalidArgument, "not the manifest of a dropless checkpoint");
    }
    if (json.at("version") != kCheckpointVersion) {
      fail(ErrorKind::kInvalidArgument,
           fmt::format("checkpoint version {}; this program reads version {}",
                       json.at("version").dump(), kCheckpointVersion));
    }
    if (seal == Seal::kAbsent) fail(ErrorKind::kDamaged, "its hash is missing");
    require_one_rank(json, path);
    Manifest manifest;
    manifest.step = json.at("step").get<std::int64_t>();
    manifest.sequence = json.at("sequence").get<std::int64_t>();
    for (const nlohmann::json& entry : json.at("files")) {
      CheckpointFile file{entry.at("name").get<std::string>(),
                          entry.at("bytes").get<std::uint64_t>(),
                          entry.at("xxh3_128").get<std::string>()};
      if (!is_plain_file_name(file.name)) {
        fail(ErrorKind::kDamaged, fmt::format("\"{}\" is no plain file name", file.name));
      }
      if (!is_hex(file.xxh3)) fail(ErrorKind::kDamaged, "a hash is no hash");
      manifest.files.push_back(std::move(file));
    }
    return manifest;
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kDamaged, error.what());
  }
  return {};
}

}  // namespace dropless::train
