// Fail points: places at which a test can kill the process or make an operation fail.
//
// The environment variable DROPLESS_FAIL_AT names one: a number n is the n-th point reached after
// it was set, anything else the name of a point ("rename step-4.tmp", "fsync model.safetensors"
// ...). The process then dies by SIGKILL; with ":ENOSPC" appended the operation fails as on a full
// disk instead. Without the variable a point costs one getenv; points stand only beside system
// calls that cost far more.
#pragma once

#include <string>

namespace dropless::train {

// Before `operation` on `path` (its last component makes the name). Returns 0, or the errno to fail
// with.
int fail_point(const char* operation, const std::string& path);

}  // namespace dropless::train
