// Rivals of `bench moe` that another program runs, such as benchmarks/moe_rivals.py (which states the
// questions and answers): it is started once, asked over its standard input to run one of its layers,
// and answers on its standard output how long that took.
#pragma once

#include <sys/wait.h>

#include <nlohmann/json.hpp>

#include <map>
#include <optional>
#include <string>

#include "apps/bench_case.h"

namespace dropless::apps {

class RivalProgram {
 public:
  // `command` is given to /bin/sh. Errors of all calls: kResource, naming the command.
  explicit RivalProgram(std::string command);
  ~RivalProgram();
  RivalProgram(const RivalProgram&) = delete;
  RivalProgram& operator=(const RivalProgram&) = delete;

  struct Prepared {
    std::map<std::string, std::string> rivals;  // name: what it is
    std::map<std::string, std::string> absent;  // name: why it is not there
  };
  Prepared prepare(const LayerShape& shape, const std::string& dtype, const RoutingChoice& routing,
                   const at::Device& device);
  // Milliseconds of a run, the mean of so many queued at once, of what was prepared last; absent when it ran out of memory.
  std::optional<double> time_ms(const std::string& name, bool backward, int calls);

 private:
  nlohmann::json ask(const nlohmann::json& question);
  void wait_for_answer(const nlohmann::json& question) const;
  std::optional<siginfo_t> state(int options) const;
  std::optional<siginfo_t> end_within(int milliseconds) const;
  std::string ending() const;
  [[noreturn]] void fail(const std::string& what) const;

  std::string command_;
  pid_t child_ = -1;
  int socket_ = -1;  // its standard input and output
  std::string unread_;
};

}  // namespace dropless::apps
