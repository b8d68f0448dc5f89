// The matrix products that the layer (moe.cc) and its stages (moe_stages.cc) are made of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/common/workspace.h"
#include "src/cpu/kernels.h"

namespace dropless {

// Matrix products take what the carver has left; a query counts one slot per thread.
struct GemmSpace {
  void* data;
  std::size_t bytes;
};

inline GemmSpace carve_gemm_space(WorkspaceCarver& carver) {
  const std::size_t bytes = carver.left();
  return {carver.take_bytes(bytes), bytes};
}

// The bytes that must be there, with `slots` threads multiplying.
template <class Carve>
std::size_t workspace_bytes_for(int slots, Carve&& carve) {
  WorkspaceCarver carver;
  carve(carver);
  return carver.used() + slots * cpu::kGemmSlotBytes;
}

// Groups of rows with the networks they go through: the routed experts, or the shared one.
struct Networks {
  std::int64_t groups, width;
  const std::int64_t* offsets;  // [groups + 1]
  const std::int32_t* tokens;   // of each row: where it reads x; null: row r reads row r
};

// The groups' [width, d_model] matrices, each in one piece; [width, d_model] where there is one group.
struct GroupMatrices {
  void* data = nullptr;
  DType dtype{};
  std::int64_t stride = 0;  // elements from one to the next
  GroupMatrices() = default;
  GroupMatrices(const ConstTensorView& view)
      : data(const_cast<void*>(view.data)),
        dtype(view.dtype),
        stride(view.rank == 3 ? view.stride[0] : 0) {}
  GroupMatrices(const TensorView& view) : GroupMatrices(ConstTensorView(view)) {}
};

// Weights are of type `dtype`, sums are made in `sums`.
struct MoEProducts {
  const cpu::KernelTable& kernels;
  std::int64_t d_model;
  DType dtype, sums;
  GemmSpace space;

  // One group, offsets {0, T}: out [T, n] = a [T, k] b, or a b^T; out has the type of sums.
  void token_product(const std::int64_t* all_tokens, const void* a, DType a_dtype, const void* b,
                     std::int64_t n, std::int64_t k, bool transpose_b, void* out) const;

  // x's row of each row of the networks times their [width, D] weight, transposed, plus its bias.
  void expand(const Networks& nets, const void* x, const GroupMatrices& b, const void* bias,
              void* out) const;

  // a1 B1 (+ a2 B2 where a2 is there) plus the bias: [rows, D]; or added to `out`.
  void contract(const Networks& nets, const void* a1, const GroupMatrices& b1, const void* a2,
                const GroupMatrices& b2, const void* bias, void* out, DType out_dtype,
                bool accumulate = false) const;

  // out_e [m, n] = sum over e's rows r of a[r]^T b[r], or b[its token] with b_tokens; added to it where it is fp32 and the
  // layer is not.
  void row_products(const Networks& nets, std::int64_t m, const void* a, DType a_dtype,
                    std::int64_t n, const void* b, const std::int32_t* b_tokens,
                    const GroupMatrices& out) const;

  // The gradient of a [width, D] weight: a of [rows, width], x as of expand.
  void weight_gradient(const Networks& nets, const void* a, const void* x,
                       const GroupMatrices& out) const {
    row_products(nets, nets.width, a, dtype, d_model, x, nets.tokens, out);
  }
};

// visitor(zero of the type of sums)
template <class Visitor>
void visit_sums(DType sums, Visitor&& visitor) {
  sums == DType::kFloat64 ? visitor(double{}) : visitor(float{});
}

// to[i] = scale * from[i], or scale where there is no `from`; may be in place.
void scale_sums(DType sums, std::int64_t size, double scale, const void* from, void* to);

}  // namespace dropless
