// Between the model in memory and checkpoint folders: what the trainer saves, and how generate,
// eval and resume read it back.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train/checkpoint/safetensors.h"
#include "train/convert/companions.h"
#include "train/nn/precision.h"
#include "train/nn/transformer.h"
#include "train/optim/optimizer.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

// Files of a checkpoint folder besides its manifest and those of the model.
inline constexpr const char* kOptimizerFile = "optimizer.safetensors";
inline constexpr const char* kStateFile = "state.json";

// What a checkpoint of a run holds, on the CPU.
class CheckpointContent {
 public:
  // `copy`: of its own, so that training may go on while it is written; otherwise what lies on the
  // CPU is only referred to. Without an optimizer nothing is held that a resume would need. `texts`:
  // config.yaml, and the companions of the model that the run started from.
  CheckpointContent(const Transformer& model, const Optimizer* optimizer,
                    const nlohmann::json& state, std::vector<Companion> texts, bool copy);
  // Publishes RUN_FOLDER/step-N and returns its path. Throws Error(kResource).
  std::string write(const std::string& run_folder, std::int64_t step) const;

 private:
  struct Tensors {
    std::vector<at::Tensor> storage;
    std::vector<NamedTensor> named;
    void add(const std::string& name, const at::Tensor& tensor, bool copy);
  };
  Tensors weights_, moments_;
  bool resumable_;
  std::vector<Companion> texts_;
};

// About what a checkpoint of a run takes on the disk. Without an optimizer: of weights alone.
std::uint64_t checkpoint_bytes(const Transformer& model, const Optimizer* optimizer);

// The folder that holds a MODEL's weights: of a run folder its latest checkpoint, of a checkpoint
// or a Hugging Face folder that itself. Throws Error(kInvalidArgument) when there is none.
std::string resolve_model(const std::string& path);
// Reads every byte of a checkpoint; of a Hugging Face folder, which has no hashes, config.json and
// the headers. Throws Error(kDamaged), and as they are read.
void verify_model(const std::string& folder);
// Whether a run saved it: released and converted models have weights alone.
bool is_of_a_run(const std::string& folder);

// Fills the model's parameters. Throws Error(kInvalidArgument) when names or shapes are not the
// model's; where names are not, its hint ends in `way`. With `map` some may lie in their files: for weights
// that nobody changes.
void load_model_weights(const std::string& folder, Transformer& model, const std::string& way = {},
                        bool map = false);
// The same without what `ignored` names (shell patterns of NAME, state/model/NAME or
// state/model/model.NAME), and with a warning for tensors that are missing or left over.
void load_some_weights(const std::string& folder, Transformer& model,
                       const std::vector<std::string>& ignored);
// "3 of the 40 tensors of FOLDER hold NaN or infinite values, NAME first", by the folder's own names; empty
// where all are finite. Reads all of them.
std::string ruined_weights(const std::string& folder, const Transformer& model);
// Throws Error(kInvalidArgument) for a checkpoint that was saved with save_weights_only.
void require_resumable(const std::string& checkpoint);
void load_optimizer(const std::string& checkpoint, Optimizer& optimizer);
void load_generator(const std::string& checkpoint);                // of random numbers
OptimizerType load_optimizer_type(const std::string& checkpoint);  // of the run that saved it
nlohmann::json load_training_state(const std::string& checkpoint);

// A model ready to run, from a checkpoint folder, a run folder (its latest) or a Hugging Face
// folder.
struct LoadedModel {
  std::string folder;  // the checkpoint itself
  std::unique_ptr<Transformer> model;
  std::shared_ptr<const Tokenizer>
      tokenizer;  // null where the checkpoint's needs files that are not here
  // Where a text ends: generation_config.json's eos_token_id, else config.json's, else the
  // tokenizer's.
  std::vector<TokenId> eos;
};
// Throws Error(kInvalidArgument) also where the tokenizer does not fit.
// `adapter`: a folder of PEFT's whose adapter stands beside the weights; empty: none. Matrices are
// held in the type in which `precision` multiplies, on the CPU where they lie in their file if it has them
// in that type and shape.
LoadedModel load_model(const std::string& path, at::Device device, const std::string& adapter = {},
                       Precision precision = Precision::kFp32);

// What config.yaml or config.json says.
ModelConfig load_model_config(const std::string& folder);
// The keys by which `config` computes something else than the model that was saved, each with both its
// values; empty where they are one function of the weights.
std::vector<std::string> maths_differences(const std::string& checkpoint,
                                           const ModelConfig& config);
// Whether the weights that were saved fit the model of `config` by names and shapes.
bool same_parameters(const std::string& checkpoint, const ModelConfig& config);

}  // namespace dropless::train
