// Precompiled for the tests of rooms without libtorch.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/base/pch.h"
