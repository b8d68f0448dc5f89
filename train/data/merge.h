// One index over the sets of several folders: the set of all their samples, in order.
#pragma once

#include <string>
#include <vector>

#include "train/data/mds_index.h"

namespace dropless::train {

// The folders below `root`, at any depth, that hold an index.json, in the order in which the paths
// of those files sort. Throws Error(kInvalidArgument) when there is none.
std::vector<std::string> find_partitions(const std::string& root);

struct MergedIndex {
  MdsIndex index;
  // What lies outside `out` is named relative to this folder; empty: nothing does. The index serves there,
  // or, where it also holds sets of `out`, beside copies of what lies below it.
  std::string home;
  bool holds_own = false;
};

// Of folders or URLs. Shard files are named relative to `out` where the folder lies in it, the others
// relative to the deepest folder that holds all of those. A folder named twice counts once. Throws
// Error(kInvalidArgument) where no folder holds them all, as of two hosts, or two get one name.
MergedIndex merge_indexes(const std::vector<std::string>& folders, const std::string& out);

// Writes the merged index to OUT/index.json as MosaicML's merge_index does, and returns it.
MergedIndex write_merged_index(const std::vector<std::string>& folders, const std::string& out);

}  // namespace dropless::train
