#include "train/run/batches.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace dropless::train {

BatchTensors batch_tensors(const Batch& batch, std::int64_t first, std::int64_t rows,
                           at::Device device) {
  const std::int64_t S = batch.seq_len;
  at::Tensor tokens = at::empty({rows, S}, at::kLong);
  at::Tensor labels = at::full({rows, S}, -100, at::kLong);
  std::int64_t* token = tokens.mutable_data_ptr<std::int64_t>();
  std::int64_t* label = labels.mutable_data_ptr<std::int64_t>();
  BatchTensors result;
  const auto first_length = batch.lengths_B.begin() + first;
  const bool padded = std::any_of(first_length, first_length + rows,
                                  [&](std::int64_t length) { return length < S; });
  std::vector<std::int64_t> kept;
  for (std::int64_t b = 0; b < rows; ++b) {
    const std::int64_t* row = batch.tokens_BS.data() + (first + b) * S;
    const std::int64_t length = batch.lengths_B[first + b];
    std::copy_n(row, S, token + b * S);
    for (std::int64_t s = 1; s < length; ++s) {
      if (!batch.is_scored(first + b, s)) continue;
      label[b * S + s - 1] = row[s];
      ++result.scored;
    }
    for (std::int64_t s = 0; padded && s < length; ++s) kept.push_back(b * S + s);
  }
  if (!batch.documents_BS.empty()) {
    at::Tensor ids = at::empty({rows, S}, at::kLong);
    std::copy_n(batch.documents_BS.data() + first * S, rows * S,
                ids.mutable_data_ptr<std::int64_t>());
    result.sequence_ids_BS = ids.to(device);
  } else if (batch.separator) {
    const at::Tensor is_separator = tokens.eq(batch.separator->id).to(at::kLong);
    at::Tensor ids = is_separator.cumsum(1);
    if (!batch.separator->begins) ids = ids - is_separator;
    result.sequence_ids_BS = ids.to(device);
  }
  if (padded) result.kept_R = at::tensor(kept, at::kLong).to(device);
  result.tokens_BS = tokens.to(device);
  result.labels_BS = labels.to(device);
  return result;
}

Batch first_rows(const Batch& batch, std::int64_t rows) {
  Batch head = batch;
  head.batch = std::min(rows, batch.batch);
  const auto places = static_cast<std::size_t>(head.batch * head.seq_len);
  head.tokens_BS.resize(places);
  if (!head.learned_BS.empty()) head.learned_BS.resize(places);
  if (!head.documents_BS.empty()) head.documents_BS.resize(places);
  head.lengths_B.resize(static_cast<std::size_t>(head.batch));
  head.tokens = std::accumulate(head.lengths_B.begin(), head.lengths_B.end(), std::int64_t{0});
  return head;
}

}  // namespace dropless::train
