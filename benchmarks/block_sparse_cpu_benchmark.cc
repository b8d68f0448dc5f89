// Speed of the block-sparse products on the CPU beside grouped GEMM's on the same sizes and FLOPs.
//
//   block_sparse_cpu_benchmark [fp32|bf16|fp16|fp64] [seconds per case]
//
// Experts' rows R in all, D model width, F expert width, E experts. "block-diagonal" computes the
// very products of the grouped GEMM; "random" has as many blocks, R x E F at density 1 / E, at
// random places. Counted are the multiply-adds of the blocks: 2 R D F FLOPs a product. The last
// column is the rate per processor second, as part of grouped GEMM's.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "benchmarks/cpu_benchmark.h"
#include "dropless/block_sparse.h"
#include "dropless/grouped_gemm.h"

namespace dropless::benchmarks {
namespace {

constexpr std::int64_t kBlock = 128;

// R x cols elements; the blocks at the given places (row * columns + column, increasing).
BlockTopology topology_of(Memory& memory, std::int64_t rows, std::int64_t cols,
                          const std::vector<std::int64_t>& places) {
  const auto blocks = static_cast<std::int64_t>(places.size());
  const std::int64_t block_rows = rows / kBlock, block_cols = cols / kBlock;
  const auto indices = [&](std::int64_t n) { return memory.tensor(DType::kInt32, {n}); };
  const BlockTopology t{rows,
                        cols,
                        kBlock,
                        indices(blocks),
                        indices(blocks),
                        indices(block_rows + 1),
                        indices(blocks),
                        indices(block_cols + 1),
                        indices(blocks)};
  auto* offsets = static_cast<std::int32_t*>(t.offsets.data);
  for (std::int64_t n = 0; n < blocks; ++n) {
    const auto row = static_cast<std::int32_t>(places[n] / block_cols);
    static_cast<std::int32_t*>(t.row_indices.data)[n] = row;
    static_cast<std::int32_t*>(t.column_indices.data)[n] =
        static_cast<std::int32_t>(places[n] % block_cols);
    ++offsets[row + 1];
  }
  for (std::int64_t i = 0; i < block_rows; ++i) offsets[i + 1] += offsets[i];
  transpose_topology(t);
  return t;
}

std::vector<std::int64_t> diagonal_places(std::int64_t block_rows, std::int64_t block_cols,
                                          std::int64_t experts) {
  std::vector<std::int64_t> places;
  for (std::int64_t i = 0; i < block_rows * block_cols; ++i) {
    if (i / block_cols * experts / block_rows == i % block_cols * experts / block_cols) {
      places.push_back(i);
    }
  }
  return places;
}

std::vector<std::int64_t> random_places(std::int64_t all, std::int64_t blocks) {
  std::mt19937_64 rng(2);
  std::vector<std::int64_t> places(all);
  for (std::int64_t i = 0; i < all; ++i) places[i] = i;
  std::shuffle(places.begin(), places.end(), rng);
  places.resize(blocks);
  std::sort(places.begin(), places.end());
  return places;
}

void run(std::int64_t R, std::int64_t D, std::int64_t F, std::int64_t E, DType dtype,
         double budget) {
  Memory memory;
  const auto tensor = [&](std::initializer_list<std::int64_t> dims, double scale = 0) {
    return memory.tensor(dtype, dims, scale);
  };
  const std::int64_t C = E * F, blocks = R / kBlock * (F / kBlock);
  const TensorView x = tensor({R, D}, 1), h = tensor({R, F}, 1), w = tensor({C, D}, 0.02),
                   x_t = tensor({D, R}, 1), w_t = tensor({D, C}, 0.02),
                   data = tensor({blocks, kBlock, kBlock}, 1), out_blocks = tensor({R, F}),
                   out_RD = tensor({R, D}), out_DR = tensor({D, R}), out_CD = tensor({C, D}),
                   out_DC = tensor({D, C});
  const auto shaped = [&](const TensorView& view, std::initializer_list<std::int64_t> dims) {
    return TensorView(view.data, dtype, dims);
  };
  const TensorView offsets = memory.tensor(DType::kInt64, {E + 1});
  for (std::int64_t e = 0; e <= E; ++e) {
    static_cast<std::int64_t*>(offsets.data)[e] = R / E * e;
  }
  const std::size_t bytes =
      std::max(grouped_gemm_workspace_bytes(), block_sparse_workspace_bytes());
  void* workspace = memory.bytes(bytes);
  const auto shaped_blocks = shaped(out_blocks, {blocks, kBlock, kBlock});

  std::vector<const char*> names;
  std::vector<std::function<void()>> calls;
  std::vector<std::size_t> baselines;  // of each call: the grouped GEMM it is compared with
  const auto add = [&](const char* name, std::size_t baseline, std::function<void()> call) {
    names.push_back(name);
    baselines.push_back(baseline);
    calls.push_back(std::move(call));
  };
  add("grouped x w^T", 0, [&] {
    grouped_gemm(x, shaped(w, {E, F, D}), true, offsets, out_blocks, workspace, bytes);
  });
  add("grouped h w", 1, [&] {
    grouped_gemm(h, shaped(w, {E, F, D}), false, offsets, out_RD, workspace, bytes);
  });
  add("grouped h^T x", 2, [&] {
    grouped_gemm_weight_grad(h, x, offsets, shaped(out_CD, {E, F, D}), workspace, bytes);
  });
  const BlockTopology topologies[] = {
      topology_of(memory, R, C, diagonal_places(R / kBlock, C / kBlock, E)),
      topology_of(memory, R, C, random_places(R / kBlock * (C / kBlock), blocks))};
  for (const BlockTopology& topology : topologies) {
    const BlockTopology* t = &topology;
    add("sdd  x w^T", 0, [&, t] { sdd(x, false, w, true, *t, shaped_blocks, workspace, bytes); });
    add("sdd  x w", 0, [&, t] { sdd(x, false, w_t, false, *t, shaped_blocks, workspace, bytes); });
    add("sdd  x^T w", 0,
        [&, t] { sdd(x_t, true, w_t, false, *t, shaped_blocks, workspace, bytes); });
    add("dsd  s w", 1, [&, t] { dsd(data, false, *t, w, false, out_RD, workspace, bytes); });
    add("dsd  s w^T", 1, [&, t] { dsd(data, false, *t, w_t, true, out_RD, workspace, bytes); });
    add("dsd  s^T x", 2, [&, t] { dsd(data, true, *t, x, false, out_CD, workspace, bytes); });
    add("dds  x^T s", 2, [&, t] { dds(x, true, data, false, *t, out_DC, workspace, bytes); });
    add("dds  x s", 2, [&, t] { dds(x_t, false, data, false, *t, out_DC, workspace, bytes); });
    add("dds  w s^T", 1, [&, t] { dds(w_t, false, data, true, *t, out_DR, workspace, bytes); });
  }
  const std::vector<Seconds> seconds = seconds_in_turn(calls, budget);
  const double gflop = 2e-9 * static_cast<double>(R * D * F);
  std::printf("R %lld D %lld F %lld E %lld %s\n", static_cast<long long>(R),
              static_cast<long long>(D), static_cast<long long>(F), static_cast<long long>(E),
              dtype_name(dtype));
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const std::size_t per_topology = (calls.size() - 3) / 2;
    if (i == 3) std::puts(" block-diagonal");
    if (i == 3 + per_topology) std::printf(" random, %lld %%\n", static_cast<long long>(100 / E));
    std::printf("  %-14s %9.3f ms %7.1f GFLOP/s, %6.1f per processor second, %4.0f %%\n", names[i],
                seconds[i].wall * 1e3, gflop / seconds[i].wall, gflop / seconds[i].cpu,
                100 * seconds[baselines[i]].cpu / seconds[i].cpu);
  }
}

}  // namespace
}  // namespace dropless::benchmarks

int main(int argc, char** argv) {
  const dropless::DType dtype = dropless::benchmarks::dtype_of(argc > 1 ? argv[1] : "fp32");
  const double budget = argc > 2 ? std::atof(argv[2]) : 10;
  dropless::benchmarks::run(4096, 256, 512, 8, dtype, budget);
  dropless::benchmarks::run(4096, 1024, 1024, 4, dtype, budget);
  return 0;
}
