// Block-sparse products on Hopper against the CPU's in double: random topologies with empty rows and
// columns, full and block-diagonal ones, every transpose, dense sides around the tiles, poisoned
// outputs; the topologies' own kernels; graphs; bad arguments.
#include "dropless/block_sparse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "dropless/error.h"
#include "tests/cuda/gpu_support.h"
#include "tests/ops/tensor.h"
#include "tests/ops/topology.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr double kTolerance = 5e-3;
constexpr DType kBf16 = DType::kBFloat16, kWide = DType::kFloat64;
const Device kGpu{DeviceType::kCuda, 0};

std::vector<char> bytes_of(const Tensor& tensor) {
  const char* begin = tensor.as<char>();
  return {begin, begin + tensor.numel() * dtype_bytes(tensor.dtype())};
}

// A tensor on the GPU: a copy, or poison.
class GpuTensor {
 public:
  explicit GpuTensor(const Tensor& tensor)
      : view_(tensor.operator ConstTensorView()),
        buffer_(tensor.numel() * dtype_bytes(tensor.dtype())) {
    buffer_.upload(bytes_of(tensor));
  }
  GpuTensor(DType dtype, std::initializer_list<std::int64_t> dims)
      : GpuTensor(ConstTensorView(nullptr, dtype, dims)) {}
  explicit GpuTensor(const ConstTensorView& shape)
      : view_(shape), buffer_(shape.numel() * dtype_bytes(shape.dtype)) {}

  operator TensorView() const {  // NOLINT
    TensorView v;
    v.data = buffer_.get();
    v.dtype = view_.dtype;
    v.device = kGpu;
    v.rank = view_.rank;
    v.shape = view_.shape;
    v.stride = view_.stride;
    return v;
  }
  operator ConstTensorView() const { return operator TensorView(); }  // NOLINT

  Tensor download(Tensor like) const {
    const auto bytes = buffer_.download<char>(like.numel() * dtype_bytes(like.dtype()));
    std::copy(bytes.begin(), bytes.end(), like.as<char>());
    return like;
  }
  DeviceBuffer& buffer() { return buffer_; }

 private:
  ConstTensorView view_;
  DeviceBuffer buffer_;
};

struct GpuTopology {
  explicit GpuTopology(const Topology& t)
      : rows(t.rows()),
        cols(t.cols()),
        block_size(t.block_size),
        row_indices(t.row_indices),
        column_indices(t.column_indices),
        offsets(t.offsets),
        column_indices_t(t.column_indices_t),
        offsets_t(t.offsets_t),
        block_offsets_t(t.block_offsets_t) {}
  BlockTopology view() const {
    return {rows,           cols,    block_size,       row_indices,
            column_indices, offsets, column_indices_t, offsets_t,
            block_offsets_t};
  }
  std::int64_t rows, cols, block_size;
  GpuTensor row_indices, column_indices, offsets, column_indices_t, offsets_t, block_offsets_t;
};

class BlockSparseCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_is_hopper()) GTEST_SKIP() << "no Hopper GPU";
  }
};

using Product = std::function<void(const BlockTopology&, const TensorView& out, void* workspace,
                                   std::size_t bytes)>;

// The product on the GPU, twice into poisoned memory: to the same bits. `side`: what the workspace is for.
Tensor run(const Product& product, const GpuTopology& t, const Tensor& like, std::int64_t side) {
  const std::size_t bytes = block_sparse_workspace_bytes(t.view(), side);
  DeviceBuffer workspace(bytes);
  GpuTensor out(like.operator ConstTensorView());
  product(t.view(), out, workspace.get(), bytes);
  synchronize();
  Tensor first = out.download(like);
  out.buffer().poison();
  workspace.poison();
  product(t.view(), out, workspace.get(), bytes);
  synchronize();
  EXPECT_TRUE(same_bits(out.download(like), first));
  return first;
}

// The product on the CPU in double.
Tensor expected(const Product& product, Topology& t, Tensor out) {
  Workspace workspace(block_sparse_workspace_bytes());
  product(t.view(), out, workspace.data(), workspace.bytes());
  return out;
}

Tensor stored(std::mt19937_64& rng, DType dtype, std::int64_t rows, std::int64_t cols,
              bool transpose) {
  return transpose ? normal(rng, dtype, {cols, rows}) : normal(rng, dtype, {rows, cols});
}

// All three products with every transpose; `side`: the dense one; `room` to cut walks into parts.
void check_products(std::mt19937_64& rng, Topology& t, std::int64_t side, DType dtype = kBf16,
                    bool room = true) {
  const std::int64_t space = room ? side : 0;
  const GpuTopology gpu(t);
  const Tensor data = normal(rng, dtype, {t.blocks(), 128, 128}), wide_data = data.to(kWide);
  const GpuTensor gpu_data(data);
  for (bool ta : {false, true}) {
    for (bool tb : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "transposes " << ta << " " << tb);
      {
        const Tensor a = stored(rng, dtype, t.rows(), side, ta),
                     b = stored(rng, dtype, side, t.cols(), tb);
        const Tensor wide_a = a.to(kWide), wide_b = b.to(kWide);
        const GpuTensor gpu_a(a), gpu_b(b);
        const auto of = [&](const auto& a, const auto& b) -> Product {
          return [&, ta, tb](const BlockTopology& t, const TensorView& out, void* w,
                             std::size_t n) { sdd(a, ta, b, tb, t, out, w, n); };
        };
        const Tensor sums = expected(of(wide_a, wide_b), t, Tensor(kWide, {t.blocks(), 128, 128}));
        EXPECT_LT(
            relative_error(run(of(gpu_a, gpu_b), gpu, Tensor(dtype, {t.blocks(), 128, 128}), space),
                           sums),
            kTolerance)
            << "sdd";
      }
      {
        const std::int64_t rows = ta ? t.cols() : t.rows(), k = ta ? t.rows() : t.cols();
        const Tensor b = stored(rng, dtype, k, side, tb), wide_b = b.to(kWide);
        const GpuTensor gpu_b(b);
        const auto of = [&](const auto& data, const auto& b) -> Product {
          return [&, ta, tb](const BlockTopology& t, const TensorView& out, void* w,
                             std::size_t n) { dsd(data, ta, t, b, tb, out, w, n); };
        };
        const Tensor sums = expected(of(wide_data, wide_b), t, Tensor(kWide, {rows, side}));
        EXPECT_LT(
            relative_error(run(of(gpu_data, gpu_b), gpu, Tensor(dtype, {rows, side}), space), sums),
            kTolerance)
            << "dsd";
      }
      {
        const std::int64_t cols = tb ? t.rows() : t.cols(), k = tb ? t.cols() : t.rows();
        const Tensor a = stored(rng, dtype, side, k, ta), wide_a = a.to(kWide);
        const GpuTensor gpu_a(a);
        const auto of = [&](const auto& a, const auto& data) -> Product {
          return [&, ta, tb](const BlockTopology& t, const TensorView& out, void* w,
                             std::size_t n) { dds(a, ta, data, tb, t, out, w, n); };
        };
        const Tensor sums = expected(of(wide_a, wide_data), t, Tensor(kWide, {side, cols}));
        EXPECT_LT(
            relative_error(run(of(gpu_a, gpu_data), gpu, Tensor(dtype, {side, cols}), space), sums),
            kTolerance)
            << "dds";
      }
    }
  }
}

struct Shape {
  std::int64_t rows, cols;  // blocks
  double density;
  std::int64_t side;
};

// No blocks, one, all; odd and even numbers of lines and of tiles along the dense side; a dense side
// below a slice of the main loop and not a multiple of it; several works a cluster in all products.
const Shape kShapes[] = {{2, 3, 0, 24},     {1, 1, 1, 8},   {5, 4, 0.5, 264},
                         {9, 8, 0.25, 520}, {6, 6, 1, 256}, {3, 2, 0.7, 1032},
                         {12, 9, 0.1, 40},  {2, 2, 0.5, 0}, {60, 40, 0.25, 1288},
                         {7, 16, 0.5, 1536}};

TEST_F(BlockSparseCuda, EqualsTheCpuInDouble) {
  std::mt19937_64 rng(1);
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.cols << " blocks at " << s.density
                                      << ", dense side " << s.side);
    Topology t = random_topology(rng, s.rows, s.cols, 128, s.density);
    check_products(rng, t, s.side);
  }
}

// Rows in pairs, and not in pairs, with the same blocks: operands are shared in every way.
TEST_F(BlockSparseCuda, EqualsTheCpuWhereRowsShareTheirBlocks) {
  std::mt19937_64 rng(2);
  std::vector<std::vector<int>> mask;
  for (const char* row :
       {"1110100", "1110100", "0000000", "0000000", "1111111", "1111111", "0001000", "0001000",
        "0100000", "1000000", "1010101", "0000000", "0111111", "1111111", "0000001"}) {
    mask.emplace_back();
    for (const char* c = row; *c != 0; ++c) mask.back().push_back(*c - '0');
  }
  Topology t = topology_of(mask, 7, 128);
  for (std::int64_t side : {200, 600}) check_products(rng, t, side);
}

// How many parts the walk along the topology's rows is cut into, by the workspace that they ask for.
std::int64_t row_parts(Topology& t, std::int64_t side) {
  const GpuTopology gpu(t);
  const std::size_t more =
      block_sparse_workspace_bytes(gpu.view(), side) - block_sparse_workspace_bytes(gpu.view());
  return static_cast<std::int64_t>(more / (t.rows() * side * sizeof(float)));
}

// Few lines of many blocks: too few works for the GPU, whose walks are cut where the workspace has room.
TEST_F(BlockSparseCuda, EqualsTheCpuWhereWalksAreCut) {
  std::mt19937_64 rng(8);
  Topology t = random_topology(rng, 3, 150, 128, 0.9);
  const std::int64_t side = 1032;
  if (row_parts(t, side) < 2) GTEST_SKIP() << "not cut on this GPU";
  check_products(rng, t, side);
  check_products(rng, t, side, DType::kFloat16);
  check_products(rng, t, side, kBf16, /*room=*/false);
}

// Into four parts, of a long line, one of fewer blocks than parts, and one of none; out of a topology with
// room for more blocks; with less room in the workspace, into fewer.
TEST_F(BlockSparseCuda, CutWalksGiveWhatWholeOnesDo) {
  std::mt19937_64 rng(9);
  const std::int64_t columns = 730, side = 1032, room = 40;
  std::vector<std::vector<int>> mask(3, std::vector<int>(columns));
  std::fill(mask[0].begin(), mask[0].end(), 1);
  mask[1][3] = mask[1][700] = 1;
  Topology exact = topology_of(mask, columns, 128);
  Topology t(3, columns, 128, exact.blocks() + room);
  const auto copy = [](const Tensor& from, Tensor& to) {
    for (std::int64_t i = 0; i < from.numel(); ++i) to.set(i, from.get(i));
  };
  copy(exact.row_indices, t.row_indices);
  copy(exact.column_indices, t.column_indices);
  copy(exact.offsets, t.offsets);
  const std::int64_t parts = row_parts(t, side);
  if (parts < 3) GTEST_SKIP() << "not cut enough on this GPU";
  const GpuTopology gpu(t);
  const GpuTensor data(normal(rng, kBf16, {t.blocks(), 128, 128}));
  const GpuTensor dense(normal(rng, kBf16, {t.cols(), side}));
  const Tensor like(kBf16, {t.rows(), side}), like_t(kBf16, {side, t.rows()});
  const std::size_t least = block_sparse_workspace_bytes(gpu.view());
  for (bool transposed : {false, true}) {
    const auto result = [&](std::int64_t parts) {
      const std::size_t bytes = least + parts * t.rows() * side * sizeof(float);
      DeviceBuffer workspace(bytes);
      const Tensor& shape = transposed ? like_t : like;
      GpuTensor out(shape.operator ConstTensorView());
      if (transposed) {
        dds(dense, true, data, true, gpu.view(), out, workspace.get(), bytes);
      } else {
        dsd(data, false, gpu.view(), dense, false, out, workspace.get(), bytes);
      }
      synchronize();
      return out.download(shape);
    };
    const Tensor whole = result(1).to(kWide);  // room for one part: not cut
    for (std::int64_t count = 2; count <= parts; ++count) {
      EXPECT_LT(relative_error(result(count), whole), kTolerance) << count << " parts";
    }
  }
}

struct Experts {
  Tensor padded_offsets;
  Topology topology;
};

Experts experts_of(const std::vector<std::int64_t>& sizes, std::int64_t d_ffn) {
  const Tensor offsets = offsets_of(sizes);
  const ExpertTopologySize size = expert_topology_size(offsets, d_ffn, 128);
  Experts experts{Tensor(DType::kInt64, {offsets.numel()}),
                  Topology(size.rows / 128, size.cols / 128, 128, size.blocks)};
  expert_topology(offsets, d_ffn, experts.padded_offsets, experts.topology.view());
  transpose_topology(experts.topology.view());
  return experts;
}

TEST_F(BlockSparseCuda, EqualsTheCpuOnExperts) {
  std::mt19937_64 rng(3);
  Experts e = experts_of({0, 300, 128, 1, 700, 0}, 384);
  for (DType dtype : {kBf16, DType::kFloat16}) check_products(rng, e.topology, 328, dtype);
}

// With room for more blocks than there are, as on a GPU nobody knows how many will be.
TEST_F(BlockSparseCuda, MakesTheTopologyOfExperts) {
  for (const std::vector<std::int64_t>& sizes :
       {std::vector<std::int64_t>{0, 300, 128, 1, 700, 0}, std::vector<std::int64_t>{0, 0},
        std::vector<std::int64_t>{1129}}) {
    const std::int64_t F = 384;
    std::int64_t R = 0;
    for (auto size : sizes) R += size;
    const auto E = static_cast<std::int64_t>(sizes.size());
    Experts e = experts_of(sizes, F);
    const ExpertTopologySize room = expert_topology_bound(R, E, F);
    ASSERT_GE(room.rows, e.topology.rows());
    Topology large(room.rows / 128, room.cols / 128, 128, room.blocks);
    GpuTopology gpu(large);
    const GpuTensor offsets(offsets_of(sizes));
    GpuTensor padded(DType::kInt64, {E + 1});
    expert_topology(offsets, F, padded, gpu.view());
    transpose_topology(gpu.view());
    synchronize();
    EXPECT_TRUE(same_bits(padded.download(e.padded_offsets), e.padded_offsets));
    const auto same = [&](const GpuTensor& made, const Tensor& wanted, const char* name) {
      EXPECT_TRUE(same_bits(made.download(Tensor(DType::kInt32, {wanted.numel()})), wanted))
          << name;
    };
    const Topology& t = e.topology;
    same(gpu.row_indices, t.row_indices, "row_indices");
    same(gpu.column_indices, t.column_indices, "column_indices");
    same(gpu.offsets, t.offsets, "offsets");
    same(gpu.column_indices_t, t.column_indices_t, "column_indices_t");
    same(gpu.offsets_t, t.offsets_t, "offsets_t");
    same(gpu.block_offsets_t, t.block_offsets_t, "block_offsets_t");
    const Tensor all = gpu.offsets.download(large.offsets);
    for (std::int64_t i = t.block_rows; i <= large.block_rows; ++i) {
      EXPECT_EQ(all.get(i), t.blocks()) << i;
    }

    // The products leave the room alone.
    std::mt19937_64 rng(4);
    const Tensor a = normal(rng, kBf16, {room.rows, 72}), b = normal(rng, kBf16, {room.cols, 72});
    const GpuTensor gpu_a(a), gpu_b(b);
    GpuTensor out(kBf16, {room.blocks, 128, 128});
    DeviceBuffer workspace(block_sparse_workspace_bytes(gpu.view()));
    sdd(gpu_a, false, gpu_b, true, gpu.view(), out, workspace.get(), workspace.bytes());
    synchronize();
    const auto bits = out.buffer().download<std::uint16_t>(room.blocks * 128 * 128);
    for (std::size_t i = t.blocks() * 128 * 128; i < bits.size(); ++i) {
      ASSERT_EQ(bits[i], 0xffff) << "wrote past the last block";
    }
    Tensor first_a(kBf16, {t.rows(), 72});
    for (std::int64_t i = 0; i < first_a.numel(); ++i) first_a.set(i, a.get(i));
    Topology& topology = e.topology;
    const Tensor wide_a = first_a.to(kWide), wide_b = b.to(kWide);
    const Tensor sums =
        expected([&](const BlockTopology& t, const TensorView& out, void* w,
                     std::size_t n) { sdd(wide_a, false, wide_b, true, t, out, w, n); },
                 topology, Tensor(kWide, {t.blocks(), 128, 128}));
    EXPECT_LT(relative_error(out.download(Tensor(kBf16, {t.blocks(), 128, 128})), sums),
              kTolerance);
  }
}

TEST_F(BlockSparseCuda, MakesTheColumnWalk) {
  std::mt19937_64 rng(5);
  for (double density : {0.0, 0.03, 0.3, 1.0}) {
    Topology t = random_topology(rng, 70, 45, 16, density);
    GpuTopology gpu(t);
    for (GpuTensor* tensor : {&gpu.column_indices_t, &gpu.offsets_t, &gpu.block_offsets_t}) {
      tensor->buffer().poison();
    }
    transpose_topology(gpu.view());
    synchronize();
    EXPECT_TRUE(same_bits(gpu.column_indices_t.download(t.column_indices_t), t.column_indices_t));
    EXPECT_TRUE(same_bits(gpu.offsets_t.download(t.offsets_t), t.offsets_t));
    EXPECT_TRUE(same_bits(gpu.block_offsets_t.download(t.block_offsets_t), t.block_offsets_t));
  }
}

// The calls can be captured, and the graph follows another topology of the same number of blocks.
TEST_F(BlockSparseCuda, RunsInAGraphWithAnotherTopology) {
  std::mt19937_64 rng(6);
  Topology t = topology_of({{1, 1, 0}, {0, 0, 1}}, 3, 128);
  Topology other = topology_of({{0, 0, 0}, {1, 1, 1}}, 3, 128);
  GpuTopology gpu(t);
  const Tensor data = normal(rng, kBf16, {3, 128, 128}), b = normal(rng, kBf16, {256, 264});
  const Tensor wide_data = data.to(kWide), wide_b = b.to(kWide);
  const GpuTensor gpu_data(data), gpu_b(b);
  GpuTensor out(kBf16, {384, 264});
  DeviceBuffer workspace(block_sparse_workspace_bytes(gpu.view()));
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  transpose_topology(gpu.view(), Backend::kAuto, stream);
  dsd(gpu_data, true, gpu.view(), gpu_b, false, out, workspace.get(), workspace.bytes(),
      Backend::kAuto, stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (Topology* topology : {&t, &other}) {
    gpu.row_indices.buffer().upload(bytes_of(topology->row_indices));
    gpu.column_indices.buffer().upload(bytes_of(topology->column_indices));
    gpu.offsets.buffer().upload(bytes_of(topology->offsets));
    out.buffer().poison();
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    synchronize();
    const Tensor sums =
        expected([&](const BlockTopology& t, const TensorView& out, void* w,
                     std::size_t n) { dsd(wide_data, true, t, wide_b, false, out, w, n); },
                 *topology, Tensor(kWide, {384, 264}));
    EXPECT_LT(relative_error(out.download(Tensor(kBf16, {384, 264})), sums), kTolerance);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// What a call throws: its message, behind "unsupported: " where it is of that kind.
template <class Call>
std::string thrown_by(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return (error.kind() == ErrorKind::kUnsupported ? "unsupported: " : "") +
           std::string(error.what());
  }
  return "nothing";
}

TEST_F(BlockSparseCuda, BadArgumentsAreNamed) {
  std::mt19937_64 rng(7);
  Topology t = topology_of({{1, 1, 0}, {0, 0, 1}}, 3, 128), small = topology_of({{1}}, 1, 64);
  const GpuTopology gpu(t), gpu_small(small);
  DeviceBuffer workspace(block_sparse_workspace_bytes(gpu.view()));
  const auto error = [&](DType dtype, std::int64_t k, const BlockTopology& t, std::size_t bytes,
                         Backend backend = Backend::kAuto, std::int64_t shift = 0) {
    GpuTensor a(dtype, {t.rows, k}), b(dtype, {k, t.cols});
    GpuTensor out(dtype, {t.row_indices.shape[0], t.block_size, t.block_size});
    TensorView a_view = a;
    a_view.data = static_cast<char*>(a_view.data) + shift;
    return thrown_by(
        [&] { sdd(a_view, false, b, false, t, out, workspace.get(), bytes, backend); });
  };
  const std::size_t bytes = workspace.bytes();
  EXPECT_EQ(error(kBf16, 24, gpu.view(), bytes), "nothing");
  EXPECT_THAT(
      error(DType::kFloat32, 24, gpu.view(), bytes),
      StartsWith("unsupported: sdd: the GPU kernels take bfloat16 and float16, not float32"));
  EXPECT_THAT(error(kBf16, 24, gpu_small.view(), bytes),
              StartsWith("unsupported: sdd: the GPU kernels take blocks of 128, not 64"));
  EXPECT_THAT(
      error(kBf16, 12, gpu.view(), bytes),
      HasSubstr(
          "unsupported: sdd: the GPU kernels need dense sides that are multiples of 8, not 12"));
  EXPECT_THAT(error(kBf16, 24, gpu.view(), bytes, Backend::kReference),
              HasSubstr("unsupported: sdd: the reference backend runs on the CPU only"));
  EXPECT_THAT(error(kBf16, 24, gpu.view(), bytes, Backend::kAuto, 2),
              HasSubstr("not aligned to 16 bytes"));
  EXPECT_THAT(error(kBf16, 24, gpu.view(), bytes - 1), HasSubstr("the workspace has"));
  EXPECT_THAT(error(kBf16, 24, t.view(), bytes), HasSubstr("on another device"));
  BlockTopology rows_only = gpu.view();
  rows_only.column_indices_t = rows_only.offsets_t = rows_only.block_offsets_t = {};
  const GpuTensor data(kBf16, {3, 128, 128}), b(kBf16, {256, 8});
  GpuTensor out(kBf16, {384, 8});
  EXPECT_THAT(thrown_by([&] {
                dsd(data, true, rows_only, b, false, out, workspace.get(), workspace.bytes());
              }),
              HasSubstr("the topology has no column walk"));
  GpuTensor padded(DType::kInt64, {3});
  EXPECT_THAT(thrown_by([&] {
                expert_topology(GpuTensor(offsets_of({3, 4})), 256, padded, gpu.view());
              }),
              HasSubstr("256 x 384 elements in 3 blocks, expected 256 x 512 in 4"));
}

}  // namespace
}  // namespace dropless::testing
