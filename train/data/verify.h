// Reads all of an MDS set and says what is damaged.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace dropless::train {

// (basename, reason) of each damaged shard, and of an index.json that is not one. Checked: sizes
// and offsets, every value against its encoding (pickles are not looked into), and SHA-256 and
// XXH3-128 hashes where the index has them. Throws Error(kInvalidArgument) as MdsReader does.
std::vector<std::pair<std::string, std::string>> verify_set(const std::string& folder);

}  // namespace dropless::train
