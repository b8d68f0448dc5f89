// What tokenizer.json calls a pre-tokenizer: steps that cut text into the words that BPE sees.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "train/tokenizer/pattern.h"

namespace dropless::train {

using WordSink = std::function<void(std::string_view)>;

class SplitStep {
 public:
  virtual ~SplitStep() = default;
  // Cuts `piece` into parts, in order. `first`: it stands at the beginning of the text.
  virtual void split(std::string_view piece, bool first, const WordSink& part) const = 0;
};

// What becomes of the text that a pattern matches.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

class PatternStep : public SplitStep {
 public:
  PatternStep(Pattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void split(std::string_view piece, bool first, const WordSink& part) const override;

 private:
  Pattern pattern_;
  SplitBehavior behavior_;
  bool invert_;  // what does not match counts as matching, and the other way round
};

struct SplitSteps {
  std::vector<std::unique_ptr<SplitStep>> steps;
  bool byte_level = false;  // the words' bytes are the symbols

  // The parts of all steps, one after another.
  void split(std::string_view piece, bool first, const WordSink& word) const {
    run(0, piece, first, word);
  }

 private:
  void run(std::size_t step, std::string_view piece, bool first, const WordSink& word) const;
};

// The member `pre_tokenizer`. Throws Error(kInvalidArgument) for what it does not know.
SplitSteps split_steps_from_json(const nlohmann::json& json);

}  // namespace dropless::train
