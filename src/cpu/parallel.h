// Loops over threads (OpenMP). Work below kMinParallelWork elements stays on the calling thread,
// where it is done before a second thread would have started.
#pragma once

#include <algorithm>
#include <cstdint>

#include "src/cpu/kernels.h"

namespace dropless::cpu {

inline constexpr std::int64_t kMinParallelWork = 32 * 1024;

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
