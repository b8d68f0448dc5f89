// The dense products that `bench moe` holds the layer against on the CPU: what the same arithmetic
// costs where nothing is routed.
#pragma once

#include <string>
#include <vector>

#include "train/bridge/torch.h"

namespace dropless::apps {

// The products of a SwiGLU layer expert by expert, R / E rows each, every expert with its own
// weights; operands and outputs are there before.
class DenseExperts {
 public:
  enum class Library { kDefault, kOneDnn };  // kDefault: MKL in fp32, in bf16 what libtorch takes

  DenseExperts(std::int64_t rows, std::int64_t d, std::int64_t f, std::int64_t experts,
               at::TensorOptions options);
  // The 3 products of forward, and the 6 of backward too.
  void run(Library library, bool backward);

 private:
  // out = a b
  struct Product {
    at::Tensor out, a, b;
  };
  std::vector<Product> forward_, backward_;
  // The same as linear operations of oneDNN's own tensors, which libtorch's fp32 products do not
  // reach; outputs are its own.
  struct Linear {
    at::Tensor input, weight;
  };
  std::vector<Linear> forward_linears_, backward_linears_;
};

// One dense SwiGLU network of width f for all tokens, forward and backward by autograd: a layer of
// equal active parameters has f = K times an expert's.
class DenseModel {
 public:
  DenseModel(std::int64_t tokens, std::int64_t d, std::int64_t f, at::TensorOptions options);
  at::Tensor forward() const;
  void backward(const at::Tensor& out) const;

 private:
  std::vector<at::Tensor> inputs_;  // x, w1, v1, w2
  at::Tensor d_out_;
};

}  // namespace dropless::apps
