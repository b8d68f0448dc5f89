// One index over the sets of several folders: the set of all their samples, in order.
#pragma once

#include <string>
#include <vector>

#include "train/data/mds_index.h"

namespace dropless::train {

// The folders below `root`, at any depth, that hold an index.json, in the order in which the paths
// of those files sort. Throws Error(kInvalidArgument) when there is none.
std::vector<std::string> find_partitions(const std::string& root);

// Of folders or URLs. Shard files are named relative to `out` where the folder lies in it, else by the
// folder's own name: the caller is then to put that folder there. A folder named twice counts once; two of
// one name are kInvalidArgument.
MdsIndex merge_indexes(const std::vector<std::string>& folders, const std::string& out);

// Writes the merged index to OUT/index.json as MosaicML's merge_index does, and returns it.
MdsIndex write_merged_index(const std::vector<std::string>& folders, const std::string& out);

}  // namespace dropless::train
