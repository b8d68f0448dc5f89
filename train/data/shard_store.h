// The shards of one MDS set, wherever they lie: opened by number, decompressed on the way.
//
// `source` is what must not be lost: a folder, or a URL that remote.h downloads from. `cache` is a
// folder in which raw shards may be made: downloaded or decompressed to a temporary sibling, then
// renamed. It may be the source itself, by whatever name (raw shards then come to lie beside the compressed ones), or
// empty (not for a URL): then nothing is written, and compressed shards are decompressed in memory. A
// cache that is not the source is a set itself: it gets the index, and what is there is not fetched.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "train/base/fs.h"
#include "train/data/mds_index.h"
#include "train/data/remote.h"

namespace dropless::train {

struct ShardStoreOptions {
  std::string validate_hash;                 // of every shard file that is opened; empty: none
  bool keep_zip = false;                     // compressed shards stay in the cache
  std::optional<std::uint64_t> cache_limit;  // bytes of the shards in the cache
  RemoteOptions remote;
};

// A raw shard: an open file, or decompressed bytes.
class ShardBytes {
 public:
  ShardBytes(std::string path, FileReader file) : path_(std::move(path)), file_(std::move(file)) {}
  ShardBytes(std::string path, std::string memory)
      : path_(std::move(path)), memory_(std::move(memory)) {}
  // Exactly `bytes` at `offset`, as FileReader::read.
  void read(std::uint64_t offset, void* data, std::size_t bytes) const;
  std::uint64_t bytes() const { return file_ ? file_->bytes() : memory_.size(); }
  std::uint64_t memory_bytes() const { return memory_.size(); }
  const std::string& path() const { return path_; }  // of the file that it was made of

 private:
  std::string path_;
  std::optional<FileReader> file_;
  std::string memory_;
};

// Any number of threads may call it.
class ShardStore {
 public:
  // Reads the index. Throws Error: as MdsIndex::load; kInvalidArgument for a hash that is unknown
  // or that the index lacks, for a cache limit that cannot hold four of the largest shards, and for
  // a cache that holds another set.
  ShardStore(std::string source, std::string cache, const ShardStoreOptions& options = {});

  const MdsIndex& index() const { return index_; }
  // What to do about a shard that is damaged.
  std::string damage_hint() const;
  // For messages: the cache where there is one.
  const std::string& folder() const { return cache_.empty() ? source_ : cache_; }
  bool is_limited() const { return options_.cache_limit.has_value(); }

  // Where nothing has to be fetched: every shard of the index is there, raw or compressed, and has
  // its size; reads none. Throws Error(kDamaged); kInvalidArgument without the right to read one.
  void check_files() const;
  // The shard, its size checked, and its hash where asked. Makes it first where needed. Throws
  // Error(kDamaged) naming the file and why; kResource where the disk or the network fails.
  ShardBytes open(std::size_t number);

  // What will be read: of this shard, at this place of an order; places come ascending. A limited
  // cache keeps what is needed soonest.
  void expect(std::size_t number, std::uint64_t place);
  // The reading stands at this place, all before it is read.
  void pass(std::uint64_t place);
  // The first place whose shard is to be made ahead now. In a limited cache the shards ahead of the
  // one being read may take half of the limit: the other half is for those that come again soon,
  // which would have to make room otherwise, and be made again.
  std::optional<std::uint64_t> next_ahead();
  // Makes that shard; what fails is thrown by open(). False, and nothing done, where there is none,
  // or when room could only come from shards that are needed sooner.
  bool make_next();
  // Warns, once, when shards that one batch reads do not fit the limit together.
  void warn_if_short(const std::set<std::size_t>& numbers);

  // Ends downloads that run, until resume(), which also forgets what was expected and what failed:
  // for threads that make shards ahead and are to stop.
  void cancel();
  void resume();
  // Whether shards have to be downloaded or decompressed before they can be read.
  bool makes_shards() const;
  // Whether open() would read a file that is there, without waiting.
  bool is_ready(std::size_t number);

 private:
  enum class State : std::uint8_t { kUnknown, kMaking, kLocal, kFailed };
  struct Slot {
    State state = State::kUnknown;
    std::uint64_t last_use = 0;
    std::uint64_t walk = 0;      // find_next()'s last that met it
    std::uint64_t next_use = 0;  // as find_next_uses() left it
    std::exception_ptr error;
  };
  struct Expected {
    std::size_t number;
    std::uint64_t first, last;  // places, all of this shard
  };

  bool caches() const { return !cache_.empty(); }
  bool evicts() const { return options_.cache_limit && caches() && cache_ != source_; }
  std::uint64_t bytes_to_make(std::size_t number) const;
  const Expected* find_next();
  void find_next_uses();
  bool make_locked(std::unique_lock<std::mutex>& lock, std::size_t number, bool ahead,
                   std::optional<FileReader>* made);
  void make_file(const MdsShard& shard, std::optional<FileReader>* made);
  std::string obtain_zip(const MdsShard& shard);
  std::string unpack_zip(const MdsShard& shard);
  void download(const MdsFile& entry, const std::string& path, std::optional<FileReader>* made);
  bool drop_damaged_copy(const MdsFile& entry, const std::string& path) const;
  MdsIndex load_index();
  bool has_whole_raw(const MdsShard& shard) const;
  bool is_copy(const MdsFile& file) const;
  void check_remote_index();
  bool make_room(std::size_t number, bool ahead);
  std::uint64_t usage() const;
  ShardBytes open_file(const MdsShard& shard, const std::string& path) const;
  ShardBytes open_source(const MdsShard& shard) const;
  std::string unpack(const MdsShard& shard, const std::string& zip_path) const;

  std::string source_, cache_;
  ShardStoreOptions options_;
  std::unique_ptr<Remote> remote_;  // where the source is a URL
  bool remote_holds_set_ = false;   // known to have the index that the cache has
  MdsIndex index_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  std::uint64_t uses_ = 0, walks_ = 0;
  std::deque<Expected> expected_;
  bool all_there_ = true;  // no shard of expected_ is missing; false: unknown
  bool warned_ = false;
};

// Throws Error(kDamaged) unless the file has the hash that `entry` gives under this name.
void check_file_hash(const std::string& path, const MdsFile& entry, const std::string& name);

}  // namespace dropless::train
