#include "apps/bench_moe_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <iostream>
#include <string>
#include <vector>

#include "apps/bench_timing.h"
#include "dropless/observe.h"

namespace dropless::apps {
namespace {

struct Part {
  std::string name;
  int calls = 0;
  double flops = 0, bytes = 0;
  std::vector<double> ms;  // of each pass
};

// An event after each part that the layer queues, while it lives.
class PartEvents {
 public:
  explicit PartEvents(const at::Device& device) : device_(device) {
    add();
    former_ = observe_parts([this](const QueuedPart& part) {
      parts_.push_back(part);
      add();
    });
  }
  ~PartEvents() { observe_parts(std::move(former_)); }
  PartEvents(const PartEvents&) = delete;
  PartEvents& operator=(const PartEvents&) = delete;

  // Waits, and adds this pass to `totals`.
  void count(std::vector<Part>& totals) {
    events_.back().synchronize();
    for (Part& total : totals) total.calls = 0, total.flops = 0, total.bytes = 0;
    std::vector<double> ms(totals.size(), 0.0);
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const QueuedPart& part = parts_[i];
      auto total = std::find_if(totals.begin(), totals.end(),
                                [&](const Part& known) { return known.name == part.name; });
      if (total == totals.end()) {
        total = totals.insert(totals.end(), Part{.name = part.name, .ms = {}});
        ms.push_back(0.0);
      }
      ++total->calls;
      total->flops += part.flops;
      total->bytes += part.bytes;
      ms[static_cast<std::size_t>(total - totals.begin())] +=
          events_[i].elapsedTime(events_[i + 1]);
    }
    for (std::size_t i = 0; i < totals.size(); ++i) totals[i].ms.push_back(ms[i]);
  }

 private:
  void add() {
    events_.emplace_back(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    events_.back().record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }

  at::Device device_;
  std::deque<c10::Event> events_;
  std::vector<QueuedPart> parts_;
  PartObserver former_;
};

}  // namespace

nlohmann::ordered_json time_kernels(const LayerCase& c, bool backward, const at::Device& device,
                                    int rounds) {
  const auto pass = [&] {
    if (backward) {
      c.gradients(c.forward(own_layer));
    } else {
      const at::NoGradGuard no_grad;
      c.forward(own_layer);
    }
  };
  std::vector<Part> totals;
  std::vector<double> dense_ms, copy_ms;
  const LargeCopy copy(device);
  for (int round = 0; round < rounds; ++round) {
    dense_ms.push_back(time_ms(device, [&] { c.dense(backward); }));
    pass();  // not waited for
    copy_ms.push_back(time_ms(device, [&] { copy.run(); }));
    pass();
    PartEvents events(device);
    pass();
    events.count(totals);
  }
  const double flops_per_ms = (backward ? 3 : 1) * c.forward_flops() / median(dense_ms);
  const double bytes_per_ms = copy.bytes() / median(copy_ms);
  double whole = 0;
  for (const Part& part : totals) whole += median(part.ms);
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Part& part : totals) {
    const double ms = median(part.ms);
    const double for_flops = part.flops / flops_per_ms, for_bytes = part.bytes / bytes_per_ms;
    json.push_back({{"part", part.name},
                    {"calls", part.calls},
                    {"ms", ms},
                    {"share", ms / whole},
                    {"tflops", 1e-9 * part.flops / ms},
                    {"gb_per_s", 1e-6 * part.bytes / ms},
                    {"bound_by", for_flops >= for_bytes ? "flops" : "bytes"},
                    {"of_roofline", std::max(for_flops, for_bytes) / ms}});
  }
  return json;
}

void print_kernels(const nlohmann::ordered_json& parts) {
  std::cout << fmt::format("      {:<14} {:>5} {:>9} {:>6} {:>8} {:>6} {:>12}\n", "part", "calls",
                           "ms", "share", "TFLOP/s", "GB/s", "of roofline");
  for (const nlohmann::ordered_json& part : parts) {
    std::cout << fmt::format("      {:<14} {:>5} {:>9.3f} {:>6.3f} {:>8.0f} {:>6.0f} {:>12.2f}\n",
                             part["part"].get<std::string>(), part["calls"].get<int>(),
                             part["ms"].get<double>(), part["share"].get<double>(),
                             part["tflops"].get<double>(), part["gb_per_s"].get<double>(),
                             part["of_roofline"].get<double>());
  }
}

}  // namespace dropless::apps
