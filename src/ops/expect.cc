// The contract is expect.h.
#include "src/ops/expect.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/common/check.h"
#include "src/common/workspace.h"

namespace dropless {
namespace {

// Bytes that an address can count; sizes are computed freely once tensors and workspaces fit.
constexpr std::int64_t kMostBytes = std::numeric_limits<std::int64_t>::max() / 2;

bool fits_memory(const ConstTensorView& view) {
  auto bytes = static_cast<std::int64_t>(dtype_bytes(view.dtype));
  for (int i = 0; i < view.rank; ++i) {
    // A side of 0 makes the tensor empty, but the others still multiply to strides.
    const std::int64_t side = std::max<std::int64_t>(view.shape[i], 1);
    if (__builtin_mul_overflow(bytes, side, &bytes) || bytes > kMostBytes) return false;
  }
  return true;
}

}  // namespace

void expect_bytes(const char* op, const char* what, std::initializer_list<std::int64_t> factors) {
  std::int64_t bytes = sizeof(double);
  for (std::int64_t factor : factors) {
    DROPLESS_CHECK(factor >= 0, concat(op, ": ", what, " would have a size of ", factor),
                   "give sizes of 0 or more");
    DROPLESS_CHECK(!__builtin_mul_overflow(bytes, factor, &bytes) && bytes <= kMostBytes,
                   concat(op, ": ", what, " would take more bytes than there are addresses"),
                   "give real sizes");
  }
}

void expect_tensor(const char* op, const char* name, const ConstTensorView& view,
                   const Expected& expected, Device device) {
  const ConstTensorView& want = expected.view;
  DROPLESS_CHECK(view.rank == want.rank && view.shape == want.shape && view.dtype == want.dtype,
                 concat(op, ": ", name, " is ", describe(view), ", expected ", describe(want)),
                 "its shape and type follow from the op's first tensor and its options");
  for (int i = 0; i < view.rank; ++i) {
    DROPLESS_CHECK(view.shape[i] >= 0, concat(op, ": ", name, " is ", describe(view)),
                   "give sides of 0 or more");
  }
  DROPLESS_CHECK(
      view.device.type <= DeviceType::kCuda,
      concat(op, ": ", name, " is on a device of type ", static_cast<int>(view.device.type)),
      "take it from DeviceType");
  DROPLESS_CHECK(
      view.device == device,
      concat(op, ": ", name, " is ", describe(view), ", on another device than the first tensor"),
      "move all tensors of the call to one device");
  DROPLESS_CHECK(fits_memory(view),
                 concat(op, ": ", name, " ", describe(view), " is larger than any memory"),
                 "give real sizes");
  DROPLESS_CHECK(view.contiguous(),
                 concat(op, ": ", name, " ", describe(view), " is not contiguous"),
                 "pass a contiguous copy");
  DROPLESS_CHECK(view.data != nullptr || view.numel() == 0,
                 concat(op, ": ", name, " ", describe(view), " has no memory"),
                 "give it a pointer to its first element");
  DROPLESS_CHECK(reinterpret_cast<std::uintptr_t>(view.data) % dtype_bytes(view.dtype) == 0,
                 concat(op, ": ", name, " ", describe(view), " is at ", view.data,
                        ", not aligned to its elements of ", dtype_bytes(view.dtype), " bytes"),
                 "let it begin at a whole element");
}

void expect_matrices(const char* op, const char* name, const ConstTensorView& view,
                     const Expected& expected, Device device) {
  ConstTensorView together = view;
  std::int64_t matrix = 0, last = 0;
  const bool fits =
      !__builtin_mul_overflow(expected.view.shape[1], expected.view.shape[2], &matrix);
  if (fits && view.rank == 3 && view.stride[0] > matrix) {
    DROPLESS_CHECK(!__builtin_mul_overflow(view.stride[0], expected.view.shape[0], &last) &&
                       last <= kMostBytes / static_cast<std::int64_t>(sizeof(double)),
                   concat(op, ": ", name, " ", describe(view), " has matrices ", view.stride[0],
                          " elements apart"),
                   "give a distance that memory has");
    together.stride[0] = matrix;
  }
  expect_tensor(op, name, together, expected, device);
}

void expect_tensor_or_absent(const char* op, const char* name, const ConstTensorView& view,
                             const Expected& expected, Device device) {
  if (view) expect_tensor(op, name, view, expected, device);
  expect_present_or_empty(op, name, view);
}

void expect_present_or_empty(const char* op, const char* name, const ConstTensorView& view) {
  DROPLESS_CHECK(view || view.data == nullptr,
                 concat(op, ": ", name, " has memory, but no dimensions"),
                 "give its shape, or leave it absent");
}

void expect_floating(const char* op, const char* name, const ConstTensorView& view, int rank) {
  const bool floating = view.dtype == DType::kFloat32 || view.dtype == DType::kFloat64 ||
                        view.dtype == DType::kBFloat16 || view.dtype == DType::kFloat16;
  DROPLESS_CHECK(view.rank == rank && floating,
                 concat(op, ": ", name, " is ", describe(view), ", expected ", rank,
                        " dimensions of float32, float64, bfloat16 or float16"),
                 "the header says what each tensor is");
  for (int i = 0; i < rank; ++i) {
    DROPLESS_CHECK(view.shape[i] >= 0, concat(op, ": ", name, " is ", describe(view)),
                   "give sides of 0 or more");
  }
}

void expect_workspace(const char* op, const void* workspace, std::size_t bytes,
                      std::size_t needed) {
  DROPLESS_CHECK(
      bytes >= needed,
      concat(op, ": the workspace has ", bytes, " bytes, at least ", needed, " are needed"),
      concat("allocate what the op's workspace_bytes function returns"));
  DROPLESS_CHECK(
      needed == 0 || (workspace != nullptr &&
                      reinterpret_cast<std::uintptr_t>(workspace) % kWorkspaceAlignment == 0),
      concat(op, ": the workspace is at ", workspace, ", not aligned to ", kWorkspaceAlignment,
             " bytes"));
}

void expect_cpu(const char* op, const ConstTensorView& view) {
  DROPLESS_CHECK(view.device.type == DeviceType::kCpu, concat(op, ": runs on the CPU only"),
                 "keep its tensors on the CPU; moe.h and block_sparse.h have the layer and its "
                 "products on a GPU");
}

void expect_activation(const char* op, Activation activation) {
  DROPLESS_CHECK(activation <= Activation::kQuickGelu,
                 concat(op, ": activation is ", static_cast<int>(activation)),
                 "take it from Activation");
}

void expect_sums(const char* op, DType dtype) {
  DROPLESS_CHECK(dtype <= DType::kFloat16, concat(op, ": there are no sums of ", dtype_name(dtype)),
                 "one of float32, float64, bfloat16, float16");
}

void expect_row_count(const char* op, std::int64_t tokens, std::int64_t top_k) {
  DROPLESS_CHECK(
      top_k == 0 || tokens <= std::numeric_limits<std::int32_t>::max() / top_k,
      concat(op, ": ", tokens, " tokens x ", top_k, " experts per token reach 2^31 rows"),
      "split the batch");
}

std::int64_t expect_group_offsets(const char* op, const ConstTensorView& offsets_E1) {
  DROPLESS_CHECK(
      offsets_E1.rank == 1 && offsets_E1.shape[0] >= 2,
      concat(op, ": offsets_E1 is ", describe(offsets_E1), ", expected [E + 1] with E >= 1"));
  expect_tensor(op, "offsets_E1", offsets_E1, {{offsets_E1.shape[0]}, DType::kInt64},
                offsets_E1.device);
  return offsets_E1.shape[0] - 1;
}

void expect_offsets(const char* op, const ConstTensorView& offsets_E1, std::int64_t rows) {
  const auto* offsets = static_cast<const std::int64_t*>(offsets_E1.data);
  const std::int64_t groups = offsets_E1.shape[0] - 1;
  DROPLESS_CHECK(offsets[0] == 0 && offsets[groups] == rows,
                 concat(op, ": offsets_E1 run from ", offsets[0], " to ", offsets[groups],
                        ", expected from 0 to the ", rows, " rows"));
  for (std::int64_t e = 0; e < groups; ++e) {
    DROPLESS_CHECK(offsets[e] <= offsets[e + 1],
                   concat(op, ": offsets_E1 decrease from ", offsets[e], " to ", offsets[e + 1],
                          " at group ", e));
  }
}

void expect_route_config(const char* op, const RouteConfig& config, std::int64_t experts,
                         std::int64_t top_k) {
  DROPLESS_CHECK(top_k >= 1 && top_k <= experts,
                 concat(op, ": cannot choose top_k ", top_k, " of ", experts, " experts"),
                 "top_k must lie between 1 and the number of experts");
  DROPLESS_CHECK(config.score <= RouteScore::kSigmoid && config.selection <= RouteSelection::kGiven,
                 concat(op, ": score is ", static_cast<int>(config.score), ", selection ",
                        static_cast<int>(config.selection)),
                 "take them from RouteScore and RouteSelection");
  DROPLESS_CHECK(config.normalize_p >= 0 && std::isfinite(config.normalize_p),
                 concat(op, ": normalize_p is ", config.normalize_p),
                 "use 0 (off) or a finite p > 0");
  DROPLESS_CHECK(config.scaling_factor > 0 && std::isfinite(config.scaling_factor),
                 concat(op, ": scaling_factor is ", config.scaling_factor),
                 "use 1 (off) or another finite factor > 0");
  DROPLESS_CHECK(
      config.num_groups >= 1 && experts % config.num_groups == 0,
      concat(op, ": num_groups is ", config.num_groups, ", but there are ", experts, " experts"),
      "num_groups must divide the number of experts");
  DROPLESS_CHECK(
      config.group_top_k >= 1 && config.group_top_k <= config.num_groups,
      concat(op, ": group_top_k is ", config.group_top_k, " of num_groups ", config.num_groups),
      "group_top_k must lie between 1 and num_groups");
  const std::int64_t eligible = config.group_top_k * (experts / config.num_groups);
  DROPLESS_CHECK(config.selection != RouteSelection::kTopK || top_k <= eligible,
                 concat(op, ": group_top_k ", config.group_top_k, " leaves ", eligible,
                        " experts per token, but top_k is ", top_k),
                 "raise group_top_k or lower top_k");
}

void expect_indices(const char* op, const char* name, const ConstTensorView& indices_TK,
                    std::int64_t experts) {
  const auto* indices = static_cast<const std::int32_t*>(indices_TK.data);
  const std::int64_t top_k = indices_TK.shape[1];
  for (std::int64_t i = 0; i < indices_TK.numel(); ++i) {
    DROPLESS_CHECK(indices[i] >= 0 && indices[i] < experts,
                   concat(op, ": ", name, "[", i / top_k, ", ", i % top_k, "] is ", indices[i],
                          ", but there are ", experts, " experts"),
                   "indices must lie between 0 and the number of experts less 1");
  }
}

}  // namespace dropless
