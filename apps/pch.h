// Precompiled for the verbs without libtorch: CLI11 alone is 6 s of parsing a file.
#pragma once

#include <CLI/CLI.hpp>

#include "train/base/pch.h"
