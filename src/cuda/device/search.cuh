// Search in increasing arrays.
#pragma once

namespace dropless::cuda {

// The first of the entries begin .. end that is not below `value`; end if all are.
__device__ __forceinline__ int lower_bound(const int* values, int begin, int end, int value) {
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (__ldg(values + middle) < value) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

}  // namespace dropless::cuda
