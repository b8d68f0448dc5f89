// Cross-entropy of a model over a source of batches.
#pragma once

#include <cstdint>

#include "train/data/batch.h"
#include "train/nn/precision.h"
#include "train/nn/transformer.h"

namespace dropless::train {

struct EvalResult {
  double loss_sum = 0;       // nats
  std::int64_t tokens = 0;   // scored ones
  std::int64_t correct = 0;  // of them, those to which the model gives the highest logit

  // NaN where no token is scored: there is no mean of nothing.
  double cross_entropy() const;
  double perplexity() const;
  double accuracy() const;
  void add(const EvalResult& other);
};

// How many positions have their label as the likeliest token: int64 on the device.
at::Tensor correct_tokens(const at::Tensor& logits_BSV, const at::Tensor& labels_BS);

// Up to `max_batches` batches (-1: all). Stops early at a signal (stop_signal()). Throws Error:
// kNonFinite for a loss that is no number. No token scored: its tokens are 0.
EvalResult evaluate(Transformer& model, BatchSource& source, Precision precision,
                    std::int64_t max_batches = -1);

}  // namespace dropless::train
