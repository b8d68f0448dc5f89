// The one source of the version: CMake, `dropless version` and the wheel read it from here.
#pragma once

#define DROPLESS_VERSION_MAJOR 0
#define DROPLESS_VERSION_MINOR 1
#define DROPLESS_VERSION_PATCH 0
#define DROPLESS_VERSION "0.1.0"
