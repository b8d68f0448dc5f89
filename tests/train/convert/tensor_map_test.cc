// Which bytes go where, against indices written out by hand.
#include "train/convert/tensor_map.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "train/base/fs.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/tensor_folder.h"

namespace dropless::train {
namespace {

// E = 3 experts of F = 5, D = 8, 4 heads of 2 with 2 key/value heads.
ModelConfig tiny() {
  return ModelConfig::from_yaml(
      YamlDocument::parse(
          "{d_model: 8, n_heads: 4, n_layers: 1, max_seq_len: 16, vocab_size: 7, no_bias: true, "
          "norm_type: rmsnorm, tie_word_embeddings: false, attn_config: {rope: true, attn_type: "
          "grouped_query_attention, kv_n_heads: 2}, ffn_config: {ffn_type: mb_dmoe, mlp_type: glu, "
          "ffn_hidden_size: 5, moe_num_experts: 3, moe_top_k: 2, moe_world_size: 1}}",
          "t.yaml")
          .root());
}

class TensorMapTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/tensor_map_" + std::to_string(::getpid());
    make_folders(root_);
  }
  void TearDown() override { remove_all(root_); }

  // A folder whose tensors hold numbers that no two elements share.
  TensorFolder numbered(const std::vector<MappedTensor>& tensors) {
    std::vector<NamedTensor> named;
    values_.clear();
    float next = 1;
    for (const MappedTensor& tensor : tensors) {
      std::int64_t count = 1;
      for (const std::int64_t size : tensor.tensor.shape) count *= size;
      at::Tensor value = at::arange(next, next + static_cast<float>(count), at::kFloat);
      next += static_cast<float>(count);
      values_[tensor.tensor.name] = value.view(tensor.tensor.shape);
      named.push_back({tensor.tensor.name, StorageType::kF32, tensor.tensor.shape,
                       values_[tensor.tensor.name].const_data_ptr()});
    }
    write_safetensors(join_path(root_, kModelFile), named);
    return TensorFolder::open(root_);
  }
  static at::Tensor stream(const TensorFolder& source, const MappedTensor& target) {
    std::vector<at::Tensor> parts;
    stream_tensor(source, target, at::kFloat,
                  [&](const at::Tensor& part) { parts.push_back(part.clone().view({-1})); });
    return at::cat(parts).view(target.tensor.shape);
  }
  static const MappedTensor& find(const std::vector<MappedTensor>& tensors,
                                  const std::string& name) {
    for (const MappedTensor& tensor : tensors) {
      if (tensor.tensor.name == name) return tensor;
    }
    throw std::runtime_error("no tensor " + name);
  }

  std::string root_;
  std::map<std::string, at::Tensor> values_;
};

TEST_F(TensorMapTest, ExpertsOfEitherFormBecomeRows) {
  const std::string ours = "transformer.blocks.0.ffn.experts.mlp.";
  const std::string mlp = "model.layers.0.mlp.experts.";
  for (const ExpertForm form : {ExpertForm::kEach, ExpertForm::kStacked}) {
    const TensorMap map = released_tensor_map(tiny(), Family::kOlmoe, form);
    const TensorFolder source = numbered(map.theirs);
    std::vector<at::Tensor> gate, up, down;
    for (std::int64_t e = 0; e < 3; ++e) {
      if (form == ExpertForm::kStacked) {
        gate.push_back(values_[mlp + "gate_up_proj"][e].narrow(0, 0, 5));
        up.push_back(values_[mlp + "gate_up_proj"][e].narrow(0, 5, 5));
        down.push_back(values_[mlp + "down_proj"][e].t());
      } else {
        const std::string expert = mlp + std::to_string(e) + ".";
        gate.push_back(values_[expert + "gate_proj.weight"]);
        up.push_back(values_[expert + "up_proj.weight"]);
        down.push_back(values_[expert + "down_proj.weight"].t());
      }
    }
    EXPECT_TRUE(stream(source, find(map.ours, ours + "w1")).equal(at::cat(gate)));
    EXPECT_TRUE(stream(source, find(map.ours, ours + "v1")).equal(at::cat(up)));
    EXPECT_TRUE(stream(source, find(map.ours, ours + "w2")).equal(at::cat(down)));
  }
}

TEST_F(TensorMapTest, QueriesKeysAndValuesAreOneMatrix) {
  const TensorMap map = released_tensor_map(tiny(), Family::kMixtral, ExpertForm::kEach);
  const TensorFolder source = numbered(map.theirs);
  const std::string attention = "model.layers.0.self_attn.";
  const at::Tensor expected =
      at::cat({values_[attention + "q_proj.weight"], values_[attention + "k_proj.weight"],
               values_[attention + "v_proj.weight"]});
  EXPECT_EQ(expected.size(0), 8 + 4 + 4);
  const auto& wqkv = find(map.ours, "transformer.blocks.0.attn.Wqkv.weight");
  EXPECT_TRUE(stream(source, wqkv).equal(expected));
  EXPECT_TRUE(values_.contains("model.layers.0.block_sparse_moe.experts.2.w3.weight"));
}

TEST_F(TensorMapTest, ThereAndBackIsTheSame) {
  for (const ExpertForm form : {ExpertForm::kEach, ExpertForm::kStacked}) {
    const TensorMap map = released_tensor_map(tiny(), Family::kMixtral, form);
    const TensorFolder source = numbered(map.theirs);
    const std::map<std::string, at::Tensor> before = values_;
    std::vector<at::Tensor> storage;
    std::vector<NamedTensor> named;
    for (const MappedTensor& tensor : map.ours) {
      storage.push_back(stream(source, tensor));
      named.push_back({tensor.tensor.name, StorageType::kF32, tensor.tensor.shape,
                       storage.back().const_data_ptr()});
    }
    write_safetensors(join_path(root_, kModelFile), named);
    const TensorFolder back = TensorFolder::open(root_);
    for (const MappedTensor& tensor : map.theirs) {
      EXPECT_TRUE(stream(back, tensor).equal(before.at(tensor.tensor.name))) << tensor.tensor.name;
    }
  }
}

TEST_F(TensorMapTest, AModelWithMoreThanTheFamilyHasIsRefused) {
  ModelConfig config = tiny();
  config.learned_pos_emb = true;
  EXPECT_THROW(released_tensor_map(config, Family::kMixtral, ExpertForm::kEach), Error);
}

}  // namespace
}  // namespace dropless::train
