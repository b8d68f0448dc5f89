#include "train/nn/moe_config.h"

#include <fmt/format.h>

#include <string>

#include "train/nn/ffn_config.h"

namespace dropless::train {
namespace {

MoEBackend backend_from_yaml(const YamlMap& map) {
  const std::string name = map.get<std::string>("backend", "auto");
  if (name == "auto") return MoEBackend::kAuto;
  if (name == "dropless") return MoEBackend::kDropless;
  if (name == "reference") return MoEBackend::kReference;
  if (name == "torch") return MoEBackend::kTorch;
  map.fail("backend", "unknown backend " + name, "one of: auto, dropless, reference, torch");
}

// MegaBlocks' options of the router, and those of later models, whose keys are ours.
void read_router(const YamlMap& map, MoELayerConfig& config) {
  RouteConfig& route = config.moe.route;
  const std::int64_t E = config.moe.num_experts;
  route.normalize_p = map.non_negative<double>("moe_normalize_expert_weights", 0.0);
  config.jitter_eps = map.non_negative<double>("moe_jitter_eps", 0.0);
  if (config.jitter_eps >= 1) {
    map.fail("moe_jitter_eps", fmt::format("{} is not below 1", config.jitter_eps));
  }
  if (map.get<bool>("uniform_expert_assignment", false)) route.selection = RouteSelection::kUniform;
  const auto score = map.get<std::string>("moe_router_score", "softmax");
  if (score != "softmax" && score != "sigmoid") {
    map.fail("moe_router_score", "unknown moe_router_score " + score, "one of: softmax, sigmoid");
  }
  if (score == "sigmoid") route.score = RouteScore::kSigmoid;
  route.scaling_factor = map.positive<double>("moe_routed_scaling_factor", 1.0);
  route.num_groups = map.positive<std::int64_t>("moe_num_groups", 1);
  route.group_top_k = map.positive<std::int64_t>("moe_group_top_k", route.num_groups);
  if (E % route.num_groups != 0) {
    map.fail("moe_num_groups",
             fmt::format("moe_num_experts {} is not a multiple of {} groups", E, route.num_groups));
  }
  if (route.group_top_k > route.num_groups) {
    map.fail("moe_group_top_k", fmt::format("moe_group_top_k {} is above moe_num_groups {}",
                                            route.group_top_k, route.num_groups));
  }
  if (route.group_top_k * (E / route.num_groups) < config.moe.top_k) {
    map.fail("moe_group_top_k",
             fmt::format("{} groups have {} experts, fewer than moe_top_k {}", route.group_top_k,
                         route.group_top_k * (E / route.num_groups), config.moe.top_k));
  }
  config.moe.selection_bias = map.get<bool>("moe_selection_bias", false);
  config.bias_update_rate =
      map.non_negative<double>("moe_selection_bias_update_rate", config.bias_update_rate);
  if (!config.moe.selection_bias) {
    map.no_effect("moe_selection_bias_update_rate", "moe_selection_bias is off");
  }
}

void read_capacity(const YamlMap& map, bool has_capacity, MoEConfig& moe) {
  if (has_capacity) {
    moe.capacity_factor = map.non_negative<double>("moe_capacity_factor", 1.0);
  } else {
    map.no_effect("moe_capacity_factor", "only mb_moe's experts have a capacity");
  }
}

// Fields of MegaBlocks' Arguments that change nothing here.
void accept_without_effect(const YamlMap& map) {
  map.no_effect("memory_optimized_mlp", "the layer always keeps only its pre-activations");
  map.no_effect("moe_lbl_in_fp32", "router losses are always computed in fp32");
  map.no_effect("moe_zloss_in_fp32", "router losses are always computed in fp32");
  map.no_effect("num_layers", "the load-balancing loss is the mean over the mixtures there are");
  map.no_effect("return_bias", "the bias is added in the layer");
  map.no_effect("remat_act_fn", "activations are always computed again");
  for (const char* key : {"fp16", "bf16"}) map.no_effect(key, "`precision` says how it computes");
  map.no_effect("device", "`device` of the run says where it computes");
  for (const char* key : {"lbl_process_group", "device_mesh", "expert_parallel_group"}) {
    map.no_effect(key, "there is one process");
  }
}

void refuse_unsupported(const YamlMap& map) {
  const auto parallel = [&](const char* key, bool set) {
    map.refuse(key, set, "this version trains in one process");
  };
  parallel("moe_expert_model_parallelism", map.get<bool>("moe_expert_model_parallelism", false));
  parallel("moe_weight_parallelism", map.get<bool>("moe_weight_parallelism", false));
  parallel("pipeline_model_parallel_size",
           map.get<std::int64_t>("pipeline_model_parallel_size", 1) != 1);
  parallel("num_layers_per_virtual_pipeline_stage",
           map.has("num_layers_per_virtual_pipeline_stage"));
  map.refuse("activation_fn", map.has("activation_fn"), "name it by ffn_act_fn");
  for (const char* key : {"init_method", "output_layer_init_method"}) {
    map.refuse(key, map.has(key), "name a scheme by model.init_config");
  }
  for (const char* key : {"fc_cls", "fc_kwargs"}) {
    map.refuse(key, map.has(key), "there is one linear layer");
  }
  const std::int64_t world = map.get<std::int64_t>("moe_world_size", 1);
  map.refuse("moe_world_size", world != 1, "this version trains in one process: set it to 1");
}

void read_shared_expert(const YamlMap& map, MoELayerConfig& config) {
  const bool shared = map.get<bool>("shared_expert", false);
  const auto d_ffn = map.find_positive<std::int64_t>("shared_expert_hidden_size");
  config.shared_weighted = map.get<bool>("shared_expert_weighted_sum", false) && shared;
  config.shared_gate = map.get<bool>("shared_expert_gate", false) && shared;
  if (shared) {
    config.shared_d_ffn = d_ffn.value_or(config.moe.d_ffn);
    return;
  }
  for (const char* key :
       {"shared_expert_hidden_size", "shared_expert_weighted_sum", "shared_expert_gate"}) {
    map.no_effect(key, "shared_expert is off");
  }
}

}  // namespace

MoELayerConfig MoELayerConfig::from_yaml(const YamlMap& map, std::int64_t d_model,
                                         std::int64_t default_d_ffn, bool bias) {
  const std::string type = map.get<std::string>("ffn_type");
  const bool megablocks = type != "torch_dmoe";
  MoELayerConfig config;
  MoEConfig& moe = config.moe;
  moe.d_model = d_model;
  moe.num_experts = map.positive<std::int64_t>("moe_num_experts", 1);
  moe.top_k = map.positive<std::int64_t>("moe_top_k", 1);
  moe.d_ffn = map.find_positive<std::int64_t>("ffn_hidden_size").value_or(default_d_ffn);
  // MegaBlocks' default activation is tanh-gelu; torch_dmoe's is the exact one.
  moe.activation =
      activation_from_yaml(map, megablocks ? Activation::kGeluTanh : Activation::kGelu);
  const std::string mlp_type = map.get<std::string>("mlp_type", "mlp");
  if (mlp_type != "mlp" && mlp_type != "glu") {
    map.fail("mlp_type", "unknown mlp_type " + mlp_type, "one of: mlp, glu");
  }
  moe.glu = mlp_type == "glu";
  config.bias = map.get<bool>("bias", megablocks && bias);
  const auto hidden = map.get<std::int64_t>("hidden_size", d_model);
  map.refuse("hidden_size", hidden != d_model, fmt::format("d_model is {}", d_model));
  config.loss_weight = map.non_negative<double>("moe_loss_weight", megablocks ? 0.1 : 0.0);
  config.zloss_weight = map.non_negative<double>("moe_zloss_weight", 0.0);
  config.backend = backend_from_yaml(map);

  if (moe.top_k > moe.num_experts) {
    map.fail("moe_top_k",
             "moe_top_k " + std::to_string(moe.top_k) + " is above moe_num_experts " +
                 std::to_string(moe.num_experts),
             "a token goes to moe_top_k different experts: lower it, or raise moe_num_experts");
  }
  read_router(map, config);
  read_capacity(map, type == "mb_moe", moe);
  read_shared_expert(map, config);
  refuse_unsupported(map);
  const std::string impl = map.get<std::string>("mlp_impl", "grouped");
  if (impl != "grouped" && impl != "sparse") {
    map.fail("mlp_impl", "unknown mlp_impl " + impl, "one of: grouped, sparse");
  }
  if (impl == "sparse") {
    map.no_effect("mlp_impl", "both forms compute the same layer; the grouped one runs");
  }
  accept_without_effect(map);
  map.finish();
  return config;
}

bool MoELayerConfig::adapts_experts() const {
  return lora && (lora->has(LoraTarget::kGate) || lora->has(LoraTarget::kUp) ||
                  lora->has(LoraTarget::kDown));
}

const char* moe_backend_name(MoEBackend backend) {
  switch (backend) {
    case MoEBackend::kAuto:
      return "auto";
    case MoEBackend::kDropless:
      return "dropless";
    case MoEBackend::kReference:
      return "reference";
    case MoEBackend::kTorch:
      return "torch";
  }
  return "unknown";
}

}  // namespace dropless::train
