// Checkpoints of a run: `step-N/` folders that are either complete or not there, and `latest`.
//
// Written as `step-N.tmp/`: each file fsynced, then `manifest.json` (sizes and XXH3-128 of the
// others, and of itself), then the folder; renamed to `step-N/`, the run folder fsynced, and the
// relative symlink `latest` replaced. A crash at any point leaves the old or the new complete
// checkpoint (docs/checkpoints.md). This folder knows files and named bytes, not models: the
// trainer decides what goes in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/checkpoint/safetensors.h"

namespace dropless::train {

inline constexpr int kCheckpointVersion = 1;
// The files that make a checkpoint a model: its weights, and the config that says what they are.
inline constexpr const char* kModelFile = "model.safetensors";
inline constexpr const char* kConfigFile = "config.yaml";

struct CheckpointFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string xxh3;
};

struct Manifest {
  std::int64_t step = 0;
  std::int64_t sequence = 0;  // counts the saves of a run folder: the highest is the newest
  std::vector<CheckpointFile> files;
};

class CheckpointWriter {
 public:
  // Makes `run_folder/step-N.tmp`. expected_bytes (0: unknown) are checked against the free space
  // at once.
  CheckpointWriter(std::string run_folder, std::int64_t step, std::uint64_t expected_bytes = 0);
  ~CheckpointWriter();  // without commit(): removes the temporary folder
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // `file` is a plain name such as "model.safetensors"; each once.
  void add_tensors(const std::string& file, std::vector<NamedTensor> tensors,
                   const TensorMetadata& metadata = {});
  void add_text(const std::string& file, std::string_view text);
  // Publishes; an older step-N is replaced. Returns "run_folder/step-N".
  std::string commit();

 private:
  std::string path(const std::string& file) const;
  std::string run_folder_;
  std::string temporary_;
  std::int64_t step_;
  std::vector<CheckpointFile> files_;
  bool committed_ = false;
};

std::string step_folder_name(std::int64_t step);  // "step-40"
// Steps that have a `step-N` folder, ascending; complete or not is not looked at.
std::vector<std::int64_t> list_steps(const std::string& run_folder);

// At the start of a run, by one process: removes what crashed saves left (`*.tmp`), and puts back a
// checkpoint caught in the middle of its replacement. Returns a line for each thing done.
std::vector<std::string> sweep_stale(const std::string& run_folder);
// At the start of a run: `latest` must be absent or a link. kInvalidArgument where it is something
// real, as a copy of a run folder that followed links leaves it; the hint says how to mend it.
void check_latest(const std::string& run_folder);
// Makes `latest` name this checkpoint of the run folder. Returns whether it named another one.
bool point_latest(const std::string& run_folder, const std::string& checkpoint);
// In such an order that a crash leaves it whole, or a `*.tmp` for sweep_stale().
void remove_checkpoint(const std::string& folder);
// Keeps the `keep` newest checkpoints and what `latest` points to; -1 keeps all. Returns what it
// removed.
std::vector<std::string> prune_checkpoints(const std::string& run_folder, int keep);

// A checkpoint folder is one that holds a manifest. Takes one, or a run folder (its `latest`, a link
// or a copied folder; where there is none, its newest). Throws kInvalidArgument when there is none, kDamaged when
// `latest` names one that is not complete.
std::string resolve_checkpoint(const std::string& path);

// Reads manifest.json alone. kInvalidArgument: absent, or an unknown format or version; kDamaged:
// altered.
Manifest read_manifest(const std::string& folder);
// Reads every byte of one of its files: kDamaged where that is missing, of another size or altered;
// the hint of both names the newest checkpoint beside it that verifies.
void verify_file(const std::string& folder, const Manifest& manifest, std::string_view name);
// Reads every byte: kDamaged names the first file that is missing, of another size or altered.
Manifest verify_checkpoint(const std::string& folder);

struct RejectedCheckpoint {
  std::string folder;
  std::string reason;
};
struct NewestGood {
  std::optional<std::string> folder;  // nullopt: none verifies
  std::vector<RejectedCheckpoint>
      rejected;  // newer ones (or of unknown age) that do not: warn loudly
};
NewestGood find_newest_good(const std::string& run_folder);
// The newest whose manifest can be read; its other files are not looked at. nullopt: none.
std::optional<std::string> newest_complete(const std::string& run_folder);

}  // namespace dropless::train
