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

  double cross_entropy() const { return tokens > 0 ? loss_sum / static_cast<double>(tokens) : 0; }
  double perplexity() const;
  void add(const EvalResult& other);
};

// Up to `max_batches` batches (-1: all). Stops early at a signal (stop_signal()). Throws Error:
// kNonFinite for a loss that is no number, kDamaged where no token is scored.
EvalResult evaluate(Transformer& model, BatchSource& source, Precision precision,
                    std::int64_t max_batches = -1);

}  // namespace dropless::train
