// mbmoe_tok_per_expert's figures, of given counts.
#include "train/run/expert_load.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace dropless::train {
namespace {

YamlMap yaml(const std::string& text) { return YamlDocument::parse(text, "t.yaml").root(); }

nlohmann::ordered_json figures(const at::Tensor& tokens_LE, const std::string& config,
                               std::int64_t step = 10, std::int64_t top_k = 2) {
  nlohmann::ordered_json line;
  add_expert_figures(tokens_LE, top_k, ExpertMonitorConfig::from_yaml(yaml(config)), step, line);
  return line;
}

TEST(ExpertMonitor, PerfectBalanceAndOneBusyExpert) {
  const at::Tensor even = at::full({2, 4}, 6, at::kLong);
  const auto line = figures(even, "{}");
  EXPECT_EQ(line.size(), 4u);
  EXPECT_DOUBLE_EQ(line["mb_moe/all_layers_min_tpe"], 0.5);  // K / E
  EXPECT_DOUBLE_EQ(line["mb_moe/all_layers_max_tpe"], 0.5);
  EXPECT_DOUBLE_EQ(line["mb_moe/all_layers_std_tpe"], 0.0);
  EXPECT_DOUBLE_EQ(max_over_mean(even), 1.0);
  const at::Tensor skewed = at::tensor({8, 0, 0, 0}, at::kLong).view({1, 4});
  EXPECT_DOUBLE_EQ(figures(skewed, "{}", 10, 1)["mb_moe/all_layers_max_tpe"], 1.0);
  EXPECT_DOUBLE_EQ(figures(skewed, "{}", 10, 1)["mb_moe/all_layers_min_tpe"], 0.0);
  EXPECT_DOUBLE_EQ(max_over_mean(skewed), 4.0);
}

TEST(ExpertMonitor, EachLayerEverySoManySteps) {
  const at::Tensor tokens = at::tensor({8, 0, 4, 0, 3, 3, 3, 3}, at::kLong).view({2, 4});
  const std::string config = "{log_interval: 3, log_every_layer: true";
  const auto line = figures(tokens, config + "}", 3);
  EXPECT_EQ(line.size(), 12u);
  EXPECT_DOUBLE_EQ(line["mb_moe/layer0_max_tpe"], 2 * 8 / 12.0);
  EXPECT_DOUBLE_EQ(line["mb_moe/layer0_median_tpe"], 0.0);  // torch's, the lower of two
  EXPECT_DOUBLE_EQ(line["mb_moe/layer1_min_tpe"], 0.5);
  EXPECT_DOUBLE_EQ(line["mb_moe/layer1_std_tpe"], 0.0);
  EXPECT_EQ(figures(tokens, config + "}", 4).size(), 4u);
  const auto counted = figures(tokens, config + ", normalize: false}", 6);
  EXPECT_DOUBLE_EQ(counted["mb_moe/layer0_max_tpe"], 8.0);
  EXPECT_DOUBLE_EQ(counted["mb_moe/all_layers_max_tpe"], 8.0);
}

}  // namespace
}  // namespace dropless::train
