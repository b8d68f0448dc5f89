// Encodes tensor maps through the driver's cuTensorMapEncodeTiled. The symbol is looked up at run
// time, so that the same binary starts on machines without a driver.
#include "src/cuda/tensor_map.h"

#include <algorithm>
#include <string>

#include "dropless/error.h"
#include "src/cuda/check.h"
#include "src/cuda/streamed_tensor_map.h"

namespace dropless::cuda {
namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    constexpr unsigned kCudaVersion = 12000;  // the first with tensor maps
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    DROPLESS_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol,
                                                         kCudaVersion, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess || symbol == nullptr) {
      throw Error(ErrorKind::kResource, "the NVIDIA driver has no cuTensorMapEncodeTiled",
                  "update the driver to release 580 or later", __FILE__, __LINE__);
    }
    return reinterpret_cast<EncodeTiled>(symbol);
  }();
  return function;
}

CUtensorMapDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    default:
      throw Error(ErrorKind::kInternal, std::string("no tensor map of ") + dtype_name(dtype), "",
                  __FILE__, __LINE__);
  }
}

CUtensorMap encode(const TensorMapSpec& spec, CUtensorMapL2promotion promotion) {
  const auto bytes = static_cast<std::int64_t>(dtype_bytes(spec.dtype));
  // A dimension of size 1 never steps, but its pitch must still be one that the hardware accepts.
  const std::int64_t row_bytes = std::max<std::int64_t>(spec.row_pitch * bytes, 16);
  const std::int64_t batch_bytes = spec.dims[2] > 1 ? spec.batch_pitch * bytes : row_bytes;
  if (reinterpret_cast<std::uintptr_t>(spec.data) % 16 != 0 || row_bytes % 16 != 0 ||
      batch_bytes % 16 != 0) {
    throw Error(ErrorKind::kInvalidArgument,
                "tensor is not aligned to 16 bytes: row pitch " + std::to_string(row_bytes) +
                    " bytes, batch pitch " + std::to_string(batch_bytes) + " bytes",
                "widths must be multiples of 8 (16-bit types) and pointers 16-byte aligned",
                __FILE__, __LINE__);
  }
  CUtensorMap map;
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(spec.dims[0]),
                              static_cast<cuuint64_t>(spec.dims[1]),
                              static_cast<cuuint64_t>(spec.dims[2])};
  const cuuint64_t pitches[2] = {static_cast<cuuint64_t>(row_bytes),
                                 static_cast<cuuint64_t>(batch_bytes)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(spec.box[0]),
                             static_cast<cuuint32_t>(spec.box[1]), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      encode_tiled()(&map, data_type(spec.dtype), 3, const_cast<void*>(spec.data), dims, pitches,
                     box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     spec.row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
                     promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(ErrorKind::kInternal,
                "cuTensorMapEncodeTiled failed with " + std::to_string(static_cast<int>(result)) +
                    " for dims [" + std::to_string(spec.dims[2]) + ", " +
                    std::to_string(spec.dims[1]) + ", " + std::to_string(spec.dims[0]) + "]",
                "", __FILE__, __LINE__);
  }
  return map;
}

}  // namespace

CUtensorMap make_tensor_map(const TensorMapSpec& spec) {
  return encode(spec, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

CUtensorMap make_streamed_tensor_map(const TensorMapSpec& spec) {
  return encode(spec, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

}  // namespace dropless::cuda
