// The contract is moe_products.h.
#include "src/ops/moe_products.h"

namespace dropless {

void MoEProducts::token_product(const std::int64_t* all_tokens, const void* a, DType a_dtype,
                                const void* b, std::int64_t n, std::int64_t k, bool transpose_b,
                                void* out) const {
  cpu::GroupedGemmArgs args{.groups = 1,
                            .n = n,
                            .k = k,
                            .offsets = all_tokens,
                            .transpose_b = transpose_b,
                            .num_terms = 1,
                            .terms = {},
                            .out = out,
                            .out_dtype = sums,
                            .workspace = space.data,
                            .workspace_bytes = space.bytes};
  args.terms[0] = {.a = a, .a_dtype = a_dtype, .b = b, .b_dtype = dtype};
  kernels.grouped_gemm(args);
}

void MoEProducts::expand(const Networks& nets, const void* x, const GroupMatrices& b,
                         const void* bias, void* out) const {
  cpu::GroupedGemmArgs args{.groups = nets.groups,
                            .n = nets.width,
                            .k = d_model,
                            .offsets = nets.offsets,
                            .transpose_b = true,
                            .num_terms = 1,
                            .terms = {},
                            .out = out,
                            .out_dtype = dtype,
                            .workspace = space.data,
                            .workspace_bytes = space.bytes,
                            .bias = bias};
  args.terms[0] = {.a = x,
                   .a_dtype = dtype,
                   .a_rows = nets.tokens,
                   .b = b.data,
                   .b_dtype = dtype,
                   .b_stride = b.stride};
  kernels.grouped_gemm(args);
}

void MoEProducts::contract(const Networks& nets, const void* a1, const GroupMatrices& b1,
                           const void* a2, const GroupMatrices& b2, const void* bias, void* out,
                           DType out_dtype, bool accumulate) const {
  cpu::GroupedGemmArgs args{.groups = nets.groups,
                            .n = d_model,
                            .k = nets.width,
                            .offsets = nets.offsets,
                            .transpose_b = false,
                            .num_terms = a2 == nullptr ? 1 : 2,
                            .terms = {},
                            .out = out,
                            .out_dtype = out_dtype,
                            .workspace = space.data,
                            .workspace_bytes = space.bytes,
                            .bias = bias,
                            .accumulate = accumulate};
  args.terms[0] = {
      .a = a1, .a_dtype = dtype, .b = b1.data, .b_dtype = dtype, .b_stride = b1.stride};
  args.terms[1] = {
      .a = a2, .a_dtype = dtype, .b = b2.data, .b_dtype = dtype, .b_stride = b2.stride};
  kernels.grouped_gemm(args);
}

void MoEProducts::row_products(const Networks& nets, std::int64_t m, const void* a, DType a_dtype,
                               std::int64_t n, const void* b, const std::int32_t* b_tokens,
                               const GroupMatrices& out) const {
  kernels.grouped_gemm_weight_grad({.groups = nets.groups,
                                    .m = m,
                                    .n = n,
                                    .offsets = nets.offsets,
                                    .a = a,
                                    .a_dtype = a_dtype,
                                    .b = b,
                                    .b_dtype = dtype,
                                    .b_rows = b_tokens,
                                    .out = out.data,
                                    .out_dtype = out.dtype,
                                    .workspace = space.data,
                                    .workspace_bytes = space.bytes,
                                    .out_stride = out.stride,
                                    .accumulate = out.dtype != dtype});
}

void scale_sums(DType sums, std::int64_t size, double scale, const void* from, void* to) {
  visit_sums(sums, [&](auto zero) {
    using A = decltype(zero);
    for (std::int64_t i = 0; i < size; ++i) {
      const A value = from == nullptr ? A(1) : static_cast<const A*>(from)[i];
      static_cast<A*>(to)[i] = static_cast<A>(scale) * value;
    }
  });
}

}  // namespace dropless
