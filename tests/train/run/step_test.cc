// One step: its gradients do not depend on the cut, and weights that cannot be trained on are seen.
#include "train/run/step.h"

#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>

#include "dropless/error.h"
#include "train/bridge/device.h"

namespace dropless::train {
namespace {

// Asked before any operator: libtorch looks for CUDA once, and an operator makes it look.
const bool kCuda = cuda_available();

constexpr const char* kConfig = R"(
model: {d_model: 16, n_heads: 2, n_layers: 1, max_seq_len: 8, vocab_size: 257}
tokenizer: {name: bytes}
optimizer: {name: decoupled_adamw, lr: 1.0e-3}
scheduler: {name: constant_with_warmup, t_warmup: 0ba}
train_loader: {name: text, dataset: {local: somewhere}}
max_duration: 10ba
max_seq_len: 8
global_train_batch_size: 4
precision: fp32
)";

struct Training {
  explicit Training(const std::vector<std::string>& overrides = {}, at::Device device = at::kCPU)
      : config(TrainConfig::from_yaml(YamlDocument::parse(kConfig, "t.yaml", overrides))),
        model(config.model, config.seed, device,
              WeightOptions{.type = weight_type(config.precision)}) {
    std::vector<std::pair<std::string, at::Tensor>> named;
    for (const Parameter& parameter : model.parameters()) {
      named.emplace_back(parameter.name, parameter.value);
    }
    optimizer = make_optimizer(config.optimizer, named);
    stepper = std::make_unique<Stepper>(config, model, *optimizer);
  }
  TrainConfig config;
  Transformer model;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<Stepper> stepper;
};

// Rows of 1, 5, 3 and 5 tokens: the first microbatch of one row has nothing to predict.
Batch uneven_batch() {
  Batch batch;
  batch.batch = 4;
  batch.seq_len = 5;
  batch.tokens_BS = {7, 0, 0, 0, 0, 1, 2, 3, 4, 5, 9, 8, 7, 0, 0, 5, 4, 3, 2, 1};
  batch.lengths_B = {1, 5, 3, 5};
  batch.tokens = 14;
  return batch;
}

// 48 rows of 1 to 8 tokens, the rest padding.
Batch batch_of_48() {
  Batch batch;
  batch.batch = 48;
  batch.seq_len = 8;
  for (int row = 0; row < 48; ++row) {
    const int length = 1 + (row * 5) % 8;
    batch.lengths_B.push_back(length);
    batch.tokens += length;
    for (int s = 0; s < 8; ++s)
      batch.tokens_BS.push_back(s < length ? 1 + (row * 31 + s * 7) % 250 : 0);
  }
  return batch;
}

std::string refusal(Training& run, std::int64_t number) {
  try {
    run.stepper->check_trainable(uneven_batch(), number);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNonFinite);
    return error.what();
  }
  return "nothing";
}

TEST(Stepper, TheCutDoesNotChangeTheStep) {
  Training whole, cut({"device_train_microbatch_size=1"});
  const StepResult a = whole.stepper->step(uneven_batch(), 1, 1.0);
  const StepResult b = cut.stepper->step(uneven_batch(), 1, 1.0);
  EXPECT_NEAR(a.cross_entropy, b.cross_entropy, 1e-5);
  EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-5);
  EXPECT_GT(a.grad_norm, 0);
}

constexpr const char* kMixture =
    "model.ffn_config={ffn_type: mb_dmoe, mlp_type: glu, moe_num_experts: 4, moe_top_k: 2, ";

struct StepAndGradients {
  StepResult result;
  at::Tensor gradients;  // of all parameters, fp64 on the CPU
};

// With SGD at rate 1 the update is the gradient.
StepAndGradients step_and_gradients(const Batch& batch, int rows,
                                    std::vector<std::string> overrides,
                                    at::Device device = at::kCPU) {
  overrides.insert(overrides.end(), {"optimizer=null", "optimizer={name: sgd, lr: 1}",
                                     "global_train_batch_size=" + std::to_string(batch.batch),
                                     "device_train_microbatch_size=" + std::to_string(rows)});
  Training run(overrides, device);
  std::vector<at::Tensor> before, all;
  for (const Parameter& parameter : run.model.parameters()) {
    before.push_back(parameter.value.detach().clone());
  }
  const StepResult result = run.stepper->step(batch, 1, 1.0);
  for (std::size_t i = 0; i < before.size(); ++i) {
    const at::Tensor now = run.model.parameters()[i].value.detach();
    all.push_back((before[i].to(at::kDouble) - now.to(at::kDouble)).flatten().cpu());
  }
  return {result, at::cat(all)};
}

double relative_distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

// Microbatches of 1 to all rows, uneven ones too, of a mixture: in fp64 nothing is left but what the
// cut does.
TEST(Stepper, GradientsDoNotDependOnTheCut) {
  const auto gradients = [](const Batch& batch, int rows) {
    return step_and_gradients(batch, rows,
                              {"precision=fp64", std::string(kMixture) + "moe_loss_weight: 0}"})
        .gradients;
  };
  for (const auto& [batch, cuts] : {std::pair(uneven_batch(), std::vector<int>{1, 2, 3}),
                                    std::pair(batch_of_48(), std::vector<int>{1, 11, 24})}) {
    const at::Tensor whole = gradients(batch, static_cast<int>(batch.batch));
    EXPECT_GT(whole.norm().item<double>(), 0.1);
    for (const int rows : cuts) {
      EXPECT_LT(relative_distance(gradients(batch, rows), whole), 1e-12)
          << batch.batch << " rows by " << rows;
    }
  }
}

// In amp_bf16, the layer by its kernels. Blocks that are computed again in backward compute the same bits. A cut changes what bf16
// rounds, and a token near two experts might take the other: there every token takes all.
void expect_same_step_however_computed(at::Device device) {
  const auto step = [&](int rows, const std::vector<std::string>& overrides, at::Device where) {
    std::vector<std::string> all{
        "precision=amp_bf16", "model.d_model=64", "model.n_layers=2",
        std::string(kMixture) + "backend: dropless, ffn_hidden_size: 64, moe_loss_weight: 0.1}"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    return step_and_gradients(batch_of_48(), rows, all, where);
  };
  const std::string again = "fsdp_config={activation_checkpointing: true}";
  for (const int rows : {48, 11}) {
    const StepAndGradients kept = step(rows, {}, device), twice = step(rows, {again}, device);
    EXPECT_GT(kept.result.load_balance, 0);
    EXPECT_EQ(twice.result.cross_entropy, kept.result.cross_entropy) << rows;
    EXPECT_EQ(twice.result.load_balance, kept.result.load_balance) << rows;
    EXPECT_EQ(relative_distance(twice.gradients, kept.gradients), 0) << rows;
  }
  // A microbatch's balance is its own: without it. On the CPU bf16 is 2.2e-2 from fp64, a cut 2e-3 from the whole.
  const std::string all_experts = "model.ffn_config.moe_top_k=4",
                    no_balance = "model.ffn_config.moe_loss_weight=0";
  const StepAndGradients exact =
      step(48, {all_experts, no_balance, "precision=fp64"}, at::Device(at::kCPU));
  EXPECT_GT(exact.gradients.norm().item<double>(), 0.1);
  const StepAndGradients whole = step(48, {all_experts, no_balance}, device);
  for (const int rows : {48, 24, 11, 1}) {
    const StepAndGradients cut = step(rows, {all_experts, no_balance, again}, device);
    // One row of 48 left out would be 1e-2 or more.
    if (device.is_cpu()) {
      EXPECT_LT(relative_distance(cut.gradients, whole.gradients), 5e-3) << rows;
    }
    EXPECT_NEAR(cut.result.cross_entropy, exact.result.cross_entropy, 2e-3) << rows;
    EXPECT_LT(relative_distance(cut.gradients, exact.gradients), 5e-2) << rows;
  }
}

TEST(Stepper, ActivationCheckpointingAndTheCutChangeNothing) {
  expect_same_step_however_computed(at::kCPU);
}

TEST(Stepper, ActivationCheckpointingAndTheCutChangeNothingOnAGpu) {
  if (!kCuda) GTEST_SKIP() << "no GPU";
  expect_same_step_however_computed(at::kCUDA);
}

// amp_fp16 with its loss scale, amp_bf16 and fp32 on a GPU against fp64 on the CPU, from equal weights.
TEST(Stepper, PrecisionsOfAGpuLearnAlike) {
  if (!kCuda) GTEST_SKIP() << "no GPU";
  const auto losses = [](const std::string& precision, at::Device device) {
    Training run({"precision=" + precision, "global_train_batch_size=48", "model.d_model=64",
                  "optimizer.lr=3e-3", std::string(kMixture) + "ffn_hidden_size: 64}",
                  "device_train_microbatch_size=24"},
                 device);
    std::vector<double> all;
    for (int step = 1; step <= 30; ++step) {
      const StepResult result = run.stepper->step(batch_of_48(), step, 1.0);
      if (!result.skipped) all.push_back(result.cross_entropy);
      EXPECT_EQ(run.stepper->loss_scale().enabled(), precision == "amp_fp16");
    }
    return all;
  };
  const std::vector<double> exact = losses("fp64", at::kCPU);
  EXPECT_LT(exact.back(), 0.7 * exact.front());
  for (const std::string precision : {"fp32", "amp_bf16", "amp_fp16"}) {
    const std::vector<double> here = losses(precision, at::kCUDA);
    ASSERT_GE(here.size(), 20u) << precision;  // a scale that is too large skips a few
    for (std::size_t i = 0; i < here.size(); ++i) {
      EXPECT_NEAR(here[i], exact[i], 0.03 * exact[i]) << precision << ", update " << i;
    }
  }
}

TEST(Stepper, AStepThatIsNotFiniteLeavesEveryBit) {
  Training run({"skip_nonfinite_steps=2"});
  run.stepper->step(uneven_batch(), 1, 1.0);
  const at::Tensor table = run.model.parameters()[0].value.detach();
  const at::Tensor good = table[4].clone();
  table[4].fill_(std::numeric_limits<float>::quiet_NaN());
  const auto state = [&] {
    std::vector<at::Tensor> all;
    for (const Parameter& parameter : run.model.parameters())
      all.push_back(parameter.value.clone());
    for (const auto& [name, moment] : run.optimizer->state()) all.push_back(moment.clone());
    return all;
  };
  const std::vector<at::Tensor> before = state();
  for (const std::int64_t skipped : {1, 2}) {
    EXPECT_TRUE(run.stepper->step(uneven_batch(), 1 + skipped, 1.0).skipped);
    EXPECT_EQ(run.stepper->nonfinite_in_row(), skipped);
    const std::vector<at::Tensor> after = state();
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_TRUE(at::allclose(before[i], after[i], 0, 0, /*equal_nan=*/true)) << i;
    }
  }
  EXPECT_EQ(run.optimizer->steps(), 1);
  // What is finite again goes on, and the count begins anew.
  table[4].copy_(good);
  EXPECT_FALSE(run.stepper->step(uneven_batch(), 4, 1.0).skipped);
  EXPECT_EQ(run.stepper->nonfinite_in_row(), 0);
  table[4].fill_(std::numeric_limits<float>::infinity());
  run.stepper->step(uneven_batch(), 5, 1.0);
  run.stepper->step(uneven_batch(), 6, 1.0);
  EXPECT_THROW(run.stepper->step(uneven_batch(), 7, 1.0), Error);
}

// libtorch's CPU memory, of which there is only so much. Each block has its size in front of it:
// libtorch wants the block itself for its context.
class LimitedMemory : public c10::Allocator {
 public:
  LimitedMemory() {
    current = this;
    c10::SetCPUAllocator(this, 255);
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    TORCH_CHECK(in_use_ + bytes <= limit, "DefaultCPUAllocator: can't allocate memory: ", bytes);
    in_use_ += bytes;
    peak = std::max(peak, in_use_);
    auto* front = static_cast<char*>(std::aligned_alloc(kFront, (bytes / kFront + 2) * kFront));
    std::memcpy(front, &bytes, sizeof bytes);
    return {front + kFront, front + kFront, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }

  void uninstall() { c10::SetCPUAllocator(before_, 255); }

  std::size_t limit = SIZE_MAX, peak = 0;

 private:
  static constexpr std::size_t kFront = 64;
  static void release(void* block) {
    char* front = static_cast<char*>(block) - kFront;
    std::size_t bytes = 0;
    std::memcpy(&bytes, front, sizeof bytes);
    current->in_use_ -= bytes;
    std::free(front);
  }
  static inline LimitedMemory* current = nullptr;
  c10::Allocator* before_ = c10::GetCPUAllocator();
  std::size_t in_use_ = 0;
};

Batch full_batch(std::int64_t rows) {
  Batch batch;
  batch.batch = rows;
  batch.seq_len = 8;
  batch.tokens = rows * batch.seq_len;
  for (std::int64_t i = 0; i < batch.tokens; ++i) batch.tokens_BS.push_back(i * 37 % 257);
  batch.lengths_B.assign(rows, batch.seq_len);
  return batch;
}

TEST(Stepper, AutoMicrobatchGoesDownToWhatFits) {
  // Never destroyed: libtorch may keep some of its blocks to the end.
  LimitedMemory& memory = *new LimitedMemory;
  const Batch batch = full_batch(64);
  const std::string whole_batch = "global_train_batch_size=64";
  const auto measure = [&](const char* microbatch) {
    Training run({whole_batch, std::string("device_train_microbatch_size=") + microbatch});
    memory.peak = 0;
    const StepResult result = run.stepper->step(batch, 1, 1.0);
    return std::pair(memory.peak, result);
  };
  const auto [whole, whole_result] = measure("64");
  const auto [half, half_result] = measure("32");
  ASSERT_LT(half, whole);
  Training automatic({whole_batch}), fixed({whole_batch, "device_train_microbatch_size=64"});
  memory.limit = (half + whole) / 2;
  const StepResult result = automatic.stepper->step(batch, 1, 1.0);
  EXPECT_THROW(fixed.stepper->step(batch, 1, 1.0), c10::Error) << "a size that was asked for";
  memory.uninstall();
  EXPECT_EQ(automatic.stepper->microbatch(), 32);
  EXPECT_EQ(result.cross_entropy, half_result.cross_entropy);
  EXPECT_EQ(result.grad_norm, half_result.grad_norm);
}

// Noise is of the step, not of what was drawn before it.
TEST(Stepper, DropoutIsTheSameAfterALookOrAResume) {
  const std::vector<std::string> noisy{"model.resid_pdrop=0.2", "model.emb_pdrop=0.1",
                                       "model.attn_config={attn_pdrop: 0.3}"};
  Training looked(noisy), straight(noisy), resumed(noisy);
  for (std::int64_t step = 1; step <= 2; ++step) {
    looked.stepper->step(uneven_batch(), step, 0.0);
    EXPECT_EQ(refusal(looked, step), "nothing");
    straight.stepper->step(uneven_batch(), step, 0.0);
  }
  // A multiplier of 0 and weight decay aside, the weights of all three are equal: only noise differs.
  const double expected = straight.stepper->step(uneven_batch(), 3, 0.0).cross_entropy;
  EXPECT_EQ(looked.stepper->step(uneven_batch(), 3, 0.0).cross_entropy, expected);
  EXPECT_EQ(resumed.stepper->step(uneven_batch(), 3, 0.0).cross_entropy, expected);
  EXPECT_NE(straight.stepper->step(uneven_batch(), 4, 0.0).cross_entropy, expected);
}

TEST(Stepper, LookingChangesNothing) {
  Training looked({"device_train_microbatch_size=1"}), straight({"device_train_microbatch_size=1"});
  for (std::int64_t step = 1; step <= 3; ++step) {
    looked.stepper->step(uneven_batch(), step, 1.0);
    straight.stepper->step(uneven_batch(), step, 1.0);
    EXPECT_EQ(refusal(looked, step), "nothing");
  }
  for (std::size_t i = 0; i < looked.model.parameters().size(); ++i) {
    EXPECT_TRUE(
        at::equal(looked.model.parameters()[i].value, straight.model.parameters()[i].value));
  }
}

TEST(Stepper, OneRuinedNumberIsSeenWhereverItIs) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    // A row of the embedding table that no token of the batch reads.
    Training weight;
    weight.model.parameters()[0].value.detach()[200][3] = bad;
    EXPECT_THAT(refusal(weight, 4), testing::HasSubstr("after step 4, a weight or a moment"));
    Training moment;
    moment.optimizer->state().back().second.view({-1})[0] = bad;
    EXPECT_THAT(refusal(moment, 4), testing::HasSubstr("a weight or a moment"));
  }
}

TEST(Stepper, FiniteWeightsWithoutAFiniteGradientAreSeen) {
  Training run;
  for (const Parameter& parameter : run.model.parameters()) parameter.value.detach().mul_(1e30);
  EXPECT_THAT(refusal(run, 2), testing::HasSubstr("after step 2, the "));
}

}  // namespace
}  // namespace dropless::train
