// manifest.json: what a checkpoint consists of. Written last, so that its presence means
// completeness.
//
// {"format": "dropless-checkpoint", "version": 1, "step": .., "sequence": .., "world_size": 1,
// "shards": [], "files": [{"name", "rank": 0, "bytes", "xxh3_128"}, ...], "manifest_xxh3_128": hash
// of all the bytes before this key's comma}: one rank's case of what docs/checkpoints.md defines for
// several. The last member guards the manifest itself: a flipped bit anywhere in it is found.
#pragma once

#include <string>
#include <string_view>

#include "train/checkpoint/checkpoint.h"

namespace dropless::train {

inline constexpr const char* kManifestName = "manifest.json";

std::string make_manifest(const Manifest& manifest);
// `path` starts the messages. kDamaged: altered or truncated; kInvalidArgument: another format or
// version, or of several ranks.
Manifest parse_manifest(std::string_view text, const std::string& path);
// Whether a checkpoint may hold a file of this name: [A-Za-z0-9._-]+, no leading dot, not the
// manifest's own.
bool is_plain_file_name(std::string_view name);

}  // namespace dropless::train
