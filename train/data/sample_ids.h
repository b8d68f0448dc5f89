// An epoch's sample ids in order, 32 bits each where all fit: 10 million samples are 40 MB.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

namespace dropless::train {

class SampleIds {
 public:
  SampleIds() = default;
  template <class Id>  // std::int32_t or std::int64_t
  explicit SampleIds(std::vector<Id> ids) : ids_(std::move(ids)) {}

  std::size_t size() const {
    return std::visit([](const auto& ids) { return ids.size(); }, ids_);
  }
  std::int64_t operator[](std::size_t i) const {
    return std::visit([&](const auto& ids) { return static_cast<std::int64_t>(ids[i]); }, ids_);
  }
  // Up to `count` of them from `begin` on.
  std::vector<std::int64_t> slice(std::size_t begin, std::size_t count) const {
    return std::visit(
        [&](const auto& ids) {
          const auto at = [&](std::size_t i) {
            return ids.begin() + static_cast<std::ptrdiff_t>(std::min(i, ids.size()));
          };
          return std::vector<std::int64_t>(at(begin), at(begin + count));
        },
        ids_);
  }
  // Without the -1 of places that no sample fills.
  void erase_none() {
    std::visit([](auto& ids) { std::erase(ids, -1); }, ids_);
  }

 private:
  std::variant<std::vector<std::int32_t>, std::vector<std::int64_t>> ids_;
};

}  // namespace dropless::train
