#include "train/run/batches.h"

#include <gtest/gtest.h>

namespace dropless::train {
namespace {

TEST(BatchTensors, LabelsAreTheNextTokensOfEachRow) {
  Batch batch;
  batch.batch = 3;
  batch.seq_len = 4;
  batch.tokens_BS = {9, 9, 9, 9, 1, 2, 3, 4, 5, 6, 0, 0};
  batch.lengths_B = {4, 4, 2};
  batch.tokens = 10;
  const BatchTensors tensors = batch_tensors(batch, 1, 2, at::kCPU);
  EXPECT_EQ(tensors.scored, 4);
  EXPECT_TRUE(
      at::equal(tensors.tokens_BS, at::tensor({1, 2, 3, 4, 5, 6, 0, 0}, at::kLong).view({2, 4})));
  EXPECT_TRUE(at::equal(tensors.labels_BS,
                        at::tensor({2, 3, 4, -100, 6, -100, -100, -100}, at::kLong).view({2, 4})));
}

TEST(BatchTensors, KnowsThePlacesWithoutPads) {
  Batch batch;
  batch.batch = 3;
  batch.seq_len = 3;
  batch.tokens_BS = {4, 5, 6, 7, 0, 0, 8, 9, 0};
  batch.lengths_B = {3, 1, 2};
  batch.tokens = 6;
  EXPECT_FALSE(batch_tensors(batch, 0, 1, at::kCPU).kept_R.defined());
  EXPECT_TRUE(at::equal(batch_tensors(batch, 0, 3, at::kCPU).kept_R,
                        at::tensor({0, 1, 2, 3, 6, 7}, at::kLong)));
  EXPECT_TRUE(
      at::equal(batch_tensors(batch, 1, 2, at::kCPU).kept_R, at::tensor({0, 3, 4}, at::kLong)));
}

TEST(BatchTensors, SequenceIdsCountTheDocumentsOfARow) {
  Batch batch;
  batch.batch = 2;
  batch.seq_len = 5;
  batch.tokens_BS = {4, 0, 5, 6, 0, 0, 7, 0, 8, 9};
  batch.lengths_B = {5, 5};
  batch.tokens = 10;
  EXPECT_FALSE(batch_tensors(batch, 0, 2, at::kCPU).sequence_ids_BS.defined());
  const auto ids = [&](bool begins) {
    batch.separator = {0, begins};
    return batch_tensors(batch, 0, 2, at::kCPU).sequence_ids_BS;
  };
  EXPECT_TRUE(
      at::equal(ids(false), at::tensor({0, 0, 1, 1, 1, 0, 1, 1, 2, 2}, at::kLong).view({2, 5})));
  EXPECT_TRUE(
      at::equal(ids(true), at::tensor({0, 1, 1, 1, 2, 1, 1, 2, 2, 2}, at::kLong).view({2, 5})));
}

TEST(BatchTensors, FirstRowsAreABatchOfTheirOwn) {
  Batch batch;
  batch.batch = 3;
  batch.seq_len = 2;
  batch.tokens_BS = {1, 2, 3, 0, 5, 6};
  batch.lengths_B = {2, 1, 2};
  batch.tokens = 5;
  const Batch head = first_rows(batch, 2);
  EXPECT_EQ(head.batch, 2);
  EXPECT_EQ(head.tokens, 3);
  EXPECT_EQ(head.scored_tokens(), 1);
  EXPECT_EQ(head.tokens_BS, (std::vector<std::int64_t>{1, 2, 3, 0}));
  EXPECT_EQ(first_rows(batch, 7).tokens_BS, batch.tokens_BS);
}

}  // namespace
}  // namespace dropless::train
