// Grouped matrix products, plain loops. The contract is include/dropless/grouped_gemm.h.
#include "src/common/dispatch.h"
#include "src/cpu/kernels.h"

namespace dropless::cpu::reference {
namespace {

// visitor(a, b, out) with zeros of the three types: b is the storage type, a and out that or its
// accumulator.
template <class Visitor>
void visit_types(DType a, DType b, DType out, Visitor&& visitor) {
  visit_floating(b, [&](auto storage) {
    using A = Accumulator<decltype(storage)>;
    if (a == b && out == b) {
      visitor(storage, storage, storage);
    } else if (a == b) {
      visitor(storage, storage, A{});
    } else if (out == b) {
      visitor(A{}, storage, storage);
    } else {
      visitor(A{}, storage, A{});
    }
  });
}

// sum_k a[k] * b[k * b_stride]
template <class Sum, class SA, class SB>
Sum dot(const SA* a, const SB* b, std::int64_t b_stride, std::int64_t k) {
  Sum sum = 0;
  for (std::int64_t i = 0; i < k; ++i) sum += to_float(a[i]) * to_float(b[i * b_stride]);
  return sum;
}

}  // namespace

void grouped_gemm(const GroupedGemmArgs& args) {
  const GroupedGemmTerm& first = args.terms[0];
  visit_types(first.a_dtype, first.b_dtype, args.out_dtype, [&](auto a, auto b, auto out) {
    using SA = decltype(a);
    using SB = decltype(b);
    using SO = decltype(out);
    using A = Accumulator<SB>;
    const std::int64_t N = args.n, K = args.k;
    for (std::int64_t e = 0; e < args.groups; ++e) {
      for (std::int64_t r = args.offsets[e]; r < args.offsets[e + 1]; ++r) {
        for (std::int64_t n = 0; n < N; ++n) {
          A sum = 0;
          for (int i = 0; i < args.num_terms; ++i) {
            const GroupedGemmTerm& term = args.terms[i];
            const std::int64_t row = term.a_rows == nullptr ? r : term.a_rows[r];
            const SA* a_K = static_cast<const SA*>(term.a) + row * K;
            const SB* b_e =
                static_cast<const SB*>(term.b) + e * (term.b_stride != 0 ? term.b_stride : N * K);
            sum += args.transpose_b ? dot<A>(a_K, b_e + n * K, 1, K) : dot<A>(a_K, b_e + n, N, K);
          }
          SO& to = static_cast<SO*>(args.out)[r * N + n];
          if (args.bias != nullptr) sum += to_float(static_cast<const SB*>(args.bias)[e * N + n]);
          if (args.accumulate) sum += to_float(to);
          to = from_float<SO>(sum);
        }
      }
    }
  });
}

void grouped_gemm_weight_grad(const GroupedGemmWeightGradArgs& args) {
  visit_types(args.a_dtype, args.b_dtype, args.out_dtype, [&](auto a, auto b, auto out) {
    using SA = decltype(a);
    using SB = decltype(b);
    using SO = decltype(out);
    const std::int64_t M = args.m, N = args.n;
    const std::int64_t step = args.out_stride != 0 ? args.out_stride : M * N;
    for (std::int64_t e = 0; e < args.groups; ++e) {
      for (std::int64_t m = 0; m < M; ++m) {
        for (std::int64_t n = 0; n < N; ++n) {
          SO& to = static_cast<SO*>(args.out)[e * step + m * N + n];
          Accumulator<SB> sum = 0;  // stays an exact zero for an empty group
          for (std::int64_t r = args.offsets[e]; r < args.offsets[e + 1]; ++r) {
            const std::int64_t b_row = args.b_rows == nullptr ? r : args.b_rows[r];
            sum += to_float(static_cast<const SA*>(args.a)[r * M + m]) *
                   to_float(static_cast<const SB*>(args.b)[b_row * N + n]);
          }
          if (args.accumulate) sum += to_float(to);
          to = from_float<SO>(sum);
        }
      }
    }
  });
}

}  // namespace dropless::cpu::reference
