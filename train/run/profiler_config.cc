#include "train/run/profiler_config.h"

#include "train/run/run_folder.h"

namespace dropless::train {
namespace {

void read_schedule(const YamlMap& map, ProfilerConfig& config) {
  config.skip_first = map.non_negative<std::int64_t>("skip_first", config.skip_first);
  config.wait = map.non_negative<std::int64_t>("wait", config.wait);
  config.warmup = map.non_negative<std::int64_t>("warmup", config.warmup);
  config.active = map.positive<std::int64_t>("active", config.active);
  config.repeat = map.non_negative<std::int64_t>("repeat", config.repeat);
  map.finish();
}

void read_trace_file(const YamlMap& map, const std::string& run_name, ProfilerConfig& config) {
  if (const auto folder = map.find<std::string>("folder")) {
    map.locate("folder", [&] { config.folder = RunFolder::name(*folder, run_name); });
  }
  config.filename = map.get<std::string>("filename", config.filename);
  if (config.filename.empty() || config.filename.find('/') != std::string::npos) {
    map.fail("filename", "filename is the name of one file");
  }
  map.locate("filename", [&] {
    check_variables(config.filename, {"{epoch}", "{batch}", "{rank}"});
  });
  config.num_traces_to_keep = map.get<std::int64_t>("num_traces_to_keep", -1);
  if (config.num_traces_to_keep < -1 || config.num_traces_to_keep == 0) {
    map.fail("num_traces_to_keep", "num_traces_to_keep is -1 (all) or at least 1");
  }
  map.no_effect("overwrite", "a trace of the same name is replaced");
  for (const char* key : {"merged_trace_filename", "merged_trace_remote_file_name"}) {
    map.no_effect(key, "there is one process, whose traces are whole");
  }
  map.no_effect("remote_file_name", "nothing is uploaded");
  map.finish();
}

}  // namespace

ProfilerConfig ProfilerConfig::from_yaml(const YamlMap& map, const std::string& run_name) {
  ProfilerConfig config;
  read_schedule(map.map("schedule"), config);
  if (const auto handler = map.find_map("json_trace_handler")) {
    read_trace_file(*handler, run_name, config);
  }
  config.shapes = map.get<bool>("torch_prof_record_shapes", config.shapes);
  config.memory = map.get<bool>("torch_prof_profile_memory", config.memory);
  config.flops = map.get<bool>("torch_prof_with_flops", config.flops);
  map.no_effect("torch_prof_with_stack", "there is no Python stack");
  for (const char* key : {"torch_prof_folder", "torch_prof_filename", "torch_prof_overwrite",
                          "torch_prof_use_gzip", "torch_prof_num_traces_to_keep"}) {
    map.no_effect(key, "operators and spans stand in one trace, json_trace_handler's");
  }
  for (const char* key : {"torch_prof_remote_file_name", "torch_prof_memory_remote_file_name"}) {
    map.no_effect(key, "nothing is uploaded");
  }
  map.no_effect("torch_prof_memory_filename", "allocations stand in the trace");
  for (const char* key : {"sys_prof_cpu", "sys_prof_memory", "sys_prof_disk", "sys_prof_net",
                          "sys_prof_stats_thread_interval_seconds"}) {
    map.no_effect(key, "the process's memory is in metrics.jsonl");
  }
  map.finish();
  return config;
}

ProfilerConfig::Action ProfilerConfig::action(std::int64_t step, std::int64_t steps,
                                              std::int64_t entered) const {
  const std::int64_t cycle = wait + warmup + active, since = step - entered - skip_first;
  if (since < 0 || (repeat != 0 && since >= cycle * repeat)) return Action::kSkip;
  const std::int64_t position = since % cycle;
  if (position < wait) return Action::kSkip;
  if (position < wait + warmup) return Action::kWarmUp;
  const bool last = position == cycle - 1 || step == steps - 1;
  return last ? Action::kRecordAndSave : Action::kRecord;
}

}  // namespace dropless::train
