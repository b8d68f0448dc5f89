// Which bytes of a released model's tensors are which bytes of ours: rectangles of matrices, so
// that either side is written from the other one piece after the other.
//
// Ours are LLM Foundry's names and shapes: Wqkv holds the rows of q, k and v; w1, v1 and w2 those
// of all experts, [E * F, D], where a linear layer stores the down projection [D, F].
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/convert/family.h"
#include "train/nn/model_config.h"

namespace dropless::train {

// How the experts are stored: a tensor for each one's each projection, or stacked. Hugging Face's
// stacks are gate_up_proj [E, 2F, D] and down_proj [E, D, F]; Mistral's (the first release of Mixtral)
// w1, w2 and w3 [E * F, D], which are ours. DBRX and MPT have one form, and take either word for it.
enum class ExpertForm { kEach, kStacked };

struct TensorShape {
  std::string name;
  std::vector<std::int64_t> shape;
};

// A rectangle of one of our tensors, seen as a matrix [all rows, columns], and where the other side
// keeps it: as `rows` full rows, or transposed as `columns` full rows of `rows` elements.
struct Link {
  std::string ours;
  std::int64_t ours_row = 0;
  std::string theirs;
  std::int64_t theirs_row = 0;
  std::int64_t rows = 0, columns = 0;
  bool transposed = false;
};

// A link as the source of one tensor: full rows of `source`, to be transposed or not.
struct Piece {
  std::string source;
  std::int64_t first_row = 0;
  std::int64_t rows = 0, columns = 0;  // of the source
  bool transpose = false;
};

struct MappedTensor {
  TensorShape tensor;
  std::vector<Piece> pieces;  // one after the other they are its bytes
};

// A tensor that the source has under its own name and in its own shape.
MappedTensor same_tensor(const TensorShape& tensor);

// Gathers `links` by the tensor they fill, on the side that is named; throws Error(kUnsupported) where
// they do not fill all of it.
std::vector<MappedTensor> gather_pieces(const std::vector<Link>& links,
                                        const std::vector<TensorShape>& tensors, bool ours);

struct TensorMap {
  std::vector<MappedTensor> ours, theirs;
};

// Of a model without adapters. Throws Error(kUnsupported) where it has parameters that the family lacks.
TensorMap released_tensor_map(const ModelConfig& config, Family family, ExpertForm form);

}  // namespace dropless::train
