// Builds without CUDA: every entry of kernels.h says so.
#include <string>

#include "dropless/error.h"
#include "src/cuda/decode.h"
#include "src/cuda/kernels.h"
#include "src/cuda/small_batch.h"

namespace dropless::cuda {
namespace {

[[noreturn]] void unavailable(const char* op) {
  throw Error(ErrorKind::kUnsupported,
              std::string(op) + ": this build of dropless has no CUDA kernels",
              "build with -DDROPLESS_CUDA=ON (needs nvcc 13), or keep the tensors on the CPU",
              __FILE__, __LINE__);
}

}  // namespace

std::size_t route_workspace_bytes(std::int64_t, std::int64_t) { unavailable("route"); }
void route_forward(const RouteConfig&, const float*, const float*, std::int64_t, std::int64_t,
                   std::int64_t, std::int64_t, float*, std::int32_t*, float*, std::int32_t*, void*,
                   Stream) {
  unavailable("route");
}
void route_backward(const RouteConfig&, const float*, std::int64_t, std::int64_t, std::int64_t,
                    std::int64_t, const std::int32_t*, const std::int32_t*, const float*,
                    const float*, float*, Stream) {
  unavailable("route");
}
std::size_t dispatch_order_workspace_bytes(std::int64_t, std::int64_t, std::int64_t) {
  unavailable("dispatch_order");
}
void dispatch_order(const std::int32_t*, const float*, std::int64_t, std::int64_t, std::int64_t,
                    std::int32_t*, std::int64_t*, std::int32_t*, float*, void*, Stream,
                    std::int64_t) {
  unavailable("dispatch_order");
}
void gather(ConstTensorView, const std::int32_t*, std::int64_t, TensorView, Stream) {
  unavailable("gather");
}
void combine(ConstTensorView, const float*, const std::int32_t*, std::int64_t, bool, TensorView,
             Stream, bool) {
  unavailable("combine");
}
void combine_backward(ConstTensorView, const float*, const std::int32_t*, std::int64_t,
                      ConstTensorView, TensorView, float*, Stream) {
  unavailable("combine_backward");
}
std::size_t row_tiles_bytes(std::int64_t, std::int64_t, int) { unavailable("row_tiles"); }
void build_row_tiles(const std::int64_t*, std::int64_t, int, void*, Stream) {
  unavailable("row_tiles");
}
void grouped_gemm(ConstTensorView, ConstTensorView, bool, const void*, TensorView,
                  const GemmConfig&, Stream, ConstTensorView, const GatherBeside&) {
  unavailable("grouped_gemm");
}
void grouped_gemm_two_terms(ConstTensorView, ConstTensorView, ConstTensorView, ConstTensorView,
                            const void*, TensorView, const GemmConfig&, Stream,
                            const GatherBeside&) {
  unavailable("grouped_gemm_two_terms");
}
void grouped_gemm_weight_grad(ConstTensorView, ConstTensorView, const std::int64_t*, TensorView,
                              bool, const GemmConfig&, Stream, const GatherBeside&) {
  unavailable("grouped_gemm_weight_grad");
}

void grouped_gemm_activation(Activation, ConstTensorView, const std::int32_t*, ConstTensorView,
                             ConstTensorView, const void*, TensorView, TensorView, TensorView,
                             Stream, ConstTensorView, ConstTensorView) {
  unavailable("grouped_gemm_activation");
}
void grouped_gemm_activation_grad(Activation, ConstTensorView, const std::int32_t*, ConstTensorView,
                                  const float*, const void*, TensorView, TensorView, TensorView,
                                  float*, Stream) {
  unavailable("grouped_gemm_activation_grad");
}

std::size_t block_sparse_workspace_bytes(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
  unavailable("block_sparse_workspace_bytes");
}
void sdd(ConstTensorView, bool, ConstTensorView, bool, const BlockTopology&, TensorView, void*,
         Stream) {
  unavailable("sdd");
}
void dsd(ConstTensorView, bool, const BlockTopology&, ConstTensorView, bool, TensorView, void*,
         std::size_t, Stream) {
  unavailable("dsd");
}
void dds(ConstTensorView, bool, ConstTensorView, bool, const BlockTopology&, TensorView, void*,
         std::size_t, Stream) {
  unavailable("dds");
}
void expert_topology(const std::int64_t*, std::int64_t, std::int64_t, std::int64_t*,
                     const BlockTopology&, Stream) {
  unavailable("expert_topology");
}
void transpose_topology(const BlockTopology&, Stream) { unavailable("transpose_topology"); }

std::size_t router_workspace_bytes(std::int64_t, std::int64_t, std::int64_t) {
  unavailable("router_logits");
}
void router_logits(ConstTensorView, ConstTensorView, float*, void*, Stream) {
  unavailable("router_logits");
}
void router_backward(ConstTensorView, ConstTensorView, const float*, TensorView, TensorView, void*,
                     Stream) {
  unavailable("router_backward");
}
void prepare_backward(const float*, const std::int32_t*, const std::int32_t*, std::int64_t,
                      std::int64_t, std::int64_t, float*, std::int32_t*, std::int32_t*, Stream) {
  unavailable("prepare_backward");
}
void sum_score_gradients(const float*, std::int64_t, const std::int32_t*, std::int64_t,
                         std::int64_t, const float*, std::int64_t, const std::int32_t*, float*,
                         Stream) {
  unavailable("sum_score_gradients");
}
std::size_t column_sums_workspace_bytes(std::int64_t, std::int64_t, std::int64_t) {
  unavailable("column_sums");
}
void column_sums(ConstTensorView, const float*, const std::int64_t*, const void*, TensorView, void*,
                 Stream) {
  unavailable("column_sums");
}
void decode_product(const DecodeProductArgs&, Stream) { unavailable("decode_product"); }
void decode_add_norm(const DecodeAddNormArgs&, Stream) { unavailable("decode_add_norm"); }
void decode_attention(const DecodeAttentionArgs&, Stream) { unavailable("decode_attention"); }
CurrentDevice::CurrentDevice(int index) : index_(index), previous_(index) {
  unavailable("CurrentDevice");
}
CurrentDevice::~CurrentDevice() = default;
std::string device_problem(int) { return "this build of dropless has no CUDA kernels"; }
bool small_batch_fits(std::int64_t, std::int64_t, std::int64_t) { return false; }
bool portable_path(int) { unavailable("portable_path"); }
std::size_t small_batch_workspace_bytes(const SmallBatchPlan&, std::int64_t, std::int64_t,
                                        std::int64_t, std::int64_t, std::int64_t) {
  unavailable("small_batch");
}
void small_batch_forward(const SmallBatchPlan&, const SmallBatch&, void*, Stream) {
  unavailable("small_batch");
}

}  // namespace dropless::cuda
