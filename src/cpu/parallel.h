// Loops over threads (OpenMP). Work below kMinParallelWork elements stays on the calling thread,
// where it is done before a second thread would have started.
#pragma once

#include <algorithm>
#include <cstdint>

#include "src/cpu/kernels.h"

namespace dropless::cpu {

inline constexpr std::int64_t kMinParallelWork = 32 * 1024;

// Below this many multiply-adds a second thread costs more than it brings.
inline constexpr std::int64_t kMinWorkPerThread = 512 * 1024;

// Threads for a matrix product of `work` multiply-adds: as many as it and the workspace allow.
inline int gemm_threads(std::int64_t work, std::size_t workspace_bytes) {
  const auto slots = static_cast<std::int64_t>(workspace_bytes / kGemmSlotBytes);
  const std::int64_t useful = work / kMinWorkPerThread;
  return static_cast<int>(std::clamp<std::int64_t>(std::min(slots, useful), 1, max_threads()));
}

// body(chunk, begin, end) for the chunks of tokens (token_chunk); `work` elements in all.
template <class Body>
void for_token_chunks(std::int64_t tokens, [[maybe_unused]] std::int64_t work, Body&& body) {
  const std::int64_t chunk = token_chunk(tokens), chunks = (tokens + chunk - 1) / chunk;
#pragma omp parallel for schedule(static) if (chunks > 1 && work >= kMinParallelWork)
  for (std::int64_t c = 0; c < chunks; ++c) {
    body(c, c * chunk, std::min((c + 1) * chunk, tokens));
  }
}

}  // namespace dropless::cpu
