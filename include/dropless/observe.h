// What the layer queues on a GPU, part by part: for profilers and benchmarks (`dropless bench moe
// --kernels`).
#pragma once

#include <functional>

#include "dropless/backend.h"

namespace dropless {

// One part that was just queued. Events recorded on `stream` at each call, and one before the first,
// time the parts without waiting.
struct QueuedPart {
  const char* name;  // "up", "d_w1": a literal; a layer may queue one name several times
  double flops;      // floating-point operations on rows that exist; 0 where none are to speak of
  double bytes;      // the fewest that must move: each operand and result once
  Stream stream;
};
using PartObserver = std::function<void(const QueuedPart&)>;

// Has `observer` called after each part of moe_forward and moe_backward on CUDA tensors, by the
// thread that queues it; an empty one ends that. Returns the one before. For the whole process: not
// while a layer is being queued. Small batches (few tokens a call) are one part.
PartObserver observe_parts(PartObserver observer);

}  // namespace dropless
