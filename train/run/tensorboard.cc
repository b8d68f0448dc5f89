#include "train/run/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"

namespace dropless::train {
namespace {

// CRC-32C (Castagnoli), reflected, bit by bit into a table.
constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
    table[byte] = crc;
  }
  return table;
}();

// TFRecord's mask: a CRC of bytes that hold CRCs would be weak.
std::uint32_t masked_crc(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes)
    crc = kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ (crc >> 8);
  return std::rotr(~crc, 15) + 0xA282EAD8u;
}

template <class Number>
std::string little_endian(Number value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof value; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

// Protobuf's wire format: a field is its number and wire type, then a varint, 4 or 8 bytes, or a
// length and bytes.
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
std::string tag(int field, Wire wire) {
  return varint(static_cast<std::uint64_t>(field << 3 | wire));
}
std::string bytes_field(int field, std::string_view bytes) {
  return tag(field, kBytes) + varint(bytes.size()) + std::string(bytes);
}

// Fields of tensorflow.Event, Summary, Summary.Value and SessionLog.
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
constexpr int kValue = 1, kTag = 1, kSimpleValue = 2, kStatus = 1;
constexpr std::uint64_t kStart = 1;

std::string event_head(std::int64_t step) {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return tag(kWallTime, kFixed64) + little_endian(std::bit_cast<std::uint64_t>(now)) +
         tag(kStep, kVarint) + varint(static_cast<std::uint64_t>(step));
}

std::string scalar(const std::string& name, double value) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  return bytes_field(kValue,
                     bytes_field(kTag, name) + tag(kSimpleValue, kFixed32) + little_endian(bits));
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

}  // namespace

TensorBoardWriter::TensorBoardWriter(const std::string& folder, std::int64_t first_step) {
  make_folders(folder);
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(
                           std::chrono::system_clock::now().time_since_epoch())
                           .count();
  path_ = join_path(
      folder, fmt::format("events.out.tfevents.{:010}.{}.{}.0", seconds, host_name(), ::getpid()));
  errno = 0;
  file_.open(path_, std::ios::binary | std::ios::trunc);
  if (!file_) throw_errno("create", path_, errno);
  write_event(event_head(0) + bytes_field(kFileVersion, "brain.Event:2"));
  if (first_step > 1) {
    write_event(event_head(first_step) +
                bytes_field(kSessionLog, tag(kStatus, kVarint) + varint(kStart)));
  }
}

void TensorBoardWriter::take(const nlohmann::ordered_json& line) {
  if (!file_) return;
  std::string summary;
  for (const auto& [key, value] : line.items()) {
    if (value.is_number() && key != "step") summary += scalar(key, value.get<double>());
  }
  errno = 0;
  write_event(event_head(line.at("step").get<std::int64_t>()) + bytes_field(kSummary, summary));
  file_.flush();
  if (!file_) {
    try {
      throw_errno("write", path_, errno, summary.size());
    } catch (const Error& error) {
      log_warning("{}; TensorBoard gets nothing more of this run", error.what());
    }
  }
}

void TensorBoardWriter::write_event(std::string_view event) {
  const std::string length = little_endian(static_cast<std::uint64_t>(event.size()));
  file_ << length << little_endian(masked_crc(length)) << event << little_endian(masked_crc(event));
}

}  // namespace dropless::train
