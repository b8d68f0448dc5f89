// Writes an MDS set: raw shards and index byte for byte as MosaicML streaming 0.13.0 does. Of
// compressed sets only the compressed shards stand in the folder, and how many bytes they have
// depends on the version of the compressor.
//
// A shard is closed before the sample that would take its file past size_limit; a sample larger
// than the limit gets a shard of its own (if it is the first one, an empty shard stands before it).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/base/fs.h"
#include "train/data/compression.h"
#include "train/data/mds_index.h"

namespace dropless::train {

struct MdsWriterOptions {
  std::optional<std::uint64_t> size_limit = std::uint64_t{1} << 26;  // bytes of a shard file
  std::string compression;  // "zstd:7", as Compression::parse takes it; empty: none
  // Of each shard file, raw and compressed, into the index: names of file_hash.h.
  std::vector<std::string> hashes;
  bool replace = false;  // a set that stands under the final name gives way
  // All that decides what the files will hold. Not empty: a writer that does not come to its end
  // leaves its whole shards, and the next one of this plan for this folder goes on from them.
  std::string plan;
  // With a plan: what the caller has to know to make the sample being written; asked when the shard
  // before it is whole.
  std::function<std::string()> state;
};

// Everything goes to a temporary sibling folder; finish() renames it, so that the final name holds
// a whole set or what it held before. Not finished: the destructor removes the temporary folder,
// unless a plan makes its whole shards worth keeping.
class MdsWriter {
 public:
  // Columns as (name, encoding), in any order. Throws Error(kInvalidArgument): folder without a name,
  // that is not
  // empty and not `replace`, or that cannot be made; no or repeated columns; unknown encoding, hash or
  // compression; `pkl`; a limit of 2^32 or more; a plan, and another process writes that set.
  MdsWriter(std::string folder, const std::vector<std::pair<std::string, std::string>>& columns,
            const MdsWriterOptions& options = {});
  ~MdsWriter();
  MdsWriter(const MdsWriter&) = delete;
  MdsWriter& operator=(const MdsWriter&) = delete;

  // Sorted by name: the order of write()'s values.
  const std::vector<MdsColumn>& columns() const { return shard_.columns; }
  // One sample, its values already encoded. Throws Error(kInvalidArgument) for a value of another
  // size than the column's fixed one, and for a shard past the format's 4 GiB.
  void write(std::span<const std::string_view> values);
  void finish();

  std::int64_t num_samples() const { return index_.num_samples() + shard_.samples; }
  // What `state` gave when an earlier writer of this plan finished its last whole shard; empty where
  // the set begins anew.
  const std::string& resumed_state() const { return resumed_state_; }

 private:
  void open_temporary();
  void flush_shard();
  void write_shard_file(const std::string& basename,
                        std::initializer_list<std::string_view> parts) const;
  std::uint64_t file_bytes() const;

  std::string folder_;
  std::string temporary_;
  bool replace_;
  std::string plan_, resumed_state_;
  std::function<std::string()> state_;
  std::optional<FolderLock> lock_;  // of a temporary folder with a plan
  bool finished_ = false;
  MdsIndex index_;
  std::optional<Compression> compression_;
  MdsShard shard_;  // the one being filled; its entry in the index once flushed
  std::string config_;
  std::vector<std::uint32_t> sizes_;  // of its samples
  std::string body_;
};

// "64mb", "1.5kb", "100b" or a plain number, in powers of 1024. Throws Error(kInvalidArgument).
std::uint64_t parse_byte_size(const std::string& text);

}  // namespace dropless::train
