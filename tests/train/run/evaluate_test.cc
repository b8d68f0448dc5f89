// An evaluation gives a number or says why it cannot.
#include "train/run/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "dropless/error.h"

namespace dropless::train {
namespace {

class Repeat : public BatchSource {
 public:
  Repeat(Batch batch, int times) : batch_(std::move(batch)), left_(times) {}
  bool next(Batch& batch) override {
    if (left_-- <= 0) return false;
    batch = batch_;
    return true;
  }

 private:
  Batch batch_;
  int left_;
};

Batch batch_of(std::int32_t length) {
  Batch batch;
  batch.batch = 2;
  batch.seq_len = length;
  batch.tokens_BS.assign(2 * static_cast<std::size_t>(length), 3);
  batch.lengths_B = {length, length};
  batch.tokens = 2 * length;
  return batch;
}

Transformer small_model() {
  const std::string text = "{d_model: 8, n_heads: 2, n_layers: 1, max_seq_len: 8, vocab_size: 9}";
  return Transformer(ModelConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root()), 1,
                     at::kCPU);
}

ErrorKind kind_of(Transformer& model, Batch batch) {
  Repeat source(std::move(batch), 3);
  try {
    evaluate(model, source, Precision::kFp32);
  } catch (const Error& error) {
    return error.kind();
  }
  return ErrorKind::kInternal;
}

TEST(Evaluate, CountsScoredTokensOfTheBatchesAskedFor) {
  Transformer model = small_model();
  Repeat source(batch_of(4), 3);
  const EvalResult result = evaluate(model, source, Precision::kFp32, 2);
  EXPECT_EQ(result.tokens, 2 * 2 * 3);
  EXPECT_GT(result.cross_entropy(), 0);
}

TEST(Evaluate, CountsTheTokensThatTheModelWouldTake) {
  const at::Tensor logits = at::tensor({0.1, 0.9, 0.5, 0.2, 0.3, 0.9}).view({1, 3, 2});
  EXPECT_EQ(correct_tokens(logits, at::tensor({1, 1, -100}, at::kLong).view({1, 3})).item<int>(),
            1);
  EvalResult result{.loss_sum = 1, .tokens = 3, .correct = 1};
  result.add({.loss_sum = 1, .tokens = 1, .correct = 1});
  EXPECT_DOUBLE_EQ(result.accuracy(), 0.5);
  EXPECT_TRUE(std::isnan(EvalResult{}.accuracy()));
}

TEST(Evaluate, LossThatIsNoNumberIsAnError) {
  Transformer model = small_model();
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    model.parameters()[0].value.detach().fill_(bad);
    EXPECT_EQ(kind_of(model, batch_of(4)), ErrorKind::kNonFinite);
  }
}

TEST(Evaluate, NothingScoredHasNoMean) {
  Transformer model = small_model();
  Repeat source(batch_of(1), 3);
  const EvalResult result = evaluate(model, source, Precision::kFp32);
  EXPECT_EQ(result.tokens, 0);
  EXPECT_TRUE(std::isnan(result.cross_entropy()));
  EXPECT_TRUE(std::isnan(result.perplexity()));
}

TEST(Evaluate, ResultsOfSeveralSetsAddByToken) {
  EvalResult sum{.loss_sum = 6.0, .tokens = 3};
  sum.add({.loss_sum = 4.0, .tokens = 1});
  EXPECT_DOUBLE_EQ(sum.cross_entropy(), 2.5);
  sum.add({});
  EXPECT_DOUBLE_EQ(sum.cross_entropy(), 2.5);
}

}  // namespace
}  // namespace dropless::train
