// Lion (Chen et al. 2023, arXiv:2302.06675) with LLM Foundry's decay, and its two variants for
// gradients that are outliers:
//
//   p <- p (1 - wd lr / lr_0)
//   p <- p - lr sign(b1 m + (1 - b1) g)
//   m <- b2 m + (1 - b2) g
//
// An observation of a parameter is an outlier when it is above outlier_threshold times the mean of
// the 500 observations that came before its last 500. clip_lion observes |g| and scales an outlier
// down to that bound; adalr_lion observes |b2 m + (1 - b2) g| and takes
// lr max(min_scale, lr_penalty^n), n being the outliers of the last `timeout` steps.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "train/optim/optimizer.h"

namespace dropless::train {

// The observations of one parameter.
struct OutlierWindow {
  static constexpr std::size_t kDelay = 500;

  std::deque<double> recent, delayed;    // at most kDelay each, oldest first
  std::vector<std::int64_t> outlier_at;  // steps, of the last `timeout`

  // The bound for an outlier; infinite before the first observation is kDelay steps old.
  double bound(double threshold) const;
  void add(double observation);
};

class Lion : public Optimizer {
 public:
  Lion(const OptimizerConfig& config, const NamedParameters& parameters);
  nlohmann::json record() const override;
  void reload(const nlohmann::json& record) override;

 protected:
  void update(const GroupConfig& group, const std::vector<const Slot*>& slots,
              double multiplier) override;

 private:
  // Per slot what to multiply the gradient (clip_lion) or the learning rate (adalr_lion) with.
  std::vector<double> scales(const GroupConfig& group, const std::vector<const Slot*>& slots);

  std::map<std::string, OutlierWindow> windows_;  // by parameter
};

}  // namespace dropless::train
