// A loader's batch as the tensors that the model and the loss take.
#pragma once

#include <cstdint>

#include "train/bridge/torch.h"
#include "train/data/batch.h"

namespace dropless::train {

struct BatchTensors {
  at::Tensor tokens_BS;  // int64, on the device
  // The next token of each position; -100 at a document's last token, where the next is not learned,
  // and on pads.
  at::Tensor labels_BS;
  std::int64_t scored = 0;  // labels that are not -100
  // Of packed rows, the number of a token's document. With a separator: how many documents began (or
  // ended, an ending token belonging to its own) in the row up to a token.
  at::Tensor sequence_ids_BS;
  at::Tensor kept_R;  // with pads: the places in tokens_BS, row after row, that are none
};

// Rows [first, first + rows) of the batch.
BatchTensors batch_tensors(const Batch& batch, std::int64_t first, std::int64_t rows,
                           at::Device device);

// The batch's first `rows` rows, or all where it has fewer.
Batch first_rows(const Batch& batch, std::int64_t rows);

}  // namespace dropless::train
