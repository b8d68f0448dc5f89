// `train --serve`: the report of a run as it goes, over HTTP on this machine's loopback.
#pragma once

#include <memory>
#include <string>

namespace dropless::train {

// Answers GET / (the page, which refreshes itself) and GET /data.json (its data) from the files of
// the run folder, in a thread of lowest priority: the training loop knows nothing of it. Whoever
// asks for another host than this one by name is refused, so that no web page elsewhere can read
// along.
class ReportServer {
 public:
  // Listens on 127.0.0.1; port 0 is any that is free. Throws Error(kInvalidArgument) where the port
  // cannot be had.
  ReportServer(const std::string& run_folder, const std::string& config_yaml, int port);
  ~ReportServer();
  ReportServer(const ReportServer&) = delete;
  ReportServer& operator=(const ReportServer&) = delete;
  int port() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dropless::train
