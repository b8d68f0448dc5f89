// Curves of bounded size: a run of millions of steps keeps its shape, peaks included.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace dropless::train {

// Values over steps in buckets of `width` steps. When they would be more than kMaxBuckets the width
// doubles, so that mean, minimum and maximum of each stay exact.
class Series {
 public:
  static constexpr std::size_t kMaxBuckets = 1024;

  // Ignores what is not finite. A step before the last one begins anew from there, as a run does
  // that was resumed from an older checkpoint.
  void add(std::int64_t step, double value);
  bool empty() const { return buckets_.empty(); }
  // {"width", "step", "mean"} and, where a bucket has more than one value, {"min", "max"}, in six
  // digits, from at most `most` buckets.
  nlohmann::ordered_json json(std::size_t most = kMaxBuckets) const;

 private:
  struct Bucket {
    std::int64_t first = 0, last = 0;  // steps
    std::int64_t count = 0;
    double mean = 0, min = 0, max = 0;
  };
  void widen();

  std::int64_t width_ = 1;
  std::vector<Bucket> buckets_;
};

// Tokens per expert of every layer over steps, relative to an even spread; bounded like Series.
class LoadMap {
 public:
  // [layer][expert] counts; another shape than the first one's is ignored. Returns the mean over
  // layers of the spread's entropy / log(experts) (1: even), or NaN where there is none.
  double add(std::int64_t step, const nlohmann::json& tokens_LE);
  bool empty() const { return columns_.empty(); }
  // {"layers", "experts", "step", "load"}: `load` is base64, [layer][expert][step] bytes: 0 where
  // nothing is known, else 128 + 127 * log2(load / even load) / 3, from 1 to 255.
  nlohmann::ordered_json json() const;

 private:
  struct Column {
    std::int64_t first = 0;
    std::int64_t count = 0;
    std::vector<float> sum_LE;
  };
  std::size_t max_columns() const;
  void widen();

  std::int64_t layers_ = 0, experts_ = 0;
  std::int64_t width_ = 1;
  std::vector<Column> columns_;
};

std::string base64(const std::vector<std::uint8_t>& bytes);

}  // namespace dropless::train
