// The contract is bench_moe_cpu.h.
//
// Columns beside the time: of dense = the time of the layer's products alone, expert by expert with
// R / E rows each (DenseExperts), over ours; ratio = the best rival's time over ours; dense model =
// ours over the time of one dense network of equal active parameters (width k f). The promise of a
// mixture of experts is that N experts of width F cost what k F cost, not what N F cost: that ratio
// would be 1 at no overhead, and E / k for the dense network of all N F parameters.
#include "apps/bench_moe_cpu.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/bench_dense.h"
#include "apps/bench_report.h"
#include "apps/bench_rivals.h"
#include "apps/bench_timing.h"
#include "dropless/error.h"
#include "train/bridge/device.h"
#include "train/bridge/views.h"
#include "train/run/memory.h"

namespace dropless::apps {
namespace {

using train::view_of;

// The layer on tensors that are there before: what a program on the library does.
class LibraryLayer {
 public:
  LibraryLayer(const LayerShape& s, at::TensorOptions options)
      : config_{.num_experts = s.E, .top_k = s.k, .d_model = s.d, .d_ffn = s.f, .route = {}} {
    const at::NoGradGuard no_grad;
    const std::int64_t R = s.T * s.k;
    const double in = 1 / std::sqrt(static_cast<double>(s.d));
    const auto random = [&](at::IntArrayRef shape, double scale) {
      return at::randn(shape, options).mul_(scale);
    };
    const auto like = [&](const at::Tensor& t) { return at::empty_like(t); };
    const auto ints = options.dtype(at::kInt), floats = options.dtype(at::kFloat);
    x = random({s.T, s.d}, 1);
    router = random({s.E, s.d}, in);
    w1 = random({s.E, s.f, s.d}, in);
    v1 = random({s.E, s.f, s.d}, in);
    w2 = random({s.E, s.f, s.d}, 1 / std::sqrt(static_cast<double>(s.f)));
    d_out = random({s.T, s.d}, 1);
    out_ = like(x);
    losses_ = at::zeros({2}, floats);
    d_losses_ = at::zeros({2}, floats);
    saved_ = {at::empty({R, s.f}, options),  at::empty({R, s.f}, options),
              at::empty({s.T, s.k}, floats), at::empty({s.T, s.k}, ints),
              at::empty({s.T, s.k}, ints),   at::empty({s.E + 1}, options.dtype(at::kLong))};
    grads_ = {like(x), like(router), like(w1), like(v1), like(w2)};
    const DType dtype = view_of(x).dtype;
    forward_bytes_ = moe_forward_workspace_bytes(config_, s.T, dtype);
    backward_bytes_ = moe_backward_workspace_bytes(config_, s.T, dtype);
    workspace_ = at::empty({static_cast<std::int64_t>(std::max(forward_bytes_, backward_bytes_))},
                           options.dtype(at::kByte));
  }

  void forward() {
    moe_forward(config_, view_of(x), weights(), view_of(out_), view_of(losses_), {}, saved(),
                workspace_.data_ptr(), forward_bytes_);
  }
  void backward() {
    moe_backward(config_, view_of(x), weights(), saved(), view_of(d_out), view_of(d_losses_),
                 {.x_TD = view_of(grads_[0]),
                  .router_ED = view_of(grads_[1]),
                  .w1_EFD = view_of(grads_[2]),
                  .v1_EFD = view_of(grads_[3]),
                  .w2_EFD = view_of(grads_[4])},
                 workspace_.data_ptr(), backward_bytes_);
  }
  std::int64_t kept_bytes() const {
    std::int64_t bytes = 0;
    for (const at::Tensor& t : saved_) bytes += static_cast<std::int64_t>(t.nbytes());
    return bytes;
  }
  std::int64_t workspace_bytes(bool backward) const {
    return static_cast<std::int64_t>(backward ? std::max(forward_bytes_, backward_bytes_)
                                              : forward_bytes_);
  }

  at::Tensor x, router, w1, v1, w2, d_out;

 private:
  MoEWeights weights() const {
    return {.router_ED = view_of(router),
            .w1_EFD = view_of(w1),
            .v1_EFD = view_of(v1),
            .w2_EFD = view_of(w2)};
  }
  MoESaved saved() const {
    return {.gate_RF = view_of(saved_[0]),
            .up_RF = view_of(saved_[1]),
            .weights_TK = view_of(saved_[2]),
            .indices_TK = view_of(saved_[3]),
            .rows_TK = view_of(saved_[4]),
            .offsets_E1 = view_of(saved_[5])};
  }

  MoEConfig config_;
  at::Tensor out_, losses_, d_losses_, workspace_;
  std::vector<at::Tensor> saved_, grads_;
  std::size_t forward_bytes_ = 0, backward_bytes_ = 0;
};

// One thing to time, forward and with backward.
struct Candidate {
  std::string name;
  std::function<void()> forward, both;
};

// Gradients of the merged formulation go to w13, of the others to w1 and v1.
Candidate rival_candidate(const RivalLayer& layer, const RivalInputs& in, const at::Tensor& d_out,
                          std::int64_t top_k) {
  const bool merged = layer.combination == Combination::kMergedBmm;
  const std::vector<at::Tensor> leaves =
      merged ? std::vector<at::Tensor>{in.x_TD, in.router_ED, in.w13_E2FD, in.w2_EFD}
             : std::vector<at::Tensor>{in.x_TD, in.router_ED, in.w1_EFD, in.v1_EFD, in.w2_EFD};
  return {layer.name,
          [=] {
            const at::NoGradGuard no_grad;
            rival_forward(layer, in, top_k);
          },
          [=] { torch::autograd::grad({rival_forward(layer, in, top_k)}, leaves, {d_out}); }};
}

RivalInputs rival_inputs(const LibraryLayer& ours) {
  RivalInputs in{ours.x.clone(),
                 ours.router.clone(),
                 ours.w1.clone(),
                 ours.v1.clone(),
                 at::cat({ours.w1, ours.v1}, 1),
                 ours.w2.clone()};
  for (at::Tensor* t :
       {&in.x_TD, &in.router_ED, &in.w1_EFD, &in.v1_EFD, &in.w13_E2FD, &in.w2_EFD}) {
    t->set_requires_grad(true);
  }
  return in;
}

// Whether libtorch has the operator for this type and these sizes.
bool runs(const Candidate& candidate) {
  try {
    candidate.both();
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

struct Times {
  std::map<std::string, double> forward, both;  // medians, ms
};

// All candidates in turn within a round, forward and both: what slows the machine for a while meets
// them all.
Times time_all(const std::vector<Candidate>& candidates, int rounds) {
  std::vector<std::vector<double>> forward(candidates.size()), both(candidates.size());
  for (int round = -1; round < rounds; ++round) {  // one round warms up
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const double f = time_ms(at::kCPU, candidates[i].forward);
      const double b = time_ms(at::kCPU, candidates[i].both);
      if (round < 0) continue;
      forward[i].push_back(f);
      both[i].push_back(b);
    }
  }
  Times times;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    times.forward[candidates[i].name] = median(forward[i]);
    times.both[candidates[i].name] = median(both[i]);
  }
  return times;
}

constexpr const char* kOurs = "dropless";
constexpr const char* kDenseDefault = "dense, libtorch's choice";
constexpr const char* kDenseOneDnn = "dense, oneDNN";
constexpr const char* kDenseModel = "dense model";

nlohmann::ordered_json make_row(const LayerShape& s, at::ScalarType dtype, bool backward,
                                const std::map<std::string, double>& times,
                                const std::vector<std::string>& rivals) {
  const double flops = (backward ? 18.0 : 6.0) * s.T * s.k * s.d * s.f;
  const double ms = times.at(kOurs);
  double dense = times.at(kDenseDefault);
  if (times.count(kDenseOneDnn)) dense = std::min(dense, times.at(kDenseOneDnn));
  nlohmann::ordered_json rival_ms;
  std::string best;
  for (const std::string& name : rivals) {
    rival_ms[name] = times.at(name);
    if (best.empty() || times.at(name) < times.at(best)) best = name;
  }
  return {{"T", s.T},
          {"d", s.d},
          {"f", s.f},
          {"E", s.E},
          {"k", s.k},
          {"dtype", dtype == at::kFloat ? "fp32" : "bf16"},
          {"routing", "router"},
          {"direction", backward ? "forward+backward" : "forward"},
          {"ms", ms},
          {"tflops", 1e-9 * flops / ms},
          {"dense_tflops", 1e-9 * flops / dense},
          {"of_ceiling", dense / ms},
          {"rivals", rival_ms},
          {"best_rival", best},
          {"ratio", times.at(best) / ms},
          {"dense_model_ms", times.at(kDenseModel)},
          {"of_dense_model", ms / times.at(kDenseModel)},
          {"all_parameters", static_cast<double>(s.E) / static_cast<double>(s.k)}};
}

std::vector<nlohmann::ordered_json> bench_shape(const LayerShape& s, at::ScalarType dtype,
                                                int rounds) {
  const auto options = at::TensorOptions().dtype(dtype);
  LibraryLayer ours(s, options);
  DenseExperts dense(s.T * s.k, s.d, s.f, s.E, options);
  const DenseModel model(s.T, s.d, s.k * s.f, options);
  const RivalInputs inputs = rival_inputs(ours);
  std::vector<Candidate> candidates = {
      {kOurs, [&] { ours.forward(); },
       [&] {
         ours.forward();
         ours.backward();
       }},
      {kDenseDefault, [&] { dense.run(DenseExperts::Library::kDefault, false); },
       [&] { dense.run(DenseExperts::Library::kDefault, true); }},
      {kDenseModel,
       [&] {
         const at::NoGradGuard no_grad;
         model.forward();
       },
       [&] { model.backward(model.forward()); }}};
  if (dtype == at::kFloat) {
    candidates.push_back({kDenseOneDnn, [&] { dense.run(DenseExperts::Library::kOneDnn, false); },
                          [&] { dense.run(DenseExperts::Library::kOneDnn, true); }});
  }
  std::vector<std::string> rivals;
  for (const RivalLayer& layer : rival_layers()) {
    const Candidate candidate = rival_candidate(layer, inputs, ours.d_out, s.k);
    if (!runs(candidate)) continue;
    candidates.push_back(candidate);
    rivals.push_back(layer.name);
  }
  const Times times = time_all(candidates, rounds);
  std::vector<nlohmann::ordered_json> rows = {make_row(s, dtype, false, times.forward, rivals),
                                              make_row(s, dtype, true, times.both, rivals)};
  for (int backward = 0; backward < 2; ++backward) {
    rows[backward]["kept_bytes"] = ours.kept_bytes();
    rows[backward]["peak_bytes"] = ours.kept_bytes() + ours.workspace_bytes(backward == 1);
  }
  return rows;
}

std::string table_head() {
  return fmt::format(
      "{:>5} {:>5} {:>5} {:>3} {:>2} {:<4} {:<16} {:>9} {:>8} {:>8} {:>9} {:>6}  {:<24} {:>11} "
      "{:>6}",
      "T", "d", "f", "E", "k", "type", "direction", "ms", "GFLOP/s", "of dense", "rival ms",
      "ratio", "best rival", "dense model", "N F");
}

std::string table_row(const nlohmann::ordered_json& row) {
  const std::string best = row["best_rival"];
  return fmt::format(
      "{:>5} {:>5} {:>5} {:>3} {:>2} {:<4} {:<16} {:9.3f} {:8.1f} {:8.2f} {:9.3f} {:6.2f}  {:<24} "
      "{:11.2f} {:6.1f}",
      row["T"].get<int>(), row["d"].get<int>(), row["f"].get<int>(), row["E"].get<int>(),
      row["k"].get<int>(), row["dtype"].get<std::string>(), row["direction"].get<std::string>(),
      row["ms"].get<double>(), 1e3 * row["tflops"].get<double>(), row["of_ceiling"].get<double>(),
      row["rivals"][best].get<double>(), row["ratio"].get<double>(), best,
      row["of_dense_model"].get<double>(), row["all_parameters"].get<double>());
}

}  // namespace

void run_bench_moe_cpu(std::vector<LayerShape> shapes, const std::string& dtype, int rounds,
                       bool json) {
  if (!dtype.empty() && dtype != "bf16" && dtype != "fp32") {
    throw Error(ErrorKind::kInvalidArgument,
                (dtype == "fp16" ? "the CPU's table has no dtype " : "unknown dtype ") + dtype,
                "bf16 or fp32; with --routing, --rivals, --calls or --decode fp16 too");
  }
  if (shapes.empty()) {
    shapes = {{2048, 256, 512, 8, 2},
              {2048, 512, 1024, 16, 4},
              {1024, 1024, 2048, 8, 2},
              {4096, 128, 256, 64, 8}};
  }
  const std::string device = train::describe_device(at::kCPU);
  nlohmann::ordered_json report{
      {"device", device}, {"rounds", rounds}, {"rows", nlohmann::ordered_json::array()}};
  if (!json) {
    std::cout << device << ", " << (dtype.empty() ? "fp32 and bf16" : dtype) << ", medians of "
              << rounds << "\n"
              << table_head() << std::endl;
  }
  for (const LayerShape& shape : shapes) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      if (!dtype.empty() && (dtype == "fp32") != (type == at::kFloat)) continue;
      with_rows_kept(report, json, [&] {
        train::with_torch_errors("choose a smaller --shape", [&] {
          for (nlohmann::ordered_json& row : bench_shape(shape, type, rounds)) {
            if (!json) std::cout << table_row(row) << std::endl;
            report["rows"].push_back(std::move(row));
          }
        });
      });
    }
  }
  if (json) print_report(report);
}

}  // namespace dropless::apps
