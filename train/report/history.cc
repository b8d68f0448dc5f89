#include "train/report/history.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <utility>

#include "train/base/fs.h"
#include "train/base/utf8.h"
#include "train/checkpoint/checkpoint.h"

namespace dropless::train {
namespace {

constexpr std::size_t kMaxLine = 16u << 20;
constexpr std::size_t kMaxSeries = 300, kMaxEvents = 400, kMaxConfig = 200'000;
constexpr std::size_t kMaxSampleSteps = 64, kMaxTextsOfAStep = 8, kMaxSampleText = 2000;
constexpr std::size_t kMaxDetail = 300;  // of an event
// Enough of a line to tell two files apart: a step's speed is never the same twice.
constexpr std::size_t kTail = 512;
constexpr std::int64_t kMaxStep = 9007199254740992;  // 2^53: all that JavaScript counts exactly

// Python's json writes NaN and Infinity, which are no JSON: as null they leave the line's other
// values readable.
std::string without_non_finite(std::string_view line) {
  std::string text;
  bool quoted = false;
  for (std::size_t i = 0; i < line.size();) {
    if (quoted && line[i] == '\\') {
      text += line.substr(i, 2);
      i += 2;
      continue;
    }
    if (line[i] == '"') quoted = !quoted;
    std::size_t word = 0;
    if (!quoted) {
      for (const std::string_view name : {"NaN", "-Infinity", "Infinity"}) {
        if (word == 0 && line.substr(i).starts_with(name)) word = name.size();
      }
    }
    text += word > 0 ? std::string("null") : std::string(1, line[i]);
    i += std::max<std::size_t>(word, 1);
  }
  return text;
}

// A line's object, where it is one and has a step.
std::optional<nlohmann::json> parse_line(std::string_view line) {
  auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    json = nlohmann::json::parse(without_non_finite(line), nullptr, /*allow_exceptions=*/false);
  }
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return {};
  // Above 2^63 a number is unsigned, and negative as an int64.
  const auto step = json["step"].get<std::int64_t>();
  if (step < 0 || step > kMaxStep) return {};
  return json;
}

std::string short_text(const nlohmann::json& line, const char* key, std::size_t most) {
  if (!line.contains(key) || !line[key].is_string()) return "";
  const auto& text = line[key].get_ref<const std::string&>();
  const std::string cut = cut_to_width(text, most);
  return cut.size() < text.size() ? cut + " ..." : cut;
}

}  // namespace

template <class Take>
bool LineReader::read(const Take& take) {
  std::ifstream file(path_, std::ios::binary | std::ios::ate);
  if (!file && offset_ == 0) return true;
  const auto size = static_cast<std::uint64_t>(std::max<std::streamoff>(file.tellg(), 0));
  std::string tail(tail_.size(), '\0');
  file.seekg(static_cast<std::streamoff>(offset_ - tail.size()));
  if (!file.read(tail.data(), static_cast<std::streamsize>(tail.size())) || tail != tail_) {
    offset_ = 0;
    tail_.clear();
    return false;
  }
  std::string pending;
  std::vector<char> chunk(1u << 20);
  bool oversized = false;
  std::uint64_t at = offset_;
  while (at < size) {
    file.read(chunk.data(),
              static_cast<std::streamsize>(std::min<std::uint64_t>(chunk.size(), size - at)));
    const auto got = static_cast<std::size_t>(file.gcount());
    if (got == 0) break;
    std::string_view rest(chunk.data(), got);
    for (std::size_t end; (end = rest.find('\n')) != std::string_view::npos;) {
      if (oversized) {
        ++oversized_;
      } else if (pending.empty()) {
        take(rest.substr(0, end));
      } else {
        pending += rest.substr(0, end);
        take(std::string_view(pending));
      }
      pending.clear();
      oversized = false;
      rest.remove_prefix(end + 1);
      offset_ = at + got - rest.size();
    }
    if (const std::size_t whole = got - rest.size(); whole > 0) {
      const std::size_t begin = whole - std::min(whole, kTail);
      tail_.assign(chunk.data() + begin, whole - begin);
    }
    if (!oversized) pending += rest;
    if (pending.size() > kMaxLine) {
      oversized = true;
      pending.clear();
    }
    at += got;
  }
  return true;
}

RunHistory::RunHistory(const std::string& folder)
    : folder_(folder),
      metrics_file_(join_path(folder, "metrics.jsonl")),
      samples_file_(join_path(folder, "samples.jsonl")),
      events_file_(join_path(folder, "events.jsonl")) {}

// False where one of them is another file than before.
bool RunHistory::read_files() {
  return metrics_file_.read([&](std::string_view line) { take_metrics(line); }) &&
         samples_file_.read([&](std::string_view line) { take_sample(line); }) &&
         events_file_.read([&](std::string_view line) { take_event(line); });
}

void RunHistory::read() {
  if (read_files()) return;
  const std::int64_t version = version_;
  *this = RunHistory(folder_);  // all of them from the start
  version_ = version + 1;
  read_files();
}

void RunHistory::add_value(const std::string& key, std::int64_t step, double value) {
  auto found = series_.find(key);
  if (found == series_.end()) {
    if (series_.size() >= kMaxSeries) {
      ++series_left_out_;
      return;
    }
    found = series_.emplace(key, Series()).first;
  }
  found->second.add(step, value);
}

void RunHistory::take_metrics(std::string_view line) {
  ++version_;
  const auto json = parse_line(line);
  if (!json) {
    ++broken_lines_;
    return;
  }
  const auto step = (*json)["step"].get<std::int64_t>();
  last_step_ = step;
  std::string not_finite;
  bool skipped = false;
  for (const auto& [key, value] : json->items()) {
    if (key == "step") continue;
    if (value.is_number()) {
      add_value(key, step, value.get<double>());
    } else if (value.is_null()) {
      not_finite += not_finite.empty() ? key : ", " + key;
    } else if (key == "skipped" && value.is_boolean()) {
      skipped = value.get<bool>();
    } else if (key == "mb_moe/tokens_per_expert") {
      const double entropy = load_.add(step, value);
      if (std::isfinite(entropy)) add_value("report/load_entropy", step, entropy);
    }
  }
  if (!skipped && not_finite.empty()) return;
  std::string detail =
      not_finite.empty() ? "the gradients overflowed" : "not finite: " + not_finite;
  add_event({{"step", step},
             {"event", skipped ? "skip" : "not finite"},
             {"detail", cut_to_width(detail, kMaxDetail)}});
}

void RunHistory::take_sample(std::string_view line) {
  ++version_;
  const auto json = parse_line(line);
  if (!json) {
    ++broken_lines_;
    return;
  }
  const auto step = (*json)["step"].get<std::int64_t>();
  // A run that was resumed from an older checkpoint writes them again.
  while (!samples_.empty() && samples_.back().step > step) samples_.pop_back();
  if (samples_.empty() || samples_.back().step < step) {
    // The newest always, of the others every sample_stride_-th.
    if (sample_steps_ > 0 && (sample_steps_ - 1) % sample_stride_ != 0 && !samples_.empty()) {
      samples_.pop_back();
    }
    samples_.push_back({step, {}});
    ++sample_steps_;
  }
  if (samples_.back().texts.size() < kMaxTextsOfAStep) {
    samples_.back().texts.emplace_back(short_text(*json, "prompt", kMaxSampleText),
                                       short_text(*json, "text", kMaxSampleText));
  }
  if (samples_.size() <= kMaxSampleSteps) return;
  std::vector<Samples> kept;
  for (std::size_t i = 0; i < samples_.size(); i += 2) kept.push_back(std::move(samples_[i]));
  if (samples_.size() % 2 == 0) kept.push_back(std::move(samples_.back()));
  samples_ = std::move(kept);
  sample_stride_ *= 2;
}

void RunHistory::take_event(std::string_view line) {
  ++version_;
  const auto json = parse_line(line);
  if (!json) {
    ++broken_lines_;
    return;
  }
  nlohmann::ordered_json event{{"step", (*json)["step"]},
                               {"event", short_text(*json, "event", 40)}};
  for (const char* key : {"time", "detail"}) {
    if (const std::string text = short_text(*json, key, kMaxDetail); !text.empty())
      event[key] = text;
  }
  add_event(std::move(event));
}

void RunHistory::add_event(nlohmann::ordered_json event) {
  events_.push_back(std::move(event));
  if (events_.size() < 2 * kMaxEvents) return;
  events_.erase(events_.begin(), events_.begin() + kMaxEvents);
  events_dropped_ += kMaxEvents;
}

nlohmann::ordered_json RunHistory::json(const std::string& name, const std::string& config_yaml,
                                        std::size_t most_points) const {
  nlohmann::ordered_json json;
  json["name"] = name;
  json["step"] = last_step_;
  json["broken_lines"] = broken_lines_ + metrics_file_.oversized() + samples_file_.oversized() +
                         events_file_.oversized();
  json["series_left_out"] = series_left_out_ > 0;
  json["config"] = cut_to_width(config_yaml, kMaxConfig);
  const std::size_t most =
      std::max<std::size_t>(most_points / std::max<std::size_t>(series_.size(), 1), 50);
  json["series"] = nlohmann::ordered_json::object();
  for (const auto& [key, series] : series_) {
    if (!series.empty()) json["series"][key] = series.json(most);
  }
  if (!load_.empty()) json["load"] = load_.json();
  auto events = events_;
  const bool recorded = std::any_of(events.begin(), events.end(),
                                    [](const auto& event) { return event["event"] == "save"; });
  if (!recorded) {  // a run from before events.jsonl: the checkpoints that still stand
    for (const std::int64_t step : list_steps(folder_)) {
      events.push_back({{"step", step}, {"event", "save"}});
    }
  }
  std::stable_sort(events.begin(), events.end(), [](const auto& a, const auto& b) {
    return a["step"].template get<std::int64_t>() < b["step"].template get<std::int64_t>();
  });
  json["events"] = std::move(events);
  json["events_dropped"] = events_dropped_;
  json["samples"] = nlohmann::json::array();
  for (const Samples& samples : samples_) {
    auto texts = nlohmann::json::array();
    for (const auto& [prompt, text] : samples.texts) {
      texts.push_back({{"prompt", prompt}, {"text", text}});
    }
    json["samples"].push_back({{"step", samples.step}, {"texts", std::move(texts)}});
  }
  return json;
}

}  // namespace dropless::train
