#include "train/run/profiler.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"

namespace dropless::train {
namespace {

namespace kineto = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

std::set<ActivityType> activities(at::Device device) {
  std::set<ActivityType> set{ActivityType::CPU};
  if (device.is_cuda()) set.insert(ActivityType::CUDA);
  return set;
}

torch::profiler::impl::ProfilerConfig kineto_config(const ProfilerConfig& config) {
  return torch::profiler::impl::ProfilerConfig(torch::profiler::impl::ProfilerState::KINETO,
                                               config.shapes, config.memory, /*with_stack=*/false,
                                               config.flops);
}

std::string with(std::string text, const std::string& variable, std::int64_t value) {
  if (const auto at = text.find(variable); at != std::string::npos) {
    text.replace(at, variable.size(), std::to_string(value));
  }
  return text;
}

}  // namespace

Profiler::Profiler(ProfilerConfig config, const std::string& run_folder, at::Device device,
                   std::int64_t first_step, std::int64_t steps_per_epoch)
    : config_(std::move(config)),
      device_(device),
      first_step_(first_step),
      steps_per_epoch_(steps_per_epoch) {
  if (config_.folder.empty()) config_.folder = join_path(run_folder, "traces");
  // Where there is no GPU, kineto looks for some all the same and reports on standard error that it
  // finds none. What goes wrong with a trace is said by write().
  constexpr const char* kNothing = "5";
  if (device_.is_cpu()) ::setenv("KINETO_LOG_LEVEL", kNothing, /*overwrite=*/0);
}

Profiler::~Profiler() {
  if (!recording_) return;
  try {
    kineto::disableProfiler();
  } catch (const std::exception& error) {
    log_warning("the profiler could not be stopped: {}", error.what());
  }
}

void Profiler::begin_step(std::int64_t done) {
  const std::int64_t epoch = done / steps_per_epoch_;
  const bool entered_here = epoch == first_step_ / steps_per_epoch_;
  const ProfilerConfig::Action action = config_.action(
      done % steps_per_epoch_, steps_per_epoch_, entered_here ? first_step_ % steps_per_epoch_ : 0);
  using Action = ProfilerConfig::Action;
  save_after_step_ = action == Action::kRecordAndSave;
  if (action == Action::kSkip) return;
  if (!prepared_) kineto::prepareProfiler(kineto_config(config_), activities(device_));
  prepared_ = true;
  if (action == Action::kWarmUp || recording_) return;
  kineto::enableProfiler(
      kineto_config(config_), activities(device_),
      {at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE, at::RecordScope::BACKWARD_FUNCTION});
  recording_ = true;
}

void Profiler::end_step(std::int64_t done) {
  if (save_after_step_) write(done);
}

void Profiler::finish(std::int64_t done) {
  if (recording_) write(done);
}

void Profiler::write(std::int64_t done) {
  recording_ = prepared_ = save_after_step_ = false;
  const auto result = kineto::disableProfiler();
  std::string name = with(config_.filename, "{epoch}", (done - 1) / steps_per_epoch_);
  name = with(with(name, "{batch}", done), "{rank}", 0);
  const std::string path = join_path(config_.folder, name), temporary = path + ".tmp";
  try {
    make_folders(config_.folder);
    result->save(temporary);
    if (!path_exists(temporary)) {
      throw Error(ErrorKind::kResource, "libtorch wrote no " + temporary);
    }
    rename_path(temporary, path);
  } catch (const std::exception& error) {
    log_warning("no trace of the steps to {}: {}", done, error.what());
    return;
  }
  log_info("trace of the steps to {}: {}", done, path);
  std::erase(written_, path);
  written_.push_back(path);
  while (config_.num_traces_to_keep > 0 && std::ssize(written_) > config_.num_traces_to_keep) {
    remove_all(written_.front());
    written_.pop_front();
  }
}

}  // namespace dropless::train
