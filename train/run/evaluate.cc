#include "train/run/evaluate.h"

#include <cmath>

#include "train/base/signals.h"
#include "train/run/batches.h"

namespace dropless::train {

double EvalResult::perplexity() const { return std::exp(cross_entropy()); }

void EvalResult::add(const EvalResult& other) {
  loss_sum += other.loss_sum;
  tokens += other.tokens;
}

EvalResult evaluate(Transformer& model, BatchSource& source, Precision precision,
                    std::int64_t max_batches) {
  at::NoGradGuard no_grad;
  AutocastGuard autocast(precision, model.device());
  EvalResult result;
  Batch batch;
  for (std::int64_t i = 0; i != max_batches && source.next(batch); ++i) {
    check_interrupted();
    if (stop_signal() != 0) break;
    const BatchTensors tensors = batch_tensors(batch, 0, batch.batch, model.device());
    if (tensors.scored == 0) continue;
    RouterRecord record;
    const at::Tensor logits = model.forward(tensors.tokens_BS, record);
    result.loss_sum += cross_entropy_sum(logits, tensors.labels_BS).item<double>();
    result.tokens += tensors.scored;
  }
  return result;
}

}  // namespace dropless::train
