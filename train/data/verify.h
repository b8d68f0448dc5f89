// Reads all of an MDS set and says what is damaged.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace dropless::train {

// (basename, reason) of each damaged shard, and of an index.json that is not one. Checked: sizes
// and offsets, every value against its encoding (pickles are not looked into), and the hashes that
// the index has, of raw and of compressed files. Throws Error(kInvalidArgument) as MdsReader does, and
// for a hash of unknown name.
std::vector<std::pair<std::string, std::string>> verify_set(const std::string& folder);

}  // namespace dropless::train
