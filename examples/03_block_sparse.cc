// The experts as block-sparse products (MegaBlocks, Gale et al. 2022): all experts' hidden layers lie
// side by side in one wide matrix, of which only the blocks on the experts' diagonal are computed and
// stored. The same network by grouped products beside it, and the share of blocks that exist.
#include <cstdio>

#include "examples/tensor.h"

namespace {

using namespace dropless;
using examples::Tensor;

constexpr std::int64_t kExperts = 4, kWidth = 64, kFfn = 128, kBlock = 32;

}  // namespace

int main() {
  // Rows of a routed batch, sorted by expert: expert e owns rows [offsets[e], offsets[e + 1]).
  Tensor<std::int64_t> offsets_E1{kExperts + 1};
  const std::int64_t sizes[kExperts] = {70, 0, 33, 128};
  for (std::int64_t e = 0; e < kExperts; ++e) offsets_E1[e + 1] = offsets_E1[e] + sizes[e];
  const std::int64_t rows = offsets_E1[kExperts];
  std::mt19937 random(3);
  Tensor<float> x_RD{rows, kWidth}, w1_EFD{kExperts, kFfn, kWidth}, w2_EFD{kExperts, kFfn, kWidth};
  x_RD.fill_normal(random, 1);
  w1_EFD.fill_normal(random, 0.125);
  w2_EFD.fill_normal(random, 0.125);

  // Grouped: one product per expert, each with its own rows.
  Tensor<float> h_RF{rows, kFfn}, grouped_RD{rows, kWidth};
  examples::Workspace workspace(
      std::max(grouped_gemm_workspace_bytes(), block_sparse_workspace_bytes()));
  void* space = workspace.data();
  const std::size_t bytes = workspace.bytes();
  grouped_gemm(x_RD, w1_EFD, true, offsets_E1, h_RF, space, bytes);
  activation_forward(Activation::kGeluTanh, h_RF, {}, h_RF);
  grouped_gemm(h_RF, w2_EFD, false, offsets_E1, grouped_RD, space, bytes);

  // Block-sparse: rows padded to whole blocks, one matrix of [rows, experts * ffn].
  const ExpertTopologySize size = expert_topology_size(offsets_E1, kFfn, kBlock);
  Tensor<std::int64_t> padded_E1{kExperts + 1};
  Tensor<std::int32_t> row_indices{size.blocks}, column_indices{size.blocks},
      offsets{size.rows / kBlock + 1};
  const BlockTopology topology{.rows = size.rows,
                               .cols = size.cols,
                               .block_size = kBlock,
                               .row_indices = row_indices,
                               .column_indices = column_indices,
                               .offsets = offsets};
  expert_topology(offsets_E1, kFfn, padded_E1, topology);
  Tensor<float> padded_x{size.rows, kWidth}, y{size.rows, kWidth};
  for (std::int64_t e = 0; e < kExperts; ++e) {
    const float* from = x_RD.values().data() + offsets_E1[e] * kWidth;
    std::copy(from, from + sizes[e] * kWidth, padded_x.values().data() + padded_E1[e] * kWidth);
  }
  Tensor<float> h{size.blocks, kBlock, kBlock};
  // The experts' weights, one below the other: [experts * ffn, width].
  const ConstTensorView w1(w1_EFD.values().data(), DType::kFloat32, {kExperts * kFfn, kWidth});
  const ConstTensorView w2(w2_EFD.values().data(), DType::kFloat32, {kExperts * kFfn, kWidth});
  sdd(padded_x, false, w1, true, topology, h, space, bytes);
  const TensorView h_flat(h.values().data(), DType::kFloat32, {size.blocks * kBlock, kBlock});
  activation_forward(Activation::kGeluTanh, h_flat, {}, h_flat);
  dsd(h, false, topology, w2, false, y, space, bytes);

  std::vector<float> sparse_RD;
  for (std::int64_t e = 0; e < kExperts; ++e) {
    const auto begin = y.values().begin() + padded_E1[e] * kWidth;
    sparse_RD.insert(sparse_RD.end(), begin, begin + sizes[e] * kWidth);
  }
  const std::int64_t all = (size.rows / kBlock) * (size.cols / kBlock);
  const double difference = examples::relative_difference(sparse_RD, grouped_RD.values());
  std::printf("%lld of %lld blocks; block-sparse and grouped differ by %.1e\n",
              static_cast<long long>(size.blocks), static_cast<long long>(all), difference);
  return difference < 1e-5 ? 0 : 1;
}
