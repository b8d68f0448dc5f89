// The two implementations as tables, and sizes they share.
#include "src/cpu/kernels.h"

#include <omp.h>

#include "src/common/dispatch.h"

namespace dropless::cpu {
namespace {

constexpr KernelTable kReference{
    .route_forward = reference::route_forward,
    .route_backward = reference::route_backward,
    .dispatch_order = reference::dispatch_order,
    .invert_rows = reference::invert_rows,
    .gather = reference::gather,
    .combine = reference::combine,
    .combine_backward = reference::combine_backward,
    .grouped_gemm = reference::grouped_gemm,
    .grouped_gemm_weight_grad = reference::grouped_gemm_weight_grad,
    .activation_forward = reference::activation_forward,
    .activation_backward = reference::activation_backward,
    .expert_backward = reference::expert_backward,
};

}  // namespace

const KernelTable& kernels(Backend) { return kReference; }

std::size_t grouped_gemm_slot_bytes() { return std::size_t{64}; }

int max_threads() { return omp_get_max_threads(); }

std::size_t route_partials_bytes(std::int64_t experts, DType dtype) {
  const std::size_t chunk = static_cast<std::size_t>(experts + 1) * dtype_bytes(dtype) +
                            static_cast<std::size_t>(experts) * sizeof(std::int32_t);
  return static_cast<std::size_t>(kMaxTokenChunks) * chunk;
}

}  // namespace dropless::cpu
