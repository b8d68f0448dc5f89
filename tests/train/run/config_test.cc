// Defaults and checks of the whole config; the parts have tests of their own.
#include "train/run/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "dropless/error.h"

namespace dropless::train {
namespace {

constexpr const char* kMinimal = R"(
model: {name: mpt_causal_lm, d_model: 16, n_heads: 2, n_layers: 1, vocab_size: 257}
tokenizer: {name: bytes}
optimizer: {name: decoupled_adamw, lr: 1.0e-3}
scheduler: {name: cosine_with_warmup, t_warmup: 0ba}
train_loader: {name: text, dataset: {local: somewhere}}
max_duration: 10ba
max_seq_len: 16
global_train_batch_size: 4
)";

TrainConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return TrainConfig::from_yaml(YamlDocument::parse(text, "t.yaml", overrides));
}

TEST(TrainConfig, DefaultsAreLlmFoundrys) {
  const TrainConfig config = parse(kMinimal);
  EXPECT_EQ(config.seed, 17u);
  EXPECT_EQ(config.precision, Precision::kAmpBf16);
  EXPECT_EQ(config.save_interval, (Time{1000, TimeUnit::kBatch}));
  EXPECT_EQ(config.eval_interval, (Time{1, TimeUnit::kEpoch}));
  EXPECT_EQ(config.save_num_checkpoints_to_keep, -1);
  EXPECT_EQ(config.device_train_microbatch_size, 0);
  EXPECT_FALSE(config.autoresume);
  EXPECT_FALSE(config.clip.has_value());
  EXPECT_THAT(config.save_folder, testing::StartsWith("runs/"));
}

TEST(TrainConfig, EveryMandatoryKeyIsMissedByName) {
  for (const char* key : {"model", "tokenizer", "optimizer", "scheduler", "train_loader",
                          "max_duration", "max_seq_len", "global_train_batch_size"}) {
    try {
      parse(kMinimal, {std::string(key) + "=null"});
      FAIL() << key;
    } catch (const Error& error) {
      EXPECT_THAT(std::string(error.what()) + error.hint(), testing::HasSubstr(key));
    }
  }
}

TEST(TrainConfig, RunFolderNames) {
  EXPECT_EQ(parse(kMinimal, {"run_name=a"}).save_folder, "runs/a");
  EXPECT_EQ(parse(kMinimal, {"run_name=a", "save_folder=b/{run_name}/c"}).save_folder, "b/a/c");
  EXPECT_THROW(parse(kMinimal, {"save_folder=b/{run_name}"}), Error);
}

TEST(TrainConfig, RefusesContradictions) {
  for (const char* override : {"seed=-1",
                               "max_duration=1dur",
                               "max_duration=10sec",
                               "save_interval=5sec",
                               "max_seq_len=1",
                               "device_train_microbatch_size=large",
                               "save_num_checkpoints_to_keep=0",
                               "precision=fp8",
                               "device_eval_batch_size=0",
                               "algorithms={alibi: {}}",
                               "callbacks={my_callback: {}}",
                               "loggers={my_logger: {}}",
                               "callbacks={early_stopper: {}}",
                               "code_paths=[a.py]",
                               "save_ignore_keys=[a]",
                               "skip_nonfinite_steps=-1",
                               "train_subset_num_batches=5",
                               "only_hf_checkpoint=true",
                               "modle=1",
                               "device=cuda:x",
                               "device=cdua",
                               "run_name=../x",
                               "run_name=..",
                               "scheduler.t_max=9ba",
                               "model.n_heads=null"}) {
    EXPECT_THROW(parse(kMinimal, {override}), Error) << override;
  }
  EXPECT_THROW(parse(kMinimal, {"autoresume=true", "save_overwrite=true"}), Error);
  for (const char* key : {"load_strict_model_weights=false", "load_ignore_keys=[a]"}) {
    EXPECT_THROW(parse(kMinimal, {"load_path=x", key}), Error) << key;
    EXPECT_NO_THROW(parse(kMinimal, {"load_path=x", "load_weights_only=true", key})) << key;
  }
}

TEST(TrainConfig, DocumentsAreToldApartByTheLoadersToken) {
  const std::string on = "model.attn_config={attn_uses_sequence_id: true}";
  const auto refusal = [](const std::vector<std::string>& overrides) -> std::string {
    try {
      parse(kMinimal, overrides);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return error.what();
    }
    return "nothing";
  };
  EXPECT_THAT(refusal({on}), testing::HasSubstr("train_loader.dataset"));
  EXPECT_EQ(refusal({on, "train_loader.dataset.eos_token_id=0"}), "nothing");
  EXPECT_THAT(refusal({on, "train_loader.dataset.eos_token_id=0",
                       "eval_loader={name: text, dataset: {local: elsewhere}}"}),
              testing::HasSubstr("eval_loader.dataset"));
  EXPECT_THAT(refusal({"train_loader.dataset={eos_token_id: 0, bos_token_id: 1}"}),
              testing::HasSubstr("exclude each other"));
  const TrainConfig begins = parse(kMinimal, {on, "train_loader.dataset.bos_token_id=3"});
  ASSERT_TRUE(begins.train_loader.separator);
  EXPECT_EQ(begins.train_loader.separator->id, 3);
  EXPECT_TRUE(begins.train_loader.separator->begins);
}

TEST(TrainConfig, BatchSizesAreLlmFoundrys) {
  // A microbatch above the batch is lowered to it.
  TrainConfig config = parse(kMinimal, {"device_train_microbatch_size=5"});
  EXPECT_EQ(config.device_train_microbatch_size, 4);
  EXPECT_EQ(config.device_eval_batch_size, 4);
  EXPECT_EQ(parse(kMinimal, {"device_train_microbatch_size=3"}).device_eval_batch_size, 3);
  EXPECT_EQ(parse(kMinimal).device_eval_batch_size, 1);  // auto
}

TEST(TrainConfig, RunNameComesFromTheEnvironment) {
  ::setenv("RUN_NAME", "named", 1);
  EXPECT_EQ(parse(kMinimal).save_folder, "runs/named");
  EXPECT_EQ(parse(kMinimal, {"run_name=a"}).save_folder, "runs/a");
  ::unsetenv("RUN_NAME");
}

TEST(TrainConfig, NumbersOutOfRange) {
  for (const char* override :
       {"optimizer.lr=0",
        "optimizer.lr=1e39",
        "optimizer.lr=.inf",
        "optimizer.lr=.nan",
        "optimizer.weight_decay=-1",
        "optimizer.weight_decay=.inf",
        "optimizer.eps=-1e-8",
        "optimizer.eps=.nan",
        "optimizer.betas=[0.9, 1]",
        "optimizer.betas=[.nan, 0.9]",
        "scheduler.alpha_f=-1",
        "scheduler.alpha_f=.nan",
        "scheduler.t_warmup=nan",
        "algorithms.gradient_clipping={clipping_type: norm, clipping_threshold: 0}",
        "algorithms.gradient_clipping={clipping_type: norm, clipping_threshold: .nan}",
        "max_seq_len=3000000000",
        "global_train_batch_size=3000000000",
        "device_eval_batch_size=9000000000000000000",
        "eval_subset_num_batches=0",
        "eval_subset_num_batches=-2"}) {
    try {
      parse(kMinimal, {override});
      ADD_FAILURE() << override;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      const std::string key = std::string(override).substr(0, std::string(override).find('='));
      EXPECT_THAT(error.what(), testing::HasSubstr(": " + key)) << override;
    }
  }
}

TEST(TrainConfig, SeveralEvalLoadersNeedLabels) {
  const std::string one = "{name: text, dataset: {local: v}}";
  const std::string a = "{label: a, name: text, dataset: {local: v}}";
  EXPECT_EQ(parse(kMinimal, {"eval_loader=" + one}).eval_loaders.size(), 1u);
  EXPECT_THROW(parse(kMinimal, {"eval_loader=[" + one + "," + a + "]"}), Error);
  EXPECT_THROW(parse(kMinimal, {"eval_loader=[" + a + "," + a + "]"}), Error);
}

}  // namespace
}  // namespace dropless::train
