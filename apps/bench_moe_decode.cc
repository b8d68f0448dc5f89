#include "apps/bench_moe_decode.h"

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/bench_report.h"
#include "apps/bench_timing.h"
#include "train/bridge/device.h"
#include "train/bridge/device_graph.h"
#include "train/run/memory.h"

namespace dropless::apps {

using namespace train;

namespace {

constexpr int kCopies = 4;  // of the weights, in turn: none is in a cache when its turn comes
constexpr int kCalls = 2 * kCopies;
constexpr int kWarmUp = 2;  // rounds that do not count

struct Weights {
  at::Tensor w1_EFD, v1_EFD, w2_EFD;
};

// One layer's tokens and router, and its experts' weights in several places.
struct DecodeCase {
  LayerShape s;
  MoEConfig config;
  at::Tensor x_TD, router_ED;
  std::vector<Weights> copies;

  DecodeCase(const LayerShape& s, at::TensorOptions options) : s(s) {
    config = {.num_experts = s.E, .top_k = s.k, .d_model = s.d, .d_ffn = s.f, .route = {}};
    const auto random = [&](at::IntArrayRef shape, double scale) {
      return at::randn(shape, options).mul_(scale);
    };
    const double in = 1 / std::sqrt(s.d), out = 1 / std::sqrt(s.f);
    x_TD = random({s.T, s.d}, 1);
    router_ED = random({s.E, s.d}, in);
    for (int i = 0; i < kCopies; ++i) {
      copies.push_back(
          {random({s.E, s.f, s.d}, in), random({s.E, s.f, s.d}, in), random({s.E, s.f, s.d}, out)});
    }
  }
};

at::Tensor own_layer(const DecodeCase& c, const Weights& w) {
  return moe_layer(c.config, c.x_TD, c.router_ED, w.w1_EFD, w.v1_EFD, w.w2_EFD).out_TD;
}

// The layer on libtorch's grouped products, of operators that never wait for the GPU. Where there
// are none (fp32) a product an expert that has rows.
at::Tensor torch_layer(const DecodeCase& c, const Weights& w) {
  const std::int64_t T = c.s.T, D = c.s.d, E = c.s.E, K = c.s.k;
  const at::Tensor scores_TE =
      at::softmax(at::linear(c.x_TD.to(at::kFloat), c.router_ED.to(at::kFloat)), -1);
  const auto [weights_TK, indices_TK] = at::topk(scores_TE, K);
  const at::Tensor flat_R = indices_TK.reshape({-1});
  const at::Tensor order_R = at::argsort(flat_R, /*stable=*/true, 0);
  const at::Tensor counts_E =
      at::zeros({E}, flat_R.options()).scatter_add_(0, flat_R, at::ones_like(flat_R));
  const at::Tensor ends_E = counts_E.cumsum(0).to(at::kInt);
  const at::Tensor rows_RD = c.x_TD.index_select(0, at::floor_divide(order_R, K));
  const auto product = [&](const at::Tensor& rows, const at::Tensor& w_EMN) {
    if (rows.scalar_type() != at::kFloat) return at::_grouped_mm(rows, w_EMN, ends_E);
    std::vector<at::Tensor> parts;
    std::int64_t begin = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      const auto end = ends_E[e].item<std::int64_t>();
      if (end > begin) parts.push_back(at::matmul(rows.slice(0, begin, end), w_EMN[e]));
      begin = end;
    }
    return at::cat(parts, 0);
  };
  const at::Tensor gate_RF = product(rows_RD, w.w1_EFD.transpose(1, 2));
  const at::Tensor up_RF = product(rows_RD, w.v1_EFD.transpose(1, 2));
  const at::Tensor y_RD = product(at::silu(gate_RF).mul(up_RF), w.w2_EFD);
  const at::Tensor row_of_R =
      at::empty_like(order_R).scatter_(0, order_R, at::arange(T * K, order_R.options()));
  const at::Tensor y_TKD = y_RD.index_select(0, row_of_R).view({T, K, D});
  return (y_TKD.to(at::kFloat) * weights_TK.unsqueeze(-1)).sum(1).to(c.x_TD.scalar_type());
}

// A layer called with each copy of the weights twice: out of a graph on a GPU.
class Candidate {
 public:
  using Layer = at::Tensor (*)(const DecodeCase&, const Weights&);
  Candidate(const DecodeCase& c, Layer layer, const at::Device& device) : device_(device) {
    calls_ = [&c, layer] {
      for (int i = 0; i < kCalls; ++i) layer(c, c.copies[i % kCopies]);
    };
    if (device.is_cuda()) graph_ = std::make_unique<DeviceGraph>(device, calls_);
  }
  void time(bool count) {
    const double ms = time_ms(device_, [this] { graph_ ? graph_->launch() : calls_(); });
    if (count) times_.push_back(ms / kCalls);
  }
  double ms() const { return median(times_); }

 private:
  at::Device device_;
  std::function<void()> calls_;
  std::unique_ptr<DeviceGraph> graph_;
  std::vector<double> times_;
};

nlohmann::ordered_json bench_shape(const LayerShape& s, const std::string& dtype,
                                   const at::Device& device, int rounds) {
  const at::NoGradGuard no_grad;
  const auto options = at::TensorOptions().dtype(bench_type(dtype)).device(device);
  const DecodeCase c(s, options);
  const MoEResult result = moe_layer(c.config, c.x_TD, c.router_ED, c.copies[0].w1_EFD,
                                     c.copies[0].v1_EFD, c.copies[0].w2_EFD);
  const auto experts = result.tokens_per_expert_E.gt(0).sum().item<std::int64_t>();
  const at::Tensor own = result.out_TD.to(at::kFloat);
  const at::Tensor difference = torch_layer(c, c.copies[0]).to(at::kFloat).sub_(own);
  const double element = static_cast<double>(c.x_TD.element_size());
  const double bytes = element * (3.0 * experts * s.d * s.f + 1.0 * s.E * s.d);

  const LargeCopy large(device, device.is_cuda() ? 1 << 30 : 1 << 28);
  std::vector<double> copy_ms;
  Candidate dropless(c, own_layer, device), torch(c, torch_layer, device);
  for (int i = -kWarmUp; i < rounds; ++i) {
    dropless.time(i >= 0);
    torch.time(i >= 0);
    const double ms = time_ms(device, [&] { large.run(); });
    if (i >= 0) copy_ms.push_back(ms);
  }
  const double copy = 1e-6 * large.bytes() / median(copy_ms);
  const double rate = 1e-6 * bytes / dropless.ms();
  return {{"T", s.T},
          {"d", s.d},
          {"f", s.f},
          {"E", s.E},
          {"k", s.k},
          {"dtype", dtype},
          {"experts_read", experts},
          {"bytes", bytes},
          {"us", 1e3 * dropless.ms()},
          {"gb_per_s", rate},
          {"copy_gb_per_s", copy},
          {"of_copy", rate / copy},
          {"torch_us", 1e3 * torch.ms()},
          {"ratio", torch.ms() / dropless.ms()},
          {"rival_differs_by", (difference.norm() / own.norm()).item<double>()}};
}

void print(const nlohmann::ordered_json& row) {
  std::cout << fmt::format(
                   "{:>5} {:>5} {:>6} {:>5} {:>2} {:>7} {:>9.1f} {:>9.1f} {:>7.0f} {:>7.0f} "
                   "{:>7.2f} {:>9.1f} "
                   "{:>6.2f}\n",
                   row["T"].get<int>(), row["d"].get<int>(), row["f"].get<int>(),
                   row["E"].get<int>(), row["k"].get<int>(), row["experts_read"].get<int>(),
                   1e-6 * row["bytes"].get<double>(), row["us"].get<double>(),
                   row["gb_per_s"].get<double>(), row["copy_gb_per_s"].get<double>(),
                   row["of_copy"].get<double>(), row["torch_us"].get<double>(),
                   row["ratio"].get<double>())
            << std::flush;
}

}  // namespace

void run_bench_moe_decode(std::vector<LayerShape> shapes, const at::Device& device,
                          const std::string& dtype, int rounds, bool json) {
  if (shapes.empty()) {
    for (const std::int64_t T : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
      shapes.push_back({T, 2048, 1024, 64, 8});
    }
    for (const std::int64_t T : {1, 8, 64, 256}) shapes.push_back({T, 4096, 14336, 8, 2});
  }
  std::optional<OwnStream> stream;
  if (device.is_cuda()) stream.emplace(device);
  nlohmann::ordered_json report{{"device", describe_device(device)},
                                {"rounds", rounds},
                                {"rows", nlohmann::ordered_json::array()}};
  if (!json) {
    std::cout << describe_device(device) << ", " << dtype << ", medians of " << rounds << "\n"
              << fmt::format(
                     "{:>5} {:>5} {:>6} {:>5} {:>2} {:>7} {:>9} {:>9} {:>7} {:>7} {:>7} {:>9} "
                     "{:>6}\n",
                     "T", "d", "f", "E", "k", "experts", "MB", "us", "GB/s", "copy", "of copy",
                     "torch us", "ratio");
  }
  for (const LayerShape& shape : shapes) {
    release_cached_memory(device);
    with_rows_kept(report, json, [&] {
      with_torch_errors("choose a smaller --shape", [&] {
        report["rows"].push_back(bench_shape(shape, dtype, device, rounds));
      });
    });
    if (!json) print(report["rows"].back());
  }
  if (json) print_report(report);
}

}  // namespace dropless::apps
