// `dropless train`, on libtorch.
#pragma once

#include "apps/train_options.h"

namespace dropless::apps {

// Trains. Throws Error.
void run_train(const TrainOptions& options);

}  // namespace dropless::apps
