#include "train/run/summary.h"

#include <fmt/format.h>

#include <utility>
#include <variant>

#include "train/bridge/device.h"
#include "train/run/memory.h"

namespace dropless::train {
namespace {

std::string describe_ffn(const ModelConfig& config, Precision precision, at::Device device) {
  if (const MoELayerConfig* layer = config.moe()) {
    const BackendChoice choice = resolve_backend(*layer, compute_type(precision), device);
    const std::string why =
        choice.reason.empty() ? "" : fmt::format("\n           ({})", choice.reason);
    const std::int64_t mixtures = config.n_layers - std::ssize(config.dense_layers);
    const std::string where =
        mixtures == config.n_layers ? "" : fmt::format(" in {} of the layers", mixtures);
    return fmt::format("{} experts of width {}{}, top-{}, {}, backend {}{}", layer->moe.num_experts,
                       layer->moe.d_ffn, where, layer->moe.top_k, layer->moe.glu ? "GLU" : "MLP",
                       moe_backend_name(choice.backend), why);
  }
  const FfnConfig& dense = std::get<FfnConfig>(config.ffn);
  return fmt::format("dense feed-forward of width {}{}", dense.d_ffn, dense.glu ? ", GLU" : "");
}

}  // namespace

std::string format_count(double value) {
  if (value >= 1e9) return fmt::format("{:.2f} B", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f} M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:.1f} k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

std::string format_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, units[unit]);
}

double training_flops_per_token(const ModelConfig& config, const ParameterCount& count,
                                std::int64_t seq_len) {
  double active = static_cast<double>(count.active);
  if (!config.tie_word_embeddings) {
    active -= static_cast<double>(config.vocab_size) * static_cast<double>(config.d_model);
  }
  const double attention = 4.0 * static_cast<double>(config.n_layers) *
                           static_cast<double>(config.d_model) * static_cast<double>(seq_len);
  return 3 * (2 * active + attention);
}

double peak_bf16_flops(at::Device device) {
  const std::string name = describe_device(device);
  constexpr std::pair<const char*, double> kPeaks[] = {{"H100 PCIe", 756e12},
                                                       {"H100 NVL", 835e12},
                                                       {"H100", 989.5e12},
                                                       {"H200", 989.5e12},
                                                       {"A100", 312e12}};
  for (const auto& [part, peak] : kPeaks) {
    if (name.find(part) != std::string::npos) return peak;
  }
  return 0;
}

std::string training_summary(const TrainConfig& config, const Transformer& model,
                             const TextLoader& loader, const TrainingLength& length) {
  const ModelConfig& m = config.model;
  const ParameterCount count = model.count();
  std::string text;
  text += fmt::format("  model    {} layers, width {}, {} heads ({} of keys and values); {}\n",
                      m.n_layers, m.d_model, m.n_heads, m.attention.kv_n_heads,
                      describe_ffn(m, config.precision, model.device()));
  text += fmt::format("           {} parameters, {} active per token\n",
                      format_count(static_cast<double>(count.total)),
                      format_count(static_cast<double>(count.active)));
  const double bytes = training_bytes_per_parameter(config.optimizer, config.precision);
  text += fmt::format("  memory   {} of weights, gradients and moments; activations come on top\n",
                      format_bytes(bytes * static_cast<double>(count.total)));
  text += fmt::format("  data     {}: {} samples of up to {} tokens, {} batches an epoch\n",
                      config.train_loader.local, loader.num_samples(), config.max_seq_len,
                      length.batches_per_epoch);
  text += fmt::format("  steps    {} of {} samples ({} tokens), {} a forward pass\n",
                      length.max_batches, config.global_train_batch_size, length.tokens_per_batch,
                      config.microbatch_samples());
  text += fmt::format("  device   {}, {}\n", describe_device(model.device()),
                      precision_name(config.precision));
  text += fmt::format("  folder   {}", config.save_folder);
  return text;
}

}  // namespace dropless::train
