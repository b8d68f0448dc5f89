// `libexec/dropless`: the command with all its verbs, on libtorch. bin/dropless (launcher.cc) starts it.
#include <c10/util/Exception.h>

#include <CLI/CLI.hpp>

#include <cstdlib>
#include <exception>
#include <string>

#include "apps/command.h"
#include "apps/train.h"
#include "apps/train_options.h"
#include "apps/verbs.h"

namespace {

using namespace dropless::apps;

// c10::Error's what() would add libtorch's stack trace.
std::string describe_torch_error() {
  try {
    throw;
  } catch (const c10::Error& error) {
    return std::string("libtorch: ") + error.what_without_backtrace() +
           "\nhint: look at the variables PYTORCH_* and CUDA_*; where none is set, this is a bug "
           "in "
           "dropless";
  } catch (...) {
    return {};
  }
}

// Some exceptions never reach main: libtorch_cuda reads its settings while dlopen loads it, and
// dlopen lets none through.
[[noreturn]] void report_termination() {
  if (!std::current_exception()) std::abort();
  std::_Exit(report_exception(describe_torch_error));
}

}  // namespace

// libtorch's MKL asks this of itself, and on processors of other makers takes kernels without
// AVX-512 even where they have it: half the speed of all of a small model's dense products. The
// instructions it then uses are still chosen by what the processor reports.
extern "C" int mkl_serv_intel_cpu_true() { return 1; }

int main(int argc, char** argv) {
  std::set_terminate(report_termination);
  CLI::App app{"Trains, evaluates and samples mixture-of-experts language models.", "dropless"};
  set_up(app);
  add_train_verb(app, run_train);
  add_eval_verb(app);
  add_generate_verb(app);
  add_info_verb(app);
  add_convert_verb(app);
  add_data_verb(app);
  add_bench_verb(app);
  add_report_verb(app);
  add_version_verb(app);
  return run_command(app, argc, argv, describe_torch_error);
}
