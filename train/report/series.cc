#include "train/report/series.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>

namespace dropless::train {
namespace {

constexpr std::int64_t kMaxLoadCells = 400'000;  // half a megabyte of page
constexpr std::int64_t kMinColumns = 16, kMaxColumns = 256;

double six_digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return std::strtod(text, nullptr);
}

// Entropy of the counts over that of an even spread.
double relative_entropy(const std::vector<double>& share_E) {
  double entropy = 0;
  for (const double share : share_E) {
    if (share > 0) entropy -= share * std::log(share);
  }
  return entropy / std::log(static_cast<double>(share_E.size()));
}

std::uint8_t load_byte(double relative) {
  if (relative <= 0) return 1;
  const double scaled = std::clamp(std::log2(relative) / 3.0, -1.0, 1.0);
  return static_cast<std::uint8_t>(128 + std::lround(127 * scaled));
}

}  // namespace

void Series::add(std::int64_t step, double value) {
  if (!std::isfinite(value)) return;
  while (!buckets_.empty() && buckets_.back().first > step) buckets_.pop_back();
  if (!buckets_.empty() && buckets_.back().first / width_ == step / width_) {
    Bucket& bucket = buckets_.back();
    bucket.last = std::max(bucket.last, step);
    ++bucket.count;
    bucket.mean += (value - bucket.mean) / static_cast<double>(bucket.count);
    bucket.min = std::min(bucket.min, value);
    bucket.max = std::max(bucket.max, value);
    return;
  }
  buckets_.push_back({step, step, 1, value, value, value});
  while (buckets_.size() > kMaxBuckets) widen();
}

void Series::widen() {
  width_ *= 2;
  std::vector<Bucket> wide;
  for (const Bucket& next : buckets_) {
    if (wide.empty() || wide.back().first / width_ != next.first / width_) {
      wide.push_back(next);
      continue;
    }
    Bucket& bucket = wide.back();
    bucket.last = next.last;
    bucket.count += next.count;
    bucket.mean += (next.mean - bucket.mean) * static_cast<double>(next.count) /
                   static_cast<double>(bucket.count);
    bucket.min = std::min(bucket.min, next.min);
    bucket.max = std::max(bucket.max, next.max);
  }
  buckets_ = std::move(wide);
}

nlohmann::ordered_json Series::json(std::size_t most) const {
  Series kept = *this;
  while (kept.buckets_.size() > std::max<std::size_t>(most, 1)) kept.widen();
  nlohmann::ordered_json json;
  json["width"] = kept.width_;
  bool spread = false;
  for (const Bucket& bucket : kept.buckets_) {
    json["step"].push_back(bucket.last);
    json["mean"].push_back(six_digits(bucket.mean));
    spread = spread || bucket.count > 1;
  }
  if (!spread) return json;
  for (const Bucket& bucket : kept.buckets_) {
    json["min"].push_back(six_digits(bucket.min));
    json["max"].push_back(six_digits(bucket.max));
  }
  return json;
}

std::size_t LoadMap::max_columns() const {
  return static_cast<std::size_t>(
      std::clamp(kMaxLoadCells / (layers_ * experts_), kMinColumns, kMaxColumns));
}

double LoadMap::add(std::int64_t step, const nlohmann::json& tokens_LE) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  if (!tokens_LE.is_array() || tokens_LE.empty() || !tokens_LE[0].is_array()) return kNone;
  const auto layers = static_cast<std::int64_t>(tokens_LE.size());
  const auto experts = static_cast<std::int64_t>(tokens_LE[0].size());
  if (experts < 2 || layers > kMaxLoadCells / kMinColumns / experts) return kNone;
  if (layers_ != 0 && (layers != layers_ || experts != experts_)) return kNone;
  std::vector<float> load_LE;
  double entropy = 0;
  for (const nlohmann::json& layer : tokens_LE) {
    if (!layer.is_array() || static_cast<std::int64_t>(layer.size()) != experts) return kNone;
    std::vector<double> share_E;
    double sum = 0;
    for (const nlohmann::json& count : layer) {
      if (!count.is_number() || !(count.get<double>() >= 0)) return kNone;
      share_E.push_back(count.get<double>());
      sum += share_E.back();
    }
    if (!(sum > 0) || !std::isfinite(sum)) return kNone;
    for (double& share : share_E) {
      share /= sum;
      load_LE.push_back(static_cast<float>(share * static_cast<double>(experts)));
    }
    entropy += relative_entropy(share_E);
  }
  layers_ = layers;
  experts_ = experts;
  while (!columns_.empty() && columns_.back().first > step) columns_.pop_back();
  if (!columns_.empty() && columns_.back().first / width_ == step / width_) {
    Column& column = columns_.back();
    ++column.count;
    for (std::size_t i = 0; i < load_LE.size(); ++i) column.sum_LE[i] += load_LE[i];
  } else {
    columns_.push_back({step, 1, std::move(load_LE)});
    while (columns_.size() > max_columns()) widen();
  }
  return entropy / static_cast<double>(layers);
}

void LoadMap::widen() {
  width_ *= 2;
  std::vector<Column> wide;
  for (Column& next : columns_) {
    if (wide.empty() || wide.back().first / width_ != next.first / width_) {
      wide.push_back(std::move(next));
      continue;
    }
    wide.back().count += next.count;
    for (std::size_t i = 0; i < next.sum_LE.size(); ++i) wide.back().sum_LE[i] += next.sum_LE[i];
  }
  columns_ = std::move(wide);
}

nlohmann::ordered_json LoadMap::json() const {
  nlohmann::ordered_json json;
  json["layers"] = layers_;
  json["experts"] = experts_;
  json["step"] = nlohmann::json::array();
  for (const Column& column : columns_) json["step"].push_back(column.first);
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i < static_cast<std::size_t>(layers_ * experts_); ++i) {
    for (const Column& column : columns_) {
      bytes.push_back(load_byte(column.sum_LE[i] / static_cast<double>(column.count)));
    }
  }
  json["load"] = base64(bytes);
  return json;
}

std::string base64(const std::vector<std::uint8_t>& bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t have = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < 3; ++k) group = group << 8 | (k < have ? bytes[i + k] : 0u);
    for (std::size_t k = 0; k < 4; ++k) {
      text += k <= have ? kDigits[group >> (18 - 6 * k) & 63] : '=';
    }
  }
  return text;
}

}  // namespace dropless::train
