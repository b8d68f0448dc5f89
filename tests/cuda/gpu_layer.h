// A whole layer's tensors on the GPU, and its comparison with the layer in double on the CPU.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "dropless/moe.h"
#include "tests/cuda/gpu_support.h"
#include "tests/ops/moe_case.h"

namespace dropless::testing {

inline const Device kGpu{DeviceType::kCuda, 0};
inline constexpr std::size_t kCanaryBytes = 4096;

inline std::size_t bytes_of(const Tensor& tensor) {
  return tensor.numel() * dtype_bytes(tensor.dtype());
}

// A tensor's copy on the GPU; absent where the tensor is.
class OnGpu {
 public:
  explicit OnGpu(const Tensor& tensor) : view_(tensor), buffer_(bytes_of(tensor)) {
    if (tensor) view_.data = buffer_.get();
    view_.device = kGpu;
  }
  operator ConstTensorView() const { return view_; }  // NOLINT
  operator TensorView() const {                       // NOLINT
    TensorView view;
    if (view_) view.data = buffer_.get();
    view.dtype = view_.dtype;
    view.device = view_.device;
    view.rank = view_.rank;
    view.shape = view_.shape;
    view.stride = view_.stride;
    return view;
  }

  void upload(const Tensor& tensor) {
    const auto* bytes = tensor.as<char>();
    buffer_.upload(std::vector<char>(bytes, bytes + bytes_of(tensor)));
  }
  void poison() { buffer_.poison(); }
  void download(Tensor& tensor) const {
    const std::vector<char> bytes = buffer_.download<char>(bytes_of(tensor));
    if (!bytes.empty()) std::memcpy(tensor.as<char>(), bytes.data(), bytes.size());
  }

 private:
  ConstTensorView view_;
  DeviceBuffer buffer_;
};

// A case's tensors on the GPU. Outputs, saved state and workspaces start as NaN.
class GpuLayer {
 public:
  explicit GpuLayer(MoECase& c)
      : case_(c),
        forward_bytes_(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype, kGpu)),
        backward_bytes_(moe_backward_workspace_bytes(c.config, c.tokens, c.dtype, kGpu)),
        forward_space_(forward_bytes_ + kCanaryBytes),
        backward_space_(backward_bytes_ + kCanaryBytes) {
    for (Tensor* input : {&c.x_TD, &c.router_ED, &c.w1_EFD, &c.v1_EFD, &c.w2_EFD, &c.d_out_TD,
                          &c.d_losses_2, &c.b1_EF, &c.bv1_EF, &c.b2_ED, &c.bias_E}) {
      inputs_.emplace_back(*input);
      if (*input) inputs_.back().upload(*input);
    }
    for (Tensor* output : outputs()) outputs_.emplace_back(*output);
    if (c.config.route.selection == RouteSelection::kGiven) outputs_[6].upload(c.indices_TK);
  }

  void forward(Stream stream = nullptr) { forward(weights(), stream); }
  void backward(Stream stream = nullptr) { backward(weights(), gradients(), stream); }
  // With other tensors than its own.
  void forward(const MoEWeights& weights, Stream stream = nullptr) {
    moe_forward(case_.config, inputs_[0], weights, outputs_[0], outputs_[1], outputs_[2], saved(),
                forward_space_.get(), forward_bytes_, stream);
  }
  void backward(const MoEWeights& weights, const MoEGradients& gradients, Stream stream = nullptr) {
    moe_backward(case_.config, inputs_[0], weights, saved(), inputs_[5], inputs_[6], gradients,
                 backward_space_.get(), backward_bytes_, stream);
  }
  void poison() {
    for (OnGpu& output : outputs_) output.poison();
    forward_space_.poison();
    backward_space_.poison();
  }
  // Into the case's own tensors.
  void download() {
    synchronize();
    const std::vector<Tensor*> targets = outputs();
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (*targets[i]) outputs_[i].download(*targets[i]);
    }
  }
  bool canaries_intact() const {
    return intact(forward_space_, forward_bytes_) && intact(backward_space_, backward_bytes_);
  }

  MoEWeights weights() const {
    return {.router_ED = inputs_[1],
            .w1_EFD = inputs_[2],
            .v1_EFD = inputs_[3],
            .w2_EFD = inputs_[4],
            .selection_bias_E = inputs_[10],
            .b1_EF = inputs_[7],
            .bv1_EF = inputs_[8],
            .b2_ED = inputs_[9]};
  }
  MoESaved saved() const {
    return {outputs_[3], outputs_[4], outputs_[5], outputs_[6], outputs_[7], outputs_[8]};
  }
  MoEGradients gradients() const {
    return {outputs_[9],  outputs_[10], outputs_[11], outputs_[12],
            outputs_[13], outputs_[14], outputs_[15], outputs_[16]};
  }
  ConstTensorView x() const { return inputs_[0]; }
  TensorView out() const { return outputs_[0]; }
  TensorView losses() const { return outputs_[1]; }
  TensorView counts() const { return outputs_[2]; }

 private:
  std::vector<Tensor*> outputs() {
    MoECase& c = case_;
    return {&c.out_TD,     &c.losses_2, &c.counts_E,   &c.gate_RF,  &c.up_RF,       &c.weights_TK,
            &c.indices_TK, &c.rows_TK,  &c.offsets_E1, &c.d_x_TD,   &c.d_router_ED, &c.d_w1_EFD,
            &c.d_v1_EFD,   &c.d_w2_EFD, &c.d_b1_EF,    &c.d_bv1_EF, &c.d_b2_ED};
  }
  MoECase& case_;
  std::size_t forward_bytes_, backward_bytes_;
  DeviceBuffer forward_space_, backward_space_;
  std::vector<OnGpu> inputs_, outputs_;
};

// Compares everything the GPU computed with the layer in double on the CPU.
inline void expect_matches_double(MoECase& c) {
  MoECase reference = c.to(DType::kFloat64);
  ASSERT_TRUE(reference.forward());
  ASSERT_TRUE(reference.backward());
  GpuLayer gpu(c);
  gpu.forward();
  gpu.download();
  expect_forward_matches(c, reference);

  gpu.backward();
  gpu.download();
  expect_backward_matches(c, reference);
  EXPECT_TRUE(gpu.canaries_intact());
}

}  // namespace dropless::testing
