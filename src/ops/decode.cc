// decode.h: checks, then the kernel of the tensors' device.
#include "dropless/decode.h"

#include "src/common/check.h"
#include "src/common/decode_args.h"
#include "src/cpu/decode.h"
#include "src/cuda/decode.h"
#include "src/cuda/kernels.h"
#include "src/ops/expect.h"
#include "src/ops/moe_check.h"

namespace dropless {
namespace {

constexpr std::int64_t kMostCtas = 2147483647;  // of a GPU's kernel, one a row or a head

void expect_decode_type(const char* op, const char* name, const ConstTensorView& view, int rank) {
  expect_floating(op, name, view, rank);
  const std::string problem = decode_unsupported(view.dtype, view.device);
  DROPLESS_CHECK(problem.empty(), concat(op, ": ", name, " is ", describe(view), ": ", problem));
}

void expect_ctas(const char* op, std::int64_t rows, std::int64_t heads, Device device) {
  DROPLESS_CHECK(
      device.type == DeviceType::kCpu || rows <= kMostCtas / heads,
      concat(op, ": ", rows, " rows of ", heads, " heads are more than a GPU's kernel takes"));
}

// Of `width` numbers; with `of_heads` > 1 also of that many parts of it, each by itself.
void expect_norm(const char* op, const char* name, const DecodeNorm& norm, std::int64_t width,
                 std::int64_t of_heads, Device device) {
  if (!norm.weight_D) return;
  const std::int64_t own = norm.weight_D.rank == 1 ? norm.weight_D.shape[0] : -1;
  const std::int64_t expected = own == width / of_heads ? own : width;
  expect_tensor(op, name, norm.weight_D, {{expected}, DType::kFloat32}, device);
  expect_tensor_or_absent(op, "the norm's bias_D", norm.bias_D, {{expected}, DType::kFloat32},
                          device);
}

void expect_attention(const char* op, const DecodeAttention& a, Device device) {
  const std::int64_t multiple = device.type == DeviceType::kCpu ? 2 : kDecodeHeadDimMultiple;
  DROPLESS_CHECK(a.head_dim > 0 && a.head_dim % multiple == 0 && a.head_dim <= kDecodeMostHeadDim,
                 concat(op, ": head_dim is ", a.head_dim, ", expected a multiple of ", multiple,
                        " up to ", kDecodeMostHeadDim));
  DROPLESS_CHECK(a.groups > 0 && a.heads > 0 && a.heads % a.groups == 0,
                 concat(op, ": ", a.heads, " heads in ", a.groups, " groups"));
}

// [B, G, C, d]; returns C.
std::int64_t expect_cache(const char* op, const DecodeAttention& a, std::int64_t rows,
                          const ConstTensorView& keys, const ConstTensorView& values, DType dtype,
                          Device device) {
  const std::int64_t places = keys.rank == 4 ? keys.shape[2] : -1;
  expect_tensor(op, "keys_BGCI", keys, {{rows, a.groups, places, a.head_dim}, dtype}, device);
  expect_tensor(op, "values_BGCI", values, {{rows, a.groups, places, a.head_dim}, dtype}, device);
  return places;
}

// On a CPU the position can be looked at.
void expect_position(const char* op, const ConstTensorView& position_1, std::int64_t places,
                     Device device) {
  expect_tensor(op, "position_1", position_1, {{1}, DType::kInt64}, device);
  if (device.type == DeviceType::kCuda) return;
  const std::int64_t position = *static_cast<const std::int64_t*>(position_1.data);
  DROPLESS_CHECK(
      position >= 0 && position < places,
      concat(op, ": position_1 is ", position, ", and the cache has ", places, " places"));
}

template <class Args>
void run(Device device, const Args& args, void (*on_cpu)(const Args&),
         void (*on_gpu)(const Args&, Stream), Stream stream) {
  if (device.type == DeviceType::kCpu) return on_cpu(args);
  const cuda::CurrentDevice current(device.index);
  on_gpu(args, stream);
}

}  // namespace

std::string decode_unsupported(DType dtype, Device device) {
  const bool narrow = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  if (device.type == DeviceType::kCpu) {
    if (narrow || dtype == DType::kFloat32) return "";
    return std::string("the loops take float32, bfloat16 and float16, not ") + dtype_name(dtype);
  }
  if (!narrow)
    return std::string("the GPU kernels take bfloat16 and float16, not ") + dtype_name(dtype);
  return cuda::device_problem(device.index);
}

bool decode_product_pays(std::int64_t rows, std::int64_t columns, Device device) {
  constexpr std::int64_t kNarrow = 2048;
  return device.type == DeviceType::kCuda && !cuda::portable_path(device.index) &&
         (rows == 1 || (rows <= kDecodeMostRows && columns <= kNarrow));
}

void decode_product(ConstTensorView x_BK, ConstTensorView w_NK, ConstTensorView bias_N,
                    TensorView out_BN, Stream stream) {
  const char* op = "decode_product";
  expect_decode_type(op, "out_BN", out_BN, 2);
  const std::int64_t B = out_BN.shape[0], N = out_BN.shape[1];
  const std::int64_t K = x_BK.rank == 2 ? x_BK.shape[1] : -1;
  const Device device = out_BN.device;
  const DType dtype = out_BN.dtype;
  expect_tensor(op, "x_BK", x_BK, {{B, K}, dtype}, device);
  expect_tensor(op, "w_NK", w_NK, {{N, K}, dtype}, device);
  expect_tensor_or_absent(op, "bias_N", bias_N, {{N}, DType::kFloat32}, device);
  expect_tensor(op, "out_BN", out_BN, {{B, N}, dtype}, device);
  if (device.type == DeviceType::kCuda) {
    DROPLESS_CHECK(
        B <= kDecodeMostRows && K % 8 == 0 && K <= kDecodeMostInputs,
        concat(op, ": x_BK is ", describe(x_BK), "; the GPU's kernel takes up to ", kDecodeMostRows,
               " rows of a multiple of 8 columns up to ", kDecodeMostInputs));
    DROPLESS_CHECK(N <= kDecodeMostColumns,
                   concat(op, ": w_NK is ", describe(w_NK), "; the GPU's kernel takes up to ",
                          kDecodeMostColumns, " rows"));
    expect_aligned(op, {x_BK, w_NK, out_BN});
  }
  if (B == 0 || N == 0) return;
  const DecodeProductArgs args{
      dtype, B, N, K, x_BK.data, w_NK.data, static_cast<const float*>(bias_N.data), out_BN.data};
  run(device, args, cpu::reference::decode_product, cuda::decode_product, stream);
}

void decode_add_norm(TensorView x_BD, ConstTensorView y_BD, const DecodeNorm& norm,
                     TensorView out_BD, Stream stream) {
  const char* op = "decode_add_norm";
  expect_decode_type(op, "out_BD", out_BD, 2);
  const std::int64_t B = out_BD.shape[0], D = out_BD.shape[1];
  const Device device = out_BD.device;
  expect_tensor(op, "x_BD", x_BD, {{B, D}, DType::kFloat32}, device);
  expect_tensor(op, "out_BD", out_BD, {{B, D}, out_BD.dtype}, device);
  expect_tensor_or_absent(op, "y_BD", y_BD, {{B, D}, out_BD.dtype}, device);
  expect_tensor(op, "the norm's weight_D", norm.weight_D, {{D}, DType::kFloat32}, device);
  expect_norm(op, "the norm's weight_D", norm, D, 1, device);
  DROPLESS_CHECK(
      device.type == DeviceType::kCpu || (D % 4 == 0 && D <= kDecodeMostWidth),
      concat(op, ": out_BD has ", D, " columns; the GPU's kernel takes multiples of 4 up to ",
             kDecodeMostWidth));
  expect_ctas(op, B, 1, device);
  if (device.type == DeviceType::kCuda) expect_aligned(op, {x_BD, y_BD, norm.weight_D, out_BD});
  if (B == 0 || D == 0) return;
  const DecodeAddNormArgs args{out_BD.dtype, B,    D,          static_cast<float*>(x_BD.data),
                               y_BD.data,    norm, out_BD.data};
  run(device, args, cpu::reference::decode_add_norm, cuda::decode_add_norm, stream);
}

void decode_attention(const DecodeAttention& attention, ConstTensorView qkv_BN,
                      ConstTensorView position_1, ConstTensorView pads_B, TensorView keys_BGCI,
                      TensorView values_BGCI, TensorView out_BHI, Stream stream) {
  const char* op = "decode_attention";
  const DecodeAttention& a = attention;
  expect_attention(op, a, qkv_BN.device);
  expect_decode_type(op, "qkv_BN", qkv_BN, 2);
  const Device device = qkv_BN.device;
  const DType dtype = qkv_BN.dtype;
  expect_bytes(op, "the heads", {4, a.heads, a.head_dim});
  expect_bytes(op, "the groups", {4, a.groups, a.head_dim});
  const std::int64_t B = qkv_BN.shape[0], N = (a.heads + 2 * a.groups) * a.head_dim;
  expect_tensor(op, "qkv_BN", qkv_BN, {{B, N}, dtype}, device);
  expect_tensor(op, "out_BHI", out_BHI, {{B, a.heads, a.head_dim}, dtype}, device);
  expect_ctas(op, B, a.heads, device);
  if (device.type == DeviceType::kCuda) expect_aligned(op, {qkv_BN, keys_BGCI, values_BGCI});
  const std::int64_t places = expect_cache(op, a, B, keys_BGCI, values_BGCI, dtype, device);
  expect_norm(op, "q_norm.weight_D", a.q_norm, a.heads * a.head_dim, a.heads, device);
  expect_norm(op, "k_norm.weight_D", a.k_norm, a.groups * a.head_dim, a.groups, device);
  DROPLESS_CHECK(static_cast<bool>(a.q_norm.weight_D) == static_cast<bool>(a.k_norm.weight_D),
                 concat(op, ": one of q_norm and k_norm has no weight_D"));
  expect_tensor_or_absent(op, "pads_B", pads_B, {{B}, DType::kInt64}, device);
  expect_tensor_or_absent(op, "slopes_H", a.slopes_H, {{a.heads}, DType::kFloat32}, device);
  if (a.cos_PI) {
    const std::int64_t P = a.cos_PI.rank == 2 ? a.cos_PI.shape[0] : -1;
    DROPLESS_CHECK(P >= places, concat(op, ": cos_PI is ", describe(a.cos_PI), " for a cache of ",
                                       places, " places"));
    expect_tensor(op, "cos_PI", a.cos_PI, {{P, a.head_dim / 2}, DType::kFloat32}, device);
    expect_tensor(op, "sin_PI", a.sin_PI, {{P, a.head_dim / 2}, DType::kFloat32}, device);
  }
  if (B == 0) return;
  const auto* pads = static_cast<const std::int64_t*>(pads_B.data);
  for (std::int64_t b = 0; pads != nullptr && device.type == DeviceType::kCpu && b < B; ++b) {
    DROPLESS_CHECK(
        pads[b] >= 0 && pads[b] <= places,
        concat(op, ": pads_B[", b, "] is ", pads[b], " of a cache of ", places, " places"),
        "from 0 to the number of places");
  }
  expect_position(op, position_1, places, device);
  const DecodeAttentionArgs args{dtype,
                                 B,
                                 places,
                                 a,
                                 qkv_BN.data,
                                 static_cast<const std::int64_t*>(position_1.data),
                                 static_cast<const std::int64_t*>(pads_B.data),
                                 keys_BGCI.data,
                                 values_BGCI.data,
                                 out_BHI.data};
  run(device, args, cpu::reference::decode_attention, cuda::decode_attention, stream);
}

}  // namespace dropless
