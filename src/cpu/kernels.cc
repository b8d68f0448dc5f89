// The two implementations as tables.
#include "src/cpu/kernels.h"

#include <omp.h>

#include "src/common/check.h"

namespace dropless::cpu {
namespace {

constexpr KernelTable kThreaded{
    .route_forward = cpu::route_forward,
    .route_backward = cpu::route_backward,
    .route_jitter = cpu::route_jitter,
    .dispatch_order = cpu::dispatch_order,
    .invert_rows = cpu::invert_rows,
    .histogram = cpu::histogram,
    .cumsum = cpu::cumsum,
    .padded_offsets = reference::padded_offsets,
    .tile_table = reference::tile_table,
    .replicate = cpu::replicate,
    .replicate_backward = cpu::replicate_backward,
    .assign_slots = cpu::assign_slots,
    .gather = cpu::gather,
    .combine = cpu::combine,
    .combine_backward = cpu::combine_backward,
    .grouped_gemm = cpu::grouped_gemm,
    .grouped_gemm_weight_grad = cpu::grouped_gemm_weight_grad,
    .sdd = cpu::sdd,
    .dsd = cpu::dsd,
    .dds = cpu::dds,
    // Linear in the number of blocks: there is nothing to gain by threads.
    .expert_topology = reference::expert_topology,
    .transpose_topology = reference::transpose_topology,
    .activation_forward = cpu::activation_forward,
    .activation_backward = cpu::activation_backward,
    .expert_backward = cpu::expert_backward,
};

constexpr KernelTable kReference{
    .route_forward = reference::route_forward,
    .route_backward = reference::route_backward,
    .route_jitter = reference::route_jitter,
    .dispatch_order = reference::dispatch_order,
    .invert_rows = reference::invert_rows,
    .histogram = reference::histogram,
    .cumsum = reference::cumsum,
    .padded_offsets = reference::padded_offsets,
    .tile_table = reference::tile_table,
    .replicate = reference::replicate,
    .replicate_backward = reference::replicate_backward,
    .assign_slots = reference::assign_slots,
    .gather = reference::gather,
    .combine = reference::combine,
    .combine_backward = reference::combine_backward,
    .grouped_gemm = reference::grouped_gemm,
    .grouped_gemm_weight_grad = reference::grouped_gemm_weight_grad,
    .sdd = reference::sdd,
    .dsd = reference::dsd,
    .dds = reference::dds,
    .expert_topology = reference::expert_topology,
    .transpose_topology = reference::transpose_topology,
    .activation_forward = reference::activation_forward,
    .activation_backward = reference::activation_backward,
    .expert_backward = reference::expert_backward,
};

}  // namespace

const KernelTable& kernels(Backend backend) {
  DROPLESS_CHECK(backend == Backend::kAuto || backend == Backend::kReference,
                 concat("backend is ", static_cast<int>(backend)), "take it from Backend");
  return backend == Backend::kReference ? kReference : kThreaded;
}

int max_threads() { return omp_get_max_threads(); }

}  // namespace dropless::cpu
