// What a set that is being written needs to be gone on with after a cut: beside its shards, in the
// temporary folder, which shards are whole and what the caller has to know to make the next sample.
#pragma once

#include <string>

#include "train/data/mds_index.h"

namespace dropless::train {

struct SetJournal {
  MdsIndex index;     // the whole shards
  std::string state;  // the caller's, of the sample after them

  // Nothing where there is no journal of this plan, or a shard is not as the journal has it: the
  // set is then begun anew.
  static SetJournal load(const std::string& folder, const std::string& plan);
  void store(const std::string& folder, const std::string& plan) const;
  static void remove(const std::string& folder);
};

}  // namespace dropless::train
