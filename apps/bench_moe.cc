// `dropless bench moe [--shape T,d,f,E,k ...] [--rounds N] [--json]`: the whole SwiGLU layer,
// forward and forward with backward, beside the same layer on libtorch's grouped products and
// beside dense products of equal FLOPs. All candidates take turns within each round; medians.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/bench_case.h"
#include "apps/bench_timing.h"
#include "apps/verbs.h"
#include "dropless/error.h"
#include "train/base/signals.h"
#include "train/bridge/device.h"
#include "train/nn/moe_torch.h"
#include "train/run/memory.h"

namespace dropless::apps {

using namespace train;

namespace {

// MegaBlocks "Medium", Mixtral, DBRX, OLMoE, Qwen3-30B-A3B, DeepSeek-V3-like.
const std::vector<std::string> kShapes = {"16384,1024,4096,64,1", "16384,4096,14336,8,2",
                                          "8192,6144,10752,16,4", "32768,2048,1024,64,8",
                                          "32768,2048,768,128,8", "8192,7168,2048,64,8"};

struct BenchMoeVerb {
  std::vector<std::string> shapes = kShapes;
  std::string device = "auto", dtype = "bf16";
  int rounds = 9;
  bool json = false;
};

LayerShape parse_shape(const std::string& text) {
  LayerShape s{};
  char end = 0;
  if (std::sscanf(text.c_str(), "%ld,%ld,%ld,%ld,%ld%c", &s.T, &s.d, &s.f, &s.E, &s.k, &end) != 5 ||
      s.T < 1 || s.d < 1 || s.f < 1 || s.E < 1 || s.k < 1 || s.k > s.E) {
    throw Error(ErrorKind::kInvalidArgument, "--shape " + text + " is not T,d,f,E,k",
                "five numbers, as in 32768,2048,1024,64,8");
  }
  return s;
}

// Bytes that forward leaves for backward, and the peak of both beyond output and gradients.
void measure_memory(const LayerCase& c, const at::Device& device, nlohmann::ordered_json& forward,
                    nlohmann::ordered_json& both) {
  for (nlohmann::ordered_json* row : {&forward, &both}) {
    (*row)["kept_bytes"] = nullptr;
    (*row)["peak_bytes"] = nullptr;
  }
  const auto before = memory_use(device);
  if (!before) return;
  reset_peak(device);
  const at::Tensor out = c.forward(moe_layer);
  const auto output = static_cast<std::int64_t>(out.nbytes());
  const auto between = memory_use(device);
  c.backward(out);
  const auto after = memory_use(device);
  forward["kept_bytes"] = both["kept_bytes"] = between->now - before->now - output;
  forward["peak_bytes"] = between->peak - before->now - output;
  both["peak_bytes"] = after->peak - before->now - output - c.gradient_bytes();
}

nlohmann::ordered_json make_row(const LayerShape& s, const std::string& dtype,
                                const char* direction, double flops, double ms, double torch_ms,
                                double dense_ms, double ceiling_ms) {
  const auto tflops = [&](double time) { return 1e-9 * flops / time; };
  return {{"T", s.T},
          {"d", s.d},
          {"f", s.f},
          {"E", s.E},
          {"k", s.k},
          {"dtype", dtype},
          {"routing", "random router"},
          {"direction", direction},
          {"ms", ms},
          {"tflops", tflops(ms)},
          {"dense_tflops", tflops(dense_ms)},
          {"of_ceiling", ceiling_ms / ms},
          {"rivals", {{"torch", torch_ms}}},
          {"best_rival", "torch"},
          {"ratio", torch_ms / ms}};
}

void bench_shape(const LayerShape& s, const BenchMoeVerb& verb, const at::Device& device,
                 nlohmann::ordered_json& rows) {
  const auto type = verb.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
  const LayerCase c(s, at::TensorOptions().dtype(type).device(device));
  const auto forward_only = [&](LayerFunction layer) {
    const at::NoGradGuard no_grad;
    c.forward(layer);
  };
  const auto both = [&](LayerFunction layer) { c.backward(c.forward(layer)); };
  const std::vector<std::function<void()>> candidates = {
      [&] { forward_only(moe_layer); }, [&] { forward_only(moe_layer_torch); },
      [&] { c.dense(false); },          [&] { both(moe_layer); },
      [&] { both(moe_layer_torch); },   [&] { c.dense(true); },
      [&] { c.copy_combine(); }};
  std::vector<std::vector<double>> times(candidates.size());
  for (int round = -2; round < verb.rounds; ++round) {  // two rounds warm up
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const double ms = time_ms(device, candidates[i]);
      if (round >= 0) times[i].push_back(ms);
    }
  }
  std::vector<double> ms;
  for (const std::vector<double>& samples : times) ms.push_back(median(samples));
  nlohmann::ordered_json forward =
      make_row(s, verb.dtype, "forward", c.forward_flops(), ms[0], ms[1], ms[2], ms[2] + ms[6]);
  nlohmann::ordered_json whole = make_row(s, verb.dtype, "forward+backward", 3 * c.forward_flops(),
                                          ms[3], ms[4], ms[5], ms[5] + 2 * ms[6]);
  measure_memory(c, device, forward, whole);
  rows.push_back(forward);
  rows.push_back(whole);
}

void print(const nlohmann::ordered_json& row) {
  const auto gib = [&](const char* key) {
    return row[key].is_null() ? std::string("-")
                              : fmt::format("{:.2f}", row[key].get<double>() / (1 << 30));
  };
  std::cout << fmt::format(
      "{:>6} {:>5} {:>6} {:>4} {:>2} {:<17} {:9.3f} {:7.1f} {:7.1f} {:6.2f} {:9.3f} {:6.2f} {:>6} "
      "{:>6}\n",
      row["T"].get<int>(), row["d"].get<int>(), row["f"].get<int>(), row["E"].get<int>(),
      row["k"].get<int>(), row["direction"].get<std::string>(), row["ms"].get<double>(),
      row["tflops"].get<double>(), row["dense_tflops"].get<double>(),
      row["of_ceiling"].get<double>(), row["rivals"]["torch"].get<double>(),
      row["ratio"].get<double>(), gib("kept_bytes"), gib("peak_bytes"));
}

void run_bench_moe(const BenchMoeVerb& verb) {
  install_signal_handlers(SignalMode::kExit);
  if (verb.dtype != "bf16" && verb.dtype != "fp32") {
    throw Error(ErrorKind::kInvalidArgument, "unknown dtype " + verb.dtype, "one of: bf16, fp32");
  }
  std::vector<LayerShape> shapes;
  for (const std::string& text : verb.shapes) shapes.push_back(parse_shape(text));
  const at::Device device = choose_device(verb.device);
  nlohmann::ordered_json json{{"device", describe_device(device)},
                              {"rows", nlohmann::ordered_json::array()}};
  if (!verb.json) {
    std::cout << describe_device(device) << ", " << verb.dtype << ", medians of " << verb.rounds
              << fmt::format(
                     "\n{:>6} {:>5} {:>6} {:>4} {:>2} {:<17} {:>9} {:>7} {:>7} {:>6} {:>9} "
                     "{:>6} {:>6} {:>6}\n",
                     "T", "d", "f", "E", "k", "direction", "ms", "TFLOP/s", "dense", "of max",
                     "torch ms", "ratio", "kept", "peak");
  }
  for (const LayerShape& shape : shapes) {
    with_torch_errors("choose a smaller --shape",
                      [&] { bench_shape(shape, verb, device, json["rows"]); });
    if (verb.json) continue;
    const std::size_t count = json["rows"].size();
    for (std::size_t i = count - 2; i < count; ++i) print(json["rows"][i]);
    std::cout << std::flush;
  }
  if (verb.json) std::cout << json.dump() << "\n";
}

}  // namespace

void add_bench_verb(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Times parts of dropless beside their rivals");
  bench->footer("Example: dropless bench moe --shape 32768,2048,1024,64,8");
  bench->require_subcommand(1);
  add_bench_data(*bench);
  auto verb = std::make_shared<BenchMoeVerb>();
  CLI::App* moe = bench->add_subcommand(
      "moe", "The mixture-of-experts layer; dense products of equal FLOPs and libtorch beside it");
  moe->add_option("--shape", verb->shapes, "T,d,f,E,k, repeatable; default: six known models'")
      ->take_all()
      ->default_str("");
  moe->add_option("--device", verb->device, "cpu, cuda, cuda:N or auto")->capture_default_str();
  moe->add_option("--dtype", verb->dtype, "bf16 or fp32")->capture_default_str();
  moe->add_option("--rounds", verb->rounds, "of all candidates in turn")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  moe->add_flag("--json", verb->json, "one JSON document");
  moe->footer("Example: dropless bench moe --shape 32768,2048,1024,64,8");
  moe->callback([verb] { run_bench_moe(*verb); });
}

}  // namespace dropless::apps
