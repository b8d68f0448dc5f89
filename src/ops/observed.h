// The layer's side of observe.h.
#pragma once

#include "dropless/observe.h"

namespace dropless {

// Tells the observer, if there is one.
void tell_observer(const QueuedPart& part);

}  // namespace dropless
