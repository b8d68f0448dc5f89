// Dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv:1710.03740): the loss is
// multiplied by a power of two before backward and the gradients divided by it; a step with a
// non-finite gradient is skipped and halves the scale, `growth_interval` good steps in a row double
// it.
#pragma once

#include <cstdint>

namespace dropless::train {

class LossScale {
 public:
  explicit LossScale(bool enabled) : scale_(enabled ? 65536.0 : 1.0), enabled_(enabled) {}

  bool enabled() const { return enabled_; }
  double scale() const { return scale_; }
  // After each backward pass. Returns whether the update may be made.
  bool update(bool gradients_finite) {
    if (!enabled_) return gradients_finite;
    if (!gradients_finite) {
      scale_ *= 0.5;
      good_steps_ = 0;
      return false;
    }
    if (++good_steps_ == kGrowthInterval) {
      scale_ *= 2.0;
      good_steps_ = 0;
    }
    return true;
  }
  // Below this, gradients are not too large but broken.
  bool exhausted() const { return scale_ < 1e-4; }

  std::int64_t good_steps() const { return good_steps_; }
  void restore(double scale, std::int64_t good_steps) {
    scale_ = scale;
    good_steps_ = good_steps;
  }

 private:
  static constexpr std::int64_t kGrowthInterval = 2000;
  double scale_;
  std::int64_t good_steps_ = 0;
  bool enabled_;
};

}  // namespace dropless::train
