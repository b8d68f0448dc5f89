// A sample of a set as tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "train/data/mds_reader.h"

namespace dropless::train {

struct TokenRow {
  std::vector<std::int64_t> ids;
  // Of each id: learned (1), or only read (0). Empty: all are learned.
  std::vector<std::uint8_t> learned;
};

class SampleReader {
 public:
  virtual ~SampleReader() = default;
  // Appends one sample, of at least one id: an empty text is one pad. Throws Error(kDamaged) naming the
  // sample, for ids outside the vocabulary too.
  virtual void append(std::int64_t sample, TokenRow& row) = 0;
  virtual const MdsReader& reader() const = 0;
  virtual std::int64_t pad_id() const = 0;
  // Warns of samples since the last call of which nothing is left to learn, if there are any.
  virtual void report_lost() {}
  virtual void forget_lost() {}  // those, where samples were only looked at
};

// Throws Error(kDamaged) at the first id that is not in [0, vocab_size); 0: none is checked.
void check_vocabulary(const std::vector<std::int64_t>& ids, std::size_t from,
                      std::int64_t vocab_size);

}  // namespace dropless::train
