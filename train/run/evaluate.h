// Cross-entropy of a model over a source of batches.
#pragma once

#include <cstdint>

#include "train/data/batch.h"
#include "train/nn/precision.h"
#include "train/nn/transformer.h"

namespace dropless::train {

struct EvalResult {
  double loss_sum = 0;      // nats
  std::int64_t tokens = 0;  // scored ones

  // NaN where no token is scored: there is no mean of nothing.
  double cross_entropy() const;
  double perplexity() const;
  void add(const EvalResult& other);
};

// Up to `max_batches` batches (-1: all). Stops early at a signal (stop_signal()). Throws Error:
// kNonFinite for a loss that is no number. No token scored: its tokens are 0.
EvalResult evaluate(Transformer& model, BatchSource& source, Precision precision,
                    std::int64_t max_batches = -1);

}  // namespace dropless::train
