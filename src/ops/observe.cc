#include "dropless/observe.h"

#include <utility>

#include "src/ops/observed.h"

namespace dropless {
namespace {

PartObserver current_observer;

}  // namespace

PartObserver observe_parts(PartObserver observer) {
  return std::exchange(current_observer, std::move(observer));
}

void tell_observer(const QueuedPart& part) {
  if (current_observer) current_observer(part);
}

}  // namespace dropless
