// Sample lines: one JSON object a sample, column -> typed value, as `dropless data cat` prints
// them.
//
// | encoding                   | typed value                                                      |
// | bytes, images              | {"t":"bytes","hex":"8a11"}                                       |
// | str                        | {"t":"str","v":"text"}                                           |
// | int, str_int               | {"t":"int","v":"-5"}                                             |
// | int8..uint64, float16..64  | {"t":"int32","v":"7","hex":"07000000"}, hex in little-endian     |
// | str_float                  | {"t":"float","v":"0.1","hex":"..."}, hex of the float64          |
// | str_decimal                | {"t":"decimal","v":"1.20"}                                       |
// | ndarray forms              | {"t":"ndarray","dtype":"int32","shape":[4],"hex":"..."}          |
// | json                       | {"t":"json","v":...}                                             |
// Reading back, `hex` decides wherever it is present, and t = bytes stores its bytes in any column.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/data/mds_index.h"

namespace dropless::train {

// Errors name the sample and the column: kDamaged for bytes that are not of the column's encoding
// (invalid UTF-8 in a str too), kInvalidArgument for pickles.
std::string sample_line(std::span<const MdsColumn> columns,
                        std::span<const std::string_view> values, std::int64_t sample);
// {"column":{"len":n,"sha256":"..."}, ...} of the undecoded bytes.
std::string raw_sample_line(std::span<const MdsColumn> columns,
                            std::span<const std::string_view> values);

// The bytes to store, one string a column. Throws Error(kInvalidArgument) naming the column,
// and for a member that is no column: MosaicML's writer drops those silently.
std::vector<std::string> encode_sample_line(std::span<const MdsColumn> columns,
                                            std::string_view line);

}  // namespace dropless::train
