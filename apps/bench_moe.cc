// `dropless bench moe [--shape T,d,f,E,k ...] [--routing R ...] [--rivals COMMAND] [--rounds N] [--calls N] [--json]`
// (--decode: bench_moe_decode.cc): the whole SwiGLU layer, forward and forward with backward, beside the same layer on libtorch's operators
// (grouped products, a product per expert, batched and padded products), beside dense products of
// equal FLOPs and a dense network of equal active parameters. All candidates take turns within each
// round; medians.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <charconv>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_case.h"
#include "apps/bench_moe_cpu.h"
#include "apps/bench_moe_decode.h"
#include "apps/bench_moe_kernels.h"
#include "apps/bench_moe_rivals.h"
#include "apps/bench_report.h"
#include "apps/bench_rival_program.h"
#include "apps/bench_timing.h"
#include "apps/verbs.h"
#include "dropless/error.h"
#include "train/bridge/device.h"
#include "train/bridge/device_graph.h"
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
  std::vector<std::string> routings = {"router"};
  std::string device = "auto", dtype = "bf16";
  int rounds = 9, calls = 1;
  bool decode = false, kernels = false, json = false;
  std::string rival_command;
};

LayerShape parse_shape(const std::string& text) {
  LayerShape s{};
  const auto refuse = [&](const std::string& why, const std::string& hint) {
    throw Error(ErrorKind::kInvalidArgument, "--shape " + text + why, hint);
  };
  const char* at = text.data();
  const char* const end = at + text.size();
  for (std::int64_t* size : {&s.T, &s.d, &s.f, &s.E, &s.k}) {
    const auto [behind, error] = std::from_chars(at, end, *size);
    if (error != std::errc() || *behind != (size == &s.k ? '\0' : ',')) {
      refuse(" is not T,d,f,E,k", "five numbers of 64 bits, as in 32768,2048,1024,64,8");
    }
    at = behind + 1;
  }
  const std::pair<const char*, std::int64_t> sizes[] = {
      {"T", s.T}, {"d", s.d}, {"f", s.f}, {"E", s.E}, {"k", s.k}};
  for (const auto& [name, size] : sizes) {
    if (size < 1) refuse(fmt::format(" (T,d,f,E,k) has {} = {}", name, size), "each is at least 1");
  }
  if (s.k > s.E) {
    refuse(fmt::format(" (T,d,f,E,k) gives a token k = {} of E = {} experts", s.k, s.E),
           "k is at most E");
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
  const at::Tensor out = c.forward(own_layer);
  const auto output = static_cast<std::int64_t>(out.nbytes());
  const auto between = memory_use(device);
  c.gradients(out);
  const auto after = memory_use(device);
  forward["kept_bytes"] = both["kept_bytes"] = between->now - before->now - output;
  forward["peak_bytes"] = between->peak - before->now - output;
  both["peak_bytes"] = after->peak - before->now - output - c.gradient_bytes();
}

// One way to run the layer; what needs more memory than there is drops out.
struct Candidate {
  std::string name;
  std::function<std::optional<double>()> time_ms;  // of one run; absent: out of memory
  bool out_of_memory = false;
};

const std::string kInARow = "back_to_back", kGraph = "graph";  // ours, beside the turns

constexpr int kBackToBack = 5;  // calls queued without waiting
constexpr int kWarmUp = 2;      // rounds that do not count

// All of a direction, in turn within a round; a time is the mean of `calls` runs queued at once.
class Contest {
 public:
  // `program`, where there is one, has `c`'s shape prepared as its rivals `names`.
  Contest(const LayerCase& c, bool backward, const at::Device& device, int calls,
          RivalProgram* program, const std::vector<std::string>& names)
      : device_(device), calls_(calls), copy_(device) {
    for (const NamedLayer& rival : libtorch_rivals()) rivals_.push_back(rival.name);
    const auto pass = [&c, backward](const LayerFunction& layer) {
      return [&c, backward, layer] {
        if (backward) {
          c.gradients(c.forward(layer));
        } else {
          const at::NoGradGuard no_grad;
          c.forward(layer);
        }
      };
    };
    own_ = pass(own_layer);
    add("own", own_);
    add("dense", [&c, backward] { c.dense(backward); });
    add("copy", [this] { copy_.run(); });
    for (const NamedLayer& rival : libtorch_rivals()) add(rival.name, pass(rival.layer));
    add("dense_model", [&c, backward] {
      if (backward) {
        c.dense_model_backward(c.dense_model_forward());
      } else {
        const at::NoGradGuard no_grad;
        c.dense_model_forward();
      }
    });
    for (const std::string& name : names) {
      const auto taken = [&](const Candidate& candidate) { return candidate.name == name; };
      if (name == kInARow || name == kGraph ||
          std::any_of(candidates_.begin(), candidates_.end(), taken)) {
        throw Error(ErrorKind::kInvalidArgument, "--rivals: the name " + name + " is taken",
                    "give that layer another one");
      }
      rivals_.push_back(name);
      candidates_.push_back({name, [program, name, backward, calls] {
                               return program->time_ms(name, backward, calls);
                             }});
    }
  }

  const std::vector<std::string>& rivals() const { return rivals_; }

  // What had no memory to be compared with ours is not timed either.
  void leave_out(const std::string& name) {
    for (Candidate& candidate : candidates_) candidate.out_of_memory |= candidate.name == name;
  }

  void run(int rounds) {
    // Alone: they warm the card for whoever comes next.
    alone(kInARow, rounds, kBackToBack, own_);
    if (device_.is_cuda()) {
      // Also for its memory: libtorch gives to others what a graph was captured with.
      const DeviceGraph graph(device_, own_);
      alone(kGraph, rounds, 1, [&graph] { graph.launch(); });
    }
    // Whoever comes next finds the card as the one before left it: each round begins with another.
    const std::size_t count = candidates_.size();
    for (int i = -kWarmUp; i < rounds; ++i) {
      for (std::size_t j = 0; j < count; ++j) {
        time(candidates_[(static_cast<std::size_t>(i + kWarmUp) + j) % count], i >= 0);
      }
    }
  }

  double copied_bytes_per_ms() const { return copy_.bytes() / *ms("copy"); }

  // Median milliseconds of a run; absent for what did not run.
  std::optional<double> ms(const std::string& name) const {
    const auto found = times_.find(name);
    return found == times_.end() ? std::nullopt : std::optional(median(found->second));
  }

 private:
  // Of a run, so many queued at once.
  double mean_ms(int calls, const std::function<void()>& run) const {
    return time_ms(device_,
                   [&] {
                     for (int i = 0; i < calls; ++i) run();
                   }) /
           calls;
  }

  void alone(const std::string& name, int rounds, int calls, const std::function<void()>& run) {
    run();  // the first one allocates
    for (int i = 0; i < rounds; ++i) times_[name].push_back(mean_ms(calls, run));
  }

  void add(const std::string& name, const std::function<void()>& run) {
    candidates_.push_back({name, [this, name, run]() -> std::optional<double> {
                             try {
                               return mean_ms(calls_, run);
                             } catch (const std::exception& error) {
                               if (!is_out_of_memory(error)) throw;
                               if (name == "own" || name == "dense" || name == "copy") throw;
                               return std::nullopt;
                             }
                           }});
  }

  void time(Candidate& candidate, bool count) {
    if (candidate.out_of_memory) return;
    const std::optional<double> ms = candidate.time_ms();
    if (ms && count) times_[candidate.name].push_back(*ms);
    if (ms) return;
    candidate.out_of_memory = true;
    times_.erase(candidate.name);
    release_cached_memory(device_);
  }

  at::Device device_;
  int calls_;
  LargeCopy copy_;
  std::vector<std::string> rivals_;
  std::function<void()> own_;
  std::vector<Candidate> candidates_;
  std::map<std::string, std::vector<double>> times_;
};

nlohmann::ordered_json or_null(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json make_row(const LayerShape& s, const std::string& dtype,
                                const std::string& routing, bool backward, const LayerCase& c,
                                const Contest& contest) {
  const double ms = *contest.ms("own"), dense = *contest.ms("dense");
  const double flops = (backward ? 3 : 1) * c.forward_flops();
  // With backward what belongs to x is combined too.
  const double combined_bytes = (backward ? 2 : 1) * c.combined_bytes();
  const double ceiling = dense + combined_bytes / contest.copied_bytes_per_ms();
  nlohmann::ordered_json rivals;
  std::string best;
  std::optional<double> best_ms;
  for (const std::string& name : contest.rivals()) {
    const std::optional<double> time = contest.ms(name);
    rivals[name] = or_null(time);
    if (time && (!best_ms || *time < *best_ms)) {
      best = name;
      best_ms = time;
    }
  }
  return {{"T", s.T},
          {"d", s.d},
          {"f", s.f},
          {"E", s.E},
          {"k", s.k},
          {"dtype", dtype},
          {"routing", routing},
          {"direction", backward ? "forward+backward" : "forward"},
          {"ms", ms},
          {"back_to_back_ms", *contest.ms(kInARow)},
          {"graph_ms", or_null(contest.ms(kGraph))},
          {"tflops", 1e-9 * flops / ms},
          {"dense_tflops", 1e-9 * flops / dense},
          {"copied_gb_per_s", 1e-6 * contest.copied_bytes_per_ms()},
          {"of_ceiling", ceiling / ms},
          {"rivals", rivals},
          {"best_rival", best.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(best)},
          {"ratio", or_null(best_ms ? std::optional(*best_ms / ms) : std::nullopt)},
          {"dense_model_ms", or_null(contest.ms("dense_model"))}};
}

void bench_shape(const LayerShape& s, const RoutingChoice& routing, const BenchMoeVerb& verb,
                 const at::Device& device, RivalProgram* program, nlohmann::ordered_json& rows) {
  const LayerCase c(s, routing, at::TensorOptions().dtype(bench_type(verb.dtype)).device(device));
  RivalProgram::Prepared prepared;
  if (program) prepared = program->prepare(s, verb.dtype, routing, device);
  std::vector<std::string> names;
  for (const auto& [name, about] : prepared.rivals) names.push_back(name);
  const Agreement agreement = compare_with_rivals(c);
  nlohmann::ordered_json both[2];
  for (const bool backward : {false, true}) {
    Contest contest(c, backward, device, verb.calls, program, names);
    for (const std::string& name : agreement.unknown) contest.leave_out(name);
    contest.run(verb.rounds);
    both[backward] = make_row(s, verb.dtype, routing.name, backward, c, contest);
  }
  measure_memory(c, device, both[0], both[1]);
  for (const bool backward : {false, true}) {
    if (!verb.kernels) break;
    both[backward]["kernels"] = time_kernels(c, backward, device, verb.rounds);
  }
  for (nlohmann::ordered_json& row : both) {
    row["rivals_differ_by"] = or_null(agreement.output);
    row["gradients_differ_by"] = or_null(agreement.gradients);
    if (program) {
      row["rival_versions"] = prepared.rivals;
      row["rivals_absent"] = prepared.absent;
    }
    rows.push_back(row);
  }
}

std::string cell(const nlohmann::ordered_json& value, int width, int digits, double scale = 1) {
  // A number that fills its column still stands apart from the one before.
  return value.is_null()
             ? fmt::format("{:>{}}", "-", width)
             : fmt::format(" {:{}.{}f}", value.get<double>() * scale, width - 1, digits);
}

// `width`: of the routings' names.
void print_header(std::size_t width) {
  std::cout << fmt::format(
      "{:>5} {:>4} {:>5} {:>4} {:>2} {:<{}} {:<9} {:>8} {:>8} {:>8} {:>7} "
      "{:>7} {:>6} {:>8} {:>8} {:>8} {:>5} {:>8} {:>5} {:>5}\n",
      "T", "d", "f", "E", "k", "routing", width, "direction", "ms", "in a row", "graph", "TFLOP/s",
      "dense", "of max", "torch", "loop", "padded", "ratio", "N*F", "kept", "peak");
}

// Those of --rivals under a row.
void print_rival_program(const nlohmann::ordered_json& row) {
  for (const auto& [name, about] : row["rival_versions"].items()) {
    const auto& ms = row["rivals"][name];
    std::cout << fmt::format(
        "{:>39} {:<13}{} ms, {:>5} of ours ({})\n", "", name, cell(ms, 9, 3),
        ms.is_null() ? std::string("-")
                     : fmt::format("{:.2f}", ms.get<double>() / row["ms"].get<double>()),
        about.get<std::string>());
  }
  for (const auto& [name, why] : row["rivals_absent"].items()) {
    std::cout << fmt::format("{:>39} {:<13} not there: {}\n", "", name, why.get<std::string>());
  }
}

void print(const nlohmann::ordered_json& row, std::size_t width) {
  constexpr double kGiB = 1.0 / (1 << 30);
  const auto& rivals = row["rivals"];
  std::cout << fmt::format("{:>5} {:>4} {:>5} {:>4} {:>2} {:<{}} {:<9}", row["T"].get<int>(),
                           row["d"].get<int>(), row["f"].get<int>(), row["E"].get<int>(),
                           row["k"].get<int>(), row["routing"].get<std::string>(), width,
                           row["direction"] == "forward" ? "forward" : "both")
            << cell(row["ms"], 9, 3) << cell(row["back_to_back_ms"], 9, 3)
            << cell(row["graph_ms"], 9, 3) << cell(row["tflops"], 8, 0)
            << cell(row["dense_tflops"], 8, 0) << cell(row["of_ceiling"], 7, 2)
            << cell(rivals["torch"], 9, 3) << cell(rivals["loop"], 9, 3)
            << cell(rivals["padded"], 9, 3) << cell(row["ratio"], 6, 2)
            << cell(row["dense_model_ms"], 9, 3) << cell(row["kept_bytes"], 6, 2, kGiB)
            << cell(row["peak_bytes"], 6, 2, kGiB) << "\n";
  if (row.contains("rival_versions")) print_rival_program(row);
}

void check_dtype(const std::string& dtype) {
  if (dtype != "bf16" && dtype != "fp16" && dtype != "fp32") {
    throw Error(ErrorKind::kInvalidArgument, "unknown dtype " + dtype, "one of: bf16, fp16, fp32");
  }
}

void run_bench_moe(const BenchMoeVerb& verb) {
  check_dtype(verb.dtype);
  std::vector<LayerShape> shapes;
  for (const std::string& text : verb.shapes) shapes.push_back(parse_shape(text));
  const at::Device device = choose_device(verb.device);
  std::optional<OwnStream> stream;
  if (device.is_cuda()) stream.emplace(device);
  std::vector<RoutingChoice> routings;
  std::size_t width = 8;
  for (const std::string& text : verb.routings) {
    RoutingChoice routing = parse_routing(text);
    for (const RoutingChoice& other : routings) {
      if (other.name == routing.name) {
        throw Error(
            ErrorKind::kInvalidArgument,
            fmt::format("--routing: two are named {}, and so would their rows be", other.name),
            "give one of the folders another name, or another run of the command");
      }
    }
    for (const LayerShape& shape : shapes) expect_fit(shape, routing);
    width = std::max(width, routing.name.size());
    routings.push_back(std::move(routing));
  }
  std::optional<RivalProgram> program;
  if (!verb.rival_command.empty()) program.emplace(verb.rival_command);
  nlohmann::ordered_json json{{"device", describe_device(device)},
                              {"rounds", verb.rounds},
                              {"calls", verb.calls},
                              {"rows", nlohmann::ordered_json::array()}};
  if (!verb.json) {
    std::cout << describe_device(device) << ", " << verb.dtype << ", medians of " << verb.rounds
              << (verb.calls > 1 ? fmt::format(", {} runs at once", verb.calls) : "") << "\n";
    print_header(width);
  }
  for (const LayerShape& shape : shapes) {
    for (const RoutingChoice& routing : routings) {
      release_cached_memory(device);
      with_rows_kept(json, verb.json, [&] {
        with_torch_errors("choose a smaller --shape", [&] {
          bench_shape(shape, routing, verb, device, program ? &*program : nullptr, json["rows"]);
        });
      });
      if (verb.json) continue;
      const std::size_t count = json["rows"].size();
      for (std::size_t i = count - 2; i < count; ++i) print(json["rows"][i], width);
      // With backward: forward's parts are in it.
      if (verb.kernels) print_kernels(json["rows"][count - 1]["kernels"]);
      std::cout << std::flush;
    }
  }
  if (verb.json) print_report(json);
}

}  // namespace

void add_bench_verb(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Times parts of dropless beside their rivals");
  bench->footer("Example: dropless bench moe --shape 32768,2048,1024,64,8");
  bench->require_subcommand(1);
  add_bench_data(*bench);
  auto verb = std::make_shared<BenchMoeVerb>();
  CLI::App* moe = bench->add_subcommand(
      "moe",
      "The mixture-of-experts layer beside libtorch's, dense products of equal FLOPs (the ceiling, "
      "with the combination at copy rate) and a dense network of equal active parameters (N*F)");
  moe->add_option("--shape", verb->shapes, "T,d,f,E,k, repeatable; default: six known models'")
      ->take_all()
      ->default_str("");
  moe->add_option(
         "--routing", verb->routings,
         "router (a random one), uniform, zipf (1.0), or a run folder: the shares of tokens that a "
         "trained router's experts had at the end of it; repeatable; default: router")
      ->take_all()
      ->default_str("");
  moe->add_option("--device", verb->device, "cpu, cuda, cuda:N or auto")->capture_default_str();
  moe->add_option("--dtype", verb->dtype,
                  "bf16, fp16 or fp32; on the CPU bf16 or fp32, default there: both (with "
                  "--routing, --rivals, --calls or --decode: bf16)")
      ->capture_default_str();
  moe->add_option("--rounds", verb->rounds, "of all candidates in turn")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  moe->add_option(
         "--calls", verb->calls,
         "runs of a candidate queued at once, of which its time is the mean; in a row, graph "
         "and --kernels stay as they are")
      ->capture_default_str()
      ->check(CLI::Range(1, 100));
  CLI::Option* routing = moe->get_option("--routing");
  moe->add_flag(
         "--decode", verb->decode,
         "few tokens a call (default: 1 to 256): forward out of a graph, with weights that no "
         "cache holds, beside the rate of a copy")
      ->excludes(routing);
  moe->add_flag("--kernels", verb->kernels,
                "also the layer's time part by part, on a GPU: each beside what its operations or "
                "bytes would take at the rates of the dense products and of a copy")
      ->excludes("--decode");
  moe->get_option("--calls")->excludes("--decode");
  moe->add_option("--rivals", verb->rival_command,
                  "a program whose layers take turns with the others, such as \"python3 "
                  "benchmarks/moe_rivals.py\" (transformers, sonic-moe)")
      ->type_name("COMMAND")
      ->excludes("--decode");
  moe->add_flag("--json", verb->json, "one JSON document");
  moe->footer("Example: dropless bench moe --shape 32768,2048,1024,64,8");
  moe->callback([verb, moe] {
    handle_signals(verb->json);
    const at::Device device = choose_device(verb->device);
    std::vector<LayerShape> shapes;
    for (const std::string& text : verb->shapes) shapes.push_back(parse_shape(text));
    if (moe->count("--shape") == 0) shapes.clear();
    if (verb->decode) {
      check_dtype(verb->dtype);
      for (const LayerShape& s : shapes) {
        if (verb->dtype == "fp32" || (s.d % 8 == 0 && s.f % 8 == 0)) continue;
        throw Error(ErrorKind::kInvalidArgument,
                    fmt::format("--decode in {}: widths d = {}, f = {}", verb->dtype, s.d, s.f),
                    "multiples of 8, or --dtype fp32");
      }
      return run_bench_moe_decode(shapes, device, verb->dtype, verb->rounds, verb->json);
    }
    if (moe->count("--rivals") > 0 && verb->rival_command.empty()) {
      throw Error(ErrorKind::kInvalidArgument, "--rivals names no program",
                  "such as \"python3 benchmarks/moe_rivals.py\"");
    }
    if (verb->kernels && device.is_cpu()) {
      throw Error(ErrorKind::kInvalidArgument, "--kernels shows what a GPU is given to do",
                  "choose --device cuda");
    }
    // The CPU has rows of its own, on random routers; with --routing, --rivals or --calls it has those of a GPU.
    if (!device.is_cpu() || moe->count("--routing") > 0 || moe->count("--rivals") > 0 ||
        verb->calls > 1) {
      return run_bench_moe(*verb);
    }
    run_bench_moe_cpu(shapes, moe->count("--dtype") == 0 ? "" : verb->dtype, verb->rounds,
                      verb->json);
  });
}

}  // namespace dropless::apps
