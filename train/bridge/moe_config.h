// What a dropless layer is, for those who read configs and stand without libtorch.
#pragma once

#include "dropless/moe.h"
