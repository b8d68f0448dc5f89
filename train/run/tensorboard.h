// Event files for TensorBoard: the scalars of metrics.jsonl.
//
// Format: TFRecord frames (length, masked CRC32C of it, bytes, masked CRC32C of them) of protobuf
// messages tensorflow.Event; of those only the few fields that scalars need are written.
// Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto.
#pragma once

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace dropless::train {

class TensorBoardWriter {
 public:
  // A new event file in `folder` (made where it is missing). A resumed run begins at `first_step`:
  // TensorBoard then drops what earlier files say of that step and later ones. Throws
  // Error(kResource).
  TensorBoardWriter(const std::string& folder, std::int64_t first_step);
  // The numbers of one line of metrics.jsonl. Nothing here stops a run: what fails is one warning,
  // and the end of the file.
  void take(const nlohmann::ordered_json& line);

 private:
  void write_event(std::string_view event);

  std::string path_;
  std::ofstream file_;
};

}  // namespace dropless::train
