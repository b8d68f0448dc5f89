#include "train/run/evaluate.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "dropless/error.h"
#include "train/base/signals.h"
#include "train/run/batches.h"
#include "train/run/memory.h"

namespace dropless::train {

double EvalResult::cross_entropy() const {
  if (tokens == 0) return std::numeric_limits<double>::quiet_NaN();
  return loss_sum / static_cast<double>(tokens);
}

double EvalResult::perplexity() const { return std::exp(cross_entropy()); }

double EvalResult::accuracy() const {
  if (tokens == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(correct) / static_cast<double>(tokens);
}

void EvalResult::add(const EvalResult& other) {
  loss_sum += other.loss_sum;
  tokens += other.tokens;
  correct += other.correct;
}

at::Tensor correct_tokens(const at::Tensor& logits_BSV, const at::Tensor& labels_BS) {
  at::NoGradGuard no_grad;
  // Not argmax(), which takes several times as long on a CPU in bf16.
  const at::Tensor likeliest_BS = std::get<1>(logits_BSV.max(-1));
  return likeliest_BS.eq(labels_BS).sum();
}

namespace {

EvalResult run_evaluation(Transformer& model, BatchSource& source, Precision precision,
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
    PassOptions options;
    options.sequence_ids_BS = tensors.sequence_ids_BS;
    options.kept_R = tensors.kept_R;
    const at::Tensor logits = model.forward(tensors.tokens_BS, record, nullptr, options);
    result.loss_sum += cross_entropy_sum(logits, tensors.labels_BS).item<double>();
    result.tokens += tensors.scored;
    result.correct += correct_tokens(logits, tensors.labels_BS).item<std::int64_t>();
    if (!std::isfinite(result.loss_sum)) {
      throw Error(
          ErrorKind::kNonFinite,
          fmt::format("the evaluation loss is {} after {} tokens",
                      std::isnan(result.loss_sum) ? "not a number" : "infinite", result.tokens),
          "the weights of this model are ruined: take an older checkpoint");
    }
  }
  return result;
}

}  // namespace

EvalResult evaluate(Transformer& model, BatchSource& source, Precision precision,
                    std::int64_t max_batches) {
  return with_torch_errors("if memory ran out, lower device_eval_batch_size",
                           [&] { return run_evaluation(model, source, precision, max_batches); });
}

}  // namespace dropless::train
