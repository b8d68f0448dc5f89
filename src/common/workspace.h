// Cuts a caller's workspace into aligned arrays. The same carving function serves the size query
// (no base: it only measures) and the run, so that the two cannot disagree.
//
//   struct Buffers { float* logits; int* rows; };
//   Buffers carve(WorkspaceCarver& carver) { return {carver.take<float>(n), carver.take<int>(r)}; }
#pragma once

#include <cstddef>
#include <cstdint>

namespace dropless {

inline constexpr std::size_t kWorkspaceAlignment = 64;

class WorkspaceCarver {
 public:
  WorkspaceCarver() = default;  // measures only
  WorkspaceCarver(void* base, std::size_t bytes) : base_(static_cast<char*>(base)), bytes_(bytes) {}

  // `count` elements, aligned to kWorkspaceAlignment; null while measuring.
  template <class Element>
  Element* take(std::int64_t count) {
    return static_cast<Element*>(take_bytes(static_cast<std::size_t>(count) * sizeof(Element)));
  }

  void* take_bytes(std::size_t bytes) {
    void* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    return piece;
  }

  std::size_t used() const { return used_; }
  std::size_t left() const { return used_ < bytes_ ? bytes_ - used_ : 0; }

 private:
  char* base_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t used_ = 0;
};

}  // namespace dropless
