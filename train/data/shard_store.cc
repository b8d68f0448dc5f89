#include "train/data/shard_store.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/data/compression.h"
#include "train/data/file_hash.h"

namespace dropless::train {
namespace {

constexpr const char* kIndexName = "index.json";
constexpr const char* kRestoreHint = "restore this file, or write the data set again";

[[noreturn]] void damaged(const std::string& path, const std::string& reason,
                          const std::string& hint = kRestoreHint) {
  throw Error(ErrorKind::kDamaged, fmt::format("{}: {}", path, reason), hint);
}

[[noreturn]] void another_set(const std::string& cache, const std::string& source) {
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{} holds another set than {}", cache, source),
              "remove that folder, or name another one");
}

// By inode, whatever links, mounts and spellings lead there: what is taken for a copy may be removed.
bool same_place(const std::string& a, const std::string& b) {
  std::error_code error;
  return !is_url(a) && std::filesystem::equivalent(a, b, error);
}

// A new name beside `path`, which no other thread or process uses.
std::string temporary_name(const std::string& path) {
  static std::atomic<unsigned> counter = 0;
  return fmt::format("{}.tmp-{}-{}", path, ::getpid(), counter++);
}

// Whether `name` is a temporary_name() of a file of the set, by a process of this machine that is gone.
bool is_left_over(const std::string& folder, const std::string& name, const MdsIndex& index) {
  const std::size_t mark = name.rfind(".tmp-");
  if (mark == std::string::npos) return false;
  int pid = 0;
  unsigned number = 0;
  const char *at = name.data() + mark + 5, *end = name.data() + name.size();
  const auto [dash, bad_pid] = std::from_chars(at, end, pid);
  if (bad_pid != std::errc() || pid <= 0 || dash == end || *dash != '-') return false;
  const auto [rest, bad_number] = std::from_chars(dash + 1, end, number);
  if (bad_number != std::errc() || rest != end) return false;
  if (::kill(pid, 0) == 0 || errno != ESRCH) return false;
  // Other machines may write to the folder too, whose processes are not seen here.
  std::error_code error;
  const auto written = std::filesystem::last_write_time(join_path(folder, name), error);
  constexpr auto kLongestDownload = std::chrono::hours(24);
  if (error || std::filesystem::file_time_type::clock::now() - written < kLongestDownload) {
    return false;
  }
  const std::string whole = name.substr(0, mark);
  const auto is_whole = [&](const MdsFile& file) { return base_name(file.basename) == whole; };
  return whole == kIndexName ||
         std::any_of(index.shards.begin(), index.shards.end(), [&](const MdsShard& shard) {
           return is_whole(shard.raw) || (shard.zip && is_whole(*shard.zip));
         });
}

// Housekeeping: what cannot be listed or removed stays.
void remove_left_overs(const std::string& cache, const MdsIndex& index) {
  std::set<std::string> folders{cache};
  for (const MdsShard& shard : index.shards) {
    if (shard.raw.basename.find('/') != std::string::npos) {
      folders.insert(parent_folder(join_path(cache, shard.raw.basename)));
    }
  }
  for (const std::string& folder : folders) {
    std::error_code error;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      if (is_left_over(folder, name, index)) ::unlink(join_path(folder, name).c_str());
    }
  }
}

// Nothing can look at them; `data verify` refuses such an index.
void name_unknown_hashes(const std::string& path, const MdsIndex& index) {
  std::set<std::string> unknown;
  for (const MdsShard& shard : index.shards) {
    for (const MdsFile* file : {&shard.raw, shard.zip ? &*shard.zip : nullptr}) {
      if (file == nullptr) continue;
      for (const auto& [name, hex] : file->hashes) {
        if (!is_hash_name(name)) unknown.insert(name);
      }
    }
  }
  for (const std::string& name : unknown) {
    log_warning("{}: unknown hash '{}' is not checked; known are: {}", path, name, known_hashes());
  }
}

// Of a regular file; nullopt where none is there, as after another process evicted it.
std::optional<std::uint64_t> size_if_there(const std::string& path) {
  std::error_code error;
  const std::uint64_t bytes = std::filesystem::file_size(path, error);
  return error ? std::nullopt : std::optional(bytes);
}

// Written beside it and renamed: under the final name stands a whole file or none. `made` is opened before.
void write_into_cache(const std::string& path, std::string_view bytes,
                      std::optional<FileReader>* made = nullptr) {
  const std::string temporary = temporary_name(path);
  make_folders(parent_folder(path));
  try {
    FileWriter file(temporary);
    file.write(bytes.data(), bytes.size());
    file.finish();
    if (made != nullptr) made->emplace(temporary);
    rename_path(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

void require_file(const std::string& path) {
  if (!path_exists(path)) damaged(path, "the index names this shard, but it is missing");
  // A pipe or a device has no size either.
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    damaged(path, std::string("the index names this shard, but it is ") +
                      (is_folder(path) ? "a folder, " : "") + "not a regular file");
  }
}

const std::string* find_hash(const MdsFile& entry, const std::string& name) {
  for (const auto& [known, hex] : entry.hashes) {
    if (known == name) return &hex;
  }
  return nullptr;
}

void check_hash(const std::string& path, const MdsFile& entry, const std::string& name,
                std::string_view bytes) {
  const std::string* want = find_hash(entry, name);
  const std::string got = hash_hex(name, {bytes});
  if (want == nullptr) damaged(path, fmt::format("the index has no {} of it", name));
  if (got != *want) damaged(path, fmt::format("{} is {}, but the index says {}", name, got, *want));
}

}  // namespace

void check_file_hash(const std::string& path, const MdsFile& entry, const std::string& name) {
  const FileReader file(path);
  FileHash hash(name);
  std::string buffer(std::size_t{1} << 20, '\0');
  for (std::uint64_t at = 0; at < file.bytes(); at += buffer.size()) {
    buffer.resize(std::min<std::uint64_t>(buffer.size(), file.bytes() - at));
    file.read(at, buffer.data(), buffer.size());
    hash.update(buffer.data(), buffer.size());
  }
  const std::string got = hash.hex();
  const std::string* want = find_hash(entry, name);
  if (want == nullptr) damaged(path, fmt::format("the index has no {} of it", name));
  if (got != *want) damaged(path, fmt::format("{} is {}, but the index says {}", name, got, *want));
}

void ShardBytes::read(std::uint64_t offset, void* data, std::size_t bytes) const {
  if (file_) return file_->read(offset, data, bytes);
  if (offset > memory_.size() || bytes > memory_.size() - offset) {
    throw Error(ErrorKind::kDamaged, fmt::format("{} ends at byte {}", path_, memory_.size()));
  }
  std::memcpy(data, memory_.data() + offset, bytes);
}

ShardStore::ShardStore(std::string source, std::string cache, const ShardStoreOptions& options)
    : source_(strip_file_scheme(source)),
      cache_(same_place(source_, strip_file_scheme(cache)) ? source_ : strip_file_scheme(cache)),
      options_(options),
      remote_(is_url(source_) ? Remote::open(source_, options.remote) : nullptr),
      index_(load_index()),
      slots_(index_.shards.size()) {
  if (caches() && cache_ != source_) remove_left_overs(cache_, index_);
  name_unknown_hashes(join_path(source_, kIndexName), index_);
  if (!options_.validate_hash.empty()) {
    check_hash_name(options_.validate_hash);
    for (const MdsShard& shard : index_.shards) {
      if (find_hash(shard.zip ? *shard.zip : shard.raw, options_.validate_hash)) continue;
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}: the index has no {} of shard {}", source_,
                              options_.validate_hash, shard.raw.basename),
                  "validate a hash that the set was written with, or none");
    }
  }
  if (!options_.cache_limit) return;
  std::uint64_t largest = 0;
  for (std::size_t number = 0; number < slots_.size(); ++number) {
    largest = std::max(largest, bytes_to_make(number));
  }
  if (*options_.cache_limit < 4 * largest) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: a cache limit of {} bytes is below four of the largest shard, {}",
                            source_, *options_.cache_limit, 4 * largest),
                "raise cache_limit, or write smaller shards");
  }
}

MdsIndex ShardStore::load_index() {
  if (!caches() || cache_ == source_) {
    if (!remote_) return MdsIndex::load(source_);
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} has to be downloaded, and no folder for it is given", source_),
                "name one: `local` in a config, --local on the command line");
  }
  const std::string cached = join_path(cache_, kIndexName);
  const bool known = path_exists(cached);
  if (remote_ && known) return MdsIndex::load(cache_);
  if (!remote_) {
    MdsIndex index = MdsIndex::load(source_);
    const std::string text = read_file(join_path(source_, kIndexName));
    if (known && read_file(cached) != text) {
      another_set(cache_, source_);
    }
    if (!known) write_into_cache(cached, text);
    return index;
  }
  make_folders(cache_);
  const std::string temporary = temporary_name(cached);
  if (!remote_->fetch(kIndexName, temporary)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}/{} is absent: no MDS set is there", source_, kIndexName),
                "name the place that holds index.json, or give its split");
  }
  try {
    MdsIndex index = MdsIndex::parse(read_file(temporary), source_ + "/" + kIndexName);
    rename_path(temporary, cached);
    remote_holds_set_ = true;
    return index;
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

std::string ShardStore::damage_hint() const {
  if (!caches() || cache_ == source_) return kRestoreHint;
  return fmt::format(
      "remove that copy, and it is made again from {}; validate_hash finds such by itself",
      source_);
}

void ShardStore::cancel() {
  if (remote_) remote_->cancel();
}
void ShardStore::resume() {
  if (remote_) remote_->resume();
  const std::lock_guard lock(mutex_);
  expected_.clear();
  all_there_ = true;
  for (Slot& slot : slots_) {
    if (slot.state == State::kFailed) slot = Slot{};
  }
}

void ShardStore::check_files() const {
  if (remote_) return;
  for (const MdsShard& shard : index_.shards) {
    const std::string raw_path = join_path(source_, shard.raw.basename);
    const bool packed = shard.zip && !path_exists(raw_path);
    const std::string path = packed ? join_path(source_, shard.zip->basename) : raw_path;
    require_file(path);
    if (::access(path.c_str(), R_OK) != 0) {
      throw Error(ErrorKind::kInvalidArgument, path + ": no right to read this shard",
                  "give this user the right to read it");
    }
    const std::uint64_t bytes = file_bytes(path),
                        want = packed ? shard.zip->bytes : shard.raw.bytes;
    if (bytes != want) damaged(path, fmt::format("{} bytes, but the index says {}", bytes, want));
  }
}

// ---- opening ----

ShardBytes ShardStore::open_file(const MdsShard& shard, const std::string& path) const {
  require_file(path);
  FileReader file(path);
  if (file.bytes() != shard.raw.bytes) {
    damaged(path, fmt::format("{} bytes, but the index says {}", file.bytes(), shard.raw.bytes));
  }
  return ShardBytes(path, std::move(file));
}

// The raw bytes of a compressed shard, all of it checked.
std::string ShardStore::unpack(const MdsShard& shard, const std::string& zip_path) const {
  require_file(zip_path);
  if (const std::uint64_t bytes = file_bytes(zip_path); bytes != shard.zip->bytes) {
    damaged(zip_path, fmt::format("{} bytes, but the index says {}", bytes, shard.zip->bytes));
  }
  const std::string zip = read_file(zip_path);
  const std::string& hash = options_.validate_hash;
  if (!hash.empty()) check_hash(zip_path, *shard.zip, hash, zip);
  try {
    std::string raw = decompress(Compression::parse(*shard.compression), zip, shard.raw.bytes);
    if (!hash.empty() && find_hash(shard.raw, hash)) check_hash(zip_path, shard.raw, hash, raw);
    return raw;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDamaged || std::string(error.what()).starts_with(zip_path)) {
      throw;
    }
    damaged(zip_path, error.what());
  }
}

ShardBytes ShardStore::open_source(const MdsShard& shard) const {
  const std::string path = join_path(source_, shard.raw.basename);
  if (shard.zip && !path_exists(path)) {
    const std::string zip_path = join_path(source_, shard.zip->basename);
    return ShardBytes(zip_path, unpack(shard, zip_path));
  }
  ShardBytes bytes = open_file(shard, path);
  if (!options_.validate_hash.empty() && find_hash(shard.raw, options_.validate_hash)) {
    check_file_hash(path, shard.raw, options_.validate_hash);
  }
  return bytes;
}

ShardBytes ShardStore::open(std::size_t number) {
  const MdsShard& shard = index_.shards[number];
  if (!caches()) return open_source(shard);
  const std::string path = join_path(cache_, shard.raw.basename);
  // Another process may evict a file that was there before it is opened: then once more, and what this one makes
  // it holds open.
  constexpr int kTries = 10;
  for (int attempt = 1;; ++attempt) {
    std::optional<FileReader> made;
    {
      std::unique_lock lock(mutex_);
      make_locked(lock, number, false, &made);
    }
    if (made) return ShardBytes(path, std::move(*made));
    try {
      return open_file(shard, path);
    } catch (const Error&) {
      if (attempt == kTries) throw;
    }
    const std::lock_guard lock(mutex_);
    if (slots_[number].state == State::kLocal) slots_[number].state = State::kUnknown;
  }
}

// ---- what is made ahead ----

void ShardStore::expect(std::size_t number, std::uint64_t place) {
  if (!caches()) return;
  const std::lock_guard lock(mutex_);
  if (slots_[number].state == State::kUnknown) all_there_ = false;
  if (!expected_.empty() && expected_.back().number == number) {
    expected_.back().last = place;
  } else {
    expected_.push_back({number, place, place});
  }
}

void ShardStore::pass(std::uint64_t place) {
  const std::lock_guard lock(mutex_);
  while (!expected_.empty() && expected_.front().last < place) expected_.pop_front();
}

// With mutex_ held.
const ShardStore::Expected* ShardStore::find_next() {
  if (all_there_) return nullptr;
  std::uint64_t ahead = 0;
  ++walks_;
  for (const Expected& expected : expected_) {
    Slot& slot = slots_[expected.number];
    if (slot.walk == walks_) continue;
    slot.walk = walks_;
    if (evicts() && &expected != &expected_.front()) {
      ahead += bytes_to_make(expected.number);
      if (ahead > *options_.cache_limit / 2) return nullptr;
    }
    if (slot.state == State::kUnknown) return &expected;
  }
  all_there_ = true;
  return nullptr;
}

std::optional<std::uint64_t> ShardStore::next_ahead() {
  const std::lock_guard lock(mutex_);
  const Expected* next = find_next();
  return next == nullptr ? std::nullopt : std::optional(next->first);
}

bool ShardStore::make_next() {
  std::unique_lock lock(mutex_);
  const Expected* next = find_next();
  return next != nullptr && make_locked(lock, next->number, true, nullptr);
}

void ShardStore::warn_if_short(const std::set<std::size_t>& numbers) {
  const std::lock_guard lock(mutex_);
  if (warned_ || !evicts()) return;
  std::uint64_t bytes = 0;
  for (const std::size_t number : numbers) bytes += bytes_to_make(number);
  if (bytes <= *options_.cache_limit) return;
  warned_ = true;
  log_warning(
      "{}: one batch reads {} shards of {} bytes, more than the cache_limit of {} holds, so that "
      "shards are fetched again and again; raise cache_limit to {} or more",
      source_, numbers.size(), bytes, *options_.cache_limit, 2 * bytes);
}

bool ShardStore::makes_shards() const {
  if (!caches()) return false;
  return cache_ != source_ ||
         std::any_of(index_.shards.begin(), index_.shards.end(),
                     [](const MdsShard& shard) { return shard.zip.has_value(); });
}

bool ShardStore::is_ready(std::size_t number) {
  if (!caches()) return path_exists(join_path(source_, index_.shards[number].raw.basename));
  const std::lock_guard lock(mutex_);
  return slots_[number].state == State::kLocal;
}

// ---- making shards in the cache ----

bool ShardStore::has_whole_raw(const MdsShard& shard) const {
  return size_if_there(join_path(cache_, shard.raw.basename)) == shard.raw.bytes;
}

// Whether a file of the cache can be made again: not where it is the source's own, as links may have it.
bool ShardStore::is_copy(const MdsFile& file) const {
  return cache_ != source_ &&
         !same_place(join_path(source_, file.basename), join_path(cache_, file.basename));
}

// Under `lock` but while the file is made. `made`: where to open the shard while nobody else can
// evict it, if this call makes it; or null.
bool ShardStore::make_locked(std::unique_lock<std::mutex>& lock, std::size_t number, bool ahead,
                             std::optional<FileReader>* made) {
  Slot& slot = slots_[number];
  changed_.wait(lock, [&] { return slot.state != State::kMaking; });
  if (slot.state == State::kFailed) {
    if (ahead) return true;
    slot.state = State::kUnknown;
    std::rethrow_exception(std::exchange(slot.error, nullptr));
  }
  if (slot.state == State::kUnknown) {
    slot.state = State::kMaking;
    std::exception_ptr error;
    try {
      if (!make_room(number, ahead)) {
        slot.state = State::kUnknown;
        changed_.notify_all();
        return false;
      }
      lock.unlock();
      make_file(index_.shards[number], made);
    } catch (...) {
      error = std::current_exception();
    }
    if (!lock.owns_lock()) lock.lock();
    slot.state = !error ? State::kLocal : ahead ? State::kFailed : State::kUnknown;
    changed_.notify_all();
    if (error && !ahead) std::rethrow_exception(error);
    slot.error = error;
  }
  slot.last_use = ++uses_;
  return true;
}

// One file from the remote, or from the source's folder, under its name in the cache.
void ShardStore::download(const MdsFile& entry, const std::string& path,
                          std::optional<FileReader>* made) {
  make_folders(parent_folder(path));
  const std::string temporary = temporary_name(path);
  try {
    if (!remote_->fetch(entry.basename, temporary, entry.bytes)) {
      damaged(source_ + "/" + entry.basename, "the index names this shard, but it is missing");
    }
    if (!options_.validate_hash.empty() && find_hash(entry, options_.validate_hash)) {
      check_file_hash(temporary, entry, options_.validate_hash);
    }
    if (made != nullptr) made->emplace(temporary);
    rename_path(temporary, path);
  } catch (const Error& error) {
    ::unlink(temporary.c_str());
    // The user knows the shard by its place at the source.
    std::string text = error.what();
    if (text.starts_with(temporary))
      text.replace(0, temporary.size(), source_ + "/" + entry.basename);
    throw Error(error.kind(), text,
                error.kind() == ErrorKind::kDamaged ? "the file there is not the one of the index"
                                                    : error.hint());
  }
}

// Removes a file of the cache, which can be made again, where it has other bytes than the index says: then
// true, and a warning says so.
bool ShardStore::drop_damaged_copy(const MdsFile& entry, const std::string& path) const {
  const std::string& hash = options_.validate_hash;
  if (hash.empty() || !find_hash(entry, hash)) return false;
  try {
    check_file_hash(path, entry, hash);
    return false;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDamaged || !is_copy(entry)) throw;
    log_warning("{}; it is made again from {}", error.what(), source_);
  }
  ::unlink(path.c_str());
  return true;
}

// The compressed file: in the cache, else in a source that is a folder.
std::string ShardStore::obtain_zip(const MdsShard& shard) {
  const std::string cached = join_path(cache_, shard.zip->basename);
  const bool whole = size_if_there(cached) == shard.zip->bytes &&
                     (cache_ == source_ || !drop_damaged_copy(*shard.zip, cached));
  if (!whole && remote_) download(*shard.zip, cached, nullptr);
  return whole || remote_ ? cached : join_path(source_, shard.zip->basename);
}

// Its raw bytes. A copy in the cache that cannot be unpacked does not stay: one of before is fetched again, and of
// one that was just fetched the source is told to be at fault.
std::string ShardStore::unpack_zip(const MdsShard& shard) {
  const std::string cached = join_path(cache_, shard.zip->basename);
  for (bool again = false;; again = true) {
    const bool was_there = path_exists(cached);
    const std::string path = obtain_zip(shard);
    const bool copy = path == cached && is_copy(*shard.zip);
    try {
      std::string raw = unpack(shard, path);
      if (copy && !options_.keep_zip) ::unlink(path.c_str());
      return raw;
    } catch (const Error& error) {
      if (!copy || error.kind() != ErrorKind::kDamaged) throw;
      ::unlink(path.c_str());
      if (!was_there || again) {
        std::string text = error.what();
        if (text.starts_with(path)) {
          text.replace(0, path.size(), source_ + "/" + shard.zip->basename);
        }
        throw Error(error.kind(), text, "the file there is not the one of the index");
      }
      log_warning("{}; it is made again from {}", error.what(), source_);
    }
  }
}

void ShardStore::make_file(const MdsShard& shard, std::optional<FileReader>* made) {
  const std::string path = join_path(cache_, shard.raw.basename);
  const bool validate =
      !options_.validate_hash.empty() && find_hash(shard.raw, options_.validate_hash);
  if (has_whole_raw(shard) && !drop_damaged_copy(shard.raw, path)) return;
  if (cache_ == source_ && (!shard.zip || path_exists(path))) {
    open_file(shard, path);  // says what is wrong with it
  }
  if (shard.zip) {
    write_into_cache(path, unpack_zip(shard), made);
  } else if (remote_) {
    download(shard.raw, path, made);
  } else {
    const std::string from = join_path(source_, shard.raw.basename);
    open_file(shard, from);
    const std::string bytes = read_file(from);
    if (validate) check_hash(from, shard.raw, options_.validate_hash, bytes);
    write_into_cache(path, bytes, made);
  }
}

// ---- the limit of the cache ----

std::uint64_t ShardStore::bytes_to_make(std::size_t number) const {
  const MdsShard& shard = index_.shards[number];
  return shard.raw.bytes + (shard.zip ? shard.zip->bytes : 0);
}

// With those that are being made, whose files do not have their names yet. With mutex_ held.
std::uint64_t ShardStore::usage() const {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].state == State::kMaking) {
      total += bytes_to_make(i);
      continue;
    }
    const MdsShard& shard = index_.shards[i];
    for (const MdsFile* file : {&shard.raw, shard.zip ? &*shard.zip : nullptr}) {
      if (file == nullptr) continue;
      const auto bytes = size_if_there(join_path(cache_, file->basename));
      if (bytes && is_copy(*file)) total += *bytes;
    }
  }
  return total;
}

// Before the first file goes: a cache that was there before may be the user's own set, of which the URL has nothing.
void ShardStore::check_remote_index() {
  const std::string cached = join_path(cache_, kIndexName), temporary = temporary_name(cached);
  remote_holds_set_ =
      remote_->fetch(kIndexName, temporary) && read_file(temporary) == read_file(cached);
  ::unlink(temporary.c_str());
  if (!remote_holds_set_) another_set(cache_, source_);
}

// With mutex_ held. The last place for a shard that is not expected.
void ShardStore::find_next_uses() {
  for (Slot& slot : slots_) slot.next_use = std::numeric_limits<std::uint64_t>::max();
  for (auto expected = expected_.rbegin(); expected != expected_.rend(); ++expected) {
    slots_[expected->number].next_use = expected->first;
  }
}

// With mutex_ held and `number` marked as being made. Removes the shards whose next use lies
// furthest ahead, of those that are not expected the ones whose last use lies furthest back; never a
// file that is the only copy, which it is where the cache is the source.
bool ShardStore::make_room(std::size_t number, bool ahead) {
  if (!evicts() || has_whole_raw(index_.shards[number])) return true;
  if (usage() <= *options_.cache_limit) return true;
  find_next_uses();
  const auto goes_before = [](const Slot& a, const Slot& b) {
    return a.next_use != b.next_use ? a.next_use > b.next_use : a.last_use < b.last_use;
  };
  do {
    std::size_t farthest = slots_.size();
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].state == State::kMaking) continue;
      if (!has_whole_raw(index_.shards[i]) || !is_copy(index_.shards[i].raw)) continue;
      if (farthest == slots_.size() || goes_before(slots_[i], slots_[farthest])) farthest = i;
    }
    // What is left is being made right now.
    if (farthest == slots_.size()) return !ahead;
    Slot& slot = slots_[farthest];
    if (ahead && slot.next_use < slots_[number].next_use) return false;
    if (remote_ && !remote_holds_set_) check_remote_index();
    const MdsShard& old = index_.shards[farthest];
    ::unlink(join_path(cache_, old.raw.basename).c_str());
    if (old.zip && is_copy(*old.zip)) ::unlink(join_path(cache_, old.zip->basename).c_str());
    slot.state = State::kUnknown;
    all_there_ = false;
  } while (usage() > *options_.cache_limit);
  return true;
}

}  // namespace dropless::train
