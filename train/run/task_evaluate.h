// In-context tasks put to a model.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

#include "train/icl/suite.h"
#include "train/nn/precision.h"
#include "train/nn/transformer.h"

namespace dropless::train {

// One question's outcome, for whoever wants to look: {"task", "index", "correct"} and, of scored
// questions, "loglikelihoods" (nats, of each continuation) and "tokens" (of each continuation), of
// generated ones "text".
using QuestionSink = std::function<void(const nlohmann::ordered_json&)>;

// Up to `max_batches` batches of a task (-1: all). Stops early at a signal (stop_signal()). Throws
// Error: kNonFinite for ruined weights, kResource.
TaskScore evaluate_task(Transformer& model, const Tokenizer& tokenizer, const TaskRun& run,
                        Precision precision, std::int64_t max_batches = -1,
                        const QuestionSink& sink = {});

}  // namespace dropless::train
