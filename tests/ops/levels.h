// Runs a check once for the reference and once for each instruction set that this processor has.
#pragma once

#include <gtest/gtest.h>

#include "dropless/backend.h"
#include "src/cpu/simd/table.h"

namespace dropless::testing {

template <class Check>
void for_each_implementation(Check&& check) {
  {
    SCOPED_TRACE("reference");
    check(Backend::kReference);
  }
  const cpu::SimdLevel best = cpu::simd_level();
  for (cpu::SimdLevel level :
       {cpu::SimdLevel::kGeneric, cpu::SimdLevel::kAvx2, cpu::SimdLevel::kAvx512,
        cpu::SimdLevel::kAvx512Bf16, cpu::SimdLevel::kAmx}) {
    if (level > best) continue;
    cpu::set_simd_level(level);
    SCOPED_TRACE(cpu::simd().name);
    check(Backend::kAuto);
  }
  cpu::set_simd_level(best);
}

// Central difference of objective() in element i of `input`.
template <class Input, class Objective>
double central_difference(Input& input, std::int64_t i, Objective&& objective, double step = 1e-5) {
  const double value = input.get(i);
  input.set(i, value + step);
  const double above = objective();
  input.set(i, value - step);
  const double below = objective();
  input.set(i, value);
  return (above - below) / (2 * step);
}

}  // namespace dropless::testing
