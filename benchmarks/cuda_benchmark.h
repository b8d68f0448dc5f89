// What the CUDA benchmarks share: the six layers of docs/benchmarks.md, how tokens fall to experts,
// timing in turns, and options.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "src/cuda/check.h"

namespace dropless::benchmarks {

struct Shape {
  const char* name;
  std::int64_t tokens, d, f, experts, k;
  std::int64_t rows() const { return tokens * k; }
};

inline constexpr Shape kShapes[] = {
    {"mb-medium", 16384, 1024, 4096, 64, 1}, {"mixtral", 16384, 4096, 14336, 8, 2},
    {"dbrx", 8192, 6144, 10752, 16, 4},      {"olmoe", 32768, 2048, 1024, 64, 8},
    {"qwen3", 32768, 2048, 768, 128, 8},     {"deepseek", 8192, 7168, 2048, 64, 8},
};

// Rows of each expert.
inline std::vector<std::int64_t> route(const Shape& shape, const std::string& routing) {
  std::vector<std::int64_t> rows(shape.experts, 0);
  if (routing == "uniform") {
    for (auto& r : rows) r = shape.rows() / shape.experts;
    return rows;
  }
  // K distinct experts per token, by weight (Gumbel top-k).
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> unit(1e-12, 1.0);
  std::vector<std::pair<double, int>> keys(shape.experts);
  for (std::int64_t t = 0; t < shape.tokens; ++t) {
    for (int e = 0; e < shape.experts; ++e) {
      const double log_weight = routing == "zipf" ? -std::log(e + 1.0) : 0.0;
      keys[e] = {log_weight - std::log(-std::log(unit(random))), e};
    }
    std::partial_sort(keys.begin(), keys.begin() + shape.k, keys.end(), std::greater<>());
    for (int i = 0; i < shape.k; ++i) ++rows[keys[i].second];
  }
  return rows;
}

struct Candidate {
  std::string name;
  std::function<void()> launch;
  std::vector<float> ms;
};

// One launch of each in turn, `rounds` times after two rounds of warm-up; milliseconds, in order.
inline void time_interleaved(std::vector<Candidate>& candidates, int rounds) {
  std::vector<cudaEvent_t> events(candidates.size() * 2 * (rounds + 2));
  for (auto& event : events) DROPLESS_CUDA_CHECK(cudaEventCreate(&event));
  std::size_t next = 0;
  for (int round = 0; round < rounds + 2; ++round) {
    for (auto& candidate : candidates) {
      DROPLESS_CUDA_CHECK(cudaEventRecord(events[next++], nullptr));
      candidate.launch();
      DROPLESS_CUDA_CHECK(cudaEventRecord(events[next++], nullptr));
    }
  }
  DROPLESS_CUDA_CHECK(cudaDeviceSynchronize());
  next = 0;
  for (int round = 0; round < rounds + 2; ++round) {
    for (auto& candidate : candidates) {
      float ms = 0.0f;
      DROPLESS_CUDA_CHECK(cudaEventElapsedTime(&ms, events[next], events[next + 1]));
      next += 2;
      if (round >= 2) candidate.ms.push_back(ms);
    }
  }
  for (auto& event : events) cudaEventDestroy(event);
  for (auto& candidate : candidates) std::sort(candidate.ms.begin(), candidate.ms.end());
}

// Of options "--name value": what to do with each value.
using Options = std::map<std::string, std::function<void(const std::string&)>>;

inline void read_options(int argc, char** argv, const Options& options) {
  for (int i = 1; i < argc; i += 2) {
    const auto option = options.find(argv[i]);
    if (option == options.end()) {
      std::string names;
      for (const auto& [name, action] : options) names += " " + name;
      throw Error(ErrorKind::kInvalidArgument, "unknown option " + std::string(argv[i]),
                  "there are:" + names);
    }
    if (i + 1 == argc) {
      throw Error(ErrorKind::kInvalidArgument, option->first + " needs a value", "put it behind");
    }
    option->second(argv[i + 1]);
  }
}

// An option's action: a whole number of 1 or more into `number`.
inline std::function<void(const std::string&)> positive(int& number) {
  return [&number](const std::string& text) {
    const char* const end = text.data() + text.size();
    const auto [behind, error] = std::from_chars(text.data(), end, number);
    if (error == std::errc() && behind == end && number > 0) return;
    throw Error(ErrorKind::kInvalidArgument, "'" + text + "' is no whole number of 1 or more",
                "such as 9");
  };
}
inline std::function<void(const std::string&)> text(std::string& into) {
  return [&into](const std::string& value) { into = value; };
}

// What a benchmark of many products runs: all of what has no name here.
struct Selection {
  std::string shape = {}, op = {}, routing = {};
  int rounds = 0;

  bool wants(const Shape& of) const { return shape.empty() || shape == of.name; }
  bool wants(const std::string& product) const { return op.empty() || op == product; }
  Options options() {
    return {{"--shape", text(shape)},
            {"--op", text(op)},
            {"--routing", text(routing)},
            {"--rounds", positive(rounds)}};
  }
};

// main's result: 2 for bad options, 1 for other errors.
template <class Program>
int run_program(Program program) {
  try {
    program();
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\nhint: %s\n", error.what(), error.hint().c_str());
    return error.kind() == ErrorKind::kInvalidArgument ? 2 : 1;
  }
  return 0;
}

}  // namespace dropless::benchmarks
