// Who gets the tokens that `bench moe` sends through a layer.
#pragma once

#include <string>
#include <vector>

namespace dropless::apps {

enum class Routing {
  kRouter,   // what a random router makes of random tokens
  kUniform,  // every expert gets as many tokens
  kZipf,     // expert e is chosen with weight 1 / (e + 1)
  kLoads,    // expert e is chosen with weight loads[e]: what a trained router did
};

struct RoutingChoice {
  std::string name;
  Routing kind = Routing::kRouter;
  std::vector<double> loads = {};  // positive, one an expert
};

// router, uniform, zipf, or a run folder: the last counts of tokens in its metrics.jsonl, of the layer whose
// fullest expert has the largest share. Throws Error(kInvalidArgument).
RoutingChoice parse_routing(const std::string& text);

}  // namespace dropless::apps
